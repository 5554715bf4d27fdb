//! The states that theorems are about: the machine's and the specification's, of the same unknowns.
//!
//! Everything **assumed** is in this folder: see [`World::assume`], [`event`] and the list in
//! spec/proofs.md. A state is built from a [`Source`] of values: variables for a proof, numbers for
//! a fuzzer or for the replay of a counterexample.
//!
//! | file | what it is for |
//! |---|---|
//! | `name` | what the values of a state are called, and where they come from |
//! | `fields` | where the values lie in structs and frames |
//! | `build` | the state in which a routine starts |
//! | `event` | the state in which an event comes, from a guest or in ring 0 |
//! | `handing_on` | the state in which the host hands an event on |
//! | `hooks` | which bits of `switch_flags` a hook may have set meanwhile |
//! | `apart` | whether regions of a state of numbers are apart |

pub(crate) mod apart;
pub(crate) mod build;
pub(crate) mod event;
pub(crate) mod fields;
pub(crate) mod handing_on;
mod hooks;
pub(crate) mod name;

use crate::boundary;
use crate::contract::Clauses;
use crate::entry::Entry;
use crate::setting::Setting;
use crate::target::Target;
use crate::theorem::{Start, Theorem};
use crate::world::event::EventContext;
use crate::world::fields::read_extra;
use crate::world::handing_on::HandingOn;
use crate::world::name::Source;
use switcher_gen::arch::PagingMode;
use switcher_model::{CpuModel, Domain, Memory, Msrs, Region, RegionName, State as Machine};
use switcher_spec as spec;
use switcher_spec::{Caller, Guest};

/// The host's stack as an entry leaves it, for the exits that need it: what the switcher saves
/// there is its own business, but it must find it again.
#[derive(Debug)]
pub struct Saved<D: Domain> {
    pub(crate) stack: Vec<D::Cell>,
    pub(crate) host_rsp: D::Word,
}

impl<D: Domain> Clone for Saved<D> {
    fn clone(&self) -> Self {
        Self { stack: self.stack.clone(), host_rsp: self.host_rsp }
    }
}

/// One state, as the machine and as the specification have it.
pub(crate) struct World<D: Domain> {
    /// As the CPU has it.
    pub machine: Machine<D>,
    /// As the specification has it.
    pub spec: spec::State<D>,
    /// Who called, or will be returned to.
    pub caller: Caller<D::Word>,
    /// The frame the guest is entered with, or that a handler has written.
    pub frame: Guest<D::Word>,
    /// The address of an exit's frame.
    pub frame_at: D::Word,
    /// What is assumed of the values, in words.
    pub assumptions: Vec<(&'static str, D::Bit)>,
    /// The CPU.
    pub model: CpuModel,
    pub(crate) setting: Setting,
    /// The host's GS base.
    pub(crate) host_gs: D::Word,
    /// What the host's untraining of returns leaves, if the host has one.
    pub(crate) untraining: Option<Untraining<D>>,
    /// FS base at the start.
    pub(crate) fs_base: D::Word,
    /// The event, if there is one.
    pub(crate) event: Option<EventContext<D>>,
    /// What is handed on, if the host does that.
    pub(crate) handing_on: Option<HandingOn<D>>,
    /// Memory at the start, to tell what has changed.
    pub(crate) before: Memory<D>,
}

/// What [`HostSymbol::UNTRAIN`](switcher_gen::asm::HostSymbol::UNTRAIN) may leave.
pub(crate) struct Untraining<D: Domain> {
    /// What is left in RAX, RCX and RDX.
    pub(crate) registers: [D::Word; 3],
    /// What is left in the flags, of which the arithmetic ones are used.
    pub(crate) flags: D::Word,
    /// What is left of its return address and of the stack below it, from the top down.
    pub(crate) below: Vec<D::Cell>,
}

impl<D: Domain> World<D> {
    /// What the host guarantees, and the runtime checks where it can.
    fn assume(
        d: &D,
        setting: &Setting,
        frame: &Guest<D::Word>,
        spec: &spec::State<D>,
        [host_rsp, host_gs]: [D::Word; 2],
        code: &CodePlace<D::Word>,
        start: Start,
    ) -> Vec<(&'static str, D::Bit)> {
        let (extra, model) = (&spec.tss_extra, &setting.model());
        let caller_stack = setting.contract.caller_stack.bytes().cast_unsigned();
        let canonical = |address| model.is_canonical(d, address);
        let mut assumptions = vec![
            (boundary::ONE_MODE, boundary::has_one_mode(d, extra.switch_flags)),
            ("the host's GS base is canonical", canonical(host_gs)),
            ("smod_entry is canonical", canonical(extra.smod_entry)),
            ("smod_gsbase is canonical", canonical(extra.smod_gsbase)),
            ("the guest's GS base is canonical", canonical(spec.guest.gs_base)),
            ("the code lies in one half of the addresses", code.is_in_a_half(d, model.paging)),
            (
                "the caller's stack does not lie at address 0",
                d.not(d.lt(host_rsp, d.word(caller_stack + 8))),
            ),
        ];
        if start == Start::Call {
            let rpl = |selector| d.is(d.mask(selector, 3), 3);
            assumptions.push(("the frame's CS has RPL 3", rpl(frame.cs)));
            assumptions.push(("the frame's SS has RPL 3", rpl(frame.ss)));
        }
        assumptions
    }
}

impl<D: Domain> World<D> {
    /// What the contract says of the frame that a guest is entered with.
    fn promised(d: &D, setting: &Setting, frame: &Guest<D::Word>) -> Vec<(&'static str, D::Bit)> {
        let selectors = setting.variant.selectors();
        let is = |word, selector: u16| d.is(word, selector.into());
        let is_64_bit = is(frame.cs, selectors.user_cs());
        let has_ss = is(frame.ss, selectors.user_ds());
        let of_a_user = d.either(is_64_bit, is(frame.cs, selectors.user32_cs()));
        [
            (Clauses::FRAME_SELECTORS, "the frame has a user's selectors", of_a_user),
            (Clauses::FRAME_64_BIT, "the frame has the selectors of 64-bit code", is_64_bit),
        ]
        .into_iter()
        .filter(|(clause, ..)| setting.promises(*clause))
        .map(|(_, text, has_cs)| (text, d.both(has_cs, has_ss)))
        .collect()
    }
}

/// Where code lies.
struct CodePlace<W> {
    /// The address of its first byte.
    first: W,
    /// How many bytes it has.
    length: u64,
}

impl<W: Copy> CodePlace<W> {
    /// Whether it lies in the lower or in the upper range of canonical addresses, whichever, and
    /// ends there.
    fn is_in_a_half<D: Domain<Word = W>>(&self, d: &D, paging: PagingMode) -> D::Bit {
        let size = 1_u64 << (paging.address_bits() - 1);
        let room = d.word(size.saturating_sub(self.length));
        let is_from = |start| d.lt(d.sub(self.first, d.word(start)), room);
        d.either(is_from(size.wrapping_neg()), is_from(0))
    }
}

/// The state that a theorem starts from.
pub(crate) fn of<D: Domain>(
    d: &D,
    entry: Entry<'_>,
    source: &mut impl Source<D>,
    saved: Option<&Saved<D>>,
) -> World<D> {
    let Entry { target, theorem, .. } = entry;
    if theorem.hands_on() {
        return handing_on::world(d, entry, source);
    }
    if theorem.is_of_events() {
        return event::world(d, entry, source, saved);
    }
    // Nothing is saved before a guest is entered.
    let saved = saved.filter(|_| theorem != Theorem::EnterGuest);
    World::new(d, source, target, theorem.start(), saved)
}

/// The MSRs that make a SYSCALL what it is, as the host has them.
pub(crate) fn entries<D: Domain>(d: &D, target: &Target, setting: &Setting) -> Msrs<D> {
    Msrs {
        star: d.word(setting.variant.selectors().star().bits()),
        lstar: d.code(target.syscall_64),
        cstar: d.code(target.syscall_compat.unwrap_or_default()),
        sfmask: d.word(setting.sfmask.bits()),
        spec_ctrl: d.word(0),
        efer: d.word(0),
    }
}

pub(crate) fn region_of<D: Domain>(world: &World<D>, name: RegionName) -> &Region<D> {
    world.machine.memory.region(name).expect("every world has all regions")
}

pub(crate) fn extra_of<D: Domain>(d: &D, world: &World<D>) -> spec::TssExtra<D::Word> {
    read_extra(d, region_of(world, RegionName::TssExtra), &world.setting)
}
