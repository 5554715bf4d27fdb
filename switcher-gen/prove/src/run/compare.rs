//! The end of a run, compared with what the specification makes of the same state.

use crate::contract::Clauses;
use crate::goal::Goals;
use crate::obligation;
use crate::run::Extent;
use crate::run::met::Met;
use crate::run::origins::is_a_leak;
use crate::run::unchanged::{compare_stack, memory, unchanged, untouched};
use crate::run::watch::Watch;
use crate::theorem::Theorem;
use crate::world::event::TOP;
use crate::world::event::{EventContext, NOFLUSH};
use crate::world::fields::{FRAME_REST, FieldAt, by_number, in_frame, pvcs_fields};
use crate::world::{Saved, World, extra_of, region_of};
use switcher_gen::arch::{RFlags, Vendor};
use switcher_gen::layout::{FarFrame, PtRegs, SwitchFlags};
use switcher_model::{Domain, Gpr, RegionName};
use switcher_spec as spec;
use switcher_spec::{Exit, Outcome, Return};

/// What must hold of an end at CPL 3.
pub(crate) fn in_guest<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
    (theorem, extent): (Theorem, Extent),
    by_sysretq: bool,
    saved: Option<&Saved<D>>,
) -> String {
    let machine = &world.machine;
    let how = if by_sysretq { "SYSRET" } else { "IRETQ" };
    let end = format!("to the guest by {how}");
    // This must hold whatever the guest does meanwhile.
    goals.equal(
        d,
        obligation::HOST_GS_KEPT,
        "inactive GS base",
        world.host_gs,
        machine.inactive_gs_base,
    );
    if theorem == Theorem::Syscall64 {
        let extra = extra_of(d, world);
        let smod = d.is(
            d.mask(extra.switch_flags, SwitchFlags::MODE_TOGGLE.bits()),
            SwitchFlags::SMOD.bits(),
        );
        let root = d.select(smod, extra.smod_cr3, extra.umod_cr3);
        goals.equal(d, obligation::ROOT_OF_MODE, "CR3", root, machine.cr3);
    }
    if extent == Extent::Safety {
        return end;
    }

    if is_met(world, theorem) {
        // What is to come from the PVCS must not come from the host.
        let values = [
            ("RIP", machine.rip),
            ("RFLAGS", machine.rflags(d)),
            ("GS base", machine.gs_base),
            ("rsp", machine.get(Gpr::Rsp)),
            ("rcx", machine.get(Gpr::Rcx)),
            ("r11", machine.get(Gpr::R11)),
            ("PKRU", machine.pkru),
        ];
        for (name, value) in values {
            goals.add(obligation::NO_HOST_VALUE, d.bit(!is_a_leak(d, value)), name);
        }
    }
    let mut spec = world.spec;
    let outcome = specified(d, world, theorem, &watch.met, true, &mut spec);
    let wanted = match outcome {
        Outcome::Guest(wanted) => Some(wanted),
        Outcome::Host(_) => None,
    };
    goals.add(obligation::KIND, d.bit(wanted.is_some()), "kind of end");
    let Some(wanted) = wanted else { return end };
    let how = (wanted, by_sysretq);
    // Where guest memory races, the kind of return follows from what was read: what is wrong with
    // that says more, and comes first.
    let is_late = is_met(world, theorem);
    if !is_late {
        kind_of_return(d, world, goals, &spec, how);
    }
    let guest = &spec.guest;
    goals.equal(d, obligation::GS_BASE, "GS base", guest.gs_base, machine.gs_base);
    goals.equal(d, obligation::ROOT, "CR3", spec.root, machine.cr3);
    // What SYSRETQ gives where IRETQ is wanted is wrong in itself: that is one finding.
    let is_given = how != (Return::Iretq, true) || is_late;
    if is_given {
        goals.equal(d, obligation::RFLAGS, "RFLAGS", guest.rflags, machine.rflags(d));
        goals.equal(d, obligation::SELECTORS, "CS", guest.cs, machine.cs);
        goals.equal(d, obligation::SELECTORS, "SS", guest.ss, machine.ss);
    }
    untouched(d, world, watch, goals, &spec);
    if is_given {
        goals.equal(d, obligation::RIP, "RIP", guest.rip, machine.rip);
        let expected = by_number(&guest.registers);
        for register in Gpr::ALL {
            let (expected, got) = (expected[register as usize], machine.get(register));
            goals.equal(d, obligation::REGISTERS, register.name(), expected, got);
        }
    }
    if theorem == Theorem::EnterGuest {
        // The value of host_rsp is the switcher's own choice.
        let extra = extra_of(d, world);
        spec.tss_extra.host_rsp = extra.host_rsp;
        goals.add(obligation::EXIT_HOST_RSP, d.any(extra.host_rsp, u64::MAX), "host_rsp");
        if let Some(saved) = saved {
            goals.equal(d, obligation::SAVED, "host_rsp", saved.host_rsp, extra.host_rsp);
            compare_stack(d, goals, region_of(world, RegionName::HostStack), &saved.stack);
        }
    } else {
        unchanged(d, world, goals, RegionName::HostStack, i64::MIN..i64::MAX);
    }
    memory(d, world, goals, &spec);
    unchanged(d, world, goals, RegionName::IstStack, i64::MIN..i64::MAX);
    if is_late {
        kind_of_return(d, world, goals, &spec, how);
    }
    end
}

/// What must hold of the instruction that returns to the guest, if another one was wanted. SYSRETQ
/// is no way to what it cannot load: which of that it is says what is wrong.
fn kind_of_return<D: Domain>(
    d: &D,
    world: &World<D>,
    goals: &mut Goals<D>,
    spec: &spec::State<D>,
    (wanted, by_sysretq): (Return, bool),
) {
    match (wanted, by_sysretq) {
        (Return::Iretq, true) => {
            // One of them does not hold, or this is no path.
            for need in spec::needs_of_sysretq(d, &world.setting.host(), &spec.guest) {
                let (given, own) = (need.given, need.own);
                goals.equal_here(d, obligation::IRETQ_RETURN, need.why.name(), own, given);
            }
        }
        (Return::Sysretq, true) => goals.add(obligation::IRETQ_RETURN, d.bit(true), "return"),
        (wanted, false) => {
            let is_iretq = d.bit(wanted == Return::Iretq);
            goals.add(obligation::SYSRETQ_RETURN, is_iretq, "the instruction that returns");
        }
    }
}

/// Whether the end depends on what was met in the PVCS: only SYSCALL reads it, and where guest
/// memory races, it is written meanwhile.
fn is_met<D: Domain>(world: &World<D>, theorem: Theorem) -> bool {
    world.machine.memory.racing && theorem == Theorem::Syscall64
}

/// What the specification makes of the state. If a guest writes the PVCS meanwhile, it must make
/// what the machine has made of what was read there: of several values of a field, of one that
/// leads to what the guest has now, and of selectors that lead to the run's end (`to_guest` or
/// not). Everything else is as with stable guest memory.
fn specified<D: Domain>(
    d: &D,
    world: &World<D>,
    theorem: Theorem,
    met: &Met<D::Word>,
    to_guest: bool,
    spec: &mut spec::State<D>,
) -> Outcome<D::Word> {
    let host = world.setting.host();
    let machine = &world.machine;
    let decided_on = world.flags_to_decide_on(to_guest);
    spec.tss_extra.switch_flags = decided_on;
    if is_met(world, theorem) {
        let fields = pvcs_fields(&world.setting);
        let [cs, ss, gs_base, eflags, pkru, rip, rsp, rcx, r11] = fields;
        let before = world.spec.pvcs;
        let is_usual = |selector: u16| {
            move |found| {
                let is = d.is(found, selector.into());
                if to_guest { is } else { d.not(is) }
            }
        };
        let one = |field: Option<FieldAt>, before, fits: &dyn Fn(D::Word) -> D::Bit| {
            field.and_then(|field| met.one(d, field, fits)).unwrap_or(before)
        };
        let same = |now| move |found| d.eq(found, now);
        let register = |register| same(machine.get(register));
        spec.pvcs = spec::Pvcs {
            user_cs: one(cs, before.user_cs, &is_usual(host.selectors.user_cs())),
            user_ss: one(ss, before.user_ss, &is_usual(host.selectors.user_ds())),
            user_gsbase: one(gs_base, before.user_gsbase, &|found| {
                d.eq(spec::canonical(d, &host, found), machine.gs_base)
            }),
            eflags: one(eflags, before.eflags, &|found| {
                d.eq(spec::sanitised(d, found), machine.rflags(d))
            }),
            pkru: one(pkru, before.pkru, &same(machine.pkru)),
            rip: one(rip, before.rip, &same(machine.rip)),
            rsp: one(rsp, before.rsp, &register(Gpr::Rsp)),
            rcx: one(rcx, before.rcx, &register(Gpr::Rcx)),
            r11: one(r11, before.r11, &register(Gpr::R11)),
        };
    }
    let outcome = match theorem {
        Theorem::EnterGuest => spec::enter_guest(d, &host, &world.frame, spec),
        Theorem::SyscallCompat => spec::syscall_compat(d, &host, spec),
        Theorem::Syscall64 => spec::syscall_64(d, &host, &world.caller, world.frame_at, spec),
        Theorem::ReturnFromGuest | Theorem::ReturnFromGuestIst => {
            spec::return_from_guest(d, &host, &world.caller, None, world.frame_at, spec)
        }
        _ => specified_of_event(d, world, spec),
    };
    world.with_what_hooks_set(d, decided_on, spec);
    if is_met(world, theorem) {
        let flags = decided_on;
        // Only the switch to smod writes there.
        if d.decide(d.any(flags, SwitchFlags::NO_DS_TO_SMOD.bits())) {
            spec.pvcs = world.spec.pvcs;
        }
    }
    outcome
}

/// What must hold of an end in the host, after the call of `switcher_enter_guest`.
pub(crate) fn in_host<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
    theorem: Theorem,
    extent: Extent,
) -> String {
    let machine = &world.machine;
    let end = String::from("to the host");
    let mut spec = world.spec;
    let outcome = match extent {
        Extent::Safety => {
            let host = world.setting.host();
            spec::return_from_guest(d, &host, &world.caller, None, world.frame_at, &mut spec)
        }
        Extent::Specified | Extent::Ended | Extent::Everything => {
            specified(d, world, theorem, &watch.met, false, &mut spec)
        }
    };
    let Outcome::Host(Exit { frame, frame_at, caller }) = outcome else {
        goals.add(obligation::KIND, d.bit(false), "kind of end");
        return end;
    };
    goals.equal(d, obligation::EXIT_CALLER, "RIP", caller.rip, machine.rip);
    goals.equal(d, obligation::EXIT_CALLER, "RSP", caller.rsp, machine.get(Gpr::Rsp));
    let kept = [
        (Gpr::Rbx, caller.rbx),
        (Gpr::Rbp, caller.rbp),
        (Gpr::R12, caller.r12),
        (Gpr::R13, caller.r13),
        (Gpr::R14, caller.r14),
        (Gpr::R15, caller.r15),
    ];
    for (register, expected) in kept {
        let got = machine.get(register);
        goals.equal(d, obligation::EXIT_CALLER, register.name(), expected, got);
    }
    goals.equal(d, obligation::EXIT_ROOT, "CR3", spec.root, machine.cr3);
    goals.equal(d, obligation::EXIT_GS, "GS base", world.host_gs, machine.gs_base);
    goals.equal(
        d,
        obligation::EXIT_GS,
        "inactive GS base",
        world.spec.guest.gs_base,
        machine.inactive_gs_base,
    );
    let unwanted = RFlags::DF | RFlags::AC | RFlags::NT | RFlags::TF | RFlags::IF | RFlags::IOPL;
    let flags = d.mask(machine.rflags(d), unwanted.bits());
    goals.equal(d, obligation::EXIT_FLAGS, "DF, AC, NT, TF, IF, IOPL", d.word(0), flags);
    goals.equal(d, obligation::EXIT_RESULT, "rax", frame_at, machine.get(Gpr::Rax));
    let scratch = [Gpr::Rcx, Gpr::Rdx, Gpr::Rsi, Gpr::Rdi, Gpr::R8, Gpr::R9, Gpr::R10, Gpr::R11];
    let is_any = |register| register == Gpr::Rdi && world.setting.promises(Clauses::ANY_RDI);
    for register in scratch.into_iter().filter(|register| !is_any(*register)) {
        let got = machine.get(register);
        goals.equal(d, obligation::EXIT_SCRATCH, register.name(), d.word(0), got);
    }
    untouched(d, world, watch, goals, &spec);
    if world.model.vendor == Vendor::Amd && !world.setting.promises(Clauses::ANY_SS) {
        goals.add(obligation::EXIT_SS, d.any(machine.ss, 0xFFFC), "SS");
    }
    if extent == Extent::Safety {
        return end;
    }
    memory(d, world, goals, &spec);
    let size = size_of::<PtRegs>() as i64;
    match frame {
        Some(frame) => {
            let stack = region_of(world, RegionName::Sp0Stack);
            let guest = &frame.guest;
            let gpr = by_number(&guest.registers);
            for register in Gpr::ALL {
                let got = stack.read(d, in_frame(register) - size, 8);
                let expected = gpr[register as usize];
                goals.equal(d, obligation::EXIT_FRAME, register.name(), expected, got);
            }
            let rest = [frame.orig_ax, guest.rip, guest.cs, guest.rflags, guest.ss];
            for ((name, at, _), expected) in FRAME_REST.into_iter().zip(rest) {
                let got = stack.read(d, at - size, 8);
                goals.equal(d, obligation::EXIT_FRAME, name, expected, got);
            }
            let start = if theorem.is_on_ist() { 0 } else { i64::MIN };
            unchanged(d, world, goals, RegionName::IstStack, start..i64::MAX);
        }
        // A handler has written the frame, which stays where it is.
        None => {
            unchanged(d, world, goals, RegionName::Sp0Stack, -size..0);
            unchanged(d, world, goals, RegionName::IstStack, -size..0);
        }
    }
    end
}

/// What must hold where the interrupted code goes on.
pub(crate) fn resumed<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
    hooked: bool,
) -> String {
    let end = String::from("where it was interrupted");
    let Some(EventContext { interrupted, in_routines, .. }) = &world.event else { return end };
    let is_debug = watch.entry.theorem == Theorem::DbInRing0;
    goals.add(obligation::HOOK, d.bit(hooked != is_debug), "whether it is called");
    let expected = &match watch.entry.theorem {
        Theorem::DbInRing0 => spec::debug_in_ring_0(d, interrupted, *in_routines),
        Theorem::McInRing0 => spec::machine_check_in_ring_0(d, interrupted, *in_routines),
        _ => *interrupted,
    };
    let machine = &world.machine;
    watch.blocking.resumed(d, watch.entry, goals, machine);
    // What is read from CR3 has no NOFLUSH: the bit does not count.
    let root = d.mask(machine.cr3, !NOFLUSH);
    goals.equal(d, obligation::RESUMED_ROOT, "CR3", expected.root, root);
    goals.equal(d, obligation::RESUMED_GS, "GS base", expected.gs_base, machine.gs_base);
    let inactive = ("inactive GS base", expected.inactive_gs_base, machine.inactive_gs_base);
    goals.equal(d, obligation::RESUMED_GS, inactive.0, inactive.1, inactive.2);
    let rest = [
        ("RIP", expected.rip, machine.rip),
        ("RFLAGS", expected.rflags, machine.rflags(d)),
        ("CS", expected.cs, machine.cs),
        ("SS", expected.ss, machine.ss),
    ];
    for (name, expected, got) in rest {
        goals.equal(d, obligation::RESUMED, name, expected, got);
    }
    for (register, expected) in Gpr::ALL.into_iter().zip(by_number(&expected.registers)) {
        let got = machine.get(register);
        goals.equal(d, obligation::RESUMED_REGISTERS, register.name(), expected, got);
    }
    untouched(d, world, watch, goals, &world.spec);
    let all = i64::MIN..i64::MAX;
    for name in [
        RegionName::Tss,
        RegionName::TssExtra,
        RegionName::Pvcs,
        RegionName::Sp0Stack,
        RegionName::HostStack,
    ] {
        unchanged(d, world, goals, name, all.clone());
    }
    unchanged(d, world, goals, RegionName::IstStack, 0..TOP);
    if watch.entry.theorem.keeps_blocking() {
        let red_zone = -(FarFrame::RED_ZONE as i64);
        unchanged(d, world, goals, RegionName::InterruptedStack, red_zone..0);
    }
    end
}

/// What the specification makes of a guest's event.
fn specified_of_event<D: Domain>(
    d: &D,
    world: &World<D>,
    state: &mut spec::State<D>,
) -> Outcome<D::Word> {
    let host = world.setting.host();
    match &world.event {
        Some(EventContext { event, guest, .. }) => {
            spec::event(d, &host, &world.caller, event, guest, world.frame_at, state)
        }
        None => spec::return_from_guest(d, &host, &world.caller, None, world.frame_at, state),
    }
}
