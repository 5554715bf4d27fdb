//! What cases are made of: scenarios at random, or near a boundary, within what a host guarantees.

use super::specified::{GuestSlots, SLOT_LEN, SLOTS, Slot};
use crate::fuzz::scenario::{FuzzEngine, Random, random_smod, random_umod};
use crate::scenario::{SYSCALL_LEN, Setup};
use switcher_gen::arch::{Cr3, PagingMode};
use switcher_gen::layout::{Mode, PtRegs, SwitchFlags};

/// In umod's page, as many SYSCALLs one after the other, and a UD2 at the end.
const RUN: usize = SLOTS / 2;
/// How many round trips a loop has at most.
const LOOP: u64 = 512;
/// One case of so many is a loop.
const LOOP_EVERY: u64 = 32;

impl GuestSlots {
    /// umod has a long run of SYSCALLs and then short ones, smod short ones alone. Both pages end
    /// with a SYSCALL: after it there is nothing.
    pub(super) fn new() -> Self {
        let mut random = Random(0);
        let mut slot = || match random.below(8) {
            0 => Slot::Ud2,
            1 => Slot::Int3,
            2 => Slot::Cli,
            _ => Slot::Syscall,
        };
        let mut page = || (0..SLOTS).map(|_| slot()).collect::<Vec<_>>();
        let mut code = Self { smod: page(), umod: page() };
        code.umod[..RUN].fill(Slot::Syscall);
        code.umod[RUN - 1] = Slot::Ud2;
        for page in [&mut code.smod, &mut code.umod] {
            page[SLOTS - 1] = Slot::Syscall;
        }
        code
    }

    /// The bytes of a mode's page.
    pub(super) fn bytes(&self, mode: Mode) -> Vec<u8> {
        self.of(mode).iter().flat_map(|slot| slot.bytes()).collect()
    }
}

/// Memory that nobody has: in the lower half of any paging mode, between what is linked to fixed
/// addresses and what a kernel chooses the addresses of.
pub(super) const NOBODYS: std::ops::Range<u64> = 1 << 40..1 << 46;
/// Nobody's either: null pointers point here.
pub(super) const NULL: std::ops::Range<u64> = 0..0x1000;

/// Makes the cases of one machine.
pub(super) struct Cases<'a, E> {
    pub(super) engine: &'a E,
    pub(super) code: &'a GuestSlots,
}

impl<E: FuzzEngine> Cases<'_, E> {
    /// One case.
    pub(super) fn make(&self, random: &mut Random) -> Setup {
        let is_loop = random.below(LOOP_EVERY) == 0;
        let is_umod = is_loop || random.coin();
        let random_mode = if is_umod { random_umod } else { random_smod };
        let mut setup = random_mode(random, self.engine);
        setup.count = false;
        self.places(random, &mut setup, is_umod, is_loop);
        if random.coin() {
            self.registers(random, &mut setup);
        }
        if random.below(4) == 0 {
            roots(random, &mut setup);
        }
        // A loop is long because nothing is in its way.
        if !is_loop {
            self.obstacles(random, &mut setup);
        }
        setup
    }

    /// Where the guest is and where it goes.
    fn places(&self, random: &mut Random, setup: &mut Setup, is_umod: bool, is_loop: bool) {
        let umod = self.engine.code(Mode::Umod).start;
        if is_umod {
            let slot = match is_loop {
                true => RUN as u64 - 1 - (1 + random.below(LOOP)),
                false => short_slot(random),
            };
            aim(&mut setup.frame, umod + SLOT_LEN * slot);
            if is_loop || random.below(4) != 0 {
                let eretu = self.syscall_of_smod(random);
                setup.extra.smod_entry = eretu;
                setup.extra.retu_rip = eretu + SYSCALL_LEN;
            } else {
                setup.extra.smod_entry = self.slot_of_smod(random);
            }
        } else {
            let eretu = if random.below(4) == 0 {
                self.slot_of_smod(random)
            } else {
                self.syscall_of_smod(random)
            };
            aim(&mut setup.frame, eretu);
            setup.extra.retu_rip = eretu + SYSCALL_LEN;
            setup.extra.smod_entry = if random.coin() { eretu } else { self.slot_of_smod(random) };
            let by_sysretq = setup.pvcs.rcx == setup.pvcs.rip;
            setup.pvcs.rip = umod + SLOT_LEN * short_slot(random);
            if by_sysretq {
                setup.pvcs.rcx = setup.pvcs.rip;
            }
        }
    }

    fn slot_of_smod(&self, random: &mut Random) -> u64 {
        self.engine.code(Mode::Smod).start + SLOT_LEN * random.below(SLOTS as u64)
    }

    fn syscall_of_smod(&self, random: &mut Random) -> u64 {
        let start = random.below(SLOTS as u64) as usize;
        let mut around = (start..SLOTS).chain(0..start);
        let slot = around.find(|slot| self.code.smod[*slot] == Slot::Syscall).unwrap_or_default();
        self.engine.code(Mode::Smod).start + SLOT_LEN * slot as u64
    }

    /// Values near a boundary.
    fn registers(&self, random: &mut Random, setup: &mut Setup) {
        let paging = self.engine.paging();
        let near = word(random, paging);
        let frame = &mut setup.frame;
        let registers = [
            &mut frame.rax,
            &mut frame.rbx,
            &mut frame.rdx,
            &mut frame.rsi,
            &mut frame.rdi,
            &mut frame.rbp,
            &mut frame.r8,
            &mut frame.r9,
            &mut frame.r10,
            &mut frame.r12,
            &mut frame.r15,
            &mut frame.rsp,
            &mut setup.pvcs.rsp,
            &mut setup.extra.smod_rsp,
        ];
        let chosen = random.below(registers.len() as u64) as usize;
        for (n, register) in registers.into_iter().enumerate() {
            if n == chosen {
                *register = near;
            }
        }
        match random.below(8) {
            0 => setup.gs_base = base(random, paging),
            1 => setup.extra.smod_gsbase = base(random, paging),
            2 => setup.pvcs.user_gsbase = word(random, paging),
            3 => setup.frame.rcx = word(random, paging),
            4 => setup.frame.r11 = word(random, paging),
            5 => setup.pvcs.rcx = word(random, paging),
            6 => setup.pvcs.r11 = word(random, paging),
            _ => {}
        }
    }

    /// What makes a direct switch an exit, SYSRETQ an IRETQ, or the guest fault.
    fn obstacles(&self, random: &mut Random, setup: &mut Setup) {
        let paging = self.engine.paging();
        match random.below(16) {
            0..=2 => inhibit(random, setup),
            3 => setup.extra.retu_rip = word(random, paging),
            4 => setup.extra.retu_rip ^= 1 << random.below(64),
            5 => setup.extra.retu_rip = setup.frame.rip + SYSCALL_LEN,
            6 => setup.pvcs.user_cs = selector(random, setup.pvcs.user_cs),
            7 => setup.pvcs.user_ss = selector(random, setup.pvcs.user_ss),
            8 => {
                // Not of ring 0, which a host never asks for, and not 32-bit code, where this CPU's
                // own kernel would get a SYSCALL.
                let cs = selector(random, setup.frame.cs as u16) | 3;
                let user32_cs = crate::fuzz::scenario::USER.user32_cs();
                setup.frame.cs = if cs == user32_cs { 0x3B } else { cs }.into();
            }
            9 => setup.frame.ss = selector(random, setup.frame.ss as u16).into(),
            10 => aim(&mut setup.frame, nowhere(random)),
            11 => {
                let by_sysretq = setup.pvcs.rcx == setup.pvcs.rip;
                setup.pvcs.rip = nowhere(random);
                if by_sysretq || random.coin() {
                    setup.pvcs.rcx = setup.pvcs.rip;
                }
            }
            12 => setup.extra.smod_entry = paging.canonicalize(nowhere(random)),
            13 => setup.frame.eflags = word(random, paging),
            14 => setup.pvcs.eflags = word(random, paging) as u32,
            _ => {}
        }
        // SYSRETQ wants R11 to be the flags.
        match random.below(8) {
            0 => setup.frame.r11 = setup.frame.eflags,
            1 => setup.pvcs.r11 = setup.pvcs.eflags.into(),
            _ => {}
        }
    }
}

/// RIP, and RCX too if they are the same.
fn aim(frame: &mut PtRegs, rip: u64) {
    if frame.rcx == frame.rip {
        frame.rcx = rip;
    }
    frame.rip = rip;
}

/// A slot of umod that is not followed by many SYSCALLs.
fn short_slot(random: &mut Random) -> u64 {
    let start = RUN as u64 - 8;
    start + random.below(SLOTS as u64 - start)
}

/// Anything, or what is most likely to go wrong.
fn word(random: &mut Random, paging: PagingMode) -> u64 {
    let bit = random.below(64);
    match random.below(8) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << bit,
        3 => u64::MAX << bit,
        4 => (1_u64 << bit).wrapping_sub(1),
        5 => paging.canonicalize(random.next()),
        _ => random.next(),
    }
}

/// A GS base: canonical, and as a rule in both paging modes.
fn base(random: &mut Random, paging: PagingMode) -> u64 {
    let paging = if random.below(8) == 0 { paging } else { PagingMode::FourLevel };
    paging.canonicalize(word(random, paging))
}

/// Any selector, or one with one bit changed.
fn selector(random: &mut Random, usual: u16) -> u16 {
    match random.below(4) {
        0 => 0,
        1 => random.next() as u16,
        _ => usual ^ 1 << random.below(16),
    }
}

fn inhibit(random: &mut Random, setup: &mut Setup) {
    let bit = 2 + random.below(62);
    let extra = &mut setup.extra;
    extra.switch_flags |= SwitchFlags::from_bits_retain(1 << bit);
    if extra.switch_flags.contains(SwitchFlags::NO_DS_CR3) {
        // What it is for: the other mode's root is not there.
        match extra.switch_flags & SwitchFlags::MODE_TOGGLE {
            SwitchFlags::UMOD => extra.smod_cr3 = Cr3::NONE,
            _ => extra.umod_cr3 = Cr3::NONE,
        }
    }
}

/// Other roots, with the PCIDs that they had.
fn roots(random: &mut Random, setup: &mut Setup) {
    const PAGES: u64 = 1 << 38;
    let extra = &mut setup.extra;
    let enters_smod = extra.enter_cr3 == extra.smod_cr3;
    let first = random.below(PAGES);
    // Apart from each other and from zero.
    for (n, slot) in
        [&mut extra.host_cr3, &mut extra.smod_cr3, &mut extra.umod_cr3].into_iter().enumerate()
    {
        let page = 1 + (first + n as u64 * (1 + PAGES / 4)) % PAGES;
        // Page-aligned, and below 2^52.
        *slot = slot.with_root_of(Cr3::new(page << 12).unwrap_or(*slot));
    }
    extra.enter_cr3 = if enters_smod { extra.smod_cr3 } else { extra.umod_cr3 };
}

/// An address at which this process has no page, or a number that is not canonical.
fn nowhere(random: &mut Random) -> u64 {
    let any = random.next();
    match random.below(8) {
        0 => any % NULL.end,
        1 => NOBODYS.start + any % (NOBODYS.end - NOBODYS.start),
        // The last page of the lower half, which Linux leaves out.
        2 => (1 << 47) - 1 - any % 0x1000,
        3 => (1 << 47) + any % 0x1000,
        4 => 1 << (47 + any % 17),
        5 => !0 << (47 + any % 17),
        6 => 1 << 63 | any & !(1 << 47),
        // The upper half is the kernel's; its last 16 MiB have a page that it lends to user mode.
        _ => !0 << 47 | any & !(0xFF << 24),
    }
}
