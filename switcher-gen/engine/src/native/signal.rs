//! Where the machine touches the real CPU: the thunk into emitted code, the signal handler that
//! gets every fault, trap and SYSCALL of it, and the GS base.
//!
//! While emitted code and guests run, RSP, GS and all flags are theirs. Therefore the handler has a
//! stack of its own (with `SS_AUTODISARM`, so that a guest's RSP that happens to point into it
//! makes no difference), finds its machine through FS-based thread-local storage, clears AC before
//! any compiled code runs, and makes no system call but the return, whose instruction alone is
//! exempt from Syscall User Dispatch.

use std::arch::{asm, naked_asm};
use std::cell::Cell;
use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU8;

use super::cpu::Cpu;
use super::memory::Mapping;
use super::registers::Regs;
use super::thread::SYSCALLS_PASS;
use switcher_gen::arch::RFlags;

/// The signals that faults, traps and dispatched SYSCALLs arrive as.
const SIGNALS: [c_int; 6] =
    [libc::SIGSEGV, libc::SIGILL, libc::SIGSYS, libc::SIGTRAP, libc::SIGBUS, libc::SIGFPE];

// Linux's uapi headers: linux/prctl.h, asm/signal.h, linux/signal.h.
const PR_SET_SYSCALL_USER_DISPATCH: c_int = 59;
const PR_SYS_DISPATCH_OFF: c_ulong = 0;
const PR_SYS_DISPATCH_ON: c_ulong = 1;
const SA_RESTORER: c_ulong = 0x0400_0000;
const SS_AUTODISARM: c_int = 1 << 31;

/// Flags that `rt_sigreturn` does not restore (arch/x86/kernel/signal_64.c, `FIX_EFLAGS`): the
/// handler must leave with them as the interrupted code is to have them.
const NOT_BY_SIGRETURN: u64 = RFlags::NT.bits() | RFlags::ID.bits();

/// Bytes of the stack that signals are taken on, beyond the frame the kernel puts there.
const SIGNAL_STACK: usize = 64 * 1024;

thread_local! {
    /// The machine that runs on this thread, if one does. Constant and without a destructor, so
    /// that the handler's access is one FS-relative load.
    static RUNNING: Cell<*mut Cpu> = const { Cell::new(ptr::null_mut()) };
}

/// The handlers that were there before ours, by index into [`SIGNALS`].
static PREVIOUS: OnceLock<Result<[KernelSigaction; SIGNALS.len()], i32>> = OnceLock::new();

/// `struct sigaction` as the kernel takes it. Not libc's: the return must be by our `restorer`.
#[derive(Clone, Copy)]
#[repr(C)]
struct KernelSigaction {
    handler: usize,
    flags: c_ulong,
    restorer: usize,
    mask: u64,
}

/// CS and SS of this process, which guests will have.
pub(super) fn own_selectors() -> (u16, u16) {
    let (cs, ss): (u16, u16);
    // SAFETY: reads a register.
    unsafe { asm!("mov {:x}, cs", out(reg) cs, options(nomem, nostack, preserves_flags)) };
    // SAFETY: reads a register.
    unsafe { asm!("mov {:x}, ss", out(reg) ss, options(nomem, nostack, preserves_flags)) };
    (cs, ss)
}

/// The call into emitted code, from the host's side.
///
/// Both UD2 are for the handler: at the first it takes the addresses in RAX and RDX, gives the
/// registers the values a host would have and goes on at `switcher_enter_guest`, on this stack and
/// with a return address on top; that address is the second. From there, or from wherever a run had
/// to be given up, the handler goes on at the label 4 with RSP, GS and flags as they were.
///
/// # Safety
/// A handler must be installed and [`RUNNING`] point to a machine that is ready to run.
#[unsafe(naked)]
unsafe extern "C" fn enter() {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "lea rax, [rip + 3f]",
        "lea rdx, [rip + 4f]",
        "push rax",
        "ud2",
        "3:",
        "ud2",
        "4:",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// What the kernel calls. Compiled code must not run with a guest's AC (its accesses need not be
/// aligned), and has to leave with the flags that sigreturn does not restore.
///
/// # Safety
/// For the kernel alone, as a handler with `SA_SIGINFO`.
#[unsafe(naked)]
unsafe extern "C" fn trampoline(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    naked_asm!(
        // RSP is 8 off a multiple of 16, as after a call.
        "sub rsp, 8",
        "pushfq",
        "and dword ptr [rsp], {no_ac}",
        "popfq",
        "call {handler}",
        "pushfq",
        "and dword ptr [rsp], {no_sticky}",
        "or qword ptr [rsp], rax",
        "popfq",
        "add rsp, 8",
        "ret",
        no_ac = const !(RFlags::AC.bits() as i32),
        no_sticky = const !(NOT_BY_SIGRETURN as i32),
        handler = sym handle,
    )
}

/// Where `trampoline` returns to.
///
/// # Safety
/// For the kernel alone, as a restorer.
#[unsafe(naked)]
unsafe extern "C" fn restorer() {
    naked_asm!("mov eax, {rt_sigreturn}", "syscall", "ud2", rt_sigreturn = const libc::SYS_rt_sigreturn)
}

/// Bytes from the start of `restorer` that hold its SYSCALL and the address after it: MOV EAX,
/// imm32 is 5 bytes, SYSCALL 2, and the kernel looks at the address after.
const RESTORER_LEN: c_ulong = 8;

/// Hands a signal to the machine that runs on this thread, or to whom it belonged before. Returns
/// the flags of [`NOT_BY_SIGRETURN`] to leave with.
///
/// # Safety
/// `context` must be the `ucontext_t` the kernel made for this signal.
unsafe extern "C" fn handle(
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
) -> u64 {
    let cpu = RUNNING.get();
    if cpu.is_null() {
        chain(signal, info, context);
    }
    // SAFETY: by contract this is the kernel's context, which lies on our stack and which nobody
    // else refers to any more.
    let mut regs = Regs::new(unsafe { &mut (*context).uc_mcontext.gregs });
    if !cpu.is_null() {
        // SAFETY: `run` set this pointer from a `&mut Cpu` that it does not use until `enter` has
        // returned, and this signal interrupted `enter` or code it called: all other signals are
        // blocked, and this one in itself.
        let cpu = unsafe { &mut *cpu };
        if signal == libc::SIGSYS {
            // SAFETY: by contract this is the kernel's context of this signal, and what it gives to
            // a handler with `SA_SIGINFO`.
            undo_restart(unsafe { &*info.cast() }, &mut regs);
        }
        cpu.trap(signal, &mut regs);
    }
    regs.eflags() & NOT_BY_SIGRETURN
}

/// The start of a `siginfo_t` for SIGSYS (asm-generic/siginfo.h).
#[repr(C)]
struct SystemCallInfo {
    _signo: c_int,
    _errno: c_int,
    code: c_int,
    _padding: c_int,
    /// The address after the instruction.
    call_addr: u64,
    /// The lower half of RAX.
    syscall: c_int,
}

/// `code` of a SYSCALL that Syscall User Dispatch has caught (asm-generic/siginfo.h).
const SYS_USER_DISPATCH: c_int = 2;

/// The kernel has rolled the SYSCALL back, and then delivers a signal as to any system call. If the
/// guest's RAX looks like a kernel's wish to be restarted (linux/errno.h, `ERESTARTSYS` and the
/// like), it sets RAX to -EINTR, or RIP back to the instruction (arch/x86/kernel/signal.c,
/// `handle_signal`). What was there is in the signal's information.
fn undo_restart(info: &SystemCallInfo, regs: &mut Regs<'_>) {
    const RESTARTS: std::ops::RangeInclusive<c_int> = -516..=-512;
    if info.code != SYS_USER_DISPATCH || !RESTARTS.contains(&info.syscall) {
        return;
    }
    regs.set(libc::REG_RIP, info.call_addr);
    let interrupted = i64::from(-libc::EINTR).cast_unsigned();
    if regs.get(libc::REG_RAX) == interrupted {
        // Only a RAX that is negative as a whole is taken for an error.
        regs.set(libc::REG_RAX, i64::from(info.syscall).cast_unsigned());
    }
}

/// A signal that no machine caused goes where it would have gone without us.
fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    let index = SIGNALS.iter().position(|s| *s == signal).unwrap_or_default();
    let previous = match PREVIOUS.get() {
        Some(Ok(previous)) => previous[index],
        // No machine has ever been complete.
        _ => KernelSigaction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 },
    };
    if previous.handler != libc::SIG_DFL
        && previous.handler != libc::SIG_IGN
        && previous.flags & libc::SA_SIGINFO as c_ulong != 0
    {
        type Action = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::ucontext_t);
        // SAFETY: the kernel gave this address as the handler of a `SA_SIGINFO` action, which is a
        // function of this type.
        let action = unsafe { std::mem::transmute::<usize, Action>(previous.handler) };
        // SAFETY: it gets what the kernel would have given it.
        unsafe { action(signal, info, context) };
    } else {
        // The instruction faults again and finds the previous action. A failure changes nothing
        // about that: there is nobody to tell.
        let _ = set_action(signal, &previous);
    }
}

fn set_action(signal: c_int, action: &KernelSigaction) -> io::Result<KernelSigaction> {
    let mut previous = MaybeUninit::<KernelSigaction>::uninit();
    // SAFETY: both pointers are to structs of the kernel's layout; what the action refers to are
    // functions, which live for ever.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            c_long::from(signal),
            ptr::from_ref(action),
            previous.as_mut_ptr(),
            size_of::<u64>(),
        )
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the kernel has filled it in.
    Ok(unsafe { previous.assume_init() })
}

/// Makes `trampoline` the process's handler of [`SIGNALS`], once.
pub(super) fn install() -> io::Result<()> {
    let installed = PREVIOUS.get_or_init(|| {
        let action = KernelSigaction {
            handler: trampoline as *const () as usize,
            flags: (libc::SA_SIGINFO | libc::SA_ONSTACK) as c_ulong | SA_RESTORER,
            restorer: restorer as *const () as usize,
            mask: !0,
        };
        let mut previous = [action; SIGNALS.len()];
        for (signal, previous) in SIGNALS.into_iter().zip(&mut previous) {
            *previous = set_action(signal, &action)
                .map_err(|error| error.raw_os_error().unwrap_or_default())?;
        }
        Ok(previous)
    });
    installed.map(|_| ()).map_err(io::Error::from_raw_os_error)
}

/// Turns Syscall User Dispatch on for this thread, or off without a selector.
fn dispatch(selector: Option<&AtomicU8>) -> io::Result<()> {
    let failed = match selector {
        // SAFETY: the range and the byte are only ever read by the kernel, and `run` turns
        // dispatch off before the byte goes away.
        Some(selector) => unsafe {
            libc::prctl(
                PR_SET_SYSCALL_USER_DISPATCH,
                PR_SYS_DISPATCH_ON,
                restorer as *const (),
                RESTORER_LEN,
                selector.as_ptr(),
            )
        },
        // SAFETY: turns it off; no pointer is involved.
        None => unsafe {
            libc::prctl(
                PR_SET_SYSCALL_USER_DISPATCH,
                PR_SYS_DISPATCH_OFF,
                0 as c_ulong,
                0 as c_ulong,
                0 as c_ulong,
            )
        },
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether this kernel has Syscall User Dispatch: found out by using it.
pub(super) fn has_dispatch() -> bool {
    let selector = AtomicU8::new(SYSCALLS_PASS);
    // If it could be turned on it can be turned off.
    dispatch(Some(&selector)).is_ok() && dispatch(None).is_ok()
}

/// The stack signals are taken on.
pub(super) struct SignalStack(Mapping);

impl SignalStack {
    /// One that is large enough for this CPU's vector registers.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: reads the auxiliary vector; 0 for what the kernel does not say.
        let frame = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) };
        Mapping::new(SIGNAL_STACK + frame as usize).map(Self)
    }
}

/// Runs `cpu` from the call of `switcher_enter_guest` to its return or to a failure.
///
/// What is set up here is put back in the opposite order, whatever fails. [`install`] must have
/// succeeded: a machine is not made without it.
pub(super) fn run(cpu: &mut Cpu, stack: &SignalStack) -> io::Result<()> {
    let _signals = BlockedSignals::new()?;
    let _stack = AlternateStack::new(stack)?;
    if cpu.uses_dispatch() {
        dispatch(Some(cpu.selector()))?;
    }
    let cpu = ptr::from_mut(cpu);
    RUNNING.set(cpu);
    // SAFETY: the handler is installed, and RUNNING points to a machine. It is ours through `&mut`
    // and not touched here until RUNNING is null again. The call preserves callee-saved registers,
    // RSP, GS and flags (see `enter`), and signals are taken on a stack of their own.
    unsafe { enter() };
    RUNNING.set(ptr::null_mut());
    // SAFETY: the pointer is from the `&mut` above, and the handler no longer uses it.
    if unsafe { &*cpu }.uses_dispatch() {
        dispatch(None)?;
    }
    Ok(())
}

/// Everything but [`SIGNALS`] blocked on this thread: no other handler may run on a guest's RSP.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn new() -> io::Result<Self> {
        let mut all_others = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: initialises the set it points to, and cannot fail.
        unsafe { libc::sigfillset(all_others.as_mut_ptr()) };
        // SAFETY: just initialised.
        let mut all_others = unsafe { all_others.assume_init() };
        for signal in SIGNALS {
            // SAFETY: a valid signal and an initialised set.
            unsafe { libc::sigdelset(&raw mut all_others, signal) };
        }
        Self::set(&all_others).map(Self)
    }

    fn set(mask: &libc::sigset_t) -> io::Result<libc::sigset_t> {
        let mut previous = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: reads one set and writes the other, on this thread alone.
        let error =
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, previous.as_mut_ptr()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: the call succeeded, so it has filled the set in.
        Ok(unsafe { previous.assume_init() })
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // It was this thread's mask, so it is a valid one and the call cannot fail.
        let _ = Self::set(&self.0);
    }
}

/// This thread's signal stack replaced by a machine's.
struct AlternateStack(libc::stack_t);

impl AlternateStack {
    fn new(stack: &SignalStack) -> io::Result<Self> {
        Self::set(&libc::stack_t {
            ss_sp: stack.0.address() as *mut c_void,
            ss_flags: SS_AUTODISARM,
            ss_size: stack.0.len(),
        })
        .map(Self)
    }

    fn set(stack: &libc::stack_t) -> io::Result<libc::stack_t> {
        let mut previous = MaybeUninit::<libc::stack_t>::uninit();
        // SAFETY: the stack is a mapping that outlives its use (`run` borrows it), or the one this
        // thread had before.
        if unsafe { libc::sigaltstack(stack, previous.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so it has filled the struct in.
        Ok(unsafe { previous.assume_init() })
    }
}

impl Drop for AlternateStack {
    fn drop(&mut self) {
        // It was this thread's stack, so it is a valid one and the call cannot fail.
        let _ = Self::set(&self.0);
    }
}
