//! Where theorems begin in a target, resolved once per target and passed to whoever runs, keeps or
//! compares proofs: instead of a target, a theorem and what each makes of the two.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::OnceLock;

use crate::gate::TargetGate;
use crate::stubs::{Alike, Stubs};
use crate::target::Target;
use crate::theorem::Theorem;
use switcher_gen::arch::vector;
use switcher_gen::asm::HostSymbol;

/// A target with the entry points of all theorems about it.
#[derive(Debug)]
pub struct EntryPoints<'t> {
    target: &'t Target,
    /// For each theorem, where it begins.
    all: BTreeMap<Theorem, Begins>,
    /// What is executed from an entry point on, once somebody has asked.
    reached: BTreeMap<u64, OnceLock<BTreeSet<u64>>>,
    /// The places whose address the code of a theorem makes a value, once somebody has asked.
    named: BTreeMap<Theorem, OnceLock<BTreeSet<u64>>>,
    /// Its first gate of each vector, by its place among the gates.
    gates: Vec<Option<usize>>,
    /// What [`hand_on`](Self::hand_on) says, once somebody has asked.
    hands_on: OnceLock<bool>,
    /// Where its code is, once somebody has asked.
    code: OnceLock<Range<u64>>,
}

/// Where a theorem begins.
#[derive(Debug, Default)]
struct Begins {
    /// An address for each stub that is executed; of a routine, its own. Empty if the target has no
    /// such entry, or if nothing is executed.
    addresses: Vec<u64>,
    /// The stubs that these stand for, if it is about an event.
    stubs: Vec<Alike>,
}

/// A theorem about a target, and where it begins there.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The code.
    pub target: &'a Target,
    /// The theorem that begins there.
    pub theorem: Theorem,
    /// Where other theorems begin.
    pub(crate) points: &'a EntryPoints<'a>,
    begins: &'a Begins,
}

impl<'t> EntryPoints<'t> {
    /// Resolves all entry points of `target`.
    #[must_use]
    pub fn of(target: &'t Target) -> Self {
        let gate_of = |vector| {
            let mut gates = target.gates.iter().flatten();
            gates.position(|gate| gate.vector == vector)
        };
        let gates: Vec<_> = (0..=u8::MAX).map(gate_of).collect();
        let gate = |vector: u8| target.gates.as_ref()?.get(gates[usize::from(vector)]?);
        let stubs = Stubs::of(target, gate);
        let begins = |theorem: Theorem| match theorem {
            Theorem::EnterGuest => Begins::at(Some(target.enter_guest)),
            Theorem::Syscall64 => Begins::at(Some(target.syscall_64)),
            Theorem::SyscallCompat => Begins::at(target.syscall_compat),
            Theorem::ReturnFromGuest | Theorem::ReturnFromGuestIst => {
                Begins::at(Some(target.return_from_guest))
            }
            Theorem::HandOn => Begins::at(target.hand_on[0]),
            Theorem::HandOnStack => Begins::at(target.hand_on[1]),
            of_event => {
                let vectors = of_event.event().map(|(vectors, _)| vectors);
                let stubs = vectors.map(|vectors| stubs.partition(vectors)).unwrap_or_default();
                let addresses = stubs.iter().filter_map(|stubs| gate(stubs.first()));
                Begins { addresses: addresses.map(|gate| gate.address).collect(), stubs }
            }
        };
        let theorems = Theorem::ALL.into_iter().chain(Theorem::EVENTS);
        let all: BTreeMap<_, _> = theorems.map(|theorem| (theorem, begins(theorem))).collect();
        let addresses = all.values().flat_map(|begins| begins.addresses.iter().copied());
        let reached = addresses.map(|address| (address, OnceLock::new())).collect();
        let named = all.keys().map(|theorem| (*theorem, OnceLock::new())).collect();
        Self {
            target,
            all,
            reached,
            named,
            gates,
            hands_on: OnceLock::new(),
            code: OnceLock::new(),
        }
    }

    /// Whether its event entries jump to the host's handler of exceptions.
    fn hand_on(&self) -> bool {
        let is_to_handler = |at: &u64| {
            let to = self.target.program.instruction(*at).near_branch_target();
            self.target.hook(to) == Some(HostSymbol::EXCEPTION)
        };
        let jump = || {
            let theorems = Theorem::EVENTS.into_iter().filter(|theorem| theorem.is_elsewhere());
            let mut all = theorems.map(|theorem| self.entry(theorem));
            all.any(|entry| entry.reached().any(|at| is_to_handler(&at)))
        };
        *self.hands_on.get_or_init(jump)
    }

    /// The entry point of a theorem.
    #[must_use]
    pub fn entry(&self, theorem: Theorem) -> Entry<'_> {
        let begins = &self.all[&theorem];
        Entry { target: self.target, theorem, points: self, begins }
    }

    /// The vectors whose stubs are executed: one for each kind of stub that a theorem comes to, and
    /// that of the code's own INT.
    pub(crate) fn executed_vectors(&self) -> Vec<u8> {
        let stubs = self.all.values().flat_map(|begins| &begins.stubs);
        stubs.map(Alike::first).chain([vector::SEGMENT_OVERRUN]).collect()
    }
}

impl Begins {
    fn at(address: Option<u64>) -> Self {
        Self { addresses: address.into_iter().collect(), stubs: Vec::new() }
    }
}

impl<'a> Entry<'a> {
    /// Where it begins: an event at one stub of those that are alike. Empty if the target has no
    /// such entry, or if nothing is executed.
    pub(crate) fn addresses(self) -> &'a [u64] {
        &self.begins.addresses
    }

    /// Its vectors by stubs that are alike, those of most vectors first.
    pub(crate) fn stubs(self) -> &'a [Alike] {
        &self.begins.stubs
    }

    /// Whether it may hand on to the host what the host's own code has raised.
    pub(crate) fn hands_on(self) -> bool {
        self.theorem.is_elsewhere() && self.points.hand_on()
    }

    /// Whether all that is executed has to be where [`code`](Self::code) says: an exception there
    /// would be handed on to the host otherwise, with a guest's RSP, root or GS base.
    pub(crate) fn is_confined(self) -> bool {
        // Under the host's own IDT, an exception comes to the host wherever it is.
        self.target.extent.is_none() && self.points.hand_on() && !self.theorem.hands_on()
    }

    /// Where the target's code is: of an image, all of it; of others' code, from the first
    /// instruction that is executed to the end of the last one.
    pub(crate) fn code(self) -> &'a Range<u64> {
        let executed = || {
            let target = self.target;
            let gates = target.gates.iter().flatten().map(|gate| gate.address);
            let entries: BTreeSet<u64> = target.entry_points().chain(gates).collect();
            let reached = entries.into_iter().flat_map(|entry| target.reached_from(entry));
            let reached: BTreeSet<u64> = reached.collect();
            let start = reached.first().copied().unwrap_or_default();
            let last = reached.last().map(|at| target.program.instruction(*at).next_ip());
            start..last.unwrap_or(start)
        };
        self.points.code.get_or_init(|| self.target.extent.clone().unwrap_or_else(executed))
    }

    /// Whether it ends in a hook that does not return, whatever it interrupts.
    pub(crate) fn is_fatal(self) -> bool {
        self.theorem.is_fatal() && !self.hands_on()
    }

    /// The addresses of all instructions that are executed from one of its addresses on: see
    /// [`Target::reached_from`].
    pub(crate) fn reached_from(self, address: u64) -> &'a BTreeSet<u64> {
        self.points.reached[&address].get_or_init(|| self.target.reached_from(address))
    }

    /// The addresses of all instructions that are executed from it on.
    pub(crate) fn reached(self) -> impl Iterator<Item = u64> {
        self.addresses().iter().flat_map(move |at| self.reached_from(*at)).copied()
    }

    /// Whether the instruction at `at` is one of these.
    pub(crate) fn reaches(self, at: u64) -> bool {
        self.addresses().iter().any(|address| self.reached_from(*address).contains(&at))
    }

    /// The places in the code whose address its code makes a value: see [`Target::named_from`].
    pub(crate) fn named(self) -> &'a BTreeSet<u64> {
        let find = || self.target.named_from(self.addresses().iter().copied());
        self.points.named[&self.theorem].get_or_init(find)
    }

    /// The first gate of a vector.
    pub(crate) fn gate(self, vector: u8) -> Option<&'a TargetGate> {
        self.target.gates.as_ref()?.get(self.points.gates[usize::from(vector)]?)
    }
}
