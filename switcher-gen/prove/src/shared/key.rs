//! All that a proof depends on, as one number: two targets with one key have one proof.

use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::rc::Rc;

use iced_x86::{FlowControl, Instruction, Mnemonic};
use sha2::{Digest, Sha256};

use crate::entry::Entry;
use crate::gate::TargetGate;
use crate::host_data::HostData;
use crate::run::Run;
use crate::setting::Setting;
use crate::stubs::{Alike, AlikeKey};
use crate::target::Target;
use crate::target::looks::{Looks, looks};
use crate::theorem::Theorem;
use crate::world::Saved;
use switcher_gen::asm::Window;
use switcher_gen::mitigations::Mitigations;
use switcher_gen::{Config, Variant};
use switcher_model::Domain;
use switcher_model::program::{Op, Operation};
use switcher_model::symbolic::Symbolic;

/// The SHA-256 of all that a proof depends on, as the `Hash` of its types has it: a field that a
/// type gets is part of it.
pub(crate) type Key = [u8; 32];

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

/// The image, where it lies and what is said of it.
pub(crate) fn whole(target: &Target) -> Key {
    let Target { program, enter_guest, return_from_guest, syscall_64, syscall_compat, .. } = target;
    let Target { hand_on, iretq, windows, gates, extent, routines, hooks, returns, data, .. } =
        target;
    // The setting is a part of the host's key: see `host`. The other fields are words for whoever
    // reads them.
    let Target { setting: _, limit: _, assumed: _, harmless: _, .. } = target;
    let entries = (
        enter_guest,
        return_from_guest,
        syscall_64,
        syscall_compat,
        hand_on,
        iretq,
        extent,
        routines,
    );
    let pieces: Vec<_> = program.pieces().collect();
    digest(&(program.base(), pieces, entries, windows, gates, hooks, returns, data))
}

/// All that a proof of `theorem` depends on: two targets with one key have one proof. Those of
/// events are about the `whole` image: see [`TraceShape`] for what else they hold of.
pub(crate) fn key(entry: Entry<'_>, host: Key, whole: Key) -> Key {
    let Entry { target, theorem, .. } = entry;
    let addresses = entry.addresses();
    if theorem.is_of_events() {
        // What `host` leaves out may be asked of code that no theorem of this kind should come to.
        // Of the IDT itself, nothing of that is asked.
        let asked = (!addresses.is_empty()).then_some(target.setting);
        return digest(&(host, whole, asked));
    }
    let code: Vec<_> = addresses.iter().map(|at| code(entry, *at)).collect();
    let asked: Vec<_> = addresses.iter().map(|at| asked_of_branches(entry, *at)).collect();
    digest(&(host, code, asked))
}

/// All that a proof depends on besides the code.
#[derive(Hash)]
pub(crate) struct Host<'a> {
    theorem: Theorem,
    setting: Setting,
    data: &'a [HostData],
    /// Of which windows the host is told.
    windows: Vec<Window>,
    has_gates: bool,
    before: Before,
    /// Vector, stack and privilege level of each gate, if events are looked at; not where its
    /// handler is.
    gates: Option<Vec<(u8, u8, u8)>>,
    parts: Vec<AlikeKey<'a>>,
    /// Where NMIs are never blocked, if that is looked at.
    routines: Option<&'a Option<Range<u64>>>,
    /// Where the IRETQ to a guest is, if that is looked at.
    iretq: Option<Option<u64>>,
    /// Where the code is, and whether that is all of it, if it is looked at whether it was
    /// interrupted, or whether what is executed is there.
    code: Option<(&'a Range<u64>, bool)>,
}

/// What the entry has saved of the host.
#[derive(Hash)]
enum Before {
    /// There was no entry.
    Nothing,
    Saved(Found),
    /// The code of the entry, which decides what is saved.
    By(Vec<CodeKey>),
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
    /// A word that is all of the value of that name.
    Named(Rc<str>),
}

/// The key of all that a proof depends on besides the code: see [`Host`].
pub(crate) fn host(d: &Symbolic, entry: Entry<'_>, saved: Option<&Saved<Symbolic>>) -> Key {
    let Entry { target, theorem, .. } = entry;
    let code_of_entry = || {
        let entry = entry.points.entry(Theorem::EnterGuest);
        entry.addresses().iter().map(|at| code(entry, *at)).collect()
    };
    let before = match (theorem, saved.and_then(|saved| found(d, saved))) {
        (Theorem::EnterGuest, _) => Before::Nothing,
        (_, Some(found)) => Before::Saved(found),
        (_, None) => Before::By(code_of_entry()),
    };
    digest(&Host {
        theorem,
        setting: judged(target.setting, theorem),
        data: &target.data,
        windows: target.windows.keys().copied().collect(),
        has_gates: target.gates.is_some(),
        before,
        gates: theorem.is_of_events().then(|| {
            let gates = target.gates.iter().flatten();
            let of = |TargetGate { vector, address: _, ist, dpl }: &_| (*vector, *ist, *dpl);
            gates.map(of).collect()
        }),
        parts: entry.stubs().iter().map(Alike::key).collect(),
        routines: theorem.keeps_blocking().then_some(&target.routines),
        iretq: theorem.is_of_iretq().then_some(target.iretq),
        code: (theorem.is_of_iretq() || entry.is_confined())
            .then(|| (entry.code(), target.extent.is_some())),
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

/// The mitigations among `all` that the theorem looks at as a rule; see [`Executed`] for others.
pub(crate) fn as_a_rule(all: Mitigations, theorem: Theorem) -> Mitigations {
    let Mitigations { ibrs, ibpb: _, untrain: _, rsb: _, bhb: _, verw } = all;
    match theorem {
        // This routine has no RET, and of the guest's routines, VERW is asked for here alone.
        Theorem::EnterGuest => Mitigations { ibrs, verw, ..Mitigations::NONE },
        // These do not exit, or have done so.
        Theorem::HandOn
        | Theorem::HandOnStack
        | Theorem::SyscallCompat
        | Theorem::Gates
        | Theorem::DbInRing0
        | Theorem::DfInRing0
        | Theorem::FatalInRing0
        | Theorem::FatalErrorInRing0
        | Theorem::FatalAtIretq
        | Theorem::FatalErrorAtIretq => Mitigations::NONE,
        // All mitigations are asked for around the hook.
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
pub(crate) fn of_branches(all: Mitigations) -> Mitigations {
    Mitigations { verw: false, ..all }
}

/// The mitigations of branches, if the code from `at` on has such a branch.
fn asked_of_branches(entry: Entry<'_>, at: u64) -> Option<Mitigations> {
    let (target, reached) = (entry.target, entry.reached_from(at));
    let mut branches = reached.iter().filter(|at| is_predicted(target, **at));
    branches.next().map(|_| of_branches(target.setting.variant.mitigations()))
}

/// Whether a predictor says where the instruction leads.
pub(crate) fn is_predicted(target: &Target, at: u64) -> bool {
    let op = target.program.at(at).and_then(Result::ok);
    op.is_some_and(Op::is_predicted)
}

/// Whether a run has asked for something of the CPU by which [`judged`] does not tell hosts apart.
pub(crate) fn asks_for_more<D: Domain>(entry: Entry<'_>, run: &Run<D>) -> bool {
    let Entry { target, theorem, .. } = entry;
    let (all, told) = (target.setting.model(), judged(target.setting, theorem).model());
    run.asked.intersects(all.features.difference(told.features))
}

/// Code, wherever it lies.
#[derive(Hash)]
enum CodeKey {
    /// Instructions by number, and which of them is the first.
    Anywhere { first: Option<usize>, instructions: Vec<Normal>, entries: Option<[Option<u64>; 2]> },
    /// The code jumps to where a register or memory says: it is not known which of it matters.
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

fn code(entry: Entry<'_>, start: u64) -> CodeKey {
    let target = entry.target;
    let reached: Vec<u64> = entry.reached_from(start).iter().copied().collect();
    let number = |at: u64| reached.binary_search(&at).ok();
    let decoded: Vec<_> = reached.iter().map(|at| target.program.instruction(*at)).collect();
    let is_indirect = |i: &Instruction| {
        matches!(i.flow_control(), FlowControl::IndirectBranch | FlowControl::IndirectCall)
    };
    if decoded.iter().any(is_indirect) {
        return CodeKey::Here { whole: whole(target), entry: start };
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
    CodeKey::Anywhere { first: number(start), instructions: instructions.collect(), entries }
}

/// What the entry has saved of the host, if it is nothing but the caller's values and constants.
fn found(d: &Symbolic, saved: &Saved<Symbolic>) -> Option<Found> {
    let host_rsp = d.distance(saved.host_rsp, d.variable("host.rsp", 64))?;
    let word = |cells: &[_]| {
        let value = d.load(cells);
        match (d.known(value), d.variables_of(value).as_slice()) {
            (Some(known), _) => Some(FoundWord::Known(known)),
            // It must be the whole value: parts are displayed as parts.
            (None, [name]) if d.display(value) == **name => Some(FoundWord::Named(name.clone())),
            _ => None,
        }
    };
    let stack = saved.stack.chunks(8).map(word).collect::<Option<_>>()?;
    Some(Found { host_rsp, stack })
}

/// Whether a run shows that more matters than is in [`key`]: that code is read as data, that it may
/// matter how far the code's addresses are from each other, that a RET led back into it, or that it
/// came to where nothing was said to lead.
pub(crate) fn depends_on_place<D: Domain>(entry: Entry<'_>, run: &Run<D>) -> bool {
    let op = |at: &u64| entry.target.program.at(*at).and_then(Result::ok);
    let returns = |at: &u64| {
        op(at).is_some_and(|op| matches!(op.kind, Operation::Return(_) | Operation::Iretq))
    };
    let before_last = run.trace.split_last().map_or(&[][..], |(_, before)| before);
    run.reads_code
        || run.untaken.of_place
        || run.untaken.have_met
        || asks_for_more(entry, run)
        || before_last.iter().any(returns)
        || !run.trace.iter().chain(&run.untaken.at).all(|at| entry.reaches(*at))
}
