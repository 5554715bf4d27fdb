//! What of the host the switcher's event entries call, and how they get there.

use switcher_gen::asm::HostSymbol;
use switcher_gen::layout::PtRegs;

/// A function of the host's that is called about an event in ring 0.
///
/// It gets the registers of what was interrupted, to look at: changes are written back. The hook of a
/// machine check leaves RIP on the side of the switcher's routines on which it was, and RF is clear
/// where that is outside: what was interrupted goes on without an IRETQ there, and from there a #DB does
/// as well, so that NMIs stay blocked if they are. It runs at
/// CPL 0 on the stack of the event's IST entry, with the host's GS, the host's root, interrupts off
/// and DF, AC, NT and IOPL clear. The variant's mitigations stand before and behind it as they do
/// around the host, so it needs none of its own; SPEC_CTRL, if that is switched, is the host's.
pub type Hook = unsafe extern "C" fn(*mut PtRegs);

/// The same for an event after which nothing can go on. There are no mitigations before it: no
/// guest may run on this CPU any more.
pub type FatalHook = unsafe extern "C" fn(*mut PtRegs) -> !;

/// The host's hooks.
///
/// They are called only while the switcher's IDT is loaded, which is from shortly before to shortly
/// after a guest's run, and only about events in ring 0: see the [crate's documentation](crate).
/// [`Switcher::install`](crate::Switcher::install) has their safety contract:
///
/// * `nmi` and `machine_check` return, execute no IRET (it would end the blocking of NMIs, and the
///   next one would overwrite this one's stack) and cause no exception, whose handler would;
/// * they preserve XMM registers and all further state, which may be a guest's: write them in
///   assembly, or compile them without vector registers;
/// * they have no more of a stack than the host's TSS gives them, and wherever they are interrupted, the
///   [`FarFrame::ROOM`](switcher_gen::layout::FarFrame::ROOM) bytes below RSP are a stack, twice over:
///   below 128 that they may use, a #DB and a machine check put there how they return;
/// * of `switch_flags` they may set bits, but for the two of the mode, and clear none;
/// * they have no instruction breakpoint: with the RF that they cannot set, it would be met for ever;
/// * further than 2 GiB from the code, they are reached by an indirect jump, and begin with ENDBR64
///   on a host that tracks its own indirect branches; with `untrain`, which is of no help to an
///   indirect jump, they may not be that far;
/// * DS, ES, FS, GS, FS base, TSC_AUX and DR7 may be a guest's: they find their CPU by GS base alone (not by
///   RDPID or RDTSCP), and leave these as they are;
/// * where there are protection keys, PKRU is a guest's: they access no user pages.
#[derive(Clone, Copy, Debug)]
pub struct Hooks {
    /// An NMI that interrupted the switcher. NMIs are blocked.
    pub nmi: Hook,
    /// A machine check that interrupted the switcher.
    pub machine_check: Hook,
    /// Anything else in ring 0: a double fault, or a fault that the switcher cannot cause.
    pub fatal: FatalHook,
    /// For variants with `untrain`, and of no use to others.
    pub returns: Option<ReturnThunk>,
}

/// What a host has all of whose code, this crate included, returns through a return thunk, because
/// its CPU may predict any other RET by what a guest has trained (spec/switcher.md, "Mitigations").
/// Such a host takes
/// [`with_return_thunks`](switcher_gen::Mitigations::with_return_thunks). Both are written in
/// assembly and lie within 2 GiB of the switcher's code, as no indirect jump may lead there.
#[derive(Clone, Copy, Debug)]
pub struct ReturnThunk {
    /// Called on each exit before its first RET, and before each hook: makes the thunk's RET safe,
    /// and returns through it. See [`HostSymbol::UNTRAIN`] for what it finds and may change.
    pub untrain: unsafe extern "C" fn(),
    /// The thunk: a RET.
    pub thunk: unsafe extern "C" fn(),
}

impl Hooks {
    /// The address of the hook with this name.
    pub(crate) fn address(&self, symbol: HostSymbol) -> Option<u64> {
        Some(match symbol {
            HostSymbol::NMI => self.nmi as usize as u64,
            HostSymbol::MACHINE_CHECK => self.machine_check as usize as u64,
            HostSymbol::FATAL => self.fatal as usize as u64,
            HostSymbol::UNTRAIN => self.returns?.untrain as usize as u64,
            HostSymbol::RETURN_THUNK => self.returns?.thunk as usize as u64,
            _ => return None,
        })
    }
}

/// A jump to each hook, for those that a call of the code does not reach: `jmp [rip + 0]` and the
/// address. Under a guest's root nothing executes them.
pub(crate) struct Thunks {
    hooks: Hooks,
    start: u64,
    bytes: [u8; Self::LEN],
}

impl Thunks {
    const EACH: usize = 16;
    /// How many bytes there are.
    pub(crate) const LEN: usize = Self::EACH * HostSymbol::HOOKS.len();

    /// To be placed at `start`.
    pub(crate) fn new(&hooks: &Hooks, start: u64) -> Self {
        const JMP_RIP_0: [u8; 6] = [0xFF, 0x25, 0, 0, 0, 0];
        const INT3: u8 = 0xCC;
        let mut bytes = [INT3; Self::LEN];
        for (thunk, symbol) in bytes.chunks_exact_mut(Self::EACH).zip(HostSymbol::HOOKS) {
            let address = hooks.address(symbol).unwrap_or_default();
            thunk[..6].copy_from_slice(&JMP_RIP_0);
            thunk[6..14].copy_from_slice(&address.to_le_bytes());
        }
        Self { hooks, start, bytes }
    }

    /// The bytes.
    pub(crate) const fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What code at `base` calls for a hook: the hook itself where it is near.
    /// Where returns are `untrained`, it is always that, and an error of the link if it is far: what
    /// a guest can train is no way to it.
    pub(crate) fn target(&self, symbol: HostSymbol, base: u64, untrained: bool) -> Option<u64> {
        /// Less than rel32 reaches, by more than the code is long.
        const NEAR: u64 = 0x7FF0_0000;
        let hook = self.hooks.address(symbol)?;
        if hook.abs_diff(base) < NEAR || untrained {
            return Some(hook);
        }
        let index = HostSymbol::HOOKS.iter().position(|known| *known == symbol)?;
        Some(self.start + (index * Self::EACH) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn nothing(_: *mut PtRegs) {}
    unsafe extern "C" fn nothing_else(_: *mut PtRegs) {
        // Not the same code as `nothing`, or the two could have one address.
        core::hint::black_box(1);
    }
    unsafe extern "C" fn stop(_: *mut PtRegs) -> ! {
        panic!("a test has no events in ring 0")
    }

    impl Hooks {
        /// Never called.
        pub(crate) const FOR_TESTS: Self =
            Self { nmi: nothing, machine_check: nothing_else, fatal: stop, returns: None };
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
                let thunks = Thunks::new(&hooks, base.wrapping_add(0x1000));
                let at =
                    thunks.target(symbol, base, false).unwrap().wrapping_sub(thunks.start) as usize;
                assert_eq!(thunks.bytes()[at..at + 6], [0xFF, 0x25, 0, 0, 0, 0]);
                assert_eq!(thunks.bytes()[at + 6..at + 14], hook.to_le_bytes());
            }
        }
        assert_eq!(Thunks::new(&hooks, 0).target(HostSymbol("other"), 0, false), None);
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
