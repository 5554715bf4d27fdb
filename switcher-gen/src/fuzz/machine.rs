//! Random states through the concrete machine, compared in full with the specification. A case is
//! a theorem's state with values that are random or near a boundary, and often related as real ones
//! are: RCX equals RIP, R11 the flags. Equal seeds give equal cases.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::arch::{PagingMode, RFlags, Selectors};
use crate::layout::SwitchFlags;
use crate::machine::Concrete;
use crate::prove::{self, BadCode, Neighbour, Run, Source, Target, Theorem};

/// What was tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Cases by the way they took through the code and by the class of their values.
    pub classes: BTreeMap<(Theorem, u64, Class), u64>,
}

/// What is particular about a case's values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    /// Of the RIP that is returned to: in the lower half, in the upper, or no address at all.
    pub rip: u8,
    /// Of the flags that are asked for: TF or RF, and whether some are forbidden.
    pub flags: u8,
}

impl Class {
    /// Of a guest that is to go on at `rip` with these flags.
    pub(super) fn of(paging: PagingMode, rip: u64, flags: u64) -> Self {
        let rip = match rip {
            _ if !paging.is_canonical(rip) => 2,
            _ => (rip >> 63) as u8,
        };
        let asked = RFlags::from_bits_retain(flags);
        let bits =
            [asked.contains(RFlags::TF), asked.contains(RFlags::RF), asked.sanitised() != asked];
        let flags = bits.into_iter().fold(0, |all, one| all << 1 | u8::from(one));
        Self { rip, flags }
    }
}

impl Coverage {
    /// How many cases there were.
    #[must_use]
    pub fn cases(&self) -> u64 {
        self.classes.values().sum()
    }

    /// How many ways through the code were taken.
    #[must_use]
    pub fn paths(&self) -> usize {
        let mut paths: Vec<_> =
            self.classes.keys().map(|(theorem, path, _)| (*theorem, *path)).collect();
        paths.dedup();
        paths.len()
    }

    /// Adds another one's.
    pub fn add(&mut self, other: Self) {
        for (class, count) in other.classes {
            *self.classes.entry(class).or_default() += count;
        }
    }
}

/// A state in which code and specification differ, every value of it made zero that may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which case of the seed.
    pub case: u64,
    /// The theorem.
    pub theorem: Theorem,
    /// The obligation that is broken.
    pub obligation: &'static str,
    /// What of the state.
    pub about: &'static str,
    /// What should be there and is.
    pub values: Option<(u64, u64)>,
    /// The state: what is not named is zero.
    pub state: Vec<(String, u64)>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { case, theorem, obligation, about, values, state } = self;
        writeln!(f, "case {case}, {}: `{obligation}` does not hold ({about})", theorem.name())?;
        if let Some((expected, got)) = values {
            writeln!(f, "  {about} is {got:#x}, not {expected:#x}")?;
        }
        writeln!(f, "  from this state (what is not named is zero):")?;
        state.iter().try_for_each(|(name, value)| writeln!(f, "    {name:<24} {value:#x}"))
    }
}

/// Runs cases `cases` of `seed`; the first difference ends it.
///
/// # Errors
/// If the code is none that a theorem can be about.
pub fn machine(
    target: &Target,
    seed: u64,
    cases: std::ops::Range<u64>,
    coverage: &mut Coverage,
) -> Result<Option<Difference>, BadCode> {
    let d = Concrete::default();
    let paging = target.setting.variant.axes().paging;
    let mut values = Values::new(paging, target.setting.variant.selectors());
    for case in cases {
        let theorem = THEOREMS[(case % THEOREMS.len() as u64) as usize];
        if theorem == Theorem::SyscallCompat && target.syscall_compat.is_none() {
            continue;
        }
        values.start(seed, case);
        let run = run(&d, target, theorem, &mut values)?;
        let path = hash(&run.trace);
        *coverage.classes.entry((theorem, path, values.class(theorem))).or_default() += 1;
        if run.goals.iter().any(|goal| !goal.holds) {
            return Ok(Some(minimise(&d, target, theorem, case, values)));
        }
    }
    Ok(None)
}

/// SYSCALL has most of the paths.
const THEOREMS: [Theorem; 8] = [
    Theorem::EnterGuest,
    Theorem::Syscall64,
    Theorem::Syscall64,
    Theorem::ReturnFromGuest,
    Theorem::EnterGuest,
    Theorem::Syscall64,
    Theorem::SyscallCompat,
    Theorem::ReturnFromGuestIst,
];

fn hash(trace: &[u64]) -> u64 {
    let mut hasher = DefaultHasher::new();
    trace.hash(&mut hasher);
    hasher.finish()
}

fn run(
    d: &Concrete,
    target: &Target,
    theorem: Theorem,
    values: &mut Values,
) -> Result<Run<Concrete>, BadCode> {
    // Only an exit needs what the entry has saved.
    let saved = prove::saved(d, target, values)?;
    let check = |assumptions: &[(&'static str, bool)]| {
        debug_assert!(assumptions.iter().all(|(_, holds)| *holds), "{assumptions:?}");
    };
    prove::run(d, target, theorem, Neighbour::Quiet, values, saved.as_ref(), check)
}

/// Makes values zero, one by one, as long as something is broken and the assumptions hold.
fn minimise(
    d: &Concrete,
    target: &Target,
    theorem: Theorem,
    case: u64,
    mut values: Values,
) -> Difference {
    let broken = |values: &mut Values| {
        let saved = prove::saved(d, target, values).ok()?;
        let mut assumed = true;
        let check = |all: &[(&'static str, bool)]| assumed = all.iter().all(|(_, holds)| *holds);
        let run =
            prove::run(d, target, theorem, Neighbour::Quiet, values, saved.as_ref(), check).ok()?;
        let goal = run.goals.into_iter().find(|goal| !goal.holds)?;
        assumed.then_some(goal)
    };
    let mut names: Vec<_> = values.fixed.keys().cloned().collect();
    names.sort();
    for name in names {
        let old = values.fixed.insert(name.clone(), 0);
        if broken(&mut values).is_none() {
            values.fixed.insert(name, old.unwrap_or_default());
        }
    }
    let goal = broken(&mut values);
    let mut state: Vec<_> = values.fixed.into_iter().filter(|(_, value)| *value != 0).collect();
    state.sort();
    Difference {
        case,
        theorem,
        obligation: goal.as_ref().map_or("unstable", |goal| goal.obligation.name),
        about: goal.as_ref().map_or("the case", |goal| goal.about),
        values: goal.and_then(|goal| goal.values),
        state,
    }
}

/// Values of one case: made when they are asked for, and the same when they are asked for again.
struct Values {
    paging: PagingMode,
    selectors: Selectors,
    random: fastrand::Rng,
    fixed: HashMap<String, u64>,
}

/// Addresses of regions: far from each other.
const BASES: [(&str, u64); 5] = [
    ("host.gs_base", 0xFFFF_8880_0000_1000),
    ("sp0", 0xFFFF_8881_0000_2000),
    ("pvcs", 0xFFFF_8882_0000_3000),
    ("host.rsp", 0xFFFF_8883_0000_4000),
    ("ist", 0xFFFF_8884_0000_5000),
];

impl Values {
    fn new(paging: PagingMode, selectors: Selectors) -> Self {
        Self { paging, selectors, random: fastrand::Rng::new(), fixed: HashMap::new() }
    }

    fn start(&mut self, seed: u64, case: u64) {
        self.random = fastrand::Rng::with_seed(seed ^ case.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        self.fixed.clear();
    }

    fn get(&self, name: &str) -> u64 {
        self.fixed.get(name).copied().unwrap_or_default()
    }

    fn coin(&mut self) -> bool {
        self.random.bool()
    }

    /// Anything, or what is most likely to go wrong.
    fn word(&mut self) -> u64 {
        let bit = self.random.u32(0..64);
        match self.random.u8(0..8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << bit,
            3 => u64::MAX << bit,
            4 => (1_u64 << bit).wrapping_sub(1),
            5 => self.paging.canonicalize(self.random.u64(..)),
            _ => self.random.u64(..),
        }
    }

    /// Flags that a guest may have, or any.
    fn flags(&mut self) -> u64 {
        let any = RFlags::from_bits_retain(self.word());
        match self.random.u8(0..4) {
            0 => any.bits(),
            1 => any.sanitised().bits(),
            _ => any.sanitised().difference(RFlags::NOT_BY_SYSRET).bits(),
        }
    }

    fn make(&mut self, name: &str) -> u64 {
        let s = self.selectors;
        if let Some((_, base)) = BASES.iter().find(|(base, _)| *base == name) {
            return *base;
        }
        match name {
            "tss_extra.switch_flags" => {
                let mode = if self.coin() { SwitchFlags::SMOD } else { SwitchFlags::UMOD };
                let inhibitor = match self.random.u8(0..4) {
                    0 => 1 << self.random.u32(2..64),
                    _ => 0,
                };
                mode.bits() | inhibitor
            }
            "tss_extra.smod_entry" | "tss_extra.smod_gsbase" | "guest.gs_base" => {
                let word = self.word();
                self.paging.canonicalize(word)
            }
            "guest.rip" if self.random.u8(0..4) != 0 => self.get("tss_extra.retu_rip"),
            "frame.cs" | "frame.ss" | "pvcs.user_cs" | "pvcs.user_ss" => {
                let usual = if name.ends_with("cs") { s.user_cs() } else { s.user_ds() };
                match self.random.u8(0..8) {
                    0 => u64::from(s.user32_cs()),
                    1 => u64::from(self.random.u16(..) | 3),
                    _ => usual.into(),
                }
            }
            "frame.r11" | "guest.rflags" | "pvcs.eflags" => self.flags(),
            "frame.rflags" if self.random.u8(0..4) != 0 => self.get("frame.r11"),
            "frame.rip" if self.random.u8(0..4) != 0 => self.get("frame.rcx"),
            "pvcs.rcx" if self.random.u8(0..4) != 0 => self.get("pvcs.rip"),
            "pvcs.r11" if self.random.u8(0..4) != 0 => {
                RFlags::from_bits_retain(self.get("pvcs.eflags")).sanitised().bits()
            }
            _ => self.word(),
        }
    }

    /// Of what the guest is returned to with.
    fn class(&self, theorem: Theorem) -> Class {
        let (rip, flags) = match theorem {
            Theorem::EnterGuest => (self.get("frame.rip"), self.get("frame.rflags")),
            Theorem::Syscall64 => (self.get("pvcs.rip"), self.get("pvcs.eflags")),
            _ => return Class::default(),
        };
        Class::of(self.paging, rip, flags)
    }
}

impl Source<Concrete> for Values {
    fn value(&mut self, _d: &Concrete, name: &str, bits: u32) -> u64 {
        if let Some(value) = self.fixed.get(name) {
            return *value;
        }
        let value = self.make(name) & (u64::MAX >> (64 - bits));
        self.fixed.insert(name.to_owned(), value);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate::{self, Operator};
    use crate::{Image, Variant};

    fn target() -> Target {
        Target::image(&Image::new(&Variant::REFERENCE).unwrap())
    }

    #[test]
    fn equal_seeds_give_equal_cases_and_every_path_is_taken() {
        let cover = |seed| {
            let mut coverage = Coverage::default();
            assert_eq!(machine(&target(), seed, 0..4000, &mut coverage).unwrap(), None);
            coverage
        };
        let coverage = cover(1);
        assert_eq!(coverage, cover(1));
        assert_ne!(coverage, cover(2));
        assert_eq!(coverage.cases(), 4000);
        // As many as the proofs find.
        assert_eq!(coverage.paths(), 8 + 10 + 1 + 1 + 1);
    }

    #[test]
    fn a_difference_is_found_and_made_small() {
        let original = target();
        let mutants = mutate::mutants(&original);
        let broken = mutants
            .iter()
            .find(|mutant| mutant.operator == Operator::Delete && mutant.original == "sar r11,10h");
        let broken = broken.unwrap().target().unwrap();
        let found = machine(&broken, 1, 0..4000, &mut Coverage::default()).unwrap().unwrap();
        assert_eq!(found.theorem, Theorem::Syscall64);
        // The addresses of five regions, the selectors of the PVCS, the mode, and what is wrong.
        assert!(found.state.len() < 12, "{found}");
        let again = machine(&broken, 1, found.case..found.case + 1, &mut Coverage::default());
        assert_eq!(again.unwrap(), Some(found));
    }
}
