//! The entry of a guest: the one call into emitted code, and everything around it.

use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, compiler_fence};

use switcher_gen::arch::{Cr3, Msr as MsrName, NonCanonical, PagingMode, Vendor, cr4};
use switcher_gen::asm::Label;
use switcher_gen::layout::{Mode, PtRegs, SwitchFlags, TssExtra};
use switcher_gen::{Config, Variant};
use x86_64::instructions::segmentation::{SS, Segment};
use x86_64::registers::segmentation::SegmentSelector;

use crate::cpu::Cpu;
use crate::debug;
use crate::exchange::Context;
use crate::exit::{DebugCauses, Exit};
use crate::guest::Guest;
use crate::idt::Idt;
use crate::pcid::{GuestPcid, GuestPcids};
use crate::prepare::WrongCpu;
use crate::registers::{self, DescriptorTablePointer};
use crate::state::{self, Exchanged, Running, StateError};
use crate::tables::OwnTables;

/// Why a guest was not entered. The guest is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnterError {
    /// Interrupts are enabled, so that one could come between loading the guest's state and
    /// entering it; or this is another CPU than that of `prepare`.
    #[error(transparent)]
    WrongCpu(#[from] WrongCpu),
    /// This CPU is not as it has to be for guests to run, or not as `prepare` has found it.
    #[error(transparent)]
    State(#[from] StateError),
    /// An NMI has ended the last run on this CPU, and NMIs are still blocked: the IRETQ to the
    /// guest would end that before the host has handled the NMI, and a SYSRETQ would not end it at
    /// all.
    #[error(
        "NMIs are blocked since the last run: hand the NMI on, or call `Cpu::unblock_nmis`, before a guest runs"
    )]
    NmisBlocked,
    /// CS or SS in the guest's frame is not a zero-extended selector. The emitted code compares it
    /// with selectors, and the proofs take it to be zero-extended.
    #[error("the guest's {register} is {found:#x}, which is no selector")]
    NotASelector {
        /// The register: CS or SS.
        register: &'static str,
        /// The value that the frame has.
        found: u64,
    },
    /// The switcher's IDT does not lie at a canonical address: LIDT would fault.
    #[error("the switcher's IDT cannot be loaded: {0}")]
    Idt(#[from] NonCanonical),
    /// The guest was made for another paging mode: addresses that are canonical in that one may not
    /// be so here.
    #[error("the guest was made for {guest} paging, but this host has {host}")]
    OtherPaging {
        /// The mode that [`Guest::new`] was given.
        guest: PagingMode,
        /// The switcher's mode.
        host: PagingMode,
    },
    /// A root has a PCID although CR4.PCIDE is clear: loading it would fault in ring 0.
    #[error("the root of {0:?} has a PCID, but CR4.PCIDE is not set")]
    PcidWithoutPcide(Mode),
    /// The guest's two roots have one PCID: the TLB would mix their translations.
    #[error("the roots of smod and umod have the same PCID")]
    SharedPcid,
    /// The host's own CR3 has a PCID of the guests': the TLB would mix the host's translations with
    /// a guest's.
    #[error("the host's CR3 is {cr3:#x}: PCIDs {pcids} are the guests'")]
    HostPcid {
        /// The register's value.
        cr3: u64,
        /// The PCIDs that are the guests'.
        pcids: GuestPcids,
    },
    /// A root of the guest's has a PCID that is not one of the switcher's guests: the host may have
    /// translations under it.
    #[error(
        "the root of {mode:?} has PCID {number}: this switcher's guests have {pcids}; take one from \
         `Switcher::pcids`"
    )]
    OtherPcid {
        /// The mode whose root has it.
        mode: Mode,
        /// The number.
        number: u16,
        /// The PCIDs that are the guests'.
        pcids: GuestPcids,
    },
    /// Translations of the guest's root, which has no PCID, would be left under PCID 0, which is
    /// another one than the host's CR3 has.
    #[error(
        "the root of {mode:?} has no PCID, so it is loaded under PCID 0, and the host's CR3 is {cr3:#x}: \
         give the root a PCID, or enter it from a host on PCID 0"
    )]
    RootWithoutPcid {
        /// The mode whose root has no PCID.
        mode: Mode,
        /// The value of the host's CR3.
        cr3: u64,
    },
    /// The guest has no root for its mode: there is nothing to load into CR3.
    #[error("the guest is in {0:?}, whose root is not prepared")]
    NoRoot(Mode),
}

impl Cpu<'_> {
    /// Runs `guest` until its next exit. Interrupts must be off, and are off on return. Meanwhile
    /// the switcher's IDT is loaded, and with [`Tables::Own`](crate::Tables::Own) another GDT and
    /// TSS; on return, also with an error, they are the host's.
    ///
    /// What it uses up: KERNEL_GS_BASE (the guest's GS base on return; a host with processes of its
    /// own saves theirs), CR2 (part of the exit: do not read the register later), DR6 (which
    /// reports no cause of the host's any more), and the stack below sp0, where the guest's
    /// registers are put: this must not be called *on* that stack. In variants with `ibrs`, IBRS is
    /// set in SPEC_CTRL on return: a host that runs without it clears it.
    ///
    /// What it exchanges: all that [`CPU_STATE`](crate::CPU_STATE) says, such as segment registers,
    /// FS base and DEBUGCTL; and DR0 to DR3, if the guest has breakpoints. Without any, what the
    /// host has left in them stays there, disarmed.
    ///
    /// What it leaves alone: FPU, SSE and further state. The guest runs with the host's, and leaves
    /// its own, except for MXCSR and the x87 control word, which the host gets back. A host whose
    /// guests use such state, or must not see the host's, switches it in the `call` of
    /// [`enter_with`](Self::enter_with): between that and the guest there is no code but the
    /// switcher.
    ///
    /// It needs less than 1.5 KiB of stack, in an optimised build, and allocates nothing. Its call
    /// into the emitted code is a retpoline, or, in variants with `untrain`, an IRETQ: a host with
    /// thunks of its own for either uses them in [`enter_with`](Self::enter_with).
    ///
    /// # Errors
    /// If interrupts are enabled, if this is not the CPU of `prepare`, or if the guest's state
    /// cannot be entered: see [`EnterError`].
    pub fn enter(&mut self, guest: &mut Guest) -> Result<Exit, EnterError> {
        let ready = self.ready(cr0_first(), guest)?;
        self.enter_ready(ready, guest)
    }

    /// Does what [`enter`](Self::enter) does, unless `is_pending` says at the last moment that the
    /// host has something else to do first: then the guest is as it was, and the result is `None`.
    /// Interrupts are off when it is asked, and stay off, so that nothing can come up on this CPU
    /// between the answer and the guest. [`run_guest`](Self::run_guest) is the loop around this.
    ///
    /// # Errors
    /// The errors are those of [`enter`](Self::enter); `is_pending` is not asked then.
    pub fn enter_unless(
        &mut self,
        guest: &mut Guest,
        is_pending: impl FnOnce() -> bool,
    ) -> Result<Option<Exit>, EnterError> {
        let ready = self.ready(cr0_first(), guest)?;
        if is_pending() {
            return Ok(None);
        }
        self.enter_ready(ready, guest).map(Some)
    }

    /// Enters a guest that has been looked at, with a call of this crate's.
    fn enter_ready(&mut self, ready: Ready, guest: &mut Guest) -> Result<Exit, EnterError> {
        // Each function is called by its name: the choice must not become an indirect call.
        if self.switcher().variant().mitigations().untrain {
            // SAFETY: `run` passes the entry of the switcher, ready to be called.
            let call = |entry| unsafe { call_by_iret(entry) };
            // SAFETY: the closure calls what it is given exactly once, and `call_by_iret` keeps
            // what `enter_with` asks.
            unsafe { self.run(ready, guest, call) }
        } else {
            // SAFETY: `run` passes the entry of the switcher, ready to be called.
            let call = |entry| unsafe { call(entry) };
            // SAFETY: the closure calls what it is given exactly once, and `call` keeps what
            // `enter_with` asks.
            unsafe { self.run(ready, guest, call) }
        }
    }

    /// Does what [`enter`](Self::enter) does, but leaves the call itself to `call`: for hosts that
    /// must do something of their own directly around it, with `context`. `call` itself is called
    /// indirectly, unless the compiler sees which function it is: a host whose indirect calls must
    /// be retpolines compiles this crate with them, like the rest of its code.
    ///
    /// # Errors
    /// The errors are those of [`enter`](Self::enter).
    ///
    /// # Safety
    /// `call` must call the function at the address it is given exactly once, as `extern "C" fn()
    /// -> *mut PtRegs` with interrupts off, and return what that returns. The function may change
    /// MXCSR and the x87 state, which `call` must restore. `call` must not change CR2 after the
    /// call. It leaves PKRU alone (no component 9 of XSAVE) and accesses no user page. The
    /// switcher's IDT is loaded: a fault in `call` itself is fatal
    /// ([`Hooks::fatal`](crate::Hooks::fatal)). The following must be kept, too.
    ///
    #[doc = include_str!("../EXCHANGED.md")]
    pub unsafe fn enter_with<C>(
        &mut self,
        guest: &mut Guest,
        call: unsafe fn(u64, &mut C) -> *mut PtRegs,
        context: &mut C,
    ) -> Result<Exit, EnterError> {
        let ready = self.ready(cr0_first(), guest)?;
        // SAFETY: the caller says what `call` does with the entry of the switcher, which `run`
        // passes.
        let call = |entry| unsafe { call(entry, context) };
        // SAFETY: the caller vouches that `call` does what `run` asks, which is what this function
        // asks.
        unsafe { self.run(ready, guest, call) }
    }

    /// Looks at this CPU and at the guest, and changes nothing.
    fn ready(&self, cr0: u64, guest: &Guest) -> Result<Ready, EnterError> {
        let switcher = self.prepared.switcher;
        let variant = switcher.variant();
        let Config { pcid, paging, .. } = variant.config();
        if self.prepared.nmis_blocked {
            return Err(EnterError::NmisBlocked);
        }
        let of_guests = self.prepared.own.as_ref().map(OwnTables::gdtr);
        let (selectors, then) = (variant.selectors(), self.prepared.then);
        let running = Running::read(cr0, guest, selectors, then, of_guests);
        WrongCpu::check(running.flags, running.now.tss, running.then.tss)?;
        state::check_running(&running)?;
        check(guest, variant)?;
        let cr3 = Cr3::from_register(registers::cr3());
        if pcid {
            check_pcids(guest, cr3, switcher.pcids())?;
        }
        let idt = switcher.idt().pointer(paging)?;
        Ok(Ready { cr3, idt, cet: running.now.cr4 & cr4::CET != 0 })
    }

    /// Does all that `enter` does when it has looked at everything, with `call` for the call.
    ///
    /// # Safety
    /// `call` must be as [`enter_with`](Self::enter_with) asks.
    unsafe fn run(
        &mut self,
        Ready { cr3, idt, cet }: Ready,
        guest: &mut Guest,
        call: impl FnOnce(u64) -> *mut PtRegs,
    ) -> Result<Exit, EnterError> {
        let switcher = self.prepared.switcher;
        let variant = switcher.variant();
        let Config { pku, vendor, mitigations, .. } = variant.config();
        // This is the last step that can fail, because it notes which translations the TLB will
        // have.
        let extra = guest.tss_extra(cr3, &mut self.prepared.clean);
        let mut extra = extra.ok_or(EnterError::NoRoot(guest.mode()))?;
        if mitigations.ibrs {
            // SAFETY: `prepare` has found that the MSR exists; reading it changes nothing.
            let found = unsafe { registers::read_msr(MsrName::SpecCtrl.address()) };
            (extra.host_spec_ctrl, extra.guest_spec_ctrl) =
                spec_ctrl(found, self.prepared.has.stibp);
        }
        let prepared = &mut self.prepared;
        if prepared.predictors.enter(guest.domain(), prepared.barriers) {
            prepared.barrier();
        }
        // SAFETY: `prepare` was given a block that is this CPU's alone, and `self` is borrowed
        // exclusively; no guest is running, so the switcher does not use it either.
        unsafe { self.tss_extra().write(extra) };
        // SAFETY: the caller of `prepare` vouches for room below sp0, and nothing else is on that
        // stack while no guest runs.
        unsafe { self.frame().write(guest.regs) };
        if vendor == Vendor::Amd {
            // An interrupt of a CPL 3 of the host's own may have left SS null since the last exit.
            let kernel_ds = SegmentSelector(variant.selectors().kernel_ds());
            // SAFETY: `prepare` has found that this selector names a writable data segment of DPL
            // 0.
            unsafe { SS::set_reg(kernel_ds) };
        }
        let own = self.prepared.own.as_ref();
        // SAFETY: CPL 0, interrupts are off, and this is the CPU of `prepare`, which has looked at
        // the block's stacks.
        let host_tables = own.map(|own| (own, unsafe { own.load() }));
        // SAFETY: this is CPL 0, as this function has read CR3; `WrongCpu::check` has found
        // interrupts to be off, and `prepare` the stacks to be there. The entries are in the sealed
        // image of the switcher, which owns the table and is borrowed until the host's is loaded
        // again.
        let host_idt = unsafe { Idt::load(idt) };
        let block = self.prepared.per_cpu.as_ptr() as u64;
        let context = Context { has: self.prepared.has, per_cpu: block, pku, cet };
        // SAFETY: CPL 0, interrupts are off, the switcher's IDT is loaded, this is the CPU that
        // `has` was read on, and `check_running` has looked at the guest.
        let exchanged = unsafe { Exchanged::load(&context, guest) };
        // The state just written is what `switcher_enter_guest` expects, and interrupts are
        // off. `GuestRoot`, `PvcsPage` and `prepare` carry the host's promises about the rest.
        let frame = call(switcher.address(Label::EnterGuest));

        // CR2 is read before anything can fault, or be interrupted, and change it: an NMI handler
        // of the host's, which may do both, comes only once its IDT is back.
        let cr2 = registers::cr2();
        // SAFETY: the switcher returns the address of the frame that an exit has built on the sp0
        // stack, which is the host's.
        let regs = unsafe { frame.read() };
        let dr6 = || debug::of_guests(take_dr6(), guest.debug.as_ref());
        let exit = Exit::from_frame(regs.orig_ax, || cr2, dr6);
        let look = cfg!(debug_assertions);
        // SAFETY: the same context as for `load`; this runs between `load` and `restore`, and the
        // CPU does not change in between.
        let touched = if look { unsafe { exchanged.touched(&context, guest) } } else { None };
        // SAFETY: the same context as for `load`, after it, and on the same CPU.
        unsafe { exchanged.restore(&context, guest) };
        // SAFETY: the switcher has returned, which it does on the host's root; nothing here changes
        // CPU.
        unsafe { host_idt.restore() };
        if let Some((own, host)) = host_tables {
            // SAFETY: CPL 0, interrupts are off, and nothing here changes CPU.
            unsafe { own.restore(host) };
        }
        // SAFETY: `prepare` was given a valid block; the switcher has returned, so it does not use
        // the block.
        let extra = unsafe { self.tss_extra().read() };
        // From here to the next entry, nothing allows a direct switch, whoever executes a SYSCALL.
        // SAFETY: the block is this CPU's alone, and no guest is running.
        unsafe { self.tss_extra().write(idle()) };
        guest.take_back(regs, &extra);
        self.prepared.nmis_blocked = exit == Exit::Nmi;
        // This comes after everything is the host's again: the host's panic may need that.
        debug_assert!(
            touched.is_none(),
            "{touched:?}: a hook, or the `call` of `enter_with`, has changed what it must leave as it is"
        );
        Ok(exit)
    }

    /// Where the guest's registers lie: just below sp0.
    fn frame(&self) -> NonNull<PtRegs> {
        // SAFETY: `prepare` was given a valid block, and this is one of its fields.
        let sp0 = unsafe { &raw const (*self.prepared.per_cpu.as_ptr()).tss.sp0 };
        // SAFETY: it is not written while the CPU is prepared.
        let sp0 = u64::from(unsafe { sp0.read_unaligned() });
        let frame = (sp0 as usize - size_of::<PtRegs>()) as *mut PtRegs;
        // SAFETY: `prepare` refused a null sp0, and a stack is not within 168 bytes of address 0.
        unsafe { NonNull::new_unchecked(frame) }
    }
}

/// What `enter` has found on the CPU on which it runs, with interrupts off, before it changes
/// anything.
struct Ready {
    cr3: Cr3,
    /// The operand of LIDT for the switcher's IDT.
    idt: DescriptorTablePointer,
    /// Whether CR4.CET is set.
    cet: bool,
}

/// The values of SPEC_CTRL for the host and for its guest: the one that was found, except for IBRS,
/// which is for host code only. While IBRS is set it does STIBP's work as well; where it is clear,
/// STIBP is set, if the CPU has that bit, or the other thread of the core would train the guest's
/// branches (CVE-2023-1998).
fn spec_ctrl(found: u64, stibp: bool) -> (u32, u32) {
    const IBRS: u32 = 1;
    const STIBP: u32 = 1 << 1;
    // The upper half is reserved.
    let found = found as u32;
    (found | IBRS, found & !IBRS | if stibp { STIBP } else { 0 })
}

/// Checks that the TLB keeps the host's translations and a guest's apart, on a host with PCIDs.
fn check_pcids(guest: &Guest, host: Cr3, pcids: GuestPcids) -> Result<(), EnterError> {
    let cr3 = host.bits();
    if pcids.has_cr3(host) {
        return Err(EnterError::HostPcid { cr3, pcids });
    }
    for mode in [Mode::Smod, Mode::Umod] {
        let pcid = guest.root(mode).and_then(|root| root.tagged().pcid);
        if let Some(number) = pcid.map(GuestPcid::number).filter(|number| !pcids.has(*number)) {
            return Err(EnterError::OtherPcid { mode, number, pcids });
        }
    }
    // The host's PCID 0 is flushed when its CR3 is loaded again; another one would leave PCID 0
    // with whatever a guest's root has put there.
    for mode in [Mode::Smod, Mode::Umod] {
        let is_plain = guest.root(mode).is_some_and(|root| root.tagged().pcid.is_none());
        if is_plain && cr3 & 0xFFF != 0 {
            return Err(EnterError::RootWithoutPcid { mode, cr3 });
        }
    }
    Ok(())
}

/// CR0, as the host has it. It is read before anything else: with CR0.TS set, any other code could
/// use a vector register and fault, and a host that gives the FPU to whoever faults would have
/// cleared the bit by then.
#[inline(always)]
fn cr0_first() -> u64 {
    let cr0 = registers::cr0();
    // No copy through a vector register may be made before CR0 is read.
    compiler_fence(Ordering::SeqCst);
    cr0
}

/// Checks whether `guest` may be entered on a switcher of this variant.
fn check(guest: &Guest, variant: &Variant) -> Result<(), EnterError> {
    let Config { paging, pcid, .. } = variant.config();
    if guest.paging() != paging {
        return Err(EnterError::OtherPaging { guest: guest.paging(), host: paging });
    }
    for (register, found) in [("CS", guest.regs.cs), ("SS", guest.regs.ss)] {
        if found > u16::MAX.into() {
            return Err(EnterError::NotASelector { register, found });
        }
    }
    for mode in [Mode::Smod, Mode::Umod] {
        if !pcid && guest.root(mode).is_some_and(|root| root.tagged().pcid.is_some()) {
            return Err(EnterError::PcidWithoutPcide(mode));
        }
    }
    if let (Some(smod), Some(umod)) = (guest.root(Mode::Smod), guest.root(Mode::Umod))
        && smod.tagged().is_in_conflict_with(umod.tagged())
    {
        return Err(EnterError::SharedPcid);
    }
    Ok(())
}

/// What the switcher finds while no guest is running: no mode to switch to, no root, no PVCS.
fn idle() -> TssExtra {
    let mut extra = TssExtra::default();
    extra.switch_flags = SwitchFlags::SMOD | SwitchFlags::NO_DS_CR3 | SwitchFlags::PVCS_INVALID;
    extra
}

/// Returns DR6 after a #DB, and clears it: the hardware sets its bits and never clears them, so a
/// bit that is left would be taken for a cause of the next #DB (Intel SDM vol. 3, 18.2.3).
fn take_dr6() -> u64 {
    let dr6: u64;
    // SAFETY: DR6 only reports. DR7.GD would make the access fault, but the hardware clears it when
    // it delivers a #DB, and one has just been delivered (Intel SDM vol. 3, 18.2.4).
    unsafe {
        asm!(
            "mov {dr6}, dr6",
            "mov dr6, {clear}",
            dr6 = out(reg) dr6,
            clear = in(reg) DebugCauses::DR6_CLEAR,
            options(nomem, nostack, preserves_flags),
        );
    }
    dr6
}

/// A function that calls emitted code. The code preserves what the System V ABI asks of a function,
/// except MXCSR and the x87 state, which the guest has changed as it liked.
macro_rules! call {
    ($(#[$doc:meta])* $name:ident, [$($instruction:literal),*]) => {
        $(#[$doc])*
        unsafe fn $name(entry: u64) -> *mut PtRegs {
            let mut saved = FloatingPoint { mxcsr: 0, x87_control: 0 };
            let frame: *mut PtRegs;
            // SAFETY: the caller vouches for `entry`; `clobber_abi` says what the call may change.
            // R12 is callee-saved, so it still points to `saved` after the call: MXCSR and the x87
            // control word are restored from there, and the x87 stack is left empty.
            unsafe {
                asm!(
                    "stmxcsr [r12 + {mxcsr}]",
                    "fnstcw [r12 + {x87_control}]",
                    $($instruction,)*
                    "fninit",
                    "fldcw [r12 + {x87_control}]",
                    "ldmxcsr [r12 + {mxcsr}]",
                    entry = in(reg) entry,
                    mxcsr = const core::mem::offset_of!(FloatingPoint, mxcsr),
                    x87_control = const core::mem::offset_of!(FloatingPoint, x87_control),
                    in("r12") &raw mut saved,
                    lateout("rax") frame,
                    clobber_abi("sysv64"),
                );
            }
            frame
        }
    };
}

call!(
    /// A retpoline: only the predictor of returns is asked where it leads, and that one answers
    /// with the trap. An indirect call would be steered by what a guest has trained, on a host
    /// without IBRS (spec/hazards.md, row 41).
    ///
    /// # Safety
    /// `entry` must be the address of a function that is sound to call as `extern "C" fn() -> *mut
    /// PtRegs` here and now.
    call,
    [
        "call 3f",
        "jmp 5f",
        // RSP -> the address after the first call.
        "3: call 4f",
        "2: pause",
        "lfence",
        "jmp 2b",
        // The RET is in the upper half of a cache line (spec/hazards.md, row 46).
        ".balign 64, 0xCC",
        ".fill 32, 1, 0xCC",
        "4: mov [rsp], {entry}",
        "ret",
        "int3",
        "5:"
    ]
);

/// Calls the address in a register by IRETQ, whose target no branch predictor is asked for: IRETQ
/// serialises, so that nothing is fetched before it has retired (AMD APM vol. 2, 7.6.4; Intel SDM
/// vol. 3, 9.3). It stays at this privilege level, with the same flags and, except for its frame,
/// the same stack. NMIs are not blocked here, so it unblocks none.
macro_rules! by_iret {
    ($asm:ident, $entry:literal, [$($before:literal),*], [$($behind:tt)*]) => {
        $asm! {
            $($before,)*
            "call 3f",
            "jmp 5f",
            // RSP -> the address after the call.
            "3: mov rax, rsp",
            "mov ecx, ss",
            "push rcx",
            "push rax",
            "pushfq",
            "mov ecx, cs",
            "push rcx",
            concat!("push ", $entry),
            "iretq",
            "int3",
            "5:",
            $($behind)*
        }
    };
}
/// The call for hosts whose RETs go through a thunk, which only they know: the RET of a retpoline
/// would be one that has not been untrained, and a jump to their thunk would be indirect. LFENCE in
/// front of an indirect call is no mitigation (CVE-2021-26401, AMD-SB-1036).
///
/// # Safety
/// The same must hold as for [`call`].
unsafe fn call_by_iret(entry: u64) -> *mut PtRegs {
    let mut saved = FloatingPoint { mxcsr: 0, x87_control: 0 };
    let frame: *mut PtRegs;
    // SAFETY: the caller vouches for `entry`, and the registers are kept as in `call`. The IRETQ
    // leads to where this code is, at this level, with the selectors that are loaded: SS is null or
    // of this level, as CPL 0 needs it, and its descriptors are in the GDT, which `prepare` has
    // judged.
    unsafe {
        by_iret!(
            asm,
            "rdx",
            ["stmxcsr [r12 + {mxcsr}]", "fnstcw [r12 + {x87_control}]"],
            [
                "fninit",
                "fldcw [r12 + {x87_control}]",
                "ldmxcsr [r12 + {mxcsr}]",
                in("rdx") entry,
                mxcsr = const core::mem::offset_of!(FloatingPoint, mxcsr),
                x87_control = const core::mem::offset_of!(FloatingPoint, x87_control),
                in("r12") &raw mut saved,
                lateout("rax") frame,
                clobber_abi("sysv64"),
            ]
        );
    }
    frame
}

/// The control registers of floating point that a function must preserve.
#[repr(C)]
struct FloatingPoint {
    mxcsr: u32,
    x87_control: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::GuestRoot;
    use core::arch::global_asm;
    use switcher_gen::arch::HostState;

    #[test]
    fn ibrs_is_for_the_host_and_the_rest_for_both() {
        assert_eq!(spec_ctrl(0b100, false), (0b101, 0b100));
        assert_eq!(spec_ctrl(0b101, false), (0b101, 0b100));
    }

    #[test]
    fn a_guest_without_ibrs_has_stibp_and_keeps_the_hosts() {
        const STIBP: u32 = 0b10;
        for found in 0..=0x7FF {
            assert_ne!(spec_ctrl(found, true).1 & STIBP, 0);
            let (host, guest) = spec_ctrl(found, false);
            assert_eq!(guest & STIBP, found as u32 & STIBP, "a bit that does not exist is not set");
            // Everything but IBRS and STIBP has the host's value for both: SSBD, BHI_DIS_S, PSFD.
            assert_eq!(guest | 0b11, host | 0b11);
        }
    }

    core::arch::global_asm!(
        // This stands for a guest's run: every caller-saved register, MXCSR and the x87 state are
        // lost.
        ".global switcher_runtime_test_guest",
        "switcher_runtime_test_guest:",
        "push 0x1FC0",
        "ldmxcsr [rsp]",
        "mov word ptr [rsp], 0x0F7F",
        "fldcw [rsp]",
        "fld1",
        "pop rcx",
        "mov eax, 0x1230",
        "xor ecx, ecx",
        "xor edx, edx",
        "xor esi, esi",
        "xor edi, edi",
        "xor r8d, r8d",
        "xor r9d, r9d",
        "xor r10d, r10d",
        "xor r11d, r11d",
        "ret",
    );

    unsafe extern "C" {
        fn switcher_runtime_test_guest() -> *mut PtRegs;
    }

    fn floating_point() -> (u32, u16, u16) {
        let (mut mxcsr, mut control, mut status) = (0, 0, 0);
        // SAFETY: the three instructions store to the three locals, nothing else.
        unsafe {
            core::arch::asm!(
                "stmxcsr [{}]",
                "fnstcw [{}]",
                "fnstsw [{}]",
                in(reg) &raw mut mxcsr,
                in(reg) &raw mut control,
                in(reg) &raw mut status,
            );
        }
        (mxcsr, control, status)
    }

    fn guest() -> Guest {
        let mut guest = Guest::new(PagingMode::FourLevel);
        (guest.regs.cs, guest.regs.ss) = (0x33, 0x2B);
        guest
    }

    fn checked(guest: &Guest) -> Result<(), EnterError> {
        check(guest, &Variant::REFERENCE)
    }

    #[test]
    fn a_guest_is_entered_with_selectors_or_not_at_all() {
        let mut guest = guest();
        assert_eq!(checked(&guest), Ok(()));
        guest.regs.cs = 0x1_0033;
        let refused = EnterError::NotASelector { register: "CS", found: 0x1_0033 };
        assert_eq!(checked(&guest), Err(refused));
        (guest.regs.cs, guest.regs.ss) = (0x33, 1 << 63 | 0x2B);
        let refused = EnterError::NotASelector { register: "SS", found: 1 << 63 | 0x2B };
        assert_eq!(checked(&guest), Err(refused));
    }

    #[test]
    fn a_guest_made_for_wider_addresses_is_refused() {
        let mut guest = Guest::new(PagingMode::FiveLevel);
        guest.regs.cs = 0x33;
        let (guest_mode, host) = (PagingMode::FiveLevel, PagingMode::FourLevel);
        let refused = EnterError::OtherPaging { guest: guest_mode, host };
        assert_eq!(checked(&guest), Err(refused));
    }

    #[test]
    fn a_root_with_a_pcid_is_refused_where_there_are_none() {
        let state = HostState { pcid: true, ..HostState::PLAIN };
        let enabled = state.pcid_enabled().unwrap();
        // SAFETY: the root is never entered.
        let plain = unsafe { GuestRoot::new(Cr3::new(0x1000).unwrap()) };
        let tagged = plain.with_pcid(GuestPcids::DEFAULT.pcid(32, enabled).unwrap());
        for (root, refused) in [(plain, false), (tagged, true)] {
            let mut guest = guest();
            guest.set_root(Mode::Umod, Some(root));
            let expected =
                if refused { Err(EnterError::PcidWithoutPcide(Mode::Umod)) } else { Ok(()) };
            assert_eq!(checked(&guest), expected);
        }
        let with_pcid: Variant = "intel-4level-pcid".parse().unwrap();
        let mut guest = guest();
        guest.set_root(Mode::Umod, Some(tagged));
        assert_eq!(check(&guest, &with_pcid), Ok(()));
        // SAFETY: the root is never entered.
        let other = unsafe { GuestRoot::new(Cr3::new(0x2000).unwrap()) };
        guest.set_root(
            Mode::Smod,
            Some(other.with_pcid(GuestPcids::DEFAULT.pcid(32, enabled).unwrap())),
        );
        assert_eq!(check(&guest, &with_pcid), Err(EnterError::SharedPcid));
    }

    #[test]
    fn a_root_without_a_pcid_is_entered_from_the_hosts_pcid_0_alone() {
        // SAFETY: the root is never entered.
        let plain = unsafe { GuestRoot::new(Cr3::new(0x1000).unwrap()) };
        let state = HostState { pcid: true, ..HostState::PLAIN };
        let enabled = state.pcid_enabled().unwrap();
        let tagged = plain.with_pcid(GuestPcids::DEFAULT.pcid(32, enabled).unwrap());
        for (root, host, refused) in
            [(plain, 0x5000, false), (plain, 0x5001, true), (tagged, 0x5001, false)]
        {
            let mut guest = guest();
            guest.set_root(Mode::Umod, Some(root));
            let refusal = EnterError::RootWithoutPcid { mode: Mode::Umod, cr3: host };
            let expected = if refused { Err(refusal) } else { Ok(()) };
            let found = check_pcids(&guest, Cr3::from_register(host), GuestPcids::DEFAULT);
            assert_eq!(found, expected, "{host:#x}");
        }
        let pcids = GuestPcids::DEFAULT;
        let host = Cr3::from_register(0x5020);
        let refused = EnterError::HostPcid { cr3: 0x5020, pcids };
        assert_eq!(check_pcids(&guest(), host, pcids), Err(refused));
        // With other PCIDs for guests, that one is the host's, and a guest has none of them.
        let pcids = GuestPcids::new(0x7C0, 0x7DF).unwrap();
        assert_eq!(check_pcids(&guest(), host, pcids), Ok(()));
        let mut guest = guest();
        guest.set_root(Mode::Smod, Some(tagged));
        let refused = EnterError::OtherPcid { mode: Mode::Smod, number: 32, pcids };
        assert_eq!(check_pcids(&guest, Cr3::from_register(0x5000), pcids), Err(refused));
    }

    #[test]
    fn nothing_invites_a_direct_switch_while_no_guest_runs() {
        let flags = idle().switch_flags;
        assert!(flags.intersects(SwitchFlags::NO_DS_TO_SMOD));
        assert!(flags.intersects(SwitchFlags::NO_DS_TO_UMOD));
    }

    #[test]
    fn floating_point_control_survives_a_guest_that_changes_it() {
        let before = floating_point();
        for call in [call, call_by_iret, call] {
            // SAFETY: the function is the test's own, and keeps the ABI except for floating-point
            // control.
            let frame = unsafe { call(switcher_runtime_test_guest as *const () as u64) };
            assert_eq!(frame.addr(), 0x1230);
            assert_eq!(floating_point(), before);
        }
    }

    by_iret!(
        global_asm,
        "rdx",
        [
            ".global switcher_runtime_test_by_iret",
            ".global switcher_runtime_test_by_iret_end",
            "switcher_runtime_test_by_iret:"
        ],
        ["switcher_runtime_test_by_iret_end:",]
    );

    unsafe extern "C" {
        static switcher_runtime_test_by_iret: u8;
        static switcher_runtime_test_by_iret_end: u8;
    }

    /// LFENCE in front of an indirect branch is no mitigation (CVE-2021-26401), and where returns
    /// are untrained, a RET here would be one that has not been.
    #[test]
    fn where_returns_are_untrained_nothing_that_is_predicted_leads_to_the_switcher() {
        let (start, end) = (
            &raw const switcher_runtime_test_by_iret,
            &raw const switcher_runtime_test_by_iret_end,
        );
        // SAFETY: between the two labels are instructions of this program's, which it may read.
        let code = unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) };
        // The bytes of: a CALL over the JMP; a JMP to the end.
        let rest = code.strip_prefix(&[0xE8, 2, 0, 0, 0, 0xEB, (code.len() - 7) as u8]).unwrap();
        // mov rax, rsp; mov ecx, ss; push rcx; push rax; pushfq; mov ecx, cs; push rcx; push rdx;
        // iretq; int3.
        let wanted = [
            0x48, 0x89, 0xE0, 0x8C, 0xD1, 0x51, 0x50, 0x9C, 0x8C, 0xC9, 0x51, 0x52, 0x48, 0xCF,
            0xCC,
        ];
        assert_eq!(rest, wanted);
    }
}
