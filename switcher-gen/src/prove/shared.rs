//! What was proved of one target is proved of each whose code is the same up to where it lies.
//!
//! A theorem's proof depends on its setting, on what the entry has saved of the host, and on the code
//! that it comes to: on these instructions, on which of them follows which, and on what the host is
//! told of their addresses. Where they lie does not matter as long as no address becomes a value. So
//! a proof is kept by all this, [`key`], if it has not shown on the way that more matters: see
//! [`depends_on_place`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use sha2::{Digest, Sha256};

use super::engine::Report;
use super::obligation;
use super::target::Target;
use super::theorem::{Run, Theorem};
use super::world::{Saved, Setting, region};
use crate::asm::Window;
use crate::machine::Domain;
use crate::machine::symbolic::Symbolic;
use crate::mitigations::Mitigations;
use crate::variant::{Axes, Variant};

/// Proofs that several provers share, on any number of threads.
#[derive(Debug, Default)]
pub struct Shared {
    proofs: Mutex<HashMap<Key, Arc<Proof>>>,
    proved: AtomicUsize,
    shared: AtomicUsize,
}

/// The SHA-256 of all that a proof depends on.
pub(super) type Key = [u8; 32];

/// What was shown of a theorem; `None` if that holds of one target only. Empty until it is known.
pub(super) type Proof = OnceLock<Option<Vec<Report>>>;

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
        Arc::new(Self { proofs: Mutex::new(proofs), ..Self::default() })
    }

    pub(super) fn count(&self, is_shared: bool) {
        let counter = if is_shared { &self.shared } else { &self.proved };
        counter.fetch_add(1, Ordering::Relaxed);
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

/// All that a proof of `theorem` depends on: two targets with one key have one proof.
pub(super) fn key(
    d: &Symbolic,
    target: &Target,
    theorem: Theorem,
    saved: Option<&Saved<Symbolic>>,
) -> Key {
    let code = |theorem: Theorem| theorem.entry(target).map(|entry| code(target, entry));
    let before = match (theorem, saved.and_then(|saved| self::saved(d, saved))) {
        (Theorem::EnterGuest, _) => "nothing".into(),
        (_, Some(saved)) => saved,
        // What was saved is what that code makes of it.
        (_, None) => format!("{:?}", code(Theorem::EnterGuest)),
    };
    let has_windows = target.windows.is_some();
    let (setting, code) = (judged(target.setting, theorem), code(theorem));
    let text = format!("{theorem:?} {setting:?} {has_windows} {before} {code:?}");
    Sha256::digest(text).into()
}

/// A setting without what no semantics, no specification and no obligation of the theorem looks at.
fn judged(setting: Setting, theorem: Theorem) -> Setting {
    let Setting { variant, .. } = setting;
    let Mitigations { ibrs, verw, .. } = variant.axes().mitigations;
    let mitigations = match theorem {
        // No RET; VERW is asked for here and nowhere else.
        Theorem::EnterGuest => Mitigations { ibrs, verw, ..Mitigations::NONE },
        // Nor do these exit.
        Theorem::SyscallCompat
        | Theorem::Gates
        | Theorem::DbInRing0
        | Theorem::NmiInRing0
        | Theorem::McInRing0
        | Theorem::DfInRing0
        | Theorem::GpInRing0
        | Theorem::PfAtIretq => Mitigations::NONE,
        Theorem::Syscall64
        | Theorem::ReturnFromGuest
        | Theorem::ReturnFromGuestIst
        | Theorem::Event
        | Theorem::EventError
        | Theorem::EventDb
        | Theorem::EventNmi
        | Theorem::EventMc
        | Theorem::EventDf
        | Theorem::IretqNp
        | Theorem::IretqGp => Mitigations { verw: false, ..variant.axes().mitigations },
    };
    let axes = Axes { pcid: false, mitigations, ..variant.axes() };
    // Every combination is legal that a legal one becomes without PCIDs.
    Setting { variant: Variant::new(axes, variant.selectors()).unwrap_or(variant), ..setting }
}

/// Code, wherever it lies.
#[derive(Debug)]
#[expect(dead_code, reason = "to be shown, and so to be compared")]
enum Code {
    /// Instructions by number, and which of them is the first.
    Anywhere { first: Option<usize>, instructions: Vec<Normal>, entries: Option<[Option<u64>; 2]> },
    /// It jumps to what a register or memory says: nobody knows what it needs.
    Here { base: u64, bytes: Vec<u8>, entry: u64, labels: String },
}

/// An instruction, with numbers of others for their addresses.
#[derive(Debug)]
#[expect(dead_code, reason = "to be shown, and so to be compared")]
struct Normal {
    /// Without the displacement of a direct jump.
    bytes: Vec<u8>,
    /// What is executed next, and where a jump leads, if that is code.
    next: Option<usize>,
    target: Option<usize>,
    /// An address that the instruction makes a value.
    value: Option<u64>,
    /// What the host is told of its address.
    windows: Vec<Window>,
    is_iretq: bool,
}

fn code(target: &Target, entry: u64) -> Code {
    let reached: Vec<u64> = target.reached_from(entry).into_iter().collect();
    let number = |at: u64| reached.binary_search(&at).ok();
    let decoded: Vec<_> = reached.iter().map(|at| target.program.instruction(*at)).collect();
    let is_indirect = |i: &Instruction| {
        matches!(i.flow_control(), FlowControl::IndirectBranch | FlowControl::IndirectCall)
    };
    if decoded.iter().any(is_indirect) {
        let Target { program, enter_guest, return_from_guest, .. } = target;
        let Target { syscall_64, syscall_compat, iretq, windows, .. } = target;
        let entries = (enter_guest, return_from_guest, syscall_64, syscall_compat, iretq);
        let labels = format!("{entries:?} {windows:?}");
        return Code::Here { base: program.base(), bytes: program.bytes().into(), entry, labels };
    }
    let instructions = decoded.iter().map(|i| {
        let is_direct = matches!(
            i.flow_control(),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call
        );
        let start = (i.ip() - target.program.base()) as usize;
        let mut bytes = target.program.bytes()[start..start + i.len()].to_vec();
        if is_direct {
            // The displacement comes last.
            bytes.truncate(displacement_at(target, i));
        }
        let windows = target.windows.iter().flatten();
        let windows = windows.filter(|(_, range)| range.contains(&i.ip()));
        Normal {
            bytes,
            next: number(i.next_ip()),
            target: is_direct.then(|| number(i.near_branch_target())).flatten(),
            value: match i.flow_control() {
                FlowControl::Call => Some(i.next_ip()),
                _ if i.is_ip_rel_memory_operand() => Some(i.ip_rel_memory_address()),
                _ => None,
            },
            windows: windows.map(|(window, _)| *window).collect(),
            is_iretq: target.iretq == Some(i.ip()),
        }
    });
    // An MSR may be read that holds an entry's address, or be given one.
    let has_msrs =
        decoded.iter().any(|i| matches!(i.mnemonic(), Mnemonic::Rdmsr | Mnemonic::Wrmsr));
    let entries = has_msrs.then_some([Some(target.syscall_64), target.syscall_compat]);
    Code::Anywhere { first: number(entry), instructions: instructions.collect(), entries }
}

/// Where in a direct jump its displacement begins.
fn displacement_at(target: &Target, jump: &Instruction) -> usize {
    let code = &target.program.bytes()[(jump.ip() - target.program.base()) as usize..];
    let mut decoder = Decoder::with_ip(64, code, jump.ip(), DecoderOptions::NONE);
    let again = decoder.decode();
    decoder.get_constant_offsets(&again).immediate_offset()
}

/// What the entry has saved of the host, if it is nothing but the caller's values and constants.
fn saved(d: &Symbolic, saved: &Saved<Symbolic>) -> Option<String> {
    let mut text = format!("{:?}", d.distance(saved.host_rsp, d.variable("host.rsp", 64))?);
    for cells in saved.stack.chunks(8) {
        let value = d.load(cells);
        text += " ";
        text += &match (d.known(value), d.variables_of(value).as_slice()) {
            (Some(known), _) => format!("{known:#x}"),
            // The whole of it: parts are shown with what they are.
            (None, [name]) if d.display(value) == **name => d.display(value),
            _ => return None,
        };
    }
    Some(text)
}

/// Whether a run shows that more matters than [`key`] has: that code is read as data, that a RET led
/// back into it, or that it came to where nothing was said to lead.
pub(super) fn depends_on_place<D: Domain>(target: &Target, theorem: Theorem, run: &Run<D>) -> bool {
    let reached = theorem.entry(target).map(|entry| target.reached_from(entry)).unwrap_or_default();
    let returns = |at: &u64| target.program.instruction(*at).flow_control() == FlowControl::Return;
    let before_last = run.trace.split_last().map_or(&[][..], |(_, before)| before);
    let reads_code =
        |goal: &super::Goal<D>| goal.obligation == obligation::MAPPED && goal.about == region::CODE;
    run.goals.iter().any(reads_code)
        || before_last.iter().any(returns)
        || !run.trace.iter().all(|at| reached.contains(at))
}
