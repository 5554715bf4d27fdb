//! A state in which a goal does not hold, in words, and replayed on the concrete machine.

use std::fmt;
use std::rc::Rc;

use serde::Serialize;

use crate::entry::{Entry, EntryPoints};
use crate::goal::Goal;
use crate::obligation::Obligation;
use crate::required::{Broken, required};
use crate::run::Run;
use crate::target::Target;
use crate::theorem::{GuestMemory, Theorem};
use crate::world::name::{Name, Source};
use crate::{obligation, run};
use switcher_model::symbolic::{Model, Symbolic};
use switcher_model::{Concrete, Domain, SLIDE};

/// A state of numbers: what is not named is zero.
pub type Numbers = Vec<(String, u64)>;

/// The state, what happens from there, and what is wrong with that.
#[derive(Clone, Debug, Serialize)]
pub struct Counterexample {
    /// The theorem that it contradicts.
    pub theorem: Theorem,
    /// Whether the guest writes the PVCS meanwhile.
    pub guest_memory: GuestMemory,
    /// What is broken.
    pub obligation: Obligation,
    /// What was required and why, in words.
    pub required: String,
    /// What of the state is wrong.
    pub about: &'static str,
    /// What else of the state is wrong, on this path or others.
    pub also: Vec<&'static str>,
    /// The instruction, if one is to blame.
    pub at: Option<u64>,
    /// What should be there and is, as terms over the state.
    pub terms: Option<(String, String)>,
    /// The state: what is not named is zero.
    pub state: Vec<(String, u64)>,
    /// The instructions executed: address and text.
    pub path: Vec<(u64, String)>,
    /// The instruction that is to blame, address and text, if it is not the path that comes to it,
    /// but a CPU that goes on from the path by a wrong prediction.
    pub predicted: Option<(u64, String)>,
    /// How it ends.
    pub end: String,
    /// What should be there and is, as the concrete machine finds it from this state.
    pub replay: Option<(u64, u64)>,
    /// What the concrete machine breaks from this state if not that: numbers may run into something
    /// else first.
    pub instead: Option<Obligation>,
}

/// Addresses of regions, where the model leaves them open: canonical, and far from each other.
const BASES: [(&str, u64); 6] = [
    ("host.gs_base", 0xFFFF_8880_0000_1000),
    ("sp0", 0xFFFF_8881_0000_2000),
    ("pvcs", 0xFFFF_8882_0000_3000),
    ("host.rsp", 0xFFFF_8883_0000_4000),
    ("ist", 0xFFFF_8884_0000_5000),
    ("interrupted.rsp", 0xFFFF_8885_0000_6000),
];

/// Where the addresses of regions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bases {
    /// [`BASES`]: as a rule they do not matter, and models make them overlap.
    Fixed,
    /// The model, unless it says zero, as it does of what does not matter.
    Some,
    /// The model, whatever it says.
    All,
    /// The model for the one of this number, and [`BASES`] for the others.
    One(usize),
    /// [`BASES`] in the lower half, with few bits set, so that parts of one are addresses, too.
    Low,
    /// [`BASES`], so many bytes further on: what is wrong of an address may show where it carries
    /// alone.
    Moved(u64),
    /// [`BASES`], their low 16 bits replaced by this number, for what carries out of 16 bits.
    Rounded(u64),
}

impl Bases {
    /// All of them, in the order in which they are tried.
    fn all() -> impl Iterator<Item = Self> {
        let steps = || (0..16).map(|step| 0x10 * step);
        let some = [Self::Fixed, Self::Some, Self::All].into_iter();
        let some = some.chain((0..BASES.len()).map(Self::One)).chain([Self::Low]);
        // Each bit that is not set in any of them.
        let bits = (8..12).map(|bit| Self::Moved(1 << bit));
        let moved = steps().skip(1).map(Self::Moved).chain(bits);
        some.chain(moved).chain(steps().map(Self::Rounded))
    }

    /// The value of the address of this number, of which the model says `wanted`.
    const fn value(self, number: usize, wanted: u64) -> u64 {
        let (_, fixed) = BASES[number];
        match self {
            Self::All => wanted,
            Self::Some if wanted != 0 => wanted,
            Self::One(one) if one == number => wanted,
            Self::Fixed | Self::Some | Self::One(_) => fixed,
            Self::Low => fixed & 0xF_0000_FFFF,
            Self::Moved(by) => fixed + by,
            Self::Rounded(by) => fixed & !0xFFFF | by,
        }
    }
}

/// Values of a model, and addresses for what it leaves open.
struct Values<'a> {
    model: &'a Model,
    bases: Bases,
    /// The values that were asked for.
    asked: Vec<(String, u64)>,
}

impl Source<Concrete> for Values<'_> {
    fn value(&mut self, _d: &Concrete, name: Name, bits: u32) -> u64 {
        let name = name.to_string();
        let wanted = self.model.value_of_width(&name, bits);
        let number = BASES.iter().position(|(base, _)| *base == name);
        let value = number.map_or(wanted, |number| self.bases.value(number, wanted));
        self.asked.push((name, value));
        value
    }
}

/// The values of a state that was written down.
struct Written<'a>(&'a [(String, u64)]);

impl Source<Concrete> for Written<'_> {
    fn value(&mut self, _d: &Concrete, name: Name, _bits: u32) -> u64 {
        let name = name.to_string();
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| *value).unwrap_or_default()
    }
}

impl Counterexample {
    /// The instruction to look at: the one that is to blame, or the last one of the path.
    #[must_use]
    pub fn place(&self) -> Option<u64> {
        self.at.or_else(|| self.path.last().map(|(at, _)| *at))
    }

    /// Runs `target` on the concrete machine from this state: whether it breaks the obligation. If
    /// that takes a wrong prediction, of which numbers do not tell, whether it goes the same path.
    #[must_use]
    pub fn replay(&self, target: &Target) -> bool {
        let points = EntryPoints::of(target);
        let met = self.state.iter().filter(|(name, _)| is_met(name)).cloned();
        let mut values = Written(&self.state);
        replay(points.entry(self.theorem), self.guest_memory, met, &mut values).is_some_and(|run| {
            if self.predicted.is_some() && self.instead.is_none() {
                return run.trace.iter().eq(self.path.iter().map(|(at, _)| at));
            }
            let broken = self.instead.unwrap_or(self.obligation);
            run.goals.iter().any(|goal| !goal.holds && goal.obligation == broken)
        })
    }

    /// Replays what `model` says about `goal` of `run`. `None` if the concrete machine does not
    /// break the same obligation.
    pub(crate) fn new(
        d: &Symbolic,
        entry: Entry<'_>,
        guest_memory: GuestMemory,
        run: &Run<Symbolic>,
        goal: &Goal<Symbolic>,
        model: &Model,
    ) -> Option<Self> {
        // The numbers may break something else first, such as run into other memory: another choice
        // of addresses may not. What was to be shown is what is reported.
        let same = |found: &&Goal<Concrete>| !found.holds && found.obligation == goal.obligation;
        let of_arms =
            [obligation::UNTAKEN_CODE, obligation::UNTAKEN_MEMORY, obligation::UNTAKEN_TARGET];
        let is_predicted = |at: &u64| of_arms.contains(&goal.obligation) || !run.trace.contains(at);
        let predicted = goal.at.filter(is_predicted);
        // Where no path goes, states are joined, and numbers are not: what was found there is found
        // again if the path is the same.
        let is_reached = |replayed: &Run<Concrete>| match predicted {
            Some(_) => replayed.trace == run.trace,
            None => goal.at.is_some_and(|at| replayed.trace.contains(&at)),
        };
        // Where a number comes from does not show in it. That the instruction is reached does.
        let rules = [
            obligation::NO_DECISION_ON_RSP,
            obligation::NO_HOST_VALUE,
            obligation::DESCRIPTORS,
            obligation::BHB_CLEARED,
            obligation::VERW_LAST,
            obligation::INDIRECT_FIRST,
            obligation::HOOK_REGISTERS,
            obligation::EXIT_SCRATCH,
            obligation::SWAPGS_FENCED,
        ];
        let is_rule = predicted.is_some() || rules.contains(&goal.obligation);
        let try_with = |model: &Model, bases| replay_model(entry, guest_memory, model, bases);
        let breaks_the_same = |(replayed, _): &(Run<Concrete>, _)| {
            replayed.goals.iter().any(|found| same(&found)) || is_rule && is_reached(replayed)
        };
        let breaks_another =
            |(replayed, _): &(Run<Concrete>, _)| replayed.goals.iter().any(|found| !found.holds);
        let (mut found, mut other) = (None, None);
        for replayed in Bases::all().filter_map(|bases| try_with(model, bases)) {
            if breaks_the_same(&replayed) {
                found = Some(replayed);
                break;
            }
            other = other.or_else(|| Some(replayed).filter(breaks_another));
        }
        // Where addresses matter, the solver is asked for a state with as many of these as it can
        // have.
        let (replayed, state) = found
            .or_else(|| {
                let near = d.fails_near(goal.holds, &wishes(d, goal))?;
                try_with(&near, Bases::All).filter(breaks_the_same)
            })
            .or(other)?;
        let broken = replayed.goals.iter().find(same);
        let another = replayed.goals.iter().find(|found| !found.holds);
        let is_same = broken.is_some() || is_rule && is_reached(&replayed);
        let instead = another.filter(|_| !is_same).map(|found| found.obligation);
        let program = &entry.target.program;
        let line = |at: u64| (at, program.text(at).unwrap_or_default());
        let path = replayed.trace.iter().map(|at| line(*at));
        // Racing guest memory is not to blame if it does not matter what the guest writes.
        let is_shared = state.iter().any(|(name, _)| name.starts_with("pvcs["));
        let guest_memory = if is_shared { guest_memory } else { GuestMemory::Stable };
        let about = broken.map_or(goal.about, |broken| broken.about);
        let terms = goal.values.map(|(a, b)| (d.display(a), d.display(b)));
        let replay = broken.and_then(|broken| broken.values);
        let required = required(Broken {
            obligation: goal.obligation,
            about,
            // Another goal of the same obligation may be the one that the numbers break.
            terms: terms.as_ref().filter(|_| about == goal.about),
            replay,
            end: &run.end,
            is_predicted: predicted.is_some(),
        });
        Some(Self {
            theorem: entry.theorem,
            guest_memory,
            obligation: goal.obligation,
            required,
            about,
            also: Vec::new(),
            at: goal.at,
            terms,
            state,
            path: path.collect(),
            predicted: predicted.map(line),
            end: run.end.clone(),
            replay,
            instead,
        })
    }
}

/// Values for what a goal is about that lead far from everything: what a solver leaves open is
/// zero, by which an address may happen to be right.
const FAR: [u64; 3] = [0x1234_5678_9AB8, 0x1235_6780, 0xFFFF_9234_5678_9AB8];

/// Values that a state should have, if it can: addresses that lie apart, and others that lead
/// astray.
fn wishes(d: &Symbolic, goal: &Goal<Symbolic>) -> Vec<(Rc<str>, u64)> {
    let bases = BASES.map(|(name, at)| (Rc::from(name), at));
    let about = goal.values.iter().flat_map(|(one, other)| [one, other]);
    let about = about.flat_map(|word| d.variables_of(*word));
    let others = about.filter(|name| BASES.iter().all(|(base, _)| **name != **base));
    let far = others.flat_map(|name| FAR.map(|value| (Rc::clone(&name), value)));
    bases.into_iter().chain(far).collect()
}

/// A state of numbers that meets all assumptions and takes the path of `run`, of what `model` says
/// of it. `None` if the concrete machine goes another way.
pub(crate) fn witness(
    entry: Entry<'_>,
    guest_memory: GuestMemory,
    run: &Run<Symbolic>,
    model: &Model,
) -> Option<Numbers> {
    Bases::all().find_map(|bases| {
        let (replayed, state) = replay_model(entry, guest_memory, model, bases)?;
        let is_same = replayed.trace == run.trace && replayed.end == run.end;
        (is_same && replayed.goals.iter().all(|goal| goal.holds)).then_some(state)
    })
}

/// Runs the theorem on the numbers of `model`, and the state that this is: what is not named is
/// zero.
fn replay_model(
    entry: Entry<'_>,
    guest_memory: GuestMemory,
    model: &Model,
    bases: Bases,
) -> Option<(Run<Concrete>, Numbers)> {
    let mut values = Values { model, bases, asked: Vec::new() };
    let met = model.iter().filter(|(name, _)| is_met(name));
    let met: Numbers = met.map(|(name, value)| (name.to_owned(), value)).collect();
    let replayed = replay(entry, guest_memory, met.iter().cloned(), &mut values)?;
    let mut state = values.asked;
    state.extend(met);
    state.retain(|(_, value)| *value != 0);
    state.sort();
    state.dedup();
    Some((replayed, state))
}

/// Whether an unknown comes up on the way, or is of the code as a whole: it is no part of a world.
fn is_met(name: &str) -> bool {
    name.contains('#') || name == SLIDE
}

/// Runs the theorem on numbers; those in `met` come up on the way.
fn replay(
    entry: Entry<'_>,
    guest_memory: GuestMemory,
    met: impl Iterator<Item = (String, u64)>,
    values: &mut impl Source<Concrete>,
) -> Option<Run<Concrete>> {
    let d = Concrete::told(met);
    let saved = run::saved(&d, entry.points, values).ok()?;
    let mut holds = true;
    let assume = |all: &[(&'static str, <Concrete as Domain>::Bit)]| {
        holds = all.iter().all(|(_, bit)| *bit);
    };
    let run = run::run(&d, entry, guest_memory, values, saved.as_ref(), assume).ok()?;
    holds.then_some(run)
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Obligation { name, rows, statement, severity, .. } = self.obligation;
        writeln!(f, "{}: `{name}` does not hold: {statement}", self.theorem.name())?;
        writeln!(f, "  severity: {severity}")?;
        rows.iter().try_for_each(|row| writeln!(f, "  spec/hazards.md, {row}"))?;
        writeln!(f, "  required: {}", self.required)?;
        if self.guest_memory == GuestMemory::Racing {
            writeln!(f, "  while another CPU of the guest writes the PVCS")?;
        }
        writeln!(f, "\n  from this state (what is not named is zero):")?;
        for (name, value) in &self.state {
            writeln!(f, "    {name:<24} {value:#x}")?;
        }
        writeln!(f, "\n  this is executed:")?;
        for (at, text) in &self.path {
            let is_to_blame = self.predicted.is_none() && Some(*at) == self.at;
            let blame = if is_to_blame { "  <--" } else { "" };
            writeln!(f, "    {at:x}  {text}{blame}")?;
        }
        writeln!(f, "\n  and ends {}.", self.end)?;
        if let Some((at, text)) = &self.predicted {
            writeln!(f, "\n  A wrong prediction may lead a CPU from there to what is to blame:")?;
            writeln!(f, "    {at:x}  {text}  <--\n")?;
        }
        match &self.terms {
            // No value is required: this one is what the finding is about.
            Some((expected, got)) if expected == got => {
                writeln!(f, "  {} is {got}", self.about)?;
            }
            Some((expected, got)) => {
                writeln!(f, "  {}: required is  {expected}", self.about)?;
                writeln!(f, "  {}  but there is {got}", " ".repeat(self.about.len()))?;
            }
            None => {}
        }
        if !self.also.is_empty() {
            writeln!(f, "  The same holds of: {}.", self.also.join(", "))?;
        }
        match self.replay {
            None if let Some(Obligation { name, statement, .. }) = self.instead => writeln!(
                f,
                "  Replayed on the concrete machine: it breaks `{name}` first, {statement}."
            ),
            Some((expected, got)) if expected == got => {
                writeln!(f, "  Replayed on the concrete machine: {} is {got:#x}.", self.about)
            }
            Some((expected, got)) => writeln!(
                f,
                "  Replayed on the concrete machine: {} is {got:#x}, not {expected:#x}.",
                self.about
            ),
            None if self.predicted.is_some() => {
                writeln!(f, "  Replayed on the concrete machine: it goes the same path.")
            }
            None => writeln!(f, "  Replayed on the concrete machine: so it is ({}).", self.about),
        }
    }
}
