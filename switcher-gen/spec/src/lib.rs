//! What each routine must do, as Rust: the executable form of spec/switcher.md.
//!
//! One file per routine, with the name of the emitter's. Read a file beside its section of
//! switcher.md. No assembly and no layout is needed for it: state consists of named fields, and a
//! field that is not changed stays as it was. The proofs of `switcher-prove` compare this with what
//! the bytes do, for every state; the fuzzers of `switcher-engine`, for many.
//!
//! | file | section of switcher.md |
//! |---|---|
//! | `syscall_64` | "SYSCALL entry": the decision |
//! | `to_smod`, `to_umod` | its points 1 and 2: the direct switches |
//! | `return_to_guest` | "Return to the guest" |
//! | `enter_guest` | "Enter guest and common exit", the way in |
//! | `return_from_guest` | "Enter guest and common exit", the way out |
//! | `syscall_compat` | "32-bit SYSCALL": what CSTAR leads to |
//! | `event` | "Events from the guest" |
//! | `hand_on` | "Handing events on" |
//!
//! `d.decide(condition)` reads as "if". `d` is the [`Domain`], the kind of values that registers
//! hold. With numbers, the specification is a program that can be run:
//!
//! ```
//! use switcher_gen::arch::{PagingMode, Selectors};
//! use switcher_gen::layout::Revision;
//! use switcher_model::Concrete;
//! use switcher_spec::{Host, canonical, sanitised};
//!
//! let d = Concrete::default();
//! // Whatever flags a guest asks for, it gets neither IOPL nor VM, and IF is set.
//! assert_eq!(sanitised(&d, 0xFFFF_FFFF), 0x254FD7 | 0x202);
//!
//! let paging = PagingMode::FourLevel;
//! let (selectors, revision) = (Selectors::DEFAULT, Revision::V2024);
//! let host = Host { paging, selectors, revision, ibrs: false, pku: false };
//! // What ERETU loads as GS base is canonical, whatever the PVCS says.
//! assert_eq!(canonical(&d, &host, 1 << 47), 0xFFFF_8000_0000_0000);
//! ```
//!
//! The pages of the specification are in the package's folder; its README.md lists them.

mod enter_guest;
mod event;
mod hand_on;
mod return_from_guest;
mod return_to_guest;
mod syscall_64;
mod syscall_compat;
mod to_smod;
mod to_umod;

pub use enter_guest::enter_guest;
pub use event::{
    Event, HandedOn, Hook, InterruptedCode, debug_in_ring_0, event, exception_in_host, hook,
    machine_check_in_ring_0,
};
pub use hand_on::{Delivered, delivered};
pub use return_from_guest::return_from_guest;
pub use return_to_guest::{NeedOfSysretq, needs_of_sysretq, return_to_guest};
pub use syscall_64::syscall_64;
pub use syscall_compat::syscall_compat;

use switcher_gen::arch::{PagingMode, RFlags, Selectors};
use switcher_gen::layout::Revision;
use switcher_model::Domain;

/// What a host has fixed when it chooses a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Which addresses are canonical.
    pub paging: PagingMode,
    /// The selectors of ring 0 and ring 3.
    pub selectors: Selectors,
    /// What the PVCS looks like.
    pub revision: Revision,
    /// Whether SPEC_CTRL is switched between host and guest.
    pub ibrs: bool,
    /// Whether each mode of a guest has a PKRU of its own.
    pub pku: bool,
}

/// The general registers.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "registers are what they are called")]
pub struct Registers<W> {
    pub rax: W,
    pub rcx: W,
    pub rdx: W,
    pub rbx: W,
    pub rsp: W,
    pub rbp: W,
    pub rsi: W,
    pub rdi: W,
    pub r8: W,
    pub r9: W,
    pub r10: W,
    pub r11: W,
    pub r12: W,
    pub r13: W,
    pub r14: W,
    pub r15: W,
}

/// A guest's CPU, as the guest sees it at CPL 3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guest<W> {
    /// The general registers.
    pub registers: Registers<W>,
    /// The next instruction.
    pub rip: W,
    /// RFLAGS.
    pub rflags: W,
    /// The code selector.
    pub cs: W,
    /// The stack selector.
    pub ss: W,
    /// GS base.
    pub gs_base: W,
}

/// What the host keeps of a guest for the switcher (spec/abi.md, "The per-CPU block").
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields of layout::TssExtra")]
pub struct TssExtra<W> {
    pub host_cr3: W,
    pub host_rsp: W,
    pub enter_cr3: W,
    pub switch_flags: W,
    pub smod_cr3: W,
    pub umod_cr3: W,
    pub pvcs: W,
    pub retu_rip: W,
    pub smod_entry: W,
    pub smod_gsbase: W,
    pub smod_rsp: W,
    pub host_spec_ctrl: W,
    pub guest_spec_ctrl: W,
    pub smod_pkru: W,
    /// Whether this guest has protection keys: not 0, if it does. Ours has no such field: there,
    /// all guests of a variant with them do.
    pub pku_on: W,
}

/// The fields of the PVCS that a switcher uses (spec/abi.md, "PVCS").
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields of layout::Pvcs")]
pub struct Pvcs<W> {
    pub user_cs: W,
    pub user_ss: W,
    pub user_gsbase: W,
    pub eflags: W,
    pub pkru: W,
    pub rip: W,
    /// Only in the revision of 2024.
    pub rsp: W,
    pub rcx: W,
    pub r11: W,
}

/// What a guest's exit leaves for the host (spec/abi.md, "The exit frame").
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExitFrame<W> {
    /// All registers of the guest; its GS base stays in the CPU.
    pub guest: Guest<W>,
    /// Error code and reason.
    pub orig_ax: W,
}

/// Who called `switcher_enter_guest`: the System V ABI's callee-saved registers, and where to
/// return to.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "registers are what they are called")]
pub struct Caller<W> {
    pub rbx: W,
    pub rbp: W,
    pub r12: W,
    pub r13: W,
    pub r14: W,
    pub r15: W,
    /// RSP once the call has returned.
    pub rsp: W,
    /// The return address.
    pub rip: W,
}

/// Everything a routine may change.
#[derive(Debug)]
pub struct State<D: Domain> {
    /// The guest that runs, or is about to.
    pub guest: Guest<D::Word>,
    /// CR3.
    pub root: D::Word,
    /// MSR SPEC_CTRL.
    pub spec_ctrl: D::Word,
    /// PKRU.
    pub pkru: D::Word,
    /// The per-CPU block's part about the guest.
    pub tss_extra: TssExtra<D::Word>,
    /// The page shared with the guest.
    pub pvcs: Pvcs<D::Word>,
}

impl<D: Domain> Clone for State<D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Domain> Copy for State<D> {}

/// Where a routine ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome<W> {
    /// In the guest, with exactly the registers of [`State::guest`]. GS base is the guest's, the
    /// inactive one the host's.
    Guest(Return),
    /// In the host, after the call of `switcher_enter_guest`: see [`Exit`].
    Host(Exit<W>),
}

/// Which instruction returns to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "instructions are what they are called")]
pub enum Return {
    Sysretq,
    Iretq,
}

/// What the host finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exit<W> {
    /// The frame, if the routine wrote it.
    pub frame: Option<ExitFrame<W>>,
    /// The address of the frame, which the call returns.
    pub frame_at: W,
    /// The caller's registers, restored.
    pub caller: Caller<W>,
}

/// The RFLAGS that a guest gets when it asks for `wanted` (spec/abi.md, "RFLAGS").
pub fn sanitised<D: Domain>(d: &D, wanted: D::Word) -> D::Word {
    let allowed = d.mask(wanted, RFlags::GUEST_ALLOWED.bits());
    d.or(allowed, d.word(RFlags::GUEST_FIXED.bits()))
}

/// `address` with the bits above the paging mode's width replaced by its sign bit.
pub fn canonical<D: Domain>(d: &D, host: &Host, address: D::Word) -> D::Word {
    let by = host.paging.sign_bits().into();
    d.sar(d.shl(address, by), by)
}
