//! What each path through a switcher costs: instructions, memory, serialising operations, cache
//! lines.
//!
//! The paths are found as the proofs find theirs ([`Prover::paths`]): all that are possible from
//! any state, and no others, as long as the guest leaves the PVCS alone meanwhile. That the code is
//! right is not said here; [`Prover::prove`] says it.
//!
//! | figure | what is counted |
//! |---|---|
//! | `instructions` | executed by the switcher: SYSRETQ and RET too, but not the SYSCALL or CALL before the first one, nor the IRETQ that may be the last, nor a NOP, which is padding. So `native` of `switcher-engine` counts, and so were the kernel's counted |
//! | `loads`, `stores` | accesses to memory; one instruction may make both |
//! | `serialising` | MOV to CR3, WRMSR and IRETQ: Intel SDM vol. 3, 9.3; AMD APM vol. 2, 7.6.4. LFENCE and MFENCE too, which by 9.3 do not serialise but make what follows wait; SFENCE not. A few MSRs, such as SPEC_CTRL on Intel, can be written without: WRMSR is counted in any case |
//! | `cr3_writes`, `swapgs` | these instructions |
//! | `code_bytes`, `code_lines` | distinct bytes of executed instructions, and the lines they lie in |
//! | `data_lines` | distinct lines that are loaded from or stored to, region by region |
//! | `branches`, `branches_taken` | conditional jumps |
//!
//! An IRETQ is left out of `instructions` alone: it serialises, and loads its frame. So is a NOP:
//! it lies in a line.
//!
//! A line has 64 bytes. How many are touched depends on where regions lie, and only this is
//! **assumed** of that: the code is as aligned as in the target, the per-CPU block (GS base) to 64,
//! the PVCS to 4096, the sp0 stack's top to 64. An IST stack's top is a multiple of 16 for all the
//! CPU does (Intel SDM vol. 3, 6.14.2), and so is the host's at its CALL (System V ABI): of these
//! the worst case is taken.

mod compare;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use iced_x86::{FlowControl, Mnemonic, Register};
use serde::{Serialize, Serializer};

use crate::layouts::ExtraField;
use crate::{Prover, Setting, Target, Theorem, Unexplored, Walk, read_extra, read_pvcs};
use switcher_gen::arch::RFlags;
use switcher_gen::layout::{PtRegs, SwitchFlags};
use switcher_model::symbolic::{Bit, Symbolic, Validity, Word};
use switcher_model::{CpuModel, Domain, Effect, Gpr, Observer, RegionName, State};

pub use compare::{Family, Row, compare, table};

/// How many instructions the kernel's switcher of 2024 executes, by [`PathCost::kind`].
pub const KERNEL_2024: [(&str, u64); 6] = [
    ("SYSCALL in umod -> smod", 37),
    ("ERETU -> umod by SYSRETQ", 52),
    ("ERETU -> umod by IRETQ (RCX differs)", 47),
    ("SYSCALL in smod -> host", 60),
    ("SYSCALL -> host (inhibited)", 60),
    ("enter -> guest by SYSRETQ", 44),
];

/// The number of [`KERNEL_2024`] for paths of this kind.
#[must_use]
pub fn kernel_2024(kind: &str) -> Option<u64> {
    KERNEL_2024.iter().find(|(known, _)| *known == kind).map(|(_, instructions)| *instructions)
}

/// One path, and what it costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PathCost {
    /// Where it starts and ends, and why it is another than its neighbours, as far as that can be
    /// told. Other code may have several paths of a kind.
    pub kind: String,
    /// Which of the paths of its kind it is, from 1 on, in the order of their addresses.
    pub number: usize,
    /// How many there are.
    pub of: usize,
    /// Executed instructions.
    pub instructions: usize,
    /// How many instructions the kernel's switcher of 2024 executes, if that is known.
    pub kernel_2024: Option<u64>,
    /// Loads from memory.
    pub loads: usize,
    /// Stores to memory.
    pub stores: usize,
    /// Operations that make everything else wait.
    pub serialising: usize,
    /// Writes of CR3.
    pub cr3_writes: usize,
    /// SWAPGS.
    pub swapgs: usize,
    /// Bytes of code.
    pub code_bytes: usize,
    /// Cache lines of code.
    pub code_lines: usize,
    /// Cache lines of data.
    pub data_lines: DataLines,
    /// Conditional jumps.
    pub branches: usize,
    /// Those that jump.
    pub branches_taken: usize,
    /// Their addresses, in the order of execution; in JSON hexadecimal. An image or an object is
    /// taken to lie at [`Target::BASE`].
    #[serde(serialize_with = "hexadecimal")]
    pub taken: Vec<u64>,
}

/// How many cache lines are touched in each region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DataLines {
    /// Of TSS and switcher's data.
    pub per_cpu: usize,
    /// Of the page shared with the guest.
    pub pvcs: usize,
    /// Of the stack at sp0.
    pub sp0_stack: usize,
    /// Of a stack of the IST.
    pub ist_stack: usize,
    /// Of the stack of whoever enters guests.
    pub host_stack: usize,
    /// Of the code, read as data.
    pub code: usize,
}

impl DataLines {
    /// All but the PVCS, which belongs to the guest.
    #[must_use]
    pub const fn hosts(&self) -> usize {
        self.per_cpu + self.sp0_stack + self.ist_stack + self.host_stack + self.code
    }
}

/// The kind, numbered if there is more than one path of it.
impl fmt::Display for PathCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if self.of > 1 {
            write!(f, ", {} of {}", self.number, self.of)?;
        }
        Ok(())
    }
}

fn hexadecimal<S: Serializer>(addresses: &[u64], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(addresses.iter().map(|address| format!("{address:#x}")))
}

/// Every path through every entry point of `target`, in the order of [`Theorem::ALL`] and of
/// addresses.
///
/// # Errors
/// If not all paths can be found.
pub fn paths(target: &Target) -> Result<Vec<PathCost>, Unexplored> {
    paths_of(target, Theorem::of(target).filter(|theorem| !theorem.is_of_events()))
}

/// Every path of these theorems: those about events are all of one kind each.
pub(crate) fn paths_of(
    target: &Target,
    theorems: impl Iterator<Item = Theorem>,
) -> Result<Vec<PathCost>, Unexplored> {
    let mut paths = Vec::new();
    for theorem in theorems {
        paths.extend(figured(target, theorem)?.into_iter().map(|found| found.path));
    }
    number(&mut paths);
    Ok(paths)
}

/// Offsets from their region's base of the bytes accessed.
type Touched = BTreeMap<RegionName, BTreeSet<i64>>;

/// A path that is not numbered yet.
struct Figured {
    path: PathCost,
    touched: Touched,
}

/// The paths of one theorem, in the order of addresses.
fn figured(target: &Target, theorem: Theorem) -> Result<Vec<Figured>, Unexplored> {
    let mut found = Vec::new();
    Prover::default().paths(
        target,
        theorem,
        || Meter::new(target.setting),
        |d, walk, meter| {
            let kind = kind(d, theorem, target, &walk, &meter);
            let path = path(target, kind, &walk.trace, &meter);
            found.push((Figured { path, touched: meter.touched }, walk.trace));
        },
    )?;
    found.sort_by(|(_, one), (_, other)| one.cmp(other));
    Ok(found.into_iter().map(|(path, _)| path).collect())
}

fn number(paths: &mut [PathCost]) {
    let mut total = BTreeMap::<String, usize>::new();
    for path in &mut *paths {
        let count = total.entry(path.kind.clone()).or_default();
        *count += 1;
        path.number = *count;
    }
    for path in paths {
        path.of = total[&path.kind];
    }
}

/// Bytes of a cache line, on every CPU that switchers are for.
const LINE: u64 = 64;

/// Watches a path for what its instructions alone do not tell.
struct Meter {
    setting: Setting,
    loads: usize,
    stores: usize,
    touched: Touched,
    /// What the first instruction finds.
    start: Option<Facts>,
    /// `switch_flags` at the last instruction, which never changes them.
    switch_flags: Option<Word>,
    /// Registers at an IRETQ and the frame it takes.
    iretq: Option<Iretq>,
}

/// What may be the reason for a path.
struct Facts {
    switch_flags: Word,
    in_smod: Bit,
    inhibited: Bit,
    at_retu_rip: Bit,
    other_selectors: Bit,
    /// Flags are wanted that a guest may not have: by the frame and by the PVCS.
    frame_flags: Bit,
    pvcs_flags: Bit,
    /// The highest bit of the PVCS's RIP.
    upper_half: Bit,
    /// PKRU has to change: to smod's, and to umod's.
    smod_pkru: Bit,
    umod_pkru: Bit,
}

struct Iretq {
    rcx: Word,
    r11: Word,
    frame: [Word; 5],
}

impl Meter {
    fn new(setting: Setting) -> Self {
        Self {
            setting,
            loads: 0,
            stores: 0,
            touched: Touched::new(),
            start: None,
            switch_flags: None,
            iretq: None,
        }
    }

    fn facts(&self, d: &Symbolic, state: &State<Symbolic>) -> Option<Facts> {
        let region = |name| state.memory.region(name);
        let extra = read_extra(d, region(RegionName::TssExtra)?, &self.setting);
        let pvcs = read_pvcs(d, region(RegionName::Pvcs)?, &self.setting);
        let flags_at = PtRegs::eflags.bytes() as i64 - size_of::<PtRegs>() as i64;
        let frame_flags = region(RegionName::Sp0Stack)?.read(d, flags_at, 8);
        let selectors = self.setting.variant.selectors();
        let usual = d.both(
            d.is(pvcs.user_cs, selectors.user_cs().into()),
            d.is(pvcs.user_ss, selectors.user_ds().into()),
        );
        let forbidden = |flags| d.any(flags, !RFlags::GUEST_ALLOWED.bits());
        Some(Facts {
            switch_flags: extra.switch_flags,
            in_smod: in_mode(d, extra.switch_flags, SwitchFlags::SMOD),
            inhibited: d.any(extra.switch_flags, !SwitchFlags::MODE_TOGGLE.bits()),
            at_retu_rip: d.eq(state.get(Gpr::Rcx), extra.retu_rip),
            other_selectors: d.not(usual),
            frame_flags: forbidden(frame_flags),
            pvcs_flags: forbidden(pvcs.eflags),
            upper_half: d.test(pvcs.rip, 63),
            smod_pkru: d.not(d.eq(state.pkru, extra.smod_pkru)),
            umod_pkru: d.not(d.eq(state.pkru, pvcs.pkru)),
        })
    }
}

impl Observer<Symbolic> for Meter {
    fn observe(&mut self, d: &Symbolic, state: &State<Symbolic>, event: Effect<Word>) {
        match event {
            Effect::Execute(_) => {
                let at = self.setting.own_extra_at(ExtraField::SwitchFlags);
                let extra = state.memory.region(RegionName::TssExtra);
                self.switch_flags = extra.map(|extra| extra.read(d, at, 8));
                if self.start.is_none() {
                    self.start = self.facts(d, state);
                }
            }
            Effect::Access(access) => {
                *(if access.store { &mut self.stores } else { &mut self.loads }) += 1;
                let region = &state.memory.regions[access.place.region];
                self.touch(region.name, region.offset(access.place.index), access.place.size);
            }
            Effect::Iretq(frame) => {
                let (rcx, r11) = (state.get(Gpr::Rcx), state.get(Gpr::R11));
                self.iretq = Some(Iretq { rcx, r11, frame });
                // The runner takes the frame itself, so there is no access to be seen.
                self.loads += frame.len();
                let size = 8 * frame.len();
                let place = state.memory.locate(d, state.get(Gpr::Rsp), size, state.cr3);
                if let Some(place) = place {
                    let region = &state.memory.regions[place.region];
                    self.touch(region.name, region.offset(place.index), size);
                }
            }
            _ => {}
        }
    }
}

impl Meter {
    fn touch(&mut self, region: RegionName, offset: i64, size: usize) {
        self.touched.entry(region).or_default().extend(offset..offset + size as i64);
    }
}

/// How many lines these bytes lie in.
fn data_lines(touched: &Touched, target: &Target) -> DataLines {
    // Where the base can lie in a line.
    let lines = |regions: &[RegionName], bases: &mut dyn Iterator<Item = u64>| {
        let bytes = regions.iter().filter_map(|name| touched.get(name)).flatten();
        let bytes: Vec<i64> = bytes.copied().collect();
        let from = |base: u64| {
            let line = |offset: &i64| base.wrapping_add_signed(*offset) / LINE;
            bytes.iter().map(line).collect::<BTreeSet<_>>().len()
        };
        bases.map(from).max().unwrap_or_default()
    };
    // Some address of that alignment.
    const ALIGNED: u64 = 1 << 32;
    let aligned = || std::iter::once(ALIGNED);
    // Multiples of 16, the CALL's return address being pushed from one.
    let multiples_of_16 = || (ALIGNED..ALIGNED + LINE).step_by(16);
    DataLines {
        per_cpu: lines(&[RegionName::Tss, RegionName::TssExtra], &mut aligned()),
        pvcs: lines(&[RegionName::Pvcs], &mut aligned()),
        sp0_stack: lines(&[RegionName::Sp0Stack], &mut aligned()),
        ist_stack: lines(&[RegionName::IstStack], &mut multiples_of_16()),
        host_stack: lines(&[RegionName::HostStack], &mut multiples_of_16().map(|top| top - 8)),
        code: lines(&[RegionName::Code], &mut std::iter::once(target.program.base())),
    }
}

fn in_mode(d: &Symbolic, switch_flags: Word, mode: SwitchFlags) -> Bit {
    d.is(d.mask(switch_flags, SwitchFlags::MODE_TOGGLE.bits()), mode.bits())
}

/// Adds up a path.
fn path(target: &Target, kind: String, trace: &[u64], meter: &Meter) -> PathCost {
    let code: Vec<_> = trace.iter().map(|at| target.program.instruction(*at)).collect();
    let count = |of: &[Mnemonic]| code.iter().filter(|i| of.contains(&i.mnemonic())).count();
    let is_cr3 = |i: &&iced_x86::Instruction| i.op0_register() == Register::CR3;
    let cr3_writes = code.iter().filter(is_cr3).count();
    let bytes: BTreeSet<_> = code.iter().flat_map(|i| i.ip()..i.next_ip()).collect();
    let lines: BTreeSet<_> = bytes.iter().map(|at| at / LINE).collect();
    let branches = |i: &&iced_x86::Instruction| i.flow_control() == FlowControl::ConditionalBranch;
    let taken = code.iter().zip(trace.iter().skip(1));
    let taken = taken.filter(|(i, next)| branches(i) && i.next_ip() != **next);
    let taken: Vec<_> = taken.map(|(i, _)| i.ip()).collect();
    PathCost {
        kernel_2024: kernel_2024(&kind),
        kind,
        number: 1,
        of: 1,
        instructions: code.len() - count(&[Mnemonic::Iretq, Mnemonic::Nop]),
        loads: meter.loads,
        stores: meter.stores,
        serialising: cr3_writes
            + count(&[Mnemonic::Wrmsr, Mnemonic::Iretq, Mnemonic::Lfence, Mnemonic::Mfence]),
        cr3_writes,
        swapgs: count(&[Mnemonic::Swapgs]),
        code_bytes: bytes.len(),
        code_lines: lines.len(),
        data_lines: data_lines(&meter.touched, target),
        branches: code.iter().filter(branches).count(),
        branches_taken: taken.len(),
        taken,
    }
}

/// What kind of path this is: what the state it starts from and its end have in common wherever the
/// path is taken. What it leaves open is not said.
fn kind(d: &Symbolic, theorem: Theorem, target: &Target, walk: &Walk, meter: &Meter) -> String {
    // A solver that gives up only makes a name shorter.
    let holds = |bit| matches!(d.check(bit), Validity::Holds { .. });
    let mode = |flags: Word| {
        [(SwitchFlags::SMOD, "smod"), (SwitchFlags::UMOD, "umod")]
            .into_iter()
            .find_map(|(mode, name)| holds(in_mode(d, flags, mode)).then_some(name))
    };
    let facts = meter.start.as_ref().filter(|_| !theorem.is_of_events());
    let Some(facts) = facts else { return theorem.name().into() };
    let in_syscall = theorem == Theorem::Syscall64;
    let is_eretu = in_syscall && holds(facts.in_smod) && holds(facts.at_retu_rip);
    let from = match (theorem, mode(facts.switch_flags)) {
        (Theorem::EnterGuest, _) => "enter".into(),
        (Theorem::SyscallCompat, _) => "32-bit SYSCALL".into(),
        (Theorem::ReturnFromGuest, _) => "event".into(),
        (Theorem::ReturnFromGuestIst, _) => "event on an IST stack".into(),
        (Theorem::Syscall64, _) if is_eretu => "ERETU".into(),
        (Theorem::Syscall64, Some(mode)) => format!("SYSCALL in {mode}"),
        (Theorem::Syscall64, None) => String::from("SYSCALL"),
        (of_events, _) => of_events.name().into(),
    };
    let last = walk.trace.last().map(|at| target.program.instruction(*at).mnemonic());
    let to_guest = meter.switch_flags.and_then(mode).unwrap_or("guest");
    let to = match last {
        _ if let Some(broken) = &walk.broken => broken.clone(),
        // There is no other way to smod.
        Some(Mnemonic::Sysretq) if in_syscall && to_guest == "smod" => to_guest.into(),
        Some(Mnemonic::Sysretq) => format!("{to_guest} by SYSRETQ"),
        Some(Mnemonic::Sysret) => format!("{to_guest} by SYSRETL"),
        Some(Mnemonic::Iretq) => format!("{to_guest} by IRETQ"),
        _ => "host".into(),
    };
    let mut reasons = Vec::new();
    let wanted_flags = if is_eretu { facts.pvcs_flags } else { facts.frame_flags };
    let is_return = is_eretu || theorem == Theorem::EnterGuest;
    for (fact, applies, reason) in [
        (facts.inhibited, in_syscall, "inhibited"),
        (facts.other_selectors, is_eretu, "other selectors"),
        (wanted_flags, is_return, "flags sanitised"),
        (facts.upper_half, is_eretu, "RIP in the upper half"),
        (facts.smod_pkru, in_syscall && !is_eretu, "PKRU changes"),
        (facts.umod_pkru, is_eretu, "PKRU changes"),
    ] {
        if applies && holds(fact) {
            reasons.push(reason);
        }
    }
    if let Some(iretq) = &meter.iretq {
        reasons.extend(iretq.reasons(d, &target.setting.model(), holds));
    }
    match reasons.as_slice() {
        [] => format!("{from} -> {to}"),
        reasons => format!("{from} -> {to} ({})", reasons.join(", ")),
    }
}

impl Iretq {
    /// Why it is not SYSRETQ (spec/switcher.md, "Return to the guest").
    fn reasons(
        &self,
        d: &Symbolic,
        model: &CpuModel,
        holds: impl Fn(Bit) -> bool,
    ) -> Vec<&'static str> {
        let [rip, cs, flags, _, ss] = self.frame;
        let other = |selector, usual: u16| d.not(d.is(d.mask(selector, 0xFFFF), usual.into()));
        let r11_differs = d.not(d.eq(self.r11, flags));
        let traced = d.any(flags, RFlags::NOT_BY_SYSRET.bits());
        let facts = [
            (other(cs, model.selectors.user_cs()), "CS differs"),
            (other(ss, model.selectors.user_ds()), "SS differs"),
            (d.not(d.eq(self.rcx, rip)), "RCX differs"),
            (d.not(model.is_canonical(d, rip)), "RIP is not canonical"),
            (r11_differs, "R11 differs"),
            (traced, "RF or TF is set"),
        ];
        let reasons = facts.into_iter().filter_map(|(fact, reason)| holds(fact).then_some(reason));
        let reasons: Vec<_> = reasons.collect();
        if reasons.is_empty() && holds(d.either(r11_differs, traced)) {
            return vec!["R11 differs, or RF or TF is set"];
        }
        reasons
    }
}
