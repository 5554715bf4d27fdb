//! The functions of the host that the switcher's event entries call, and how these reach them.

use switcher_gen::asm::HostSymbol;
use switcher_gen::layout::PtRegs;

/// A function of the host's that is called about an event in ring 0.
///
/// It gets the registers of what was interrupted, and changes to them are written back. The hook of
/// a machine check leaves RIP on the same side of the boundary of the switcher's routines as it
/// was. It keeps RF clear where RIP is outside of them: what was interrupted there is resumed
/// without an IRETQ, and a #DB from there is as well, so that NMIs stay blocked if they are. A hook
/// runs at CPL 0 on the stack of the event's IST entry, with the host's GS, the host's root,
/// interrupts off and DF, AC, NT and IOPL clear. The variant's mitigations stand before and after
/// it as they do around the host, so it needs none of its own; SPEC_CTRL, if that is switched, is
/// the host's.
pub type Hook = unsafe extern "C" fn(*mut PtRegs);

/// A function of the host's that is called about an event after which nothing can go on. There are
/// no mitigations before it: no guest may run on this CPU any more.
pub type FatalHook = unsafe extern "C" fn(*mut PtRegs) -> !;

/// A handler of the host's for exceptions of its own code while the switcher's IDT is loaded: in
/// the `call` of [`enter_with`](crate::Cpu::enter_with), or around it. Hooks cause none: NMIs may
/// be blocked there, and an IRETQ would end that. It is no function: written in assembly, it is
/// jumped to with interrupts off and RSP pointing to an
/// [`EventFrame`](switcher_gen::layout::EventFrame) on the stack that was interrupted, of whose
/// vector the lowest byte counts; where the CPU pushes no error code, the frame has -1. All else is
/// as the CPU has delivered the event, but for the arithmetic flags.
///
/// It may return to what was interrupted, by an IRETQ from the `IretFrame` in that frame.
pub type ExceptionHandler = unsafe extern "C" fn();

/// The host's hooks.
///
/// They are called only while the switcher's IDT is loaded, which is from shortly before to shortly
/// after a guest's run, and only about events in ring 0: see the [crate's documentation](crate).
/// [`Switcher::prepare`](crate::Switcher::prepare) has their safety contract:
///
/// * `nmi` and `machine_check` return, execute no IRET (it would end the blocking of NMIs, and the
///   next one would overwrite this one's stack) and cause no exception, whose handler would;
/// * they preserve XMM registers and all further state, which may be a guest's: write them in
///   assembly, or compile them without vector registers;
/// * they have no more of a stack than the host's TSS gives them. Wherever they are interrupted,
///   twice [`FarFrame::ROOM`](switcher_gen::layout::FarFrame::ROOM) bytes below RSP are stack: a
///   #DB and a machine check put there what they return with, below the 128 bytes that the hooks
///   themselves may use;
/// * of `switch_flags` they may set bits, except the two of the mode, and clear none. After the
///   exit, [`Guest::inhibitors`](crate::Guest::inhibitors) has these bits, except those that follow
///   from the guest's state;
/// * they have no instruction breakpoint: they cannot set RF, so it would be met for ever;
/// * if they are further than 2 GiB from the code, they are reached by a retpoline, whose RET needs
///   no ENDBR64 to lead to; with `untrain`, which is for hosts that have no RET but their return
///   thunk's, they must not be that far;
/// * `exception` keeps to what [`ExceptionHandler`] says, and code that may raise exceptions has
///   below its RSP the room of an event ([`IstTop::LEAST`](switcher_gen::layout::IstTop::LEAST)
///   bytes);
/// * they find their CPU by GS base alone (not by FS, RDPID or RDTSCP): what they need of the
///   host's lies, or is pointed to, behind the per-CPU block, at
///   [`PerCpu::TAIL`](switcher_gen::layout::PerCpu::TAIL); they access no user pages, and keep to
///   what follows.
///
#[doc = include_str!("../EXCHANGED.md")]
#[derive(Clone, Copy, Debug)]
pub struct Hooks {
    /// An NMI that interrupted the switcher. NMIs are blocked.
    pub nmi: Hook,
    /// A machine check that interrupted the switcher.
    pub machine_check: Hook,
    /// Any other event in ring 0: a double fault, or a fault that the switcher cannot cause.
    pub fatal: FatalHook,
    /// The handler of what the host's own code has raised; without one, that is fatal.
    pub exception: Option<ExceptionHandler>,
    /// The return thunk, for variants with `untrain`. Other variants do not use it.
    pub returns: Option<ReturnThunk>,
}

/// What a host provides all of whose code, this crate included, returns through a return thunk,
/// because its CPU may predict any other RET by what a guest has trained (spec/switcher.md,
/// "Mitigations"). Such a host says so by
/// [`with_return_thunks`](switcher_gen::arch::HostFeatures::with_return_thunks). Both functions are
/// written in assembly and lie within 2 GiB of the switcher's code, as a direct call has to reach
/// them.
#[derive(Clone, Copy, Debug)]
pub struct ReturnThunk {
    /// It is called on each exit before the exit's first RET, and before each hook: it makes the
    /// thunk's RET safe, and returns through the thunk. See [`HostSymbol::UNTRAIN`] for what it
    /// finds and may change.
    pub untrain: unsafe extern "C" fn(),
    /// The thunk, which is a RET.
    pub thunk: unsafe extern "C" fn(),
}

impl Hooks {
    /// The address of the hook with this name.
    pub(crate) fn address(&self, symbol: HostSymbol) -> Option<u64> {
        Some(match symbol {
            HostSymbol::NMI => self.nmi as usize as u64,
            HostSymbol::MACHINE_CHECK => self.machine_check as usize as u64,
            HostSymbol::FATAL => self.fatal as usize as u64,
            HostSymbol::EXCEPTION => self.exception? as usize as u64,
            HostSymbol::UNTRAIN => self.returns?.untrain as usize as u64,
            HostSymbol::RETURN_THUNK => self.returns?.thunk as usize as u64,
            _ => return None,
        })
    }
}

/// A way to each hook that a call of the code does not reach: a retpoline. An indirect jump would
/// be steered by what a guest has trained, on a CPU whose only measure against that is to have no
/// indirect jump (AMD's without IBRS_PREFERRED); and in the lower half of a cache line it could
/// lead anywhere (indirect target selection). The retpoline writes the hook's address as the return
/// address of a call of its own: no register is lost, and the predictor of returns, which alone is
/// asked where the RET leads, answers with the trap. Under a guest's root no thunk is executed.
pub(crate) struct Thunks {
    hooks: Hooks,
    /// The address of the first thunk.
    first: u64,
    bytes: [u8; Self::LEN],
}

impl Thunks {
    /// Each has a cache line of its own, so that what is in its upper half stays there.
    const LINE: usize = 64;
    /// How many bytes of memory the thunks take. The bytes before the first line are no code.
    pub(crate) const LEN: usize = Self::LINE * HostSymbol::HOOKS.len() + Self::LINE - 1;

    /// The line of a thunk that leads to `address`.
    fn line(address: u64) -> [u8; Self::LINE] {
        const INT3: u8 = 0xCC;
        // CALL to the second half: its RET is predicted to lead to what follows the CALL.
        const CALL: [u8; 5] = [0xE8, 32 - 5, 0, 0, 0];
        // pause; lfence; jmp to the PAUSE.
        const TRAP: [u8; 7] = [0xF3, 0x90, 0x0F, 0xAE, 0xE8, 0xEB, 0xF9];
        // mov dword [rsp], ..; mov dword [rsp + 4], ..: this changes no register and no flag.
        const LOW: [u8; 3] = [0xC7, 0x04, 0x24];
        const HIGH: [u8; 4] = [0xC7, 0x44, 0x24, 0x04];
        const RET: u8 = 0xC3;
        let address = address.to_le_bytes();
        let (low, high) = address.split_at(4);
        let (mut line, mut at) = ([INT3; Self::LINE], 0);
        let mut write = |start: usize, bytes: &[u8]| {
            at = start.max(at);
            line[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        write(0, &CALL);
        write(0, &TRAP);
        write(Self::LINE / 2, &LOW);
        write(0, low);
        write(0, &HIGH);
        write(0, high);
        write(0, &[RET]);
        line
    }

    /// The thunks to `hooks`, to be placed at `start`.
    pub(crate) fn new(&hooks: &Hooks, start: u64) -> Self {
        const INT3: u8 = 0xCC;
        let mut bytes = [INT3; Self::LEN];
        let before = (start.wrapping_neg() % Self::LINE as u64) as usize;
        let lines = bytes[before..].chunks_exact_mut(Self::LINE);
        for (line, symbol) in lines.zip(HostSymbol::HOOKS) {
            // To what the host does not have, nothing leads.
            if let Some(address) = hooks.address(symbol) {
                line.copy_from_slice(&Self::line(address));
            }
        }
        Self { hooks, first: start.wrapping_add(before as u64), bytes }
    }

    /// The bytes to be placed at `start`.
    pub(crate) const fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The address that code at `base` calls for a hook: the hook itself where it is near, its
    /// thunk otherwise. Where returns are `untrained`, it is always the hook, and linking fails if
    /// that is far: the RET of a thunk would be one that the host has not made safe.
    pub(crate) fn target(&self, symbol: HostSymbol, base: u64, untrained: bool) -> Option<u64> {
        /// The distance below which rel32 reaches the hook from any address of the code, which is
        /// shorter than the margin.
        const NEAR: u64 = 0x7FF0_0000;
        let hook = self.hooks.address(symbol)?;
        if hook.abs_diff(base) < NEAR || untrained {
            return Some(hook);
        }
        let index = HostSymbol::HOOKS.iter().position(|known| *known == symbol)?;
        Some(self.first.wrapping_add((index * Self::LINE) as u64))
    }

    /// Where the thunk at the beginning of `bytes` leads, if there is one.
    #[cfg(test)]
    pub(crate) fn leads_to(bytes: &[u8]) -> Option<u64> {
        let line = bytes.get(..Self::LINE)?;
        let (low, high) = (line.get(35..39)?, line.get(43..47)?);
        let address = u64::from_le_bytes([low, high].concat().try_into().ok()?);
        (line == Self::line(address)).then_some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn nothing(_: *mut PtRegs) {}
    unsafe extern "C" fn nothing_else(_: *mut PtRegs) {
        // This must not be the same code as `nothing`, or the two could have one address.
        core::hint::black_box(1);
    }
    unsafe extern "C" fn stop(_: *mut PtRegs) -> ! {
        panic!("a test has no events in ring 0")
    }

    unsafe extern "C" fn handler() {
        panic!("a test has no exceptions in ring 0")
    }

    impl Hooks {
        /// These hooks are never called.
        pub(crate) const FOR_TESTS: Self = Self {
            nmi: nothing,
            machine_check: nothing_else,
            fatal: stop,
            exception: Some(handler),
            returns: None,
        };
    }

    #[test]
    fn a_near_hook_is_called_and_a_far_one_reached_through_its_thunk() {
        let hooks = Hooks::FOR_TESTS;
        for symbol in HostSymbol::HOOKS {
            let hook = hooks.address(symbol).unwrap();
            for base in [hook + 0x7FE0_0000, hook - 0x7FE0_0000] {
                let thunks = Thunks::new(&hooks, base + 0x1000);
                assert_eq!(thunks.target(symbol, base, false), Some(hook));
            }
            for base in [hook + 0x8000_0000, hook.wrapping_sub(0x8000_0000)] {
                let start = base.wrapping_add(0x1000);
                let thunks = Thunks::new(&hooks, start);
                let target = thunks.target(symbol, base, false).unwrap();
                let at = target.wrapping_sub(start) as usize;
                assert_eq!(Thunks::leads_to(&thunks.bytes()[at..]), Some(hook));
            }
        }
        assert_eq!(Thunks::new(&hooks, 0).target(HostSymbol("other"), 0, false), None);
    }

    /// This holds wherever the code ends, so that neither what a guest has trained nor the position
    /// of a branch in its line matters.
    #[test]
    fn a_thunk_has_no_indirect_branch_but_a_ret_in_the_upper_half_of_a_line_after_its_own_call() {
        for start in (0xFFFF_8000_0000_0000..).take(2 * Thunks::LINE) {
            let thunks = Thunks::new(&Hooks::FOR_TESTS, start);
            for symbol in HostSymbol::HOOKS {
                let target = thunks.target(symbol, 0, false).unwrap();
                assert_eq!(target % 64, 0);
                let at = (target - start) as usize;
                let line = &thunks.bytes()[at..at + 64];
                let hook = thunks.hooks.address(symbol).unwrap();
                // call; pause; lfence; jmp to the PAUSE; filler up to what is called.
                assert_eq!(line[..5], [0xE8, 0x1B, 0, 0, 0]);
                assert_eq!(line[5..12], [0xF3, 0x90, 0x0F, 0xAE, 0xE8, 0xEB, 0xF9]);
                assert!(line[12..32].iter().all(|byte| *byte == 0xCC));
                // The thunk replaces the return address by the hook's; then come its RET and a
                // trap.
                assert_eq!(line[32..35], [0xC7, 0x04, 0x24]);
                assert_eq!(line[35..39], (hook as u32).to_le_bytes());
                assert_eq!(line[39..43], [0xC7, 0x44, 0x24, 0x04]);
                assert_eq!(line[43..47], ((hook >> 32) as u32).to_le_bytes());
                // The RET is in the upper half of its line.
                assert_eq!(line[47], 0xC3);
                assert!(line[48..].iter().all(|byte| *byte == 0xCC));
            }
            // No byte outside the lines is a RET: all of it is filler.
            let first = (thunks.first - start) as usize;
            let last = first + Thunks::LINE * HostSymbol::HOOKS.len();
            let outside = thunks.bytes()[..first].iter().chain(&thunks.bytes()[last..]);
            assert!(outside.into_iter().all(|byte| *byte == 0xCC));
        }
    }

    /// A thunk is executed in memory of the test's own: the hook gets its argument and an aligned
    /// stack, and returns to the thunk's caller.
    #[test]
    fn a_thunk_leads_to_its_hook_and_the_hook_back() {
        unsafe extern "C" fn answers(regs: *mut PtRegs) {
            // A vector register is stored to the stack on the assumption that the stack is aligned.
            let aligned = core::hint::black_box([1_u128; 2]);
            // SAFETY: the test passes a pointer to a frame of its own.
            unsafe { (*regs).rax = aligned.iter().sum::<u128>() as u64 + 40 };
        }
        let memory = executable_page();
        let hooks = Hooks { nmi: answers, ..Hooks::FOR_TESTS };
        let thunks = Thunks::new(&hooks, memory as u64 + 5);
        // SAFETY: the page is writable, and longer than 5 bytes and the thunks.
        unsafe { memory.wrapping_add(5).cast::<[u8; Thunks::LEN]>().write(thunks.bytes) };
        let target = thunks.target(HostSymbol::NMI, 0, false).unwrap();
        // SAFETY: at this address is the thunk to `answers`, which has this type.
        let thunk: Hook = unsafe { core::mem::transmute(target as usize) };
        let mut regs = PtRegs::default();
        // SAFETY: the frame is valid for writes.
        unsafe { thunk(&raw mut regs) };
        assert_eq!(regs.rax, 42);
    }

    /// A page of Linux, on which tests run. It is writable and executable at once, and never given
    /// back.
    fn executable_page() -> *mut u8 {
        const MMAP: u64 = 9;
        const READ_WRITE_EXECUTE: u64 = 7;
        const PRIVATE_ANONYMOUS: u64 = 0x22;
        let page: i64;
        // SAFETY: a new mapping at an address of the kernel's choice changes no other memory;
        // SYSCALL overwrites RAX, RCX and R11.
        unsafe {
            core::arch::asm!(
                "syscall",
                inlateout("rax") MMAP => page,
                in("rdi") 0_u64,
                in("rsi") 4096_u64,
                in("rdx") READ_WRITE_EXECUTE,
                in("r10") PRIVATE_ANONYMOUS,
                in("r8") -1_i64,
                in("r9") 0_u64,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        assert!(page > 0, "mmap: {page}");
        core::ptr::with_exposed_provenance_mut(page as usize)
    }

    #[test]
    fn nothing_is_reached_indirectly_where_returns_are_untrained() {
        unsafe extern "C" fn some() {}
        for symbol in HostSymbol::RETURNS {
            assert_eq!(Thunks::new(&Hooks::FOR_TESTS, 0).target(symbol, 0, true), None);
        }
        let returns = Some(ReturnThunk { untrain: some, thunk: some });
        let hooks = Hooks { returns, ..Hooks::FOR_TESTS };
        for symbol in HostSymbol::RETURNS.into_iter().chain(HostSymbol::HOOKS) {
            let there = hooks.address(symbol).unwrap();
            for base in [there, there.wrapping_add(1 << 40)] {
                let target = Thunks::new(&hooks, base).target(symbol, base, true);
                assert_eq!(target, Some(there));
            }
        }
    }
}
