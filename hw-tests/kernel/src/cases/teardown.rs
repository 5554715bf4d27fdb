//! A switcher is taken away from a CPU.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::ptr::NonNull;

use hw_cases::Expected;
use hw_platform::code_memory::CodeMemory;
use hw_platform::high::Half;
use hw_platform::memory::{self, PAGE};
use hw_platform::{cpu, gs, hooks, percpu, smp};
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::Msr as MsrName;
use switcher_runtime::switcher_gen::asm::Label;
use switcher_runtime::switcher_gen::layout::{PerCpu, Placement};
use switcher_runtime::switcher_gen::{Config, Mitigations, Policy};
use switcher_runtime::{Cpu, DeactivateError, Mode, Refused, Switcher, Tables, Variant};
use x86_64::registers::model_specific::Msr;

use super::stack::is_within;
use crate::bench::{Control, Ended, HostCase};
use crate::case_host::BareMetal;
use crate::painted::on_painted;
use crate::programs::PROBE;
use crate::setup::{check, setup};

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/a_cpu_without_its_switcher_is_as_it_was",
    shown: "Deactivating restores all that activating has changed, or says why it cannot.",
    // An MSR that still led to the code after it is unloaded would be a way into ring 0.
    rows: &[Hazard::OpenEntries],
    cpus: 1,
    needs: &[],
    run: |bench| {
        let (host, before) = bench.take_host()?;
        teardown(host, before)
    },
}];

/// Takes the switcher from the CPU, and gives it another one, which is then unloaded: the CPU is
/// then as it was before it had the first.
#[expect(clippy::result_large_err, reason = "the errors hold what was refused")]
fn teardown(mut host: BareMetal<'static>, before: &Control) -> Ended {
    let as_before = |what: &str| match Control::read() {
        now if now == *before => Ok(()),
        now => Err(format!("{what}: {now:x?}, not {before:x?}")),
    };
    // An entry leaves another value in KERNEL_GS_BASE.
    let mut rng = fastrand::Rng::with_seed(4);
    let setup = setup(&host, &mut rng, Mode::Smod, PROBE);
    check(&mut host, &setup, &Expected::unchanged(&setup, Expected::UD))?;
    if Control::read() == *before {
        return Err("a switcher is active and nothing has changed".into());
    }
    // Between two runs the CPU is the host's, and the guest does not notice.
    for run in 0..3 {
        let between;
        (host, between) = host.inactive(Control::read)?;
        if between != *before {
            return Err(format!("after run {run}: {between:x?}, not {before:x?}"));
        }
        check(&mut host, &setup, &Expected::unchanged(&setup, Expected::UD))?;
    }

    let cpu = host.into_cpu();
    let switcher = cpu.switcher();
    let variant = *switcher.variant();
    let prepared = switcher.prepared();
    // Whoever changes LSTAR relies on the new value, so nothing is restored without an error.
    let entry = switcher.address(Label::Syscall64);
    // SAFETY: no guest runs, and no SYSCALL is executed, until the MSR has its value again.
    let write_lstar = |value| unsafe { Msr::new(MsrName::Lstar.address()).write(value) };
    write_lstar(entry + 16);
    let cpu = match cpu.deactivate() {
        Err(refused) => match refused.into_parts() {
            (cpu, DeactivateError::Changed { register: MsrName::Lstar, .. }) => cpu,
            (_, why) => return Err(format!("LSTAR was changed, and this was refused: {why}")),
        },
        Ok(_) => return Err("LSTAR was changed, and the change was lost".into()),
    };
    write_lstar(entry);
    let cpu = cpu.deactivate().map_err(|refused| format!("{refused}"))?;
    as_before("deactivated")?;
    cpu.release().map_err(|refused| format!("{refused}"))?;
    as_before("released")?;

    // The other switcher leaves the CPU and the memory. There is no place for it after this CPU's
    // block, nor near the return thunk.
    let Config { policy, mitigations, .. } = variant.config();
    let mitigations = Mitigations { untrain: false, ..mitigations };
    let config = Config { mitigations, ..variant.config() };
    let elsewhere = Variant::new(config, variant.selectors()).map_err(|why| format!("{why}"))?;
    let elsewhere = elsewhere.with_policy(Policy { placement: Placement::Gs, ..policy });
    // Its memory is executable from the start.
    let start = memory::code_start(Half::Lower) + 64 * PAGE;
    let mut memory = CodeMemory::at(start).written_at(start + 32 * PAGE);
    let other = Switcher::assemble(&elsewhere, &hooks::hooks(), &mut memory)
        .map_err(|why| format!("{why}"))?;
    let base = other.base();
    let block = NonNull::new(percpu::block(0)).ok_or("no block")?;
    let cpu = with_another(&other, block)?;
    if other.prepared() != 1 || Control::read() == *before {
        return Err("the other switcher is not active".into());
    }
    let (inactive, used) = on_painted(|| cpu.deactivate());
    is_within("deactivate", used, 2560)?;
    let cpu = inactive.map_err(|refused| format!("{refused}"))?;
    as_before("deactivated again")?;
    let (released, used) = on_painted(|| cpu.release());
    is_within("release", used, 2560)?;
    released.map_err(|refused| format!("{refused}"))?;
    let alone = under_a_gs_base_of_the_hosts(&other, block);
    as_before("and once more")?;
    // Sealed code cannot be freed before it is unloaded.
    // SAFETY: the switcher was assembled into this memory above.
    unsafe { other.unload(&mut memory) }.map_err(|refused| format!("{refused}"))?;
    alone?;
    if memory::host_flags(start + 32 * PAGE).is_some() {
        return Err("the unloaded switcher can still be written".into());
    }
    if let Some(flags) = memory::host_flags(base) {
        return Err(format!("the unloaded switcher is still mapped, {flags:?}"));
    }
    let expected = match policy.placement {
        Placement::Gs => smp::count(),
        Placement::PerCpu => 1,
    };
    if prepared != expected {
        return Err(format!("{prepared} CPUs were prepared for the switcher"));
    }
    Ok(1)
}

/// Makes a switcher active on the boot CPU, which has none.
#[expect(clippy::result_large_err, reason = "the errors hold what was refused")]
fn with_another(other: &Switcher, block: NonNull<PerCpu>) -> Result<Cpu<'_>, String> {
    // SAFETY: the block is as it was for the first switcher, which this CPU has given up; no guest
    // is entered.
    let prepare = || cpu::tracked(|| unsafe { other.prepare(block, Tables::Hosts) });
    let (prepared, used) = on_painted(prepare);
    is_within("prepare", used, 5120)?;
    let prepared = prepared.map_err(|why| format!("{why}"))?;
    // SAFETY: nothing else writes the MSRs of SYSCALL, which nobody executes.
    let (active, used) = on_painted(|| unsafe { prepared.activate() });
    is_within("activate", used, 2560)?;
    active.map_err(|refused| format!("{refused}"))
}

/// The host's GS base is another one than the switcher's, as it is in every kernel, and stays so.
/// While the switcher is active, nothing is allocated or freed, also where `deactivate` refuses.
fn under_a_gs_base_of_the_hosts(other: &Switcher, block: NonNull<PerCpu>) -> Result<(), String> {
    const OWN: u64 = 0x5A5A_0000;
    let entry = other.address(Label::Syscall64);
    // SAFETY: no SYSCALL is executed until the MSR has its value again.
    let write_lstar = |value| unsafe { Msr::new(MsrName::Lstar.address()).write(value) };
    let gs = gs::base();
    memory::watch(gs);
    drop(core::hint::black_box(Box::new(gs)));
    if memory::watched() < 2 {
        return Err("the allocator is not watched".into());
    }
    // SAFETY: nothing here asks for the CPU's number until the former base is back.
    unsafe { gs::set_base(OWN) };
    let ended = (|| -> Result<u64, String> {
        // SAFETY: the block is as it was for the switchers before; no guest is entered.
        let prepared = cpu::tracked(|| unsafe { other.prepare(block, Tables::Hosts) });
        let prepared = prepared.map_err(|why| format!("{why}"))?;
        memory::watch(OWN);
        // SAFETY: nothing else writes the MSRs of SYSCALL, which nobody executes.
        let cpu = unsafe { prepared.activate() }.map_err(|refused| format!("{refused}"))?;
        write_lstar(entry + 16);
        let refused = cpu.deactivate();
        write_lstar(entry);
        let refused = refused.err().map(Refused::into_parts);
        let Some((cpu, DeactivateError::Changed { .. })) = refused else {
            return Err("LSTAR was changed, and this was not refused".into());
        };
        let prepared = cpu.deactivate().map_err(|refused| format!("{refused}"))?;
        let times = memory::watched();
        prepared.release().map_err(|refused| format!("{refused}"))?;
        Ok(times)
    })();
    let left = gs::base();
    // SAFETY: this is the value that GS base had before.
    unsafe { gs::set_base(gs) };
    match (ended?, left) {
        (0, OWN) => Ok(()),
        (times, _) => {
            Err(format!("the allocator was used {times} times; GS base was left as {left:#x}"))
        }
    }
}
