//! Random states through the concrete machine, compared in full with the specification. A case is
//! a theorem's state with values that are random or near a boundary, and often related as real ones
//! are: RCX equals RIP, R11 the flags. Equal seeds give equal cases: a value follows from the seed,
//! the number of the case and its name, whatever was run before.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};

use serde::Serialize;

use switcher_gen::arch::{PagingMode, RFlags, Selectors};
use switcher_gen::layout::SwitchFlags;
use switcher_model::{Concrete, Gpr};
use switcher_prove as prove;
use switcher_prove::{
    BadCode, EntryPoints, GuestMemory, Name, Object, Part, Setting, Source, Target, Theorem,
};

/// What the cases have covered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Cases by the way they took through the code and by the class of their values.
    pub classes: BTreeMap<(Theorem, u64, Class), u64>,
}

/// The class of a case's values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    /// The class of the RIP that is returned to: in the lower half, in the upper half, or not
    /// canonical.
    pub rip: u8,
    /// The class of the flags that are asked for: TF or RF, and whether some are forbidden.
    pub flags: u8,
}

impl Class {
    /// The class of a guest that is to go on at `rip` with these flags.
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

    /// Adds what another run has covered.
    pub fn add(&mut self, other: Self) {
        for (class, count) in other.classes {
            *self.classes.entry(class).or_default() += count;
        }
    }
}

/// A state in which code and specification differ. Every value is zero that can be zero in such a
/// state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The number of the case.
    pub case: u64,
    /// The theorem.
    pub theorem: Theorem,
    /// The obligation that is broken.
    pub obligation: &'static str,
    /// The part of the state that differs.
    pub about: &'static str,
    /// The value that should be there, and the one that is there.
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
/// If no theorem can be about the code.
pub fn machine(
    target: &Target,
    seed: u64,
    cases: std::ops::Range<u64>,
    coverage: &mut Coverage,
) -> Result<Option<Difference>, BadCode> {
    let d = Concrete::default();
    let points = EntryPoints::of(target);
    let mut values = Values::new(&target.setting, seed);
    let (mut round, mut saved) = (None, None);
    for case in cases {
        let theorem = THEOREMS[(case % ROUND) as usize];
        if theorem == Theorem::SyscallCompat && target.syscall_compat.is_none() {
            continue;
        }
        values.start(case);
        // What the entry saves is between the code and the host, which is the same in a round.
        if round.replace(case / ROUND) != Some(case / ROUND) {
            saved = prove::saved(&d, &points, &mut values)?;
        }
        let check = |assumptions: &[(&'static str, bool)]| {
            debug_assert!(assumptions.iter().all(|(_, holds)| *holds), "{assumptions:?}");
        };
        let quiet = GuestMemory::Stable;
        let run = prove::run(&d, points.entry(theorem), quiet, &mut values, saved.as_ref(), check)?;
        let path = hash(&run.trace);
        *coverage.classes.entry((theorem, path, values.class(theorem))).or_default() += 1;
        if run.goals.iter().any(|goal| !goal.holds) {
            return Ok(Some(minimise(&d, &points, theorem, case, values)));
        }
    }
    Ok(None)
}

/// How many cases in a row share their host's values.
const ROUND: u64 = 8;

/// The theorems of a round. SYSCALL occurs most often, because it has most of the paths.
const THEOREMS: [Theorem; ROUND as usize] = [
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
    let mut hasher = Quick::default();
    trace.iter().for_each(|at| hasher.write_u64(*at));
    hasher.finish()
}

/// A fast hash of names of values and of paths, which nobody chooses in order to cause collisions.
#[derive(Clone, Copy, Debug, Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        self.write_u64(rest.iter().fold(1, |word, byte| word << 8 | u64::from(*byte)));
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_i64(&mut self, word: i64) {
        self.write_u64(word.cast_unsigned());
    }

    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Makes values zero, one by one, as long as something is broken and the assumptions hold.
fn minimise(
    d: &Concrete,
    points: &EntryPoints<'_>,
    theorem: Theorem,
    case: u64,
    mut values: Values,
) -> Difference {
    let broken = |values: &mut Values| {
        let saved = prove::saved(d, points, values).ok()?;
        let mut assumed = true;
        let check = |all: &[(&'static str, bool)]| assumed = all.iter().all(|(_, holds)| *holds);
        let run = prove::run(
            d,
            points.entry(theorem),
            GuestMemory::Stable,
            values,
            saved.as_ref(),
            check,
        )
        .ok()?;
        let goal = run.goals.into_iter().find(|goal| !goal.holds)?;
        assumed.then_some(goal)
    };
    // The values of the case, by running it once more.
    values.fixed = Some(HashMap::new());
    broken(&mut values);
    let mut names: Vec<_> = values.fixed.iter().flat_map(HashMap::keys).copied().collect();
    names.sort_by_cached_key(Name::to_string);
    for name in names {
        let old = values.fix(name, 0);
        if broken(&mut values).is_none() {
            values.fix(name, old);
        }
    }
    let goal = broken(&mut values);
    let state = values.fixed.into_iter().flatten().filter(|(_, value)| *value != 0);
    let mut state: Vec<_> = state.map(|(name, value)| (name.to_string(), value)).collect();
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

/// The values of one case. Each depends on the seed, the case and its name alone, so none has to be
/// stored.
struct Values {
    paging: PagingMode,
    selectors: Selectors,
    seed: u64,
    /// The hashes from which the values of the guest and those of the round are made.
    guests: Quick,
    hosts: Quick,
    random: fastrand::Rng,
    /// The values that were asked for, which are to be given again from now on. `None` while a case
    /// is run for the first time.
    fixed: Option<HashMap<Name, u64>>,
}

impl Values {
    fn new(setting: &Setting, seed: u64) -> Self {
        let (paging, selectors) = (setting.variant.paging(), setting.variant.selectors());
        let (guests, hosts) = (Quick::default(), Quick::default());
        let random = fastrand::Rng::with_seed(0);
        Self { paging, selectors, seed, guests, hosts, random, fixed: None }
    }

    fn start(&mut self, case: u64) {
        for (part, number) in [(&mut self.guests, case), (&mut self.hosts, case / ROUND)] {
            *part = Quick(self.seed);
            part.write_u64(number);
        }
        self.fixed = None;
    }

    fn fix(&mut self, name: Name, value: u64) -> u64 {
        self.fixed.get_or_insert_default().insert(name, value).unwrap_or_default()
    }

    fn get(&mut self, of: Object, part: Part, bits: u32) -> u64 {
        self.answer(Name { of, part, at_entry: false }, bits)
    }

    fn answer(&mut self, name: Name, bits: u32) -> u64 {
        if let Some(value) = self.fixed.as_ref().and_then(|fixed| fixed.get(&name)) {
            return *value;
        }
        let is_guests = matches!(name.of, Object::Frame | Object::Guest | Object::Pvcs);
        let mut hasher = if is_guests { self.guests } else { self.hosts };
        name.hash(&mut hasher);
        self.random = fastrand::Rng::with_seed(hasher.finish());
        let value = self.make(name) & (u64::MAX >> (64 - bits));
        if self.fixed.is_some() {
            self.fix(name, value);
        }
        value
    }

    fn coin(&mut self) -> bool {
        self.random.bool()
    }

    /// Any number, or one of those that are most likely to go wrong.
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

    fn make(&mut self, name: Name) -> u64 {
        let s = self.selectors;
        let part = match name.part {
            // Addresses of regions: far from each other.
            Part::Whole => match name.of {
                Object::Sp0 => return 0xFFFF_8881_0000_2000,
                Object::PvcsAddress => return 0xFFFF_8882_0000_3000,
                Object::Ist => return 0xFFFF_8884_0000_5000,
                _ => return self.word(),
            },
            // Nothing depends on what stacks and gaps hold.
            Part::At(_) => return self.random.u64(..),
            part => part,
        };
        match (name.of, part) {
            (Object::Host, Part::Field("gs_base")) => 0xFFFF_8880_0000_1000,
            (Object::Host, Part::Register(Gpr::Rsp) | Part::Field("rsp")) => 0xFFFF_8883_0000_4000,
            (Object::TssExtra, Part::Field("switch_flags")) => {
                let mode = if self.coin() { SwitchFlags::SMOD } else { SwitchFlags::UMOD };
                let inhibitor = match self.random.u8(0..4) {
                    0 => 1 << self.random.u32(2..64),
                    _ => 0,
                };
                mode.bits() | inhibitor
            }
            (Object::Host, Part::Field("rip"))
            | (Object::TssExtra, Part::Field("smod_entry" | "smod_gsbase"))
            | (Object::Guest, Part::Field("gs_base")) => {
                let word = self.word();
                self.paging.canonicalize(word)
            }
            (Object::Guest, Part::Field("rip")) if self.random.u8(0..4) != 0 => {
                self.get(Object::TssExtra, Part::Field("retu_rip"), 64)
            }
            (Object::Frame, Part::Field(field @ ("cs" | "ss")))
            | (Object::Pvcs, Part::Field(field @ ("user_cs" | "user_ss"))) => {
                let usual = if field.ends_with("cs") { s.user_cs() } else { s.user_ds() };
                match self.random.u8(0..8) {
                    0 => u64::from(s.user32_cs()),
                    1 => u64::from(self.random.u16(..) | 3),
                    _ => usual.into(),
                }
            }
            (Object::Frame, Part::Register(Gpr::R11))
            | (Object::Guest, Part::Field("rflags"))
            | (Object::Pvcs, Part::Field("eflags")) => self.flags(),
            (Object::Frame, Part::Field("rflags")) if self.random.u8(0..4) != 0 => {
                self.get(Object::Frame, Part::Register(Gpr::R11), 64)
            }
            (Object::Frame, Part::Field("rip")) if self.random.u8(0..4) != 0 => {
                self.get(Object::Frame, Part::Register(Gpr::Rcx), 64)
            }
            (Object::Pvcs, Part::Field("rcx")) if self.random.u8(0..4) != 0 => {
                self.get(Object::Pvcs, Part::Field("rip"), 64)
            }
            (Object::Pvcs, Part::Field("r11")) if self.random.u8(0..4) != 0 => {
                RFlags::from_bits_retain(self.get(Object::Pvcs, Part::Field("eflags"), 32))
                    .sanitised()
                    .bits()
            }
            _ => self.word(),
        }
    }

    /// The class of the state that the guest is returned to with.
    fn class(&mut self, theorem: Theorem) -> Class {
        let (rip, flags) = match theorem {
            Theorem::EnterGuest => (
                self.get(Object::Frame, Part::Field("rip"), 64),
                self.get(Object::Frame, Part::Field("rflags"), 64),
            ),
            Theorem::Syscall64 => (
                self.get(Object::Pvcs, Part::Field("rip"), 64),
                self.get(Object::Pvcs, Part::Field("eflags"), 32),
            ),
            _ => return Class::default(),
        };
        Class::of(self.paging, rip, flags)
    }
}

impl Source<Concrete> for Values {
    fn value(&mut self, _d: &Concrete, name: Name, bits: u32) -> u64 {
        self.answer(name, bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switcher_gen::{Image, Variant};
    use switcher_prove::mutate;
    use switcher_prove::mutate::Operator;

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
        // The number of paths that the proofs find.
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
        // What remains are the addresses of five regions, the selectors of the PVCS, the mode, and
        // the values that show the mistake.
        assert!(found.state.len() < 12, "{found}");
        let again = machine(&broken, 1, found.case..found.case + 1, &mut Coverage::default());
        assert_eq!(again.unwrap(), Some(found));
    }
}
