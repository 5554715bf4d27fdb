//! The platform's own tests, which show whether this kernel is fit to judge a switcher.
//!
//! A few instructions of guest code are entered by an IRETQ from here, without any switcher, and
//! each must come back as an exact `PtRegs`, on the right stack, with GS and KERNEL_GS_BASE
//! exchanged. Before that, a page of host code is written, sealed, called and unmapped as a
//! switcher's is; after it, the instructions of a table are executed, to see whether the model of a
//! CPU knows them (`model.rs`). All of this runs before the cases, so that a failure of a case is
//! the switcher's.

use alloc::format;
use alloc::string::String;
use core::arch::global_asm;
use core::sync::atomic::Ordering;

use switcher_gen::arch::{PagingMode, RFlags, vector};
use switcher_gen::layout::{OrigAx, PtRegs};
use switcher_runtime::MappingList;
use x86_64::registers::control::Cr2;

use hw_platform::events::{self, GUEST_IRETQ, RETURN_FROM_GUEST};
use hw_platform::memory::{
    self, AddressSpace, Flags, Frame, HIGH_BASE, HOST_RANGE, MapError, PAGE,
};
use hw_platform::percpu::{self, Stack};
use hw_platform::segments::{TSS, USER_CS, USER_DS};
use hw_platform::{Platform, gs};

use crate::model;
use crate::report::Report;

global_asm!(
    r#"
    // This code runs on a guest's root for a few instructions.
    .section .entry.text, "ax", @progbits

    // extern "C" fn(state: *const PtRegs, cr3: u64) -> *const PtRegs
    // Enters CPL 3 with that state, under that root; returns the PtRegs that an event has left.
    .global hw_kernel_selftest_enter
hw_kernel_selftest_enter:
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    mov     [rip + hw_kernel_selftest_rsp], rsp
    mov     rax, cr3
    mov     [rip + hw_kernel_selftest_cr3], rax
    mov     cr3, rsi
    mov     rsp, rdi
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    pop     r11
    pop     r10
    pop     r9
    pop     r8
    pop     rax
    pop     rcx
    pop     rdx
    pop     rsi
    pop     rdi
    add     rsp, 8                      // orig_ax
    swapgs
    .global hw_kernel_selftest_iretq
hw_kernel_selftest_iretq:
    iretq

    // RETURN_FROM_GUEST leads here: RSP = the PtRegs, and GS is the host's again.
    .global hw_kernel_selftest_landing
hw_kernel_selftest_landing:
    mov     rax, rsp
    mov     rcx, [rip + hw_kernel_selftest_cr3]
    mov     cr3, rcx
    mov     rsp, [rip + hw_kernel_selftest_rsp]
    push    2
    popfq                               // DF and AC clear
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    ret

    // The code that the guest runs, {slot} bytes for each test.
    .section .rodata.selftest, "a", @progbits
    .global hw_kernel_selftest_guest
hw_kernel_selftest_guest:
    int3
    .org    hw_kernel_selftest_guest + {slot} * 1, 0xCC
    ud2
    .org    hw_kernel_selftest_guest + {slot} * 2, 0xCC
    int     0
    .org    hw_kernel_selftest_guest + {slot} * 3, 0xCC
    mov     byte ptr [rdi], 1
    .org    hw_kernel_selftest_guest + {slot} * 4, 0xCC
    nop
    nop
    .org    hw_kernel_selftest_guest + {slot} * 5, 0xCC
    .global hw_kernel_selftest_guest_end
hw_kernel_selftest_guest_end:

    .section .entry.data, "aw", @progbits
    .balign 8
hw_kernel_selftest_rsp: .quad 0
hw_kernel_selftest_cr3: .quad 0
    .text
"#,
    slot = const SLOT,
);

unsafe extern "C" {
    fn hw_kernel_selftest_enter(state: *const PtRegs, cr3: u64) -> *const PtRegs;
    static hw_kernel_selftest_iretq: u8;
    static hw_kernel_selftest_landing: u8;
    static hw_kernel_selftest_guest: u8;
    static hw_kernel_selftest_guest_end: u8;
}

/// The number of bytes of guest code for each test.
const SLOT: u64 = 16;
/// The address of the guest's code: right above the identity map's range.
const CODE: u64 = 0x0000_0100_0000_0000;
/// The guest's stack: the highest page below the hole of four-level paging.
const STACK: u64 = 0x0000_7FFF_FFFF_F000;
/// An address at which no page is mapped.
const NOTHING: u64 = 0x0000_0200_0000_0008;
/// The guest's GS base.
const GUEST_GS: u64 = 0x0000_0123_4567_8000;

/// The flags CF, PF and AF, besides IF and the fixed bit.
const FLAGS: u64 = 0x217;
/// The low half of `orig_ax` for a vector that has no error code.
const NO_ERROR: u32 = u32::MAX;

/// One self test.
///
/// `hw-protocol` reads the table of these at build time, and has all fields but `run`.
pub(crate) struct SelfTest {
    /// The name of the test: unique, and stable.
    name: &'static str,
    /// What it shows if the test passes.
    #[expect(dead_code, reason = "for the runner, which has it by way of hw-protocol")]
    shown: &'static str,
    /// The test's body.
    run: TestBody,
}

/// The body of a test.
enum TestBody {
    /// Checks host code, and the space of a guest.
    Code(fn(&AddressSpace) -> Result<(), String>),
    /// Enters a guest, which an event ends.
    Event(EventTest),
    /// Executes the loader's table of instructions, and returns how many there were, with the
    /// result.
    Model(fn(&Platform) -> (u64, Result<String, String>)),
}

/// A test by an event: how a guest starts, and how it must end.
struct EventTest {
    /// Changes the state from the common one.
    start: fn(&mut PtRegs, PagingMode),
    /// Changes the expected frame from the state the guest started in.
    expect: fn(&mut PtRegs),
    /// The expected CR2, if the event sets it.
    cr2: Option<u64>,
    /// The stack the frame must be on.
    stack: Stack,
}

const PLAIN: EventTest =
    EventTest { start: |_, _| (), expect: |_| (), cr2: None, stack: Stack::Sp0 };

/// All tests, in the order in which they are run.
///
/// They show that the kernel is fit to judge a switcher: that an event from CPL 3 leaves an exact
/// `PtRegs`, whatever the vector, and that code of the host is mapped in no guest's root and never
/// writable while it is executable. In the last one, the CPU judges the model.
pub(crate) const TESTS: &[SelfTest] = &[
    SelfTest {
        name: "selftest/host_code",
        shown: "Host code is never writable and executable, and in no guest's root.",
        run: TestBody::Code(host_code),
    },
    SelfTest {
        name: "selftest/int3",
        shown: "INT3 leaves an exact PtRegs.",
        run: TestBody::Event(EventTest {
            expect: |regs| {
                regs.orig_ax = event(vector::BP, NO_ERROR);
                regs.rip += 1;
            },
            ..PLAIN
        }),
    },
    SelfTest {
        name: "selftest/ud2",
        shown: "UD2 leaves an exact PtRegs.",
        run: TestBody::Event(EventTest {
            start: |regs, _| regs.rip = CODE + SLOT,
            expect: |regs| regs.orig_ax = event(vector::UD, NO_ERROR),
            ..PLAIN
        }),
    },
    SelfTest {
        name: "selftest/int_n",
        shown: "INT n to a gate that is not the guest's is #GP.",
        run: TestBody::Event(EventTest {
            start: |regs, _| regs.rip = CODE + 2 * SLOT,
            // The error code names the gate: vector * 8, and bit 1 for the IDT. The vector is 0,
            // because QEMU 7.2 reports vector * 16.
            expect: |regs| regs.orig_ax = event(vector::GP, 2),
            ..PLAIN
        }),
    },
    SelfTest {
        name: "selftest/page_fault",
        shown: "A page fault leaves an exact PtRegs, and its address in CR2.",
        run: TestBody::Event(EventTest {
            start: |regs, _| {
                regs.rip = CODE + 3 * SLOT;
                regs.rdi = NOTHING;
            },
            // The access is a write, from CPL 3, to a page that is not present.
            expect: |regs| regs.orig_ax = event(vector::PF, 6),
            cr2: Some(NOTHING),
            ..PLAIN
        }),
    },
    SelfTest {
        name: "selftest/single_step",
        shown: "A single step leaves an exact PtRegs, on the stack of #DB.",
        run: TestBody::Event(EventTest {
            start: |regs, _| {
                regs.rip = CODE + 4 * SLOT;
                regs.eflags |= RFlags::TF.bits();
            },
            expect: |regs| {
                regs.orig_ax = event(vector::DB, NO_ERROR);
                regs.rip += 1;
            },
            stack: Stack::Debug,
            ..PLAIN
        }),
    },
    SelfTest {
        name: "selftest/iret_bad_cs",
        shown: "An IRETQ that cannot load CS leaves what the guest was to be.",
        run: TestBody::Event(EventTest {
            start: |regs, _| regs.cs = u64::from(TSS | 3),
            expect: |regs| regs.orig_ax = event(vector::GP, u32::from(TSS)),
            ..PLAIN
        }),
    },
    SelfTest {
        name: "selftest/iret_non_canonical",
        shown: "An IRETQ to what is no address leaves what the guest was to be.",
        run: TestBody::Event(EventTest {
            start: |regs, paging| {
                regs.rip = match paging {
                    PagingMode::FourLevel => 1 << 47,
                    PagingMode::FiveLevel => 1 << 56,
                };
            },
            expect: |regs| regs.orig_ax = event(vector::GP, 0),
            ..PLAIN
        }),
    },
    SelfTest {
        name: "selftest/instructions_do_what_the_model_says",
        shown: "This CPU does what the model of a CPU does, instruction by instruction.",
        run: TestBody::Model(model::run),
    },
];

const fn event(vector: u8, error_code: u32) -> OrigAx {
    OrigAx { reason: vector as u32, error_code }
}

/// A guest with the code above and a stack, in an address space of its own.
struct Guest {
    space: AddressSpace,
    // The frames are mapped in the space, so they must be freed after it: fields are dropped in
    // this order.
    _code: Frame,
    _stack: Frame,
}

impl Guest {
    fn new() -> Result<Self, MapError> {
        // SAFETY: the block is this CPU's, and neither the hardware nor a switcher writes to it
        // now.
        let block = unsafe { percpu::block(0).read() };
        let address = percpu::block(0).addr() as u64;
        let mut space = AddressSpace::new(MappingList::of_hardware(&block, address))?;
        space.map_stubs()?;
        let start = &raw const hw_kernel_selftest_guest;
        let end = &raw const hw_kernel_selftest_guest_end;
        // SAFETY: the two symbols delimit constant bytes of this image.
        let bytes = unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) };
        let mut code = Frame::new()?;
        code.write(0, bytes);
        let stack = Frame::new()?;
        space.map(CODE, code.address(), Flags::USER | Flags::EXECUTE)?;
        space.map(STACK, stack.address(), Flags::USER | Flags::WRITE)?;
        Ok(Self { space, _code: code, _stack: stack })
    }
}

/// A state in which each register has a value that says which register it is.
fn common_state() -> PtRegs {
    let pattern = |register: u64| 0x8000_0000_0000_0000 | register << 32 | 0x5A5A_0000 | register;
    PtRegs {
        r15: pattern(15),
        r14: pattern(14),
        r13: pattern(13),
        r12: pattern(12),
        rbp: pattern(5),
        rbx: pattern(3),
        r11: pattern(11),
        r10: pattern(10),
        r9: pattern(9),
        r8: pattern(8),
        rax: pattern(0),
        rcx: pattern(1),
        rdx: pattern(2),
        rsi: pattern(6),
        rdi: pattern(7),
        orig_ax: OrigAx::default(),
        rip: CODE,
        cs: u64::from(USER_CS),
        eflags: FLAGS,
        rsp: STACK + 0xFF8,
        ss: u64::from(USER_DS),
    }
}

/// Describes the registers that are not as expected.
fn differences(got: &PtRegs, expected: &PtRegs) -> String {
    let mut text = String::new();
    macro_rules! compare {
        ($($register:ident)*) => {$(
            if got.$register != expected.$register {
                text += &format!(
                    "{} {:x?}, expected {:x?}; ",
                    stringify!($register), got.$register, expected.$register
                );
            }
        )*};
    }
    compare!(
        r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_ax rip cs eflags rsp ss
    );
    text
}

/// Enters a guest, and checks what its event leaves.
fn run(guest: &Guest, test: &EventTest) -> Result<(), String> {
    let mut start = common_state();
    (test.start)(&mut start, memory::paging());
    let mut expected = start;
    (test.expect)(&mut expected);

    // The frame is where the switcher will have it, too: it ends at sp0.
    let place = core::ptr::with_exposed_provenance_mut::<PtRegs>(
        Stack::Sp0.top(0) as usize - size_of::<PtRegs>(),
    );
    // SAFETY: the sp0 stack is a static larger than this frame, and no event is being handled.
    unsafe { place.write(start) }
    gs::set_inactive(GUEST_GS);
    // SAFETY: the space maps the host as the current one does. The state is CPL 3's, or one that
    // faults on the IRETQ that `all` has named. Either way it comes back through the landing, which
    // restores CR3, the stack and the registers that the C ABI preserves.
    let frame = unsafe { hw_kernel_selftest_enter(place, guest.space.cr3()) };
    let cr2 = Cr2::read_raw();
    let (gs, kernel_gs) = (gs::base(), gs::inactive());
    // SAFETY: the landing returns the frame the stub built, which stays until the next event.
    let mut got = unsafe { frame.read() };

    // Faults may be reported with RF set; the emulators do not agree.
    got.eflags &= !RFlags::RF.bits();
    if got != expected {
        return Err(differences(&got, &expected));
    }
    let at = frame.addr() as u64 + size_of::<PtRegs>() as u64;
    if at != test.stack.top(0) {
        return Err(format!("the frame ends at {at:#x}, not at {:#x}", test.stack.top(0)));
    }
    if test.cr2.is_some_and(|expected| cr2 != expected) {
        return Err(format!("CR2 is {cr2:#x}"));
    }
    let block = percpu::block(0).addr() as u64;
    if (gs, kernel_gs) != (block, GUEST_GS) {
        return Err(format!("GS base is {gs:#x}, KERNEL_GS_BASE {kernel_gs:#x}"));
    }
    Ok(())
}

/// The address at which [`host_code`] maps its page: the last page of the high host range, which
/// nobody else uses.
const CODE_PAGE: u64 = HIGH_BASE + HOST_RANGE - PAGE;

/// Writes, seals, calls and unmaps a page of host code, and checks every mapping of it. A guest's
/// root has none.
fn host_code(guest: &AddressSpace) -> Result<(), String> {
    const ANSWER: u32 = 0x1234_5678;
    let mapping = |why: MapError| format!("mapping host code: {why}");
    let mut frame = Frame::new().map_err(|why| mapping(why.into()))?;
    let phys = frame.address();
    let expect = |what: &str, page: Option<Flags>, alias: Option<Flags>| {
        let got = (memory::host_flags(CODE_PAGE), memory::host_flags(phys));
        if got == (page, alias) {
            return Ok(());
        }
        Err(format!("{what}: page and alias are {got:?}, expected {:?}", (page, alias)))
    };

    memory::map_host(CODE_PAGE, phys, Flags::WRITE).map_err(mapping)?;
    expect("mapped", Some(Flags::WRITE), Some(Flags::WRITE))?;
    // The code is: mov eax, ANSWER; ret.
    let mut code = [0xB8, 0, 0, 0, 0, 0xC3];
    code[1..5].copy_from_slice(&ANSWER.to_le_bytes());
    frame.write(0, &code);

    // SAFETY: nothing refers to the page, which was written before.
    unsafe { memory::protect_host(CODE_PAGE, Flags::EXECUTE) }.map_err(mapping)?;
    expect("sealed", Some(Flags::EXECUTE), Some(Flags::empty()))?;
    for address in [CODE_PAGE, phys] {
        if let Some(flags) = guest.flags(address) {
            return Err(format!("a guest's root has {address:#x} with {flags:?}"));
        }
    }
    let function = core::ptr::with_exposed_provenance::<()>(CODE_PAGE as usize);
    // SAFETY: the page is executable and starts with a function of this type.
    let function: extern "C" fn() -> u32 = unsafe { core::mem::transmute(function) };
    let answer = function();

    // SAFETY: the code above has returned and is not called again, so nothing uses the page.
    unsafe { memory::unmap_host(CODE_PAGE) }.map_err(mapping)?;
    expect("unmapped", None, Some(Flags::WRITE))?;
    if answer != ANSWER {
        return Err(format!("the code returned {answer:#x}"));
    }
    let both = memory::map_host(CODE_PAGE, phys, Flags::WRITE | Flags::EXECUTE);
    match both {
        Err(MapError::WritableAndExecutable) => Ok(()),
        other => Err(format!("mapping writable and executable: {other:?}")),
    }
}

/// Runs every test and reports each as a case.
pub(crate) fn all(platform: &Platform, report: &mut Report) {
    let guest = Guest::new().map_err(|why| format!("no guest: {why}"));
    RETURN_FROM_GUEST
        .store((&raw const hw_kernel_selftest_landing).addr() as u64, Ordering::Relaxed);
    GUEST_IRETQ.store((&raw const hw_kernel_selftest_iretq).addr() as u64, Ordering::Relaxed);
    for SelfTest { name, run: what, .. } in TESTS {
        let in_guest = |test: &dyn Fn(&Guest) -> Result<(), String>| {
            guest.as_ref().map_err(String::clone).and_then(test)
        };
        let result = match what {
            TestBody::Code(test) => in_guest(&|guest| test(&guest.space)),
            TestBody::Event(event) => in_guest(&|guest| run(guest, event)),
            TestBody::Model(test) => {
                let (runs, result) = test(platform);
                let (Ok(detail) | Err(detail)) = &result;
                report.detailed(name, runs, result.is_ok(), detail);
                continue;
            }
        };
        report.case(name, 1, result.as_ref().err().map(String::as_str));
    }
    events::no_guest();
}
