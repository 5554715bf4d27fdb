//! What was proved of one target is proved of each whose code is the same up to where it lies.
//!
//! A theorem's proof depends on its setting, on what the entry has saved of the host, and on the code
//! that it comes to: on these instructions, on which of them follows which, and on what the host is
//! told of their addresses. Where they lie does not matter as long as no address becomes a value. So
//! a proof is kept by all this, [`key`], if it has not shown on the way that more matters: see
//! [`depends_on_place`].
//!
//! A proof also holds of code that is the same in all that the proof has **executed**, a [`Shape`]:
//! every run of it is a run of the other code, too, with other addresses. What a call pushes may
//! differ, then, if it is seen at proof time that nothing but its RET has read it; any other address
//! that becomes a value must be the same number. What was not executed does not matter.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use sha2::{Digest, Sha256};

use super::around::Around;
use super::engine::Report;
use super::target::{Target, TargetGate};
use super::theorem::{Run, Theorem};
use super::vectors;
use super::world::{Saved, Setting};
use switcher_gen::asm::{HostSymbol, Window};
use switcher_gen::mitigations::{Bhb, Mitigations, Rsb};
use switcher_gen::{Config, Variant};
use switcher_model::Domain;
use switcher_model::program::{Kind, Op};
use switcher_model::symbolic::Symbolic;

/// Proofs that several provers share, on any number of threads.
#[derive(Debug, Default)]
pub struct Shared {
    proofs: Mutex<HashMap<Key, Arc<Proof>>>,
    /// By [`host`].
    shapes: Mutex<HashMap<Key, Vec<Arc<Shaped>>>>,
    proved: AtomicUsize,
    shared: AtomicUsize,
}

/// The SHA-256 of all that a proof depends on, as the `Hash` of its types has it: a field that a type
/// gets is part of it.
pub(super) type Key = [u8; 32];

/// What a value's `Hash` says of it.
fn digest(of: &impl Hash) -> Key {
    struct Digest(Sha256);
    impl Hasher for Digest {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }

        fn finish(&self) -> u64 {
            let digest: Key = self.0.clone().finalize().into();
            digest.iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
        }
    }
    let mut hasher = Digest(Sha256::new());
    of.hash(&mut hasher);
    hasher.0.finalize().into()
}

/// What was shown of a theorem; `None` if that holds of one target only. Empty until it is known.
pub(super) type Proof = OnceLock<Option<Vec<Report>>>;

/// Code, and what was shown of it.
type Shaped = (Shape, Vec<Report>);

impl Shared {
    /// How many theorems were tried to be proved, each with and without a hostile guest.
    #[must_use]
    pub fn proved(&self) -> usize {
        self.proved.load(Ordering::Relaxed)
    }

    /// How many needed no proof of their own.
    #[must_use]
    pub fn shared(&self) -> usize {
        self.shared.load(Ordering::Relaxed)
    }

    /// The same proofs for somebody else: what either adds is not the other's.
    #[must_use]
    pub fn fork(&self) -> Arc<Self> {
        let proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (proofs, shapes) = (Mutex::new(proofs), Mutex::new(shapes));
        Arc::new(Self { proofs, shapes, ..Self::default() })
    }

    pub(super) fn count(&self, is_shared: bool) {
        let counter = if is_shared { &self.shared } else { &self.proved };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// What was shown of code that executes the same for such a host.
    pub(super) fn like(&self, host: Key, target: &Target, theorem: Theorem) -> Option<Vec<Report>> {
        let entries = theorem.entries(target);
        // What executes nothing is about the IDT itself.
        if entries.is_empty() {
            return None;
        }
        let shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = shapes.get(&host).cloned().unwrap_or_default();
        drop(shapes);
        let found = known.iter().find(|shaped| shaped.0.is_of(target, &entries))?;
        Some(found.1.clone())
    }

    /// Keeps what was shown, if it holds of more than this one target.
    pub(super) fn keep(
        &self,
        host: Key,
        target: &Target,
        theorem: Theorem,
        executed: &Executed,
        reports: &[Report],
    ) {
        let entries = theorem.entries(target);
        if entries.is_empty() {
            return;
        }
        let Some(shape) = Shape::new(target, &entries, executed) else { return };
        let mut shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        shapes.entry(host).or_default().push(Arc::new((shape, reports.to_vec())));
    }

    /// The proof of that key, whoever makes it.
    pub(super) fn proof(&self, key: Key) -> Arc<Proof> {
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        match proofs.entry(key) {
            Entry::Occupied(entry) => Arc::clone(entry.get()),
            Entry::Vacant(entry) => Arc::clone(entry.insert(Arc::default())),
        }
    }
}

/// The image, where it lies and what is said of it.
pub(super) fn whole(target: &Target) -> Key {
    let Target { program, enter_guest, return_from_guest, syscall_64, syscall_compat, .. } = target;
    let Target { iretq, windows, gates, routines, hooks, returns, .. } = target;
    // What it is meant for is of the host: see `host`. The others are words for whoever reads them.
    let Target { setting: _, limit: _, assumed: _, harmless: _, .. } = target;
    let entries = (enter_guest, return_from_guest, syscall_64, syscall_compat, iretq, routines);
    let pieces: Vec<_> = program.pieces().collect();
    digest(&(program.base(), pieces, entries, windows, gates, hooks, returns))
}

/// All that a proof of `theorem` depends on: two targets with one key have one proof. Those of
/// events are about the `whole` image: see [`Shape`] for what else they hold of.
pub(super) fn key(target: &Target, theorem: Theorem, host: Key, whole: Key) -> Key {
    let entries = theorem.entries(target);
    if theorem.is_of_events() {
        // What `host` leaves out may be asked of code that no theorem of this kind should come to; of the IDT
        // itself, nothing is.
        let asked = (!entries.is_empty()).then_some(target.setting);
        return digest(&(host, whole, asked));
    }
    let code: Vec<_> = entries.iter().map(|entry| code(target, *entry)).collect();
    let asked: Vec<_> = entries.iter().map(|entry| asked_of_branches(target, *entry)).collect();
    digest(&(host, code, asked))
}

/// All that a proof depends on besides the code.
#[derive(Hash)]
struct Host<'a> {
    theorem: Theorem,
    setting: Setting,
    has_windows: bool,
    has_gates: bool,
    before: Before,
    /// Vector, stack and privilege level of each gate, if events are looked at; not where its handler
    /// is.
    gates: Option<Vec<(u8, u8, u8)>>,
    parts: Vec<vectors::PartKey<'a>>,
    /// Where NMIs are never blocked, if that is looked at.
    routines: Option<&'a Option<Range<u64>>>,
    /// Where the IRETQ to a guest is, if that is looked at.
    iretq: Option<Option<u64>>,
}

/// What the entry has saved of the host.
#[derive(Hash)]
enum Before {
    /// There was no entry.
    Nothing,
    Saved(Found),
    /// What that code makes of it.
    By(Vec<Code>),
}

/// A stack of nothing but the caller's values and constants.
#[derive(Hash)]
struct Found {
    /// host_rsp, from where the caller had it.
    host_rsp: i64,
    stack: Vec<FoundWord>,
}

#[derive(Hash)]
enum FoundWord {
    Known(u64),
    /// All of a value of that name.
    Named(Rc<str>),
}

/// See [`Host`].
pub(super) fn host(
    d: &Symbolic,
    target: &Target,
    theorem: Theorem,
    saved: Option<&Saved<Symbolic>>,
) -> Key {
    let code = |theorem: Theorem| -> Vec<_> {
        theorem.entries(target).into_iter().map(|entry| code(target, entry)).collect()
    };
    let before = match (theorem, saved.and_then(|saved| found(d, saved))) {
        (Theorem::EnterGuest, _) => Before::Nothing,
        (_, Some(found)) => Before::Saved(found),
        (_, None) => Before::By(code(Theorem::EnterGuest)),
    };
    let parts = match theorem.is_of_events() {
        true => vectors::partition(target, theorem),
        false => Vec::new(),
    };
    digest(&Host {
        theorem,
        setting: judged(target.setting, theorem),
        has_windows: target.windows.is_some(),
        has_gates: target.gates.is_some(),
        before,
        gates: theorem.is_of_events().then(|| {
            let gates = target.gates.iter().flatten();
            let of = |TargetGate { vector, address: _, ist, dpl }: &_| (*vector, *ist, *dpl);
            gates.map(of).collect()
        }),
        parts: parts.iter().map(vectors::Part::key).collect(),
        routines: theorem.keeps_blocking().then_some(&target.routines),
        iretq: theorem.is_of_iretq().then_some(target.iretq),
    })
}

/// A setting without what no semantics, no specification and no obligation of the theorem looks at.
fn judged(setting: Setting, theorem: Theorem) -> Setting {
    let Setting { variant, .. } = setting;
    let mitigations = as_a_rule(variant.mitigations(), theorem);
    // Of protection keys, only the direct switches know; see `asks_for_more` for others.
    let pku = variant.pku() && theorem == Theorem::Syscall64;
    let config = Config { pcid: false, pku, mitigations, ..variant.config() };
    // Every combination is legal that a legal one becomes without PCIDs.
    Setting { variant: Variant::new(config, variant.selectors()).unwrap_or(variant), ..setting }
}

/// Those of `all` mitigations that the theorem looks at as a rule; see [`Executed`] for others.
fn as_a_rule(all: Mitigations, theorem: Theorem) -> Mitigations {
    let Mitigations { ibrs, ibpb: _, untrain: _, rsb: _, bhb: _, verw } = all;
    match theorem {
        // No RET; of the guest's routines, VERW is asked for here alone.
        Theorem::EnterGuest => Mitigations { ibrs, verw, ..Mitigations::NONE },
        // Nor do these exit.
        Theorem::SyscallCompat
        | Theorem::Gates
        | Theorem::DbInRing0
        | Theorem::DfInRing0
        | Theorem::FatalInRing0
        | Theorem::FatalErrorInRing0
        | Theorem::FatalAtIretq
        | Theorem::FatalErrorAtIretq => Mitigations::NONE,
        // All of them around the hook.
        Theorem::NmiInRing0 | Theorem::McInRing0 => all,
        Theorem::Syscall64
        | Theorem::ReturnFromGuest
        | Theorem::ReturnFromGuestIst
        | Theorem::Event
        | Theorem::EventError
        | Theorem::EventDb
        | Theorem::EventNmi
        | Theorem::EventMc
        | Theorem::EventDf
        | Theorem::Iretq => Mitigations { verw: false, ..all },
    }
}

/// The mitigations that are looked at wherever there is a RET or an indirect branch, whatever the
/// theorem: all but VERW.
fn of_branches(all: Mitigations) -> Mitigations {
    Mitigations { verw: false, ..all }
}

/// These, if the code at `entry` has such a branch.
fn asked_of_branches(target: &Target, entry: u64) -> Option<Mitigations> {
    let reached = target.reached_from(entry);
    let mut branches = reached.iter().filter(|at| is_predicted(target, **at));
    branches.next().map(|_| of_branches(target.setting.variant.mitigations()))
}

/// Whether a predictor says where the instruction leads.
fn is_predicted(target: &Target, at: u64) -> bool {
    let op = target.program.at(at).and_then(Result::ok);
    op.is_some_and(Op::is_predicted)
}

/// Whether a run has asked for something of the CPU by which [`judged`] does not tell hosts apart.
fn asks_for_more<D: Domain>(target: &Target, theorem: Theorem, run: &Run<D>) -> bool {
    let (all, told) = (target.setting.model(), judged(target.setting, theorem).model());
    // Where the CPU lacks something, a path is refuted, but an arm ends.
    run.untaken.lacks || run.asked.intersects(all.features.difference(told.features))
}

/// What runs have executed.
#[derive(Debug, Default)]
pub(super) struct Executed {
    at: BTreeSet<u64>,
    /// Branches that have to stay in their cache line.
    lines: BTreeSet<u64>,
    /// Where a run has gone, and not only an arm that it has not taken; and whether an address is
    /// where one of those leads.
    taken: BTreeSet<u64>,
    arms_by_value: bool,
    /// Whether some run makes more of an address than [`Shape`] can tell.
    is_of_place: bool,
}

impl Executed {
    /// And this one.
    pub(super) fn add<D: Domain>(&mut self, target: &Target, theorem: Theorem, run: &Run<D>) {
        self.at.extend(run.trace.iter().chain(&run.untaken.at));
        self.lines.extend(&run.lines);
        self.taken.extend(&run.trace);
        self.arms_by_value |= run.untaken.by_value;
        // A RET in code that has none as a rule is asked for mitigations that [`judged`] leaves out, of
        // this variant or of another that would get its proof.
        const EVERY: Mitigations = Mitigations {
            ibrs: true,
            ibpb: true,
            untrain: true,
            rsb: Rsb::Full,
            bhb: Bhb::Long,
            verw: true,
        };
        let is_masked = of_branches(as_a_rule(EVERY, theorem)) != of_branches(EVERY);
        let is_asked = |at: &u64| {
            let to = target.program.instruction(*at).near_branch_target();
            is_predicted(target, *at) || to != 0 && target.returns.contains(&to)
        };
        let is_indirect = |at: &u64| target.is_indirect(*at);
        // Whether a RET stays in its line is not told by the code.
        let is_open = |at: &u64| target.around(*at).stays_in_line.is_none();
        let mut all = run.trace.iter().chain(&run.untaken.at);
        let asks_more = is_masked && all.clone().any(is_asked);
        let kind =
            |at: &u64| target.program.at(*at).and_then(Result::ok).map(|op| (op.kind, op.next));
        let is_named = |address| {
            let mut named = run.trace.iter().map(|at| target.program.instruction(*at));
            named.any(|i| i.is_ip_rel_memory_operand() && i.ip_rel_memory_address() == address)
        };
        let goes_on = |&[from, to]: &[u64; 2]| match kind(&from) {
            // To behind a call, or the run says that it is not movable.
            Some((Kind::Return(_), _)) => true,
            Some((Kind::Iretq, _)) => is_named(to),
            // A REP goes on where it is.
            Some((_, next)) => {
                to == next || to == from || successors(target, from).contains(&Some(to))
            }
            None => false,
        };
        self.is_of_place = self.is_of_place
            || !run.is_movable
            || asks_more
            || run.lines.iter().any(is_open)
            || all.any(is_indirect)
            || asks_for_more(target, theorem, run)
            || run.reads_code
            || !run.trace.array_windows().all(goes_on);
    }
}

/// Where an instruction leads: on, and to the address that it names. A RET, an IRETQ and a jump
/// through a register lead to a value.
fn successors(target: &Target, at: u64) -> [Option<u64>; 2] {
    let i = target.program.instruction(at);
    let next = Some(i.next_ip());
    match i.flow_control() {
        FlowControl::Next => {
            [next, i.is_ip_rel_memory_operand().then(|| i.ip_rel_memory_address())]
        }
        FlowControl::ConditionalBranch | FlowControl::Call => [next, Some(i.near_branch_target())],
        FlowControl::UnconditionalBranch => [None, Some(i.near_branch_target())],
        FlowControl::Interrupt if i.mnemonic() == Mnemonic::Int => {
            let mut gates = target.gates.iter().flatten();
            let gate = gates.find(|gate| gate.vector == i.immediate8());
            [None, gate.map(|gate| gate.address)]
        }
        _ => [None, None],
    }
}

/// All of an instruction that a proof looks at, but for where it and those after it lie.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Looks {
    /// Without what says how far it is to an address.
    pub(super) bytes: Vec<u8>,
    /// An address that the instruction makes a value.
    value: Option<u64>,
    /// Where it leaves the code for: a symbol of the host's, or elsewhere.
    leaves: Option<Option<HostSymbol>>,
    windows: Vec<Window>,
    is_iretq: bool,
    /// Whether NMIs are never blocked there.
    is_routine: bool,
    /// Without its cache line where that is not looked at.
    around: Around,
}

/// `in_line` says whether it matters that a branch stays in its cache line.
pub(super) fn looks(target: &Target, at: u64, in_line: bool) -> Looks {
    let program = &target.program;
    let code = program.from(at);
    let mut decoder = Decoder::with_ip(64, code, at, DecoderOptions::NONE);
    let i = decoder.decode();
    let offsets = decoder.get_constant_offsets(&i);
    let mut bytes = code[..i.len()].to_vec();
    let is_direct = i.near_branch_target() != 0;
    if is_direct {
        bytes.truncate(offsets.immediate_offset());
    }
    let value = i.is_ip_rel_memory_operand().then(|| i.ip_rel_memory_address());
    if value.is_some() {
        let start = offsets.displacement_offset();
        bytes[start..start + offsets.displacement_size()].fill(0);
    }
    let to = i.near_branch_target();
    let leaves = is_direct && !program.contains(to);
    let windows = target.windows.iter().flatten();
    let windows = windows.filter(|(_, range)| range.contains(&at)).map(|(window, _)| *window);
    let around = target.around(at);
    Looks {
        bytes,
        value,
        leaves: leaves.then(|| target.of_host(to)),
        windows: windows.collect(),
        is_iretq: target.iretq == Some(at),
        is_routine: target.is_routine(at),
        around: Around { stays_in_line: around.stays_in_line.filter(|_| in_line), ..around },
    }
}

/// Instructions that were executed, wherever they lie, and which of them follow which.
#[derive(Debug)]
struct Shape {
    /// Where it begins: one for each stub that is executed.
    first: Vec<usize>,
    instructions: Vec<(Looks, [Option<usize>; 2])>,
    /// Of which of them it does not matter what address they make a value: no path executes them, and
    /// where they lead on an arm that is not taken does not depend on it.
    free: Vec<bool>,
}

/// Without an address that LEA makes a value.
fn without_value(target: &Target, at: u64, looks: Looks) -> Looks {
    let is_lea = target.program.instruction(at).mnemonic() == Mnemonic::Lea;
    Looks { value: looks.value.filter(|_| !is_lea), ..looks }
}

impl Shape {
    fn new(target: &Target, entries: &[u64], executed: &Executed) -> Option<Self> {
        let at: Vec<u64> = executed.at.iter().copied().collect();
        let number = |address: u64| at.binary_search(&address).ok();
        let follow = |at: u64| successors(target, at).map(|to| to.and_then(number));
        let is_free = |at: &u64| !executed.arms_by_value && !executed.taken.contains(at);
        let free = at.iter().map(is_free).collect();
        let looks = |at: u64| {
            let looks = looks(target, at, executed.lines.contains(&at));
            if is_free(&at) { without_value(target, at, looks) } else { looks }
        };
        let instructions = at.iter().map(|at| (looks(*at), follow(*at))).collect();
        let first = entries.iter().map(|entry| number(*entry)).collect::<Option<_>>()?;
        let shape = Self { first, instructions, free };
        // Something might be executed that nothing leads to.
        (!executed.is_of_place && shape.is_of(target, entries)).then_some(shape)
    }

    /// Whether `target`'s code at `entries` is this.
    fn is_of(&self, target: &Target, entries: &[u64]) -> bool {
        if self.first.len() != entries.len() {
            return false;
        }
        let mut places = vec![None; self.instructions.len()];
        let mut ahead: Vec<_> = self.first.iter().copied().zip(entries.iter().copied()).collect();
        for (number, entry) in &ahead {
            places[*number] = Some(*entry);
        }
        while let Some((number, at)) = ahead.pop() {
            let (expected, follow) = &self.instructions[number];
            let in_line = expected.around.stays_in_line.is_some();
            if !target.program.contains(at) {
                return false;
            }
            let looks = looks(target, at, in_line);
            let is_free = self.free[number];
            let looks = if is_free { without_value(target, at, looks) } else { looks };
            if looks != *expected {
                return false;
            }
            for (number, to) in follow.iter().zip(successors(target, at)) {
                let Some(number) = *number else { continue };
                let Some(to) = to else { return false };
                match places[number] {
                    Some(known) if known != to => return false,
                    Some(_) => {}
                    None => {
                        places[number] = Some(to);
                        ahead.push((number, to));
                    }
                }
            }
        }
        places.iter().all(Option::is_some)
    }
}

/// Code, wherever it lies.
#[derive(Hash)]
enum Code {
    /// Instructions by number, and which of them is the first.
    Anywhere { first: Option<usize>, instructions: Vec<Normal>, entries: Option<[Option<u64>; 2]> },
    /// It jumps to what a register or memory says: nobody knows what it needs.
    Here { whole: Key, entry: u64 },
}

/// An instruction, with numbers of others for their addresses.
#[derive(Hash)]
struct Normal {
    looks: Looks,
    /// What is executed next, and where a jump leads, if that is code.
    next: Option<usize>,
    target: Option<usize>,
    /// The address that a call pushes.
    pushed: Option<u64>,
}

fn code(target: &Target, entry: u64) -> Code {
    let reached: Vec<u64> = target.reached_from(entry).into_iter().collect();
    let number = |at: u64| reached.binary_search(&at).ok();
    let decoded: Vec<_> = reached.iter().map(|at| target.program.instruction(*at)).collect();
    let is_indirect = |i: &Instruction| {
        matches!(i.flow_control(), FlowControl::IndirectBranch | FlowControl::IndirectCall)
    };
    if decoded.iter().any(is_indirect) {
        return Code::Here { whole: whole(target), entry };
    }
    let has_lines = target.setting.variant.mitigations().bhb.is_on();
    let instructions = decoded.iter().map(|i| {
        let to = Some(i.near_branch_target()).filter(|to| *to != 0);
        let is_call = i.flow_control() == FlowControl::Call;
        Normal {
            looks: looks(target, i.ip(), has_lines),
            next: number(i.next_ip()),
            target: to.and_then(number),
            pushed: is_call.then(|| i.next_ip()),
        }
    });
    // An MSR may be read that holds an entry's address, or be given one.
    let has_msrs =
        decoded.iter().any(|i| matches!(i.mnemonic(), Mnemonic::Rdmsr | Mnemonic::Wrmsr));
    let entries = has_msrs.then_some([Some(target.syscall_64), target.syscall_compat]);
    Code::Anywhere { first: number(entry), instructions: instructions.collect(), entries }
}

/// What the entry has saved of the host, if it is nothing but the caller's values and constants.
fn found(d: &Symbolic, saved: &Saved<Symbolic>) -> Option<Found> {
    let host_rsp = d.distance(saved.host_rsp, d.variable("host.rsp", 64))?;
    let word = |cells: &[_]| {
        let value = d.load(cells);
        match (d.known(value), d.variables_of(value).as_slice()) {
            (Some(known), _) => Some(FoundWord::Known(known)),
            // The whole of it: parts are shown with what they are.
            (None, [name]) if d.display(value) == **name => Some(FoundWord::Named(name.clone())),
            _ => None,
        }
    };
    let stack = saved.stack.chunks(8).map(word).collect::<Option<_>>()?;
    Some(Found { host_rsp, stack })
}

/// Whether a run shows that more matters than [`key`] has: that code is read as data, that a RET led
/// back into it, or that it came to where nothing was said to lead.
pub(super) fn depends_on_place<D: Domain>(target: &Target, theorem: Theorem, run: &Run<D>) -> bool {
    let entries = theorem.entries(target);
    let reached: BTreeSet<_> =
        entries.into_iter().flat_map(|entry| target.reached_from(entry)).collect();
    let op = |at: &u64| target.program.at(*at).and_then(Result::ok);
    let returns =
        |at: &u64| op(at).is_some_and(|op| matches!(op.kind, Kind::Return(_) | Kind::Iretq));
    let before_last = run.trace.split_last().map_or(&[][..], |(_, before)| before);
    run.reads_code
        || asks_for_more(target, theorem, run)
        || before_last.iter().any(returns)
        || !run.trace.iter().chain(&run.untaken.at).all(|at| reached.contains(at))
}
