//! The instructions that are compared: every one that the model has and that a test can execute.
//!
//! A form is a few bytes that run the same way at any address, in user mode or in ring 0: what
//! prepares memory, the instruction, what reads memory back into registers, UD2. What the manuals
//! leave undefined is named here, per form (Intel SDM vol. 2, AMD APM vol. 3).

use hw_protocol::vectors::Needs;
use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, Instruction};
use switcher_gen::arch::{Msr, RFlags};

type Emit = Box<dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>>;

/// An instruction, or a few around one.
pub struct Form {
    /// The instruction, as the table below spells it.
    pub name: String,
    /// The flags that it leaves undefined.
    pub undefined: u64,
    /// What a CPU must have for it.
    pub needs: Needs,
    emit: Emit,
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Form {
    /// Memory from registers, the instruction, registers from memory.
    ///
    /// # Errors
    /// An operand does not exist.
    pub fn assemble(&self, at: u64) -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        a.mov(qword_ptr(rdi), rbx)?;
        a.mov(qword_ptr(rdi + 8), rbp)?;
        a.mov(qword_ptr(rsp), r8)?;
        a.mov(qword_ptr(rsp - 8), r9)?;
        (self.emit)(&mut a)?;
        a.mov(r15, qword_ptr(rdi))?;
        a.mov(r14, qword_ptr(rdi + 8))?;
        a.mov(r13, qword_ptr(rsp))?;
        a.mov(r12, qword_ptr(rsp - 8))?;
        a.ud2()?;
        a.assemble(at)
    }
}

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

/// The text of a row that may be two lines long.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A table row for each instruction: undefined flags, then the calls that assemble it.
macro_rules! instructions {
    ($list:ident: $($undefined:expr => $($($method:ident($($operand:expr),*)).+);+ $(;)?),* $(,)?) => {$(
        $list.push(Form {
            name: one_line(stringify!($($($method $($operand),*).+);+)),
            undefined: $undefined,
            needs: Needs::empty(),
            emit: Box::new(move |a| {
                $(a.$($method($($operand),*)).+?;)+
                Ok(())
            }),
        });
    )*};
}

/// Moves, LEA and XCHG.
#[must_use]
pub fn moves() -> Vec<Form> {
    let mut list: Vec<Form> = Vec::new();
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
        NONE => lea(ax, ptr(rcx + 1)),
        NONE => xchg(rax, rcx), NONE => xchg(eax, ecx), NONE => xchg(ax, cx), NONE => xchg(al, ah),
        NONE => xchg(ecx, ecx), NONE => xchg(qword_ptr(rdi), rax),
        NONE => xchg(dword_ptr(rdi), eax), NONE => xchg(byte_ptr(rdi + 1), dl),
    }
    list
}

/// CMPXCHG and XADD: where it is what is expected, and where it is not.
#[must_use]
pub fn exchanges() -> Vec<Form> {
    let mut list: Vec<Form> = Vec::new();
    instructions! { list:
        NONE => xadd(rax, rcx), NONE => xadd(eax, ecx), NONE => xadd(ax, cx), NONE => xadd(al, cl),
        NONE => xadd(ah, cl), NONE => xadd(rdx, rdx), NONE => xadd(edx, edx), NONE => xadd(cl, ch),
        NONE => xadd(qword_ptr(rdi), rax), NONE => xadd(dword_ptr(rdi), eax),
        NONE => xadd(word_ptr(rdi + 1), ax), NONE => xadd(byte_ptr(rdi + 7), dh),
        NONE => xadd(qword_ptr(rdi), rdi); mov(rdi, rsp), NONE => xadd(qword_ptr(rcx), rax),
        NONE => lock().xadd(qword_ptr(rdi), rax), NONE => lock().xadd(dword_ptr(rdi), ecx),
        NONE => xadd(qword_ptr(0x100).gs(), rdx),
        NONE => cmpxchg(rcx, rdx), NONE => cmpxchg(ecx, edx), NONE => cmpxchg(cx, dx),
        NONE => cmpxchg(cl, dl), NONE => cmpxchg(ch, ah), NONE => cmpxchg(rax, rcx),
        NONE => cmpxchg(eax, ecx), NONE => cmpxchg(ecx, eax), NONE => cmpxchg(ah, cl),
        NONE => cmpxchg(al, ch),
        NONE => mov(rax, rcx); cmpxchg(rcx, rdx), NONE => mov(rax, rcx); cmpxchg(ecx, edx),
        NONE => mov(eax, ecx); cmpxchg(ecx, edx), NONE => mov(al, cl); cmpxchg(cx, dx),
        NONE => mov(al, cl); cmpxchg(cl, dl), NONE => mov(al, ch); cmpxchg(ch, al),
        NONE => cmpxchg(qword_ptr(rdi), rcx), NONE => cmpxchg(dword_ptr(rdi), ecx),
        NONE => cmpxchg(word_ptr(rdi + 3), cx), NONE => cmpxchg(byte_ptr(rdi + 1), cl),
        NONE => mov(rax, rbx); cmpxchg(qword_ptr(rdi), rcx),
        NONE => mov(rax, rbx); cmpxchg(dword_ptr(rdi), ecx),
        NONE => mov(ax, bx); cmpxchg(word_ptr(rdi), cx), NONE => mov(al, bl); cmpxchg(byte_ptr(rdi), cl),
        NONE => mov(rax, rbx); lock().cmpxchg(qword_ptr(rdi), rcx),
        NONE => lock().cmpxchg(dword_ptr(rdi), ecx), NONE => cmpxchg(qword_ptr(rcx), rax),
    }
    list
}

/// Pointers are back where the end of a form reads memory.
fn with_pointers_back(list: &mut [Form]) {
    for form in list {
        let emit = std::mem::replace(&mut form.emit, Box::new(|_| Ok(())));
        form.emit = Box::new(move |a| {
            a.mov(r10, rdi)?;
            emit(a)?;
            a.mov(rdx, rdi)?;
            a.mov(rdi, r10)
        });
    }
}

/// What is repeated up to where nothing is mapped: of ring 0, there is more after a page.
#[must_use]
pub fn strings_to_the_end() -> Vec<Form> {
    let mut list: Vec<Form> = Vec::new();
    instructions! { list:
        NONE => rep().stosb(), NONE => rep().stosq(), NONE => lea(rsi, ptr(rsp)); rep().movsq(),
    }
    with_pointers_back(&mut list);
    list
}

/// STOS, MOVS and what repeats them, LOOP and JRCXZ.
#[must_use]
pub fn strings_and_loops() -> Vec<Form> {
    let mut list: Vec<Form> = Vec::new();
    instructions! { list:
        NONE => stosb(), NONE => stosw(), NONE => stosd(), NONE => stosq(), NONE => std(); stosb(),
        NONE => std(); stosq(), NONE => mov(rdi, rcx); stosq(),
        NONE => lea(rsi, ptr(rsp)); movsb(), NONE => lea(rsi, ptr(rsp)); movsw(),
        NONE => lea(rsi, ptr(rsp)); movsd(), NONE => lea(rsi, ptr(rsp - 8)); movsq(),
        NONE => lea(rsi, ptr(rsp)); std(); movsd(), NONE => mov(rsi, rcx); movsq(),
        NONE => and(ecx, 7); rep().stosb(), NONE => and(ecx, 3); rep().stosw(),
        NONE => and(ecx, 3); rep().stosd(), NONE => and(ecx, 1); rep().stosq(),
        NONE => mov(ecx, 0); rep().stosq(), NONE => mov(ecx, 3); std(); rep().stosq(),
        NONE => lea(rsi, ptr(rsp - 8)); and(ecx, 15); rep().movsb(),
        NONE => lea(rsi, ptr(rsp - 8)); mov(ecx, 2); rep().movsq(),
        NONE => lea(rsi, ptr(rsp)); mov(ecx, 3); std(); rep().movsw(),
        // Over each other.
        NONE => lea(rsi, ptr(rdi)); inc(rdi); mov(ecx, 9); rep().movsb(),
        NONE => mov(rdi, rax); mov(ecx, 2); rep().stosd(),
    }
    with_pointers_back(&mut list);

    macro_rules! loops {
        ($($name:ident),*) => {$(
            for (number, count) in [None, Some(0), Some(1), Some(2)].into_iter().enumerate() {
                list.push(Form {
                    name: format!("{}, {number}", stringify!($name)),
                    undefined: NONE,
                    needs: Needs::empty(),
                    emit: Box::new(move |a| {
                        let mut label = a.create_label();
                        if let Some(count) = count {
                            a.mov(rcx, count as u64)?;
                        }
                        a.cmp(rax, rbx)?;
                        a.$name(label)?;
                        a.mov(rdx, 0x5A5A_u64)?;
                        a.set_label(&mut label)?;
                        a.nop()
                    }),
                });
            }
        )*};
    }
    loops!(loop_, loope, loopne, jrcxz);
    list.push(Form {
        name: "loop backwards".into(),
        undefined: NONE,
        needs: Needs::empty(),
        emit: Box::new(|a| {
            let mut label = a.create_label();
            a.and(ecx, 15)?;
            a.or(ecx, 1)?;
            a.set_label(&mut label)?;
            a.add(rax, rdx)?;
            a.loop_(label)
        }),
    });
    list
}

/// Arithmetic and logic.
#[must_use]
pub fn arithmetic() -> Vec<Form> {
    let mut list: Vec<Form> = Vec::new();
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
    // Where nothing is mapped.
    instructions! { list:
        NONE => add(qword_ptr(rcx), rax), AF => and(dword_ptr(rcx), eax), NONE => neg(byte_ptr(rcx)),
        NONE => cmp(qword_ptr(rcx), rax), OF | AF => shl(qword_ptr(rcx), 3),
        BIT_TEST => bts(qword_ptr(rcx), 3), BIT_TEST => bt(qword_ptr(rcx), 3),
        NONE => xchg(qword_ptr(rcx), rax),
    }
    list
}

/// Shifts and bit tests, by every constant that is special.
#[must_use]
pub fn shifts_and_bit_tests() -> Vec<Form> {
    let mut list: Vec<Form> = Vec::new();
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
    list
}

/// What depends on flags.
#[must_use]
pub fn conditions() -> Vec<Form> {
    let mut list: Vec<Form> = Vec::new();
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
            list.push(Form {
                name: stringify!($jump).into(),
                undefined: NONE,
 needs: Needs::empty(),
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
    list
}

/// The stack, flags on it, and jumps.
#[must_use]
pub fn stack_and_jumps() -> Vec<Form> {
    let mut list: Vec<Form> = Vec::new();
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
        list.push(Form {
            name: name.into(),
            undefined: NONE,
            needs: Needs::empty(),
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
    list
}

/// A frame for IRETQ, with flags from R10.
fn iretq(code: i32, stack: i32, r10_and: i32, r10_or: i32) -> Form {
    Form {
        name: format!("iretq to {code:#x}, {stack:#x}, flags & {r10_and:#x} | {r10_or:#x}"),
        undefined: NONE,
        needs: Needs::empty(),
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

/// IRETQ from CPL 3 to CPL 3.
#[must_use]
pub fn iretq_within_cpl_3() -> Vec<Form> {
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
    list
}

/// Segment registers and their bases.
#[must_use]
pub fn segments() -> Vec<Form> {
    let mut list: Vec<Form> = Vec::new();
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
    list
}

/// What does nothing but, at most, ask for an exception.
#[must_use]
pub fn no_effect() -> Vec<Form> {
    let mut list: Vec<Form> = Vec::new();
    instructions! { list:
        NONE => nop(), NONE => nop_1(qword_ptr(rcx)), NONE => nop_1(eax), NONE => pause(),
        NONE => lfence(), NONE => mfence(), NONE => sfence(), NONE => endbr64(),
        NONE => ud2(), NONE => int3(), NONE => int(3), NONE => int(4),
    }
    list
}

/// What is refused at CPL 3.
#[must_use]
pub fn refused_at_cpl_3() -> Vec<Form> {
    let mut list: Vec<Form> = Vec::new();
    instructions! { list:
        NONE => int(0), NONE => int(13), NONE => int(14), NONE => int(0x7F), NONE => int(0xFF),
        NONE => swapgs(), NONE => mov(cr3, rax), NONE => mov(rax, cr3), NONE => rdmsr(),
        NONE => wrmsr(), NONE => sysretq(), NONE => sysret(), NONE => clac(), NONE => stac(),
        NONE => cli(), NONE => sti(), NONE => hlt(), NONE => in_(al, dx), NONE => in_(ax, dx),
        NONE => in_(eax, dx),
    }
    list
}

/// What only ring 0 can execute, or executes otherwise there.
///
/// Not here: SYSRETQ and IRETQ, which the case list executes; SYSCALL, INT of a gate with DPL 0, IN
/// and HLT, which the model has for CPL 3 alone; MSR SPEC_CTRL, which Bochs lacks.
#[must_use]
pub fn ring_0() -> Vec<Form> {
    let mut list: Vec<Form> = Vec::new();
    instructions! { list:
        NONE => swapgs(), NONE => swapgs(); swapgs(), NONE => swapgs(); rdgsbase(rdx),
        NONE => swapgs(); mov(rax, qword_ptr(8).gs()), NONE => swapgs(); mov(qword_ptr(rsi).gs(), rax),
        NONE => wrgsbase(rdi); swapgs(); rdgsbase(rdx), NONE => swapgs(); wrgsbase(rax); swapgs(),
        NONE => rdfsbase(rax), NONE => wrfsbase(rax), NONE => wrfsbase(rcx); rdfsbase(rdx),
        NONE => wrfsbase(rdi); mov(rax, qword_ptr(8).fs()),
        NONE => mov(rax, qword_ptr(rsi).gs()), NONE => mov(rax, qword_ptr(rcx).fs()),
    }
    for number in [FS_BASE, GS_BASE, KERNEL_GS_BASE] {
        let before = list.len();
        instructions! { list:
            NONE => mov(ecx, number); rdmsr(),
            NONE => mov(ecx, number); rdmsr(); wrmsr(),
            NONE => mov(ecx, number); wrmsr(); rdgsbase(rax); rdfsbase(rdx),
            NONE => mov(ecx, number); wrmsr(); swapgs(); rdgsbase(rax),
            NONE => swapgs(); mov(ecx, number); rdmsr(),
            NONE => wrgsbase(rdi); wrfsbase(rsp); mov(ecx, number); rdmsr(),
        }
        list[before..].iter_mut().for_each(|row| row.name += &format!(", number = {number:#x}"));
    }
    for number in [STAR, LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE] {
        let before = list.len();
        instructions! { list:
            NONE => mov(ecx, number); wrmsr(); mov(eax, 0); mov(edx, 0); rdmsr(),
            // A value that is canonical more often.
            NONE => mov(ecx, number); mov(edx, -1); wrmsr(); mov(eax, 0); mov(edx, 0); rdmsr(),
        }
        list[before..].iter_mut().for_each(|row| row.name += &format!(", number = {number:#x}"));
    }
    instructions! { list:
        // Intel: the upper half is reserved.
        NONE => mov(ecx, SFMASK); mov(edx, 0); wrmsr(); mov(eax, 0); rdmsr(),
        // The root is the kernel's: what was read is written, and only the difference is left.
        NONE => mov(rcx, cr3); mov(cr3, rcx); mov(ecx, 0),
        AF => mov(rax, cr3); mov(cr3, rax); mov(rdx, cr3); xor(rax, rdx); mov(edx, 0),
        NONE => cli(), NONE => sti(), NONE => sti(); cli(), NONE => cli(); pushfq(),
        NONE => sti(); pushfq(), NONE => std(); pushfq(); cld(), NONE => cmp(rax, rcx); sti(); pushfq(),
        // Every flag but TF.
        NONE => and(r10, !0x100); push(r10); popfq(),
        NONE => and(r10, !0x100); push(r10); popfq(); pushfq(),
        NONE => and(r10, !0x100); or(r10, 0x23_7000); push(r10); popfq(); pushfq(),
        NONE => mov(ss, ecx), NONE => mov(ss, eax); mov(eax, ss),
        NONE => mov(ecx, ss); mov(ss, ecx), NONE => mov(ecx, 0); mov(ss, ecx); push(rax); mov(eax, ss),
        NONE => mov(ecx, 0); mov(ss, ecx); mov(ecx, 0x18); mov(ss, ecx),
        NONE => mov(word_ptr(rdi), 0x18); mov(ss, word_ptr(rdi)), NONE => mov(ss, word_ptr(rsp)),
        ZF => mov(ecx, 0x18); verw(cx), ZF => verw(word_ptr(rcx)), ZF => mov(eax, ss); verw(ax),
    }
    for selector in
        [1, 2, 3, 4, 8, 0x10, 0x13, 0x18, 0x19, 0x1A, 0x1B, 0x20, 0x23, 0x28, 0x30, 0x38]
    {
        let before = list.len();
        instructions! { list: NONE => mov(ecx, selector); mov(ss, ecx); mov(rdx, ss) }
        list[before..]
            .iter_mut()
            .for_each(|row| row.name += &format!(", selector = {selector:#x}"));
    }
    let plain = list.len();
    instructions! { list:
        NONE => clac(), NONE => stac(), NONE => clac(); pushfq(), NONE => stac(); pushfq(),
        NONE => cmp(rax, rcx); stac(); pushfq(); clac(),
    }
    list[plain..].iter_mut().for_each(|row| row.needs |= Needs::SMAP);
    let plain = list.len();
    instructions! { list:
        // Never with the bits of key 0, which every page here has: Bochs 2.7 lets WD refuse writes
        // to the supervisor's own pages, too, and no event could be taken any more.
        AF => and(eax, !3); mov(ecx, 0); mov(edx, 0); wrpkru(); mov(eax, 1); mov(edx, 1); rdpkru(),
        // With anything else than zero in ECX or EDX.
        AF => and(eax, !3); mov(edx, 0); wrpkru(), AF => and(eax, !3); mov(ecx, 0); wrpkru(),
        NONE => mov(ecx, 1); rdpkru(),
        AF => and(eax, !3); mov(rcx, 0x1_0000_0000_u64); mov(rdx, rcx); wrpkru(); rdpkru(),
    }
    list[plain..].iter_mut().for_each(|row| row.needs |= Needs::PKU);
    let plain = list.len();
    instructions! { list:
        AF => mov(rax, cr3); mov(rcx, rax); bts(rcx, 63); mov(cr3, rcx); mov(rdx, cr3);
            mov(ecx, 0); xor(rax, rdx); mov(edx, 0),
        AF => mov(rcx, cr3); bts(rcx, 63); mov(cr3, rcx); mov(rdx, cr3); btr(rcx, 63);
            xor(rcx, rdx); mov(edx, 0),
    }
    list[plain..].iter_mut().for_each(|row| row.needs |= Needs::PCID);
    for (selector, release) in
        [(0x10, 0), (0x10, 16), (0, 0), (3, 0), (0x13, 0), (0x18, 0), (0x18, 16), (0x7FF8, 0)]
    {
        list.push(retfq(selector, release));
    }
    list.push(Form {
        name: crate::known::FAR.into(),
        undefined: NONE,
        needs: Needs::empty(),
        emit: Box::new(|a| {
            a.mov(rdx, 1_u64 << 62)?;
            a.push(0x10)?;
            a.push(rdx)?;
            a.add_instruction(Instruction::with(Code::Retfq))
        }),
    });
    list
}

/// A far RET within ring 0 to a label, which is how a #MC or a #DB returns where NMIs may be
/// blocked. There is no way to CPL 3 among them: the model has none.
fn retfq(selector: i32, release: u32) -> Form {
    Form {
        name: format!("retfq {release} to {selector:#x}"),
        undefined: NONE,
        needs: Needs::empty(),
        emit: Box::new(move |a| {
            let mut label = a.create_label();
            a.lea(rdx, ptr(label))?;
            a.push(selector)?;
            a.push(rdx)?;
            a.add_instruction(match release {
                0 => Instruction::with(Code::Retfq),
                _ => Instruction::with1(Code::Retfq_imm16, release)?,
            })?;
            a.mov(rdx, 0x5A5A_u64)?;
            a.set_label(&mut label)?;
            a.nop()
        }),
    }
}

/// What is the same at any privilege level, but for [`exchanges`] and [`strings_and_loops`].
#[must_use]
pub fn everywhere() -> Vec<Form> {
    let lists = [
        moves(),
        arithmetic(),
        shifts_and_bit_tests(),
        conditions(),
        stack_and_jumps(),
        segments(),
        no_effect(),
    ];
    lists.into_iter().flatten().collect()
}

// The numbers by which ECX names model-specific registers.
const STAR: u32 = Msr::Star.address();
const LSTAR: u32 = Msr::Lstar.address();
const CSTAR: u32 = Msr::Cstar.address();
const SFMASK: u32 = Msr::Sfmask.address();
const FS_BASE: u32 = Msr::FsBase.address();
const GS_BASE: u32 = Msr::GsBase.address();
const KERNEL_GS_BASE: u32 = Msr::KernelGsBase.address();
