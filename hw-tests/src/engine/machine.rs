//! The cases on the model of a CPU (`switcher_model`): it needs no real CPU, has both vendors and
//! both paging modes, and checks every instruction of the switcher.

use anyhow::Result;
use hw_cases::{CaseHost, Entries, Observed, Platform, Refusal, Setup, place};
use switcher_engine::Interpreter;
use switcher_engine::interpreter::{Error, PageKind};
use switcher_engine::scenario::Places;
use switcher_gen::asm::Label;
use switcher_gen::layout::Mode;
use switcher_gen::{Image, Variant};

use super::hosted::{self, Hosted, NamedHost};

/// One engine for each vendor and paging mode, with every option on in one and off in another, and
/// one for each policy.
pub(super) const ENGINES: [Hosted; 7] = [
    engine("machine-intel", || Ok("intel-4level-ibt-pcid".parse()?)),
    engine("machine-amd", || Ok("amd-4level".parse()?)),
    engine("machine-intel-la57", || Ok("intel-la57".parse()?)),
    engine("machine-amd-la57", || Ok("amd-la57-pcid-pku".parse()?)),
    engine("machine-percpu", || Ok("intel-4level-percpu".parse()?)),
    engine("machine-current", || Ok("amd-4level-current".parse()?)),
    engine("machine-percpu-current", || Ok("intel-la57-ibt-pcid-pku-percpu-current".parse()?)),
];

const fn engine(name: &'static str, variant: fn() -> Result<Variant>) -> Hosted {
    Hosted { name, variant, host, unavailable: || None }
}

fn host(variant: &Variant) -> Result<NamedHost> {
    let host = Machine::new(variant)?;
    Ok((Box::new(host), "the model of switcher-gen/model".into()))
}

/// A model with the pages that cases use.
struct Machine {
    machine: Interpreter,
    platform: Platform,
}

impl Machine {
    fn new(variant: &Variant) -> Result<Self, Error> {
        let places = Places { smod: place::TEXT, umod: place::TEXT, ..Interpreter::PLACES };
        let mut machine = Interpreter::with_image(Image::new(variant)?, places)?;
        let platform = hosted::platform(variant);
        machine.set_aliases(platform.aliases);
        let len = place::PAGE as usize;
        for mode in [Mode::Smod, Mode::Umod] {
            machine.map(mode, place::last(platform.paging), len, PageKind::Code);
            machine.map(mode, place::TEXT32, len, PageKind::Code);
            machine.map(mode, place::STACK, len, PageKind::Data);
        }
        Ok(Self { machine, platform })
    }
}

impl CaseHost for Machine {
    fn platform(&self) -> Platform {
        self.platform
    }

    fn entries(&self) -> Result<Entries, Refusal> {
        let msrs = self.machine.msrs();
        let base = self.machine.places().switcher;
        let address = |label| base + u64::from(self.machine.image().offset(label));
        Ok(Entries {
            star: msrs.star,
            sfmask: msrs.sfmask,
            // The model knows only the SYSENTER that faults because this is 0.
            sysenter_cs: 0,
            lstar_is_the_entry: msrs.lstar == address(Label::Syscall64),
            cstar_is_the_stub: msrs.cstar == address(Label::SyscallCompat),
            enabled: true,
        })
    }

    fn run(&mut self, setup: &Setup) -> Result<Observed, Refusal> {
        self.machine.clear_code();
        for code in &setup.code {
            // Both modes have the same page there.
            let is_shared = (place::TEXT32..place::TEXT32 + place::PAGE).contains(&code.at);
            for mode in [Mode::Smod, Mode::Umod] {
                if mode == code.mode || is_shared {
                    self.machine
                        .write_code(mode, code.at, &code.bytes)
                        .map_err(|why| Refusal::NotHere(why.to_string()))?;
                }
            }
        }
        self.machine.set_breakpoint(setup.breakpoint);
        let run = hosted::setup(setup, self.machine.setup(setup.mode));
        match self.machine.run(&run) {
            Ok(outcome) => Ok(hosted::outcome(outcome)),
            Err(why @ Error::NotModelled { .. }) => Err(Refusal::NotHere(why.to_string())),
            Err(why) => Err(hosted::failure(why)),
        }
    }
}
