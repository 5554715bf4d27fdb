//! Every instruction that the model knows and that user mode can try, on this CPU and in the model:
//! registers, memory, GS base, faults and all flags that the manuals define must be the same.
//!
//! Both run the same few bytes as a guest: what prepares memory, the instruction, what reads memory
//! back into registers, UD2. What the manuals leave undefined is masked, per instruction, in the
//! tables below (Intel SDM vol. 2, AMD APM vol. 3). Not here: SYSENTER, INT 0x80 and SYSCALL, which
//! are Linux's (`tests/interpreter.rs` has the guest's), and RDPKRU and WRPKRU, which need CR4.PKE.

use std::sync::atomic::{AtomicU64, Ordering};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use switcher_gen::arch::RFlags;
use switcher_gen::fuzz::scenario::Random;
use switcher_gen::layout::PtRegs;
use switcher_gen::machine::Interpreter;
use switcher_gen::machine::interpreter::Kind;
use switcher_gen::native::Machine;
use switcher_gen::scenario::{Mode, Outcome};
use switcher_gen::{Image, Variant};

/// Random states per instruction.
const STATES: usize = 48;
/// Where the first test's guest has its page of data. Tests run at the same time.
static DATA: AtomicU64 = AtomicU64::new(0x1234_5678_0000);
const PF: u32 = 14;

// The flags that an instruction leaves undefined.
const NONE: u64 = 0;
const AF: u64 = RFlags::AF.bits();
const OF: u64 = RFlags::OF.bits();
const CF: u64 = RFlags::CF.bits();
const ZF: u64 = RFlags::ZF.bits();
/// BT, BTS, BTR: all but CF and ZF.
const BIT_TEST: u64 = OF | RFlags::SF.bits() | AF | RFlags::PF.bits();

/// Shifts of an operand of so many bits by a constant.
fn shift(bits: u32, by: u32, is_sar: bool) -> u64 {
    let by = by & if bits == 64 { 63 } else { 31 };
    let overflow = if by > 1 { OF } else { NONE };
    let carry = if by >= bits && !is_sar { CF } else { NONE };
    if by == 0 { NONE } else { AF | overflow | carry }
}

type Emit = Box<dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>>;

/// An instruction, or a few around one, and what it leaves undefined.
struct Instruction {
    name: String,
    undefined: u64,
    emit: Emit,
}

/// A table row for each instruction: undefined flags, then the calls that assemble it.
macro_rules! instructions {
    ($list:ident: $($undefined:expr => $($method:ident($($operand:expr),*));+ $(;)?),* $(,)?) => {$(
        $list.push(Instruction {
            name: stringify!($($method($($operand),*));+).into(),
            undefined: $undefined,
            emit: Box::new(move |a| {
                $(a.$method($($operand),*)?;)+
                Ok(())
            }),
        });
    )*};
}

/// Both engines, with code and data at the same addresses.
struct Both {
    native: Machine,
    interpreter: Interpreter,
    data: u64,
}

impl Both {
    fn new() -> Self {
        let mut native = Machine::new(&Variant::REFERENCE).unwrap();
        let data = DATA.fetch_add(1 << 20, Ordering::Relaxed);
        native.map_data(data).unwrap();
        let image = Image::new(&Variant::REFERENCE).unwrap();
        let mut interpreter = Interpreter::with_image(image, native.places()).unwrap();
        interpreter.map(Mode::Umod, data, 4096, Kind::Data);
        Self { native, interpreter, data }
    }

    fn check(&mut self, instructions: &[Instruction]) {
        for (seed, instruction) in instructions.iter().enumerate() {
            self.check_one(instruction, &mut Random(seed as u64));
        }
        println!("{} instructions", instructions.len());
    }

    fn check_one(&mut self, instruction: &Instruction, random: &mut Random) {
        let name = &instruction.name;
        let start = self.native.code(Mode::Umod).start;
        let program = program(instruction, start).unwrap_or_else(|why| panic!("{name}: {why}"));
        self.native.load(Mode::Umod, 0, &program).unwrap();
        self.interpreter.load(Mode::Umod, 0, &program).unwrap();
        for _ in 0..STATES {
            let mut setup = self.native.setup(Mode::Umod);
            setup.frame = PtRegs { rip: start, ..registers(random, self.data) };
            // TF has tests of its own, and what is not aligned is not to be #AC.
            setup.frame.eflags = random.flags() & !RFlags::AC.bits();
            setup.gs_base = self.data;
            let native = self.native.run(&setup).unwrap_or_else(|why| panic!("{name}: {why}"));
            let modelled =
                self.interpreter.run(&setup).unwrap_or_else(|why| panic!("{name}: {why}"));
            let [native, modelled] = [&native, &modelled]
                .map(|outcome| format!("{:#x?}", comparable(outcome, instruction.undefined)));
            if native != modelled {
                let different = native.lines().zip(modelled.lines()).filter(|(n, m)| n != m);
                let lines: Vec<_> = different.map(|(n, m)| format!("{n} != {m}")).collect();
                let frame = setup.frame;
                panic!("{name}: native != modelled\n{}\n{frame:#x?}", lines.join("\n"));
            }
        }
    }
}

/// What can be the same.
fn comparable(outcome: &Outcome, undefined: u64) -> (PtRegs, Option<u64>, u64) {
    let mut frame = outcome.frame;
    frame.eflags &= !undefined;
    if frame.orig_ax.reason == PF {
        // Linux shows its own half of the addresses as present.
        frame.orig_ax.error_code &= !1;
    }
    (frame, outcome.cr2, outcome.gs_base)
}

/// Interesting numbers more often than others.
fn operand(random: &mut Random) -> u64 {
    const NASTY: [u64; 16] = [
        0,
        1,
        2,
        0x7F,
        0x80,
        0xFF,
        0x7FFF,
        0x8000,
        0xFFFF,
        0x7FFF_FFFF,
        0x8000_0000,
        0xFFFF_FFFF,
        1 << 32,
        u64::MAX >> 1,
        1 << 63,
        u64::MAX,
    ];
    match random.below(3) {
        0 => NASTY[random.below(16) as usize],
        1 => NASTY[random.below(16) as usize].wrapping_add(random.below(5)).wrapping_sub(2),
        _ => random.next(),
    }
}

fn registers(random: &mut Random, data: u64) -> PtRegs {
    let mut any = || operand(random);
    PtRegs {
        rax: any(),
        rcx: any(),
        rdx: any(),
        rbx: any(),
        rbp: any(),
        r8: any(),
        r9: any(),
        r10: any(),
        r11: any(),
        r12: any(),
        r13: any(),
        r14: any(),
        r15: any(),
        // A pointer, an index, a stack.
        rdi: data + 0x100,
        rsi: random.below(16) * 8,
        rsp: data + 0x800,
        ..random.registers()
    }
}

/// Memory from registers, the instruction, registers from memory.
fn program(instruction: &Instruction, at: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(qword_ptr(rdi), rbx)?;
    a.mov(qword_ptr(rdi + 8), rbp)?;
    a.mov(qword_ptr(rsp), r8)?;
    a.mov(qword_ptr(rsp - 8), r9)?;
    (instruction.emit)(&mut a)?;
    a.mov(r15, qword_ptr(rdi))?;
    a.mov(r14, qword_ptr(rdi + 8))?;
    a.mov(r13, qword_ptr(rsp))?;
    a.mov(r12, qword_ptr(rsp - 8))?;
    a.ud2()?;
    a.assemble(at)
}

#[test]
fn moves_are_as_on_this_cpu() {
    let mut list = Vec::new();
    instructions! { list:
        NONE => mov(rax, rcx), NONE => mov(eax, ecx), NONE => mov(ax, cx), NONE => mov(al, cl),
        NONE => mov(ah, cl), NONE => mov(al, ch), NONE => mov(bh, dh), NONE => mov(r10b, sil),
        NONE => mov(rax, 0x8000_0000_0000_0001_u64), NONE => mov(eax, -1), NONE => mov(cx, 7),
        NONE => mov(dl, 0x80), NONE => mov(dh, 0x80),
        NONE => mov(rax, qword_ptr(rdi)), NONE => mov(eax, dword_ptr(rdi + 1)),
        NONE => mov(ax, word_ptr(rdi + 3)), NONE => mov(al, byte_ptr(rdi + 7)),
        NONE => mov(ah, byte_ptr(rdi)), NONE => mov(qword_ptr(rdi), rax),
        NONE => mov(dword_ptr(rdi + 2), eax), NONE => mov(word_ptr(rdi), ax),
        NONE => mov(byte_ptr(rdi + 5), al), NONE => mov(byte_ptr(rdi), ch),
        NONE => mov(qword_ptr(rdi), -2), NONE => mov(dword_ptr(rdi), 0x1234_5678),
        NONE => mov(word_ptr(rdi), 0x7FFF), NONE => mov(byte_ptr(rdi), 1),
        NONE => mov(rax, qword_ptr(rdi + rsi)), NONE => mov(rax, qword_ptr(rdi + rsi * 2)),
        NONE => mov(rax, qword_ptr(rdi + rsi * 8 + 8)), NONE => mov(qword_ptr(rdi + rsi * 4), rdx),
        NONE => mov(rax, qword_ptr(0x100).gs()), NONE => mov(dword_ptr(rsi + 0x100).gs(), ecx),
        NONE => mov(rax, qword_ptr(rcx)), NONE => mov(qword_ptr(rcx), rax),
        NONE => mov(eax, dword_ptr(rbp)), NONE => mov(byte_ptr(rcx), al),
        NONE => movzx(eax, cl), NONE => movzx(rax, cx), NONE => movzx(ax, ch),
        NONE => movzx(eax, byte_ptr(rdi)), NONE => movzx(rax, word_ptr(rdi + 1)),
        NONE => movsx(eax, cl), NONE => movsx(rax, cx), NONE => movsx(ax, dh),
        NONE => movsx(rax, byte_ptr(rdi)), NONE => movsx(eax, word_ptr(rdi + 1)),
        NONE => movsxd(rax, ecx), NONE => movsxd(rax, dword_ptr(rdi + 4)),
        NONE => lea(rax, ptr(rcx + rdx * 4 + 0x12)), NONE => lea(eax, ptr(rcx + rdx * 8 - 3)),
        NONE => lea(ax, ptr(rcx + 1)), NONE => lea(rax, ptr(rcx).gs()),
        NONE => xchg(rax, rcx), NONE => xchg(eax, ecx), NONE => xchg(ax, cx), NONE => xchg(al, ah),
        NONE => xchg(ecx, ecx), NONE => xchg(qword_ptr(rdi), rax),
        NONE => xchg(dword_ptr(rdi), eax), NONE => xchg(byte_ptr(rdi + 1), dl),
    }
    Both::new().check(&list);
}

#[test]
fn arithmetic_is_as_on_this_cpu() {
    let mut list = Vec::new();
    macro_rules! binary {
        ($($undefined:ident => $method:ident),*) => {$(instructions! { list:
            $undefined => $method(rax, rcx), $undefined => $method(eax, ecx),
            $undefined => $method(ax, cx), $undefined => $method(al, cl),
            $undefined => $method(ah, cl), $undefined => $method(dl, bh),
            $undefined => $method(rdx, rdx), $undefined => $method(edx, edx),
            $undefined => $method(rax, -1), $undefined => $method(eax, 0x7FFF_FFFF),
            $undefined => $method(ecx, 1), $undefined => $method(ax, 0x1234),
            $undefined => $method(cx, -3), $undefined => $method(al, 0x80 - 0x100),
            $undefined => $method(dh, 0x0F),
            $undefined => $method(qword_ptr(rdi), rax), $undefined => $method(dword_ptr(rdi), eax),
            $undefined => $method(word_ptr(rdi + 1), ax), $undefined => $method(byte_ptr(rdi + 7), al),
            $undefined => $method(qword_ptr(rdi), -5), $undefined => $method(dword_ptr(rdi), 0x80),
            $undefined => $method(word_ptr(rdi), 0x100), $undefined => $method(byte_ptr(rdi), 3),
            $undefined => $method(qword_ptr(0x100).gs(), 3),
        })*};
    }
    macro_rules! from_memory {
        ($($undefined:ident => $method:ident),*) => {$(instructions! { list:
            $undefined => $method(rax, qword_ptr(rdi)), $undefined => $method(eax, dword_ptr(rdi)),
            $undefined => $method(cx, word_ptr(rdi)), $undefined => $method(ch, byte_ptr(rdi)),
        })*};
    }
    binary!(NONE => add, NONE => sub, NONE => cmp, AF => and, AF => or, AF => xor, AF => test);
    from_memory!(NONE => add, NONE => sub, NONE => cmp, AF => and, AF => or, AF => xor);
    macro_rules! unary {
        ($($method:ident),*) => {$(instructions! { list:
            NONE => $method(rax), NONE => $method(eax), NONE => $method(ax), NONE => $method(al),
            NONE => $method(ah), NONE => $method(qword_ptr(rdi)), NONE => $method(dword_ptr(rdi)),
            NONE => $method(word_ptr(rdi)), NONE => $method(byte_ptr(rdi)),
        })*};
    }
    unary!(not, neg, inc, dec);
    Both::new().check(&list);
}

#[test]
fn shifts_and_bit_tests_are_as_on_this_cpu() {
    let mut list = Vec::new();
    for by in [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65] {
        let before = list.len();
        macro_rules! shifts {
            ($($method:ident, $is_sar:literal);*) => {$(instructions! { list:
                shift(64, by, $is_sar) => $method(rax, by), shift(32, by, $is_sar) => $method(eax, by),
                shift(16, by, $is_sar) => $method(ax, by), shift(8, by, $is_sar) => $method(al, by),
                shift(8, by, $is_sar) => $method(dh, by),
                shift(64, by, $is_sar) => $method(qword_ptr(rdi), by),
                shift(32, by, $is_sar) => $method(dword_ptr(rdi), by),
                shift(16, by, $is_sar) => $method(word_ptr(rdi), by),
                shift(8, by, $is_sar) => $method(byte_ptr(rdi), by),
            })*};
        }
        shifts!(shl, false; shr, false; sar, true);
        macro_rules! bits {
            ($($method:ident),*) => {$(instructions! { list:
                BIT_TEST => $method(rax, by), BIT_TEST => $method(eax, by),
                BIT_TEST => $method(ax, by), BIT_TEST => $method(qword_ptr(rdi), by),
                BIT_TEST => $method(dword_ptr(rdi), by), BIT_TEST => $method(word_ptr(rdi), by),
            })*};
        }
        bits!(bt, bts, btr);
        list[before..].iter_mut().for_each(|row| row.name += &format!(", by = {by}"));
    }
    Both::new().check(&list);
}

#[test]
fn conditions_are_as_on_this_cpu() {
    let mut list = Vec::new();
    macro_rules! conditions {
        ($($set:ident, $mov:ident, $jump:ident);* $(;)?) => {$(
            instructions! { list:
                NONE => $set(al), NONE => $set(ah), NONE => $set(byte_ptr(rdi)),
                NONE => $mov(rax, rcx), NONE => $mov(eax, ecx), NONE => $mov(ax, cx),
                NONE => $mov(rax, qword_ptr(rdi)), NONE => $mov(eax, dword_ptr(rdi)),
                // Of flags that were computed, not loaded.
                NONE => cmp(rax, rcx); $set(dl), NONE => add(ecx, edx); $set(al),
                NONE => sub(cl, al); $set(dl), NONE => add(cx, ax); $mov(rdx, rbx),
                AF => and(eax, ecx); $set(dl), NONE => inc(eax); $set(dl), NONE => neg(cl); $set(dl),
            }
            list.push(Instruction {
                name: stringify!($jump).into(),
                undefined: NONE,
                emit: Box::new(|a| {
                    let mut label = a.create_label();
                    a.$jump(label)?;
                    a.mov(rdx, 0x5A5A_u64)?;
                    a.set_label(&mut label)?;
                    a.nop()
                }),
            });
        )*};
    }
    conditions! {
        seto, cmovo, jo; setno, cmovno, jno; setb, cmovb, jb; setae, cmovae, jae;
        sete, cmove, je; setne, cmovne, jne; setbe, cmovbe, jbe; seta, cmova, ja;
        sets, cmovs, js; setns, cmovns, jns; setp, cmovp, jp; setnp, cmovnp, jnp;
        setl, cmovl, jl; setge, cmovge, jge; setle, cmovle, jle; setg, cmovg, jg;
    }
    Both::new().check(&list);
}

#[test]
fn the_stack_and_its_jumps_are_as_on_this_cpu() {
    let mut list = Vec::new();
    instructions! { list:
        NONE => push(rax), NONE => push(rsp), NONE => push(-1), NONE => push(0x1234_5678),
        NONE => push(qword_ptr(rdi)), NONE => push(qword_ptr(rsp)), NONE => pop(rax),
        NONE => pop(rsp), NONE => pop(qword_ptr(rdi)), NONE => pop(qword_ptr(rsp)),
        NONE => push(qword_ptr(rcx)), NONE => pop(qword_ptr(rcx)),
        NONE => pushfq(), NONE => push(rax); pushfq(); pop(rcx),
        NONE => cld(), NONE => std(), NONE => mov(rsp, rcx); push(rax), NONE => mov(rsp, rcx); pop(rax),
        NONE => cmp(al, cl); pushfq(), NONE => add(eax, ecx); pushfq(),
        // Flags as a guest wants them, but for those that trap.
        NONE => and(r10, !0x4_0100); mov(qword_ptr(rsp), r10); popfq(),
        NONE => and(r10, !0x4_0100); or(r10, 0x4000); push(r10); popfq(); pushfq(),
    }
    let mut with_label = |name: &str, emit: fn(&mut CodeAssembler, CodeLabel) -> _| {
        list.push(Instruction {
            name: name.into(),
            undefined: NONE,
            emit: Box::new(move |a| {
                let mut label = a.create_label();
                emit(a, label)?;
                a.mov(rdx, 0x5A5A_u64)?;
                a.set_label(&mut label)?;
                a.nop()
            }),
        });
    };
    with_label("jmp label", |a, label| a.jmp(label));
    with_label("jmp rdx", |a, label| a.lea(rdx, ptr(label)).and_then(|()| a.jmp(rdx)));
    with_label("jmp [rdi]", |a, label| {
        a.lea(rdx, ptr(label))?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.jmp(qword_ptr(rdi))
    });
    with_label("call label", |a, label| a.call(label));
    with_label("call rdx", |a, label| a.lea(rdx, ptr(label)).and_then(|()| a.call(rdx)));
    with_label("call [rsp]", |a, label| {
        a.lea(rdx, ptr(label))?;
        a.mov(qword_ptr(rsp), rdx)?;
        a.call(qword_ptr(rsp))
    });
    with_label("ret", |a, label| {
        a.lea(rdx, ptr(label))?;
        a.push(rdx)?;
        a.ret()
    });
    with_label("ret 16", |a, label| {
        a.lea(rdx, ptr(label))?;
        a.push(rdx)?;
        a.ret_1(16)
    });
    Both::new().check(&list);
}

/// A frame for IRETQ, with flags from R10.
fn iretq(code: i32, stack: i32, r10_and: i32, r10_or: i32) -> Instruction {
    Instruction {
        name: format!("iretq to {code:#x}, {stack:#x}, flags & {r10_and:#x} | {r10_or:#x}"),
        undefined: NONE,
        emit: Box::new(move |a| {
            let mut label = a.create_label();
            a.and(r10, r10_and)?;
            a.or(r10, r10_or)?;
            a.lea(rdx, ptr(label))?;
            a.lea(rcx, ptr(rsp - 64))?;
            a.push(stack)?;
            a.push(rcx)?;
            a.push(r10)?;
            a.push(code)?;
            a.push(rdx)?;
            a.iretq()?;
            a.mov(rax, 0x5A5A_u64)?;
            a.set_label(&mut label)?;
            a.nop()
        }),
    }
}

#[test]
fn iretq_within_cpl_3_is_as_on_this_cpu() {
    const NO_TF_AC: i32 = !0x4_0100;
    let mut list = vec![iretq(0x33, 0x2B, NO_TF_AC, 0), iretq(0x33, 0x2B, NO_TF_AC, 0x100)];
    for (code, stack) in [
        (0x33, 0),
        (0x33, 3),
        (0x33, 0x33),
        (0x33, 0x28),
        (0x33, 0x1B),
        (0x33, 0x7FFB),
        (0, 0x2B),
        (3, 0x2B),
        (0x2B, 0x2B),
        (0x30, 0x2B),
        (0x13, 0x2B),
        (0x10, 0x18),
    ] {
        list.push(iretq(code, stack, NO_TF_AC, 0));
    }
    Both::new().check(&list);
}

#[test]
fn segments_and_their_bases_are_as_on_this_cpu() {
    let mut list = Vec::new();
    instructions! { list:
        NONE => rdgsbase(rax), NONE => wrgsbase(rdi); rdgsbase(rdx), NONE => wrgsbase(rax),
        NONE => wrgsbase(rax); rdgsbase(rdx), NONE => wrgsbase(rdi); mov(rax, qword_ptr(8).gs()),
        // This process needs its FS base for the next signal.
        NONE => rdfsbase(r10); wrfsbase(rdi); rdfsbase(rdx); mov(rax, qword_ptr(8).fs());
            wrfsbase(r10); mov(r10, 0_u64),
        NONE => mov(eax, cs), NONE => mov(rax, ss), NONE => mov(ax, ss), NONE => mov(word_ptr(rdi), cs),
        NONE => mov(ecx, 0x2B); mov(ss, ecx), NONE => mov(ecx, 0); mov(ss, ecx),
        NONE => mov(ecx, 3); mov(ss, ecx), NONE => mov(ecx, 0x33); mov(ss, ecx),
        NONE => mov(ecx, 0x28); mov(ss, ecx), NONE => mov(ecx, 0x18); mov(ss, ecx),
        NONE => mov(ecx, 0x1B); mov(ss, ecx), NONE => mov(ecx, 0xFFFB); mov(ss, ecx),
        ZF => verw(word_ptr(rdi)), ZF => mov(ecx, 0x2B); verw(cx),
    }
    Both::new().check(&list);
}

#[test]
fn what_does_nothing_or_faults_is_as_on_this_cpu() {
    let mut list = Vec::new();
    instructions! { list:
        NONE => nop(), NONE => nop_1(qword_ptr(rcx)), NONE => nop_1(eax), NONE => pause(),
        NONE => lfence(), NONE => mfence(), NONE => sfence(), NONE => endbr64(),
        NONE => ud2(), NONE => int3(), NONE => int(3), NONE => int(4), NONE => int(0), NONE => int(13),
        NONE => int(14), NONE => int(0x7F), NONE => int(0xFF),
        NONE => swapgs(), NONE => mov(cr3, rax), NONE => mov(rax, cr3), NONE => rdmsr(),
        NONE => wrmsr(), NONE => sysretq(), NONE => sysret(), NONE => clac(), NONE => stac(),
        NONE => cli(), NONE => sti(), NONE => hlt(), NONE => in_(al, dx), NONE => in_(ax, dx),
        NONE => in_(eax, dx),
    }
    Both::new().check(&list);
}
