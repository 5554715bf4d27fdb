//! What must hold of an arm: what it may tell, and what it leaves to the host, to a guest and to a
//! hook.

use crate::contract::Clauses;
use crate::goal::Goals;
use crate::layouts::ExtraField;
use crate::obligation;
use crate::run::arms::memory::Strayed;
use crate::run::arms::points::{To, points_to};
use crate::run::events::untold;
use crate::run::host_return;
use crate::run::origins::{
    is_a_leak, is_of_address, is_steered, leads_to_a_guests, steers_the_host,
};
use crate::run::watch::Watch;
use crate::theorem::{Start, Theorem, Whose};
use crate::world::World;
use crate::world::event::EventContext;
use switcher_gen::arch::RFlags;
use switcher_gen::layout::{OrigAx, PtRegs};
use switcher_model::{Access, Domain, Gpr, Origin, Place, RegionName, State as Machine};

impl<D: Domain> Watch<'_, D> {
    /// The arm has read something: it may be too late for that.
    pub(crate) fn has_read(&self, d: &D, goals: &mut Goals<D>, is_last: bool) {
        let wanted = self.entry.target.setting.variant.mitigations().verw;
        if wanted
            && is_last
            && (self.entry.theorem == Theorem::EnterGuest || self.entry.theorem.has_hook())
        {
            goals.broken(d, obligation::VERW_LAST, "VERW", None);
        }
    }

    /// Whether all of host_rsp is read.
    pub(crate) fn is_host_rsp(&self, state: &Machine<D>, access: &Access<D::Word>) -> bool {
        let Place { region, index, size } = access.place;
        let region = &state.memory.regions[region];
        let at = self.entry.target.setting.own_extra_at(ExtraField::HostRsp);
        region.name == RegionName::TssExtra && region.offset(index) == at && size == 8
    }

    /// Whether an access is to nothing but smod_rsp.
    pub(crate) fn is_smod_rsp(&self, state: &Machine<D>, access: &Access<D::Word>) -> bool {
        let Place { region, index, size } = access.place;
        let at = state.memory.regions[region].offset(index);
        let field = self.entry.target.setting.extra_at(ExtraField::SmodRsp);
        field.is_some_and(|field| field <= at && at + size as i64 <= field + 8)
    }

    /// The arm leaves for the host, or calls a hook.
    pub(crate) fn is_host(&self, d: &D, goals: &mut Goals<D>, machine: &Machine<D>) {
        let ours = d.eq(machine.gs_base, self.start.host_gs);
        goals.add(obligation::SWAPGS_FENCED, ours, "GS base");
    }
}

/// The arm returns to the host, after the call of `switcher_enter_guest`.
pub(crate) fn at_caller<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
    strayed: &Strayed,
) {
    let machine = &world.machine;
    if d.distance(machine.rip, world.caller.rip) != Some(0) {
        goals.broken(d, obligation::UNTAKEN_TARGET, "RIP", None);
    }
    watch.is_host(d, goals, machine);
    let start = &watch.start;
    let is_own = d.bit(watch.entry.theorem == Theorem::EnterGuest);
    let is_own = d.both(is_own, d.eq(machine.cr3, start.root));
    let is_hosts = d.either(d.eq(machine.cr3, start.block.host_cr3), is_own);
    goals.add(obligation::EXIT_ROOT, is_hosts, "CR3");
    frame(d, world, watch, goals, strayed);
    if d.distance(machine.get(Gpr::Rsp), world.caller.rsp) != Some(0) {
        goals.broken(d, obligation::UNTAKEN_MEMORY, Gpr::Rsp.name(), None);
    }
    for (is_free, about) in [(!strayed.steers, "memory"), (has_own_flags(d, machine), "DF, AC")] {
        goals.add(obligation::UNTAKEN_MEMORY, d.bit(is_free), about);
    }
    let setting = &world.setting;
    let is_any = |register| register == Gpr::Rdi && setting.promises(Clauses::ANY_RDI);
    let all = Gpr::ALL.into_iter().filter(|register| *register != Gpr::Rsp);
    for register in all.filter(|register| !is_any(*register)) {
        let word = machine.get(register);
        // RAX is to point to the frame: see above.
        let is_address = register != Gpr::Rax && leads_to_a_guests(d, watch.entry.target, word);
        let is_free = !is_address && !steers_the_host(d, word);
        goals.add(obligation::EXIT_SCRATCH, d.bit(is_free), register.name());
    }
}

/// The frame of an exit, by which the host judges what has happened: where it is expected, and with
/// nothing in what the host trusts that a guest may have chosen, but for what the CPU has said of
/// the guest.
fn frame<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &Watch<'_, D>,
    goals: &mut Goals<D>,
    strayed: &Strayed,
) {
    let machine = &world.machine;
    // Where else it points to, or what a part of its address leads to, may hold values of the
    // guest's, such as `smod_rsp` or a register. What a number leads the host to, no guest has
    // chosen.
    let rax = machine.get(Gpr::Rax);
    // What is called has no frame yet.
    let is_called = watch.entry.theorem == Theorem::EnterGuest;
    let is_at_frame = !is_called && d.distance(rax, world.frame_at) == Some(0);
    let is_frame = is_at_frame || !is_of_address(d, watch.entry.target, rax);
    goals.add(obligation::UNTAKEN_MEMORY, d.bit(is_frame), Gpr::Rax.name());
    if is_called {
        return;
    }
    let is_handlers = matches!(watch.entry.theorem.start(), Start::Handler { .. });
    let of_event = world.event.as_ref().map(|context| {
        let EventContext { event, guest, .. } = context;
        let error_code = event.error_code.unwrap_or(d.word(u64::MAX));
        [d.truncate(error_code, 4), event.vector, guest.cs, guest.ss]
    });
    for (number, (name, at, size)) in [
        ("error code", (PtRegs::orig_ax + OrigAx::error_code).bytes(), 4),
        ("reason", (PtRegs::orig_ax + OrigAx::reason).bytes(), 4),
        ("cs", PtRegs::cs.bytes(), 8),
        ("ss", PtRegs::ss.bytes(), 8),
    ]
    .into_iter()
    .enumerate()
    {
        let address = d.plus(world.frame_at, at as i64);
        let Some(place) = machine.memory.locate(d, address, size, machine.cr3) else {
            continue;
        };
        let word = machine.memory.load(d, place);
        // A handler of the host's has written its frame; what lies there otherwise is left over.
        let written = is_handlers.then(|| world.before.load(d, place));
        let said = of_event.map(|words| words[number]);
        let is_said = written
            .into_iter()
            .chain(said)
            .fold(d.bit(false), |is_said, expected| d.either(is_said, d.eq(word, expected)));
        let is_known = d.either(is_said, d.bit(!steers_the_host(d, word)));
        let is_closed = d.bit(!strayed.is_open(place.region));
        goals.add(obligation::UNTAKEN_MEMORY, d.both(is_closed, is_known), name);
    }
}

/// Whether no guest has chosen the flags that code of the host goes by: which way strings go, and
/// what of a guest's it may access.
fn has_own_flags<D: Domain>(d: &D, machine: &Machine<D>) -> bool {
    !is_steered(d, d.mask(machine.rflags(d), (RFlags::DF | RFlags::AC).bits()))
}

/// The region that a word points to, or beside it.
fn region_at<D: Domain>(d: &D, machine: &Machine<D>, word: D::Word) -> Option<RegionName> {
    match points_to(d, machine, word)? {
        To::Region(region) => Some(machine.memory.regions[region].name),
        To::Gs(_) => None,
    }
}

/// The arm calls a hook of the host's: what that finds in RDI and RSP, in memory, and as its return
/// address, which is where the hook's own RET leads.
pub(crate) fn at_hook<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &Watch<'_, D>,
    goals: &mut Goals<D>,
    strayed: &Strayed,
) {
    let machine = &world.machine;
    untold(d, machine, goals);
    let root = host_return::root(d, world, watch);
    goals.equal(d, obligation::HOOK_ROOT, "CR3", root, machine.cr3);
    let rsp = machine.get(Gpr::Rsp);
    let stack = region_at(d, machine, rsp).filter(|region| region.is_stack());
    for register in [Gpr::Rdi, Gpr::Rsp] {
        let word = machine.get(register);
        // The frame lies on the hook's own stack. On another one, or below, there is what a guest
        // has left.
        let is_above = d.distance(word, rsp).is_some_and(|above| above >= 0);
        let is_stack = stack.is_some() && region_at(d, machine, word) == stack && is_above;
        let is_address = leads_to_a_guests(d, watch.entry.target, word);
        let is_free = d.bit(is_stack || !is_address && !steers_the_host(d, word));
        goals.add(obligation::HOOK_REGISTERS, is_free, register.name());
    }
    for (is_free, about) in [(!strayed.steers, "memory"), (has_own_flags(d, machine), "DF, AC")] {
        goals.add(obligation::HOOK_REGISTERS, d.bit(is_free), about);
    }
    let place = machine.memory.locate(d, machine.get(Gpr::Rsp), 8, machine.cr3);
    let is_known = place.is_some_and(|place| {
        let to = d.code_at(machine.memory.load(d, place));
        let is_code = to.is_some_and(|to| watch.entry.target.program.contains(to));
        is_code && !strayed.is_open(place.region)
    });
    if !is_known {
        goals.broken(d, obligation::UNTAKEN_TARGET, "RIP", None);
    }
    watch.is_host(d, goals, machine);
}

/// SYSRETQ: the guest's code may be executed, and loads what the arm has stored.
pub(crate) fn at_sysretq<D: Domain>(
    d: &D,
    machine: &Machine<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
    strayed: &Strayed,
) {
    watch.verw(d, goals);
    tells_a_guest(d, machine, goals);
    goals.add(obligation::NO_HOST_VALUE, d.bit(!strayed.tells), "memory");
    let start = &watch.start;
    let block = &start.block;
    // What begins in a guest begins on a root of its own.
    let is_guests = match watch.entry.theorem.event() {
        Some((_, whose)) => matches!(whose, Whose::Guest | Whose::Iretq),
        None => watch.entry.theorem != Theorem::EnterGuest,
    };
    let roots = [block.smod_cr3, block.umod_cr3, block.enter_cr3];
    let roots = roots.into_iter().chain(is_guests.then_some(start.root));
    let is_one = |is_one, root| d.either(is_one, d.eq(machine.cr3, root));
    let is_one = roots.fold(d.bit(false), is_one);
    goals.of(obligation::ROOT, is_one, "CR3", machine.cr3);
}

/// The arm enters a guest, if it is about routines that do: an event returns to ring 0.
pub(crate) fn at_guest<D: Domain>(
    d: &D,
    machine: &Machine<D>,
    watch: &Watch<'_, D>,
    goals: &mut Goals<D>,
) {
    if !watch.entry.theorem.is_of_events() {
        tells_a_guest(d, machine, goals);
    }
}

/// The arm goes on at CPL 3: with nothing that no guest may learn, but for a stack of the host's
/// where it has not left that.
pub(crate) fn tells_a_guest<D: Domain>(d: &D, machine: &Machine<D>, goals: &mut Goals<D>) {
    let is_stack = |word| region_at(d, machine, word).is_some_and(RegionName::is_stack);
    let registers = Gpr::ALL.into_iter().map(|register| (register.name(), machine.get(register)));
    let Machine { gs_base, fs_base, pkru, .. } = *machine;
    let others = [("GS base", gs_base), ("FS base", fs_base), ("PKRU", pkru)];
    for (name, word) in registers.chain(others) {
        let is_free = !is_a_leak(d, word) || name == Gpr::Rsp.name() && is_stack(word);
        goals.add(obligation::NO_HOST_VALUE, d.bit(is_free), name);
    }
}

/// Whether a guest has a hand in where this leads.
pub(crate) fn is_a_guests<D: Domain>(d: &D, rip: D::Word) -> bool {
    d.mentions(rip, |origin| origin.is_a_guests_choice() || origin == Origin::Cpu)
}
