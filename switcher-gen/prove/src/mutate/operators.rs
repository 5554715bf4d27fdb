//! Other instructions that one instruction may be changed into.

use std::collections::HashMap;
use std::sync::LazyLock;

use iced_x86::{Code, FlowControl, Instruction, MemoryOperand, Mnemonic, OpKind, Register};

use crate::mutate::{Inserted, nops};
use switcher_gen::arch::Selectors;

/// Whether it is an instruction where a mitigation, or what one protects, is easily taken back.
pub(crate) fn is_sensitive(instruction: &Instruction) -> bool {
    use Mnemonic::{Call, Iretq, Lfence, Ret, Sysretq, Verw, Wrmsr};
    [Call, Iretq, Lfence, Ret, Sysretq, Verw, Wrmsr].contains(&instruction.mnemonic())
}

/// Instructions that may be taken for this one, and do not have its effect on predictors and
/// buffers. NOPs after them make them as long.
pub(crate) fn lookalikes(original: &Instruction) -> Vec<(&'static str, Instruction)> {
    let others: &[(&str, &[u8])] = match original.code() {
        Code::Lfence => &[
            ("mfence", &[0x0F, 0xAE, 0xF0]),
            ("sfence", &[0x0F, 0xAE, 0xF8]),
            ("pause", &[0xF3, 0x90]),
        ],
        Code::Verw_rm16 | Code::Verw_r32m16 | Code::Verw_r64m16 => {
            &[("verw ax", &[0x0F, 0x00, 0xE8])]
        }
        _ => &[],
    };
    let made = others.iter().filter_map(|(text, bytes)| {
        let behind = nops(original.len().checked_sub(bytes.len())?).concat();
        Some((*text, Instruction::with_declare_byte(&[*bytes, &behind].concat()).ok()?))
    });
    made.collect()
}

/// The instructions of `what`, before the one at `next`; `None` if they cannot be made.
pub(crate) fn sequence(
    what: Inserted,
    next: u64,
    selectors: Selectors,
) -> Option<Vec<Instruction>> {
    match what {
        Inserted::Iretq => {
            let at = |base, displacement| MemoryOperand::with_base_displ(base, displacement);
            let push = |selector: u16| Instruction::with1(Code::Pushq_imm8, i32::from(selector));
            let rax = |code| Instruction::with1(code, Register::RAX);
            let lea = |from| Instruction::with2(Code::Lea_r64_m, Register::RAX, from);
            let saved = at(Register::RSP, 40);
            let all = [
                rax(Code::Push_r64),
                lea(at(Register::RSP, 8)),
                push(selectors.kernel_ds()),
                rax(Code::Push_r64),
                Ok(Instruction::with(Code::Pushfq)),
                push(selectors.kernel_cs()),
                lea(at(Register::RIP, next.cast_signed())),
                rax(Code::Push_r64),
                Instruction::with2(Code::Mov_r64_rm64, Register::RAX, saved),
                Ok(Instruction::with(Code::Iretq)),
            ];
            all.into_iter().collect::<Result<_, _>>().ok()
        }
    }
}

/// The same store of RSP, which says where the host's stack lies.
pub(crate) fn of_the_host(original: &Instruction) -> Option<Instruction> {
    let register = match original.code() {
        Code::Mov_rm8_r8 => Register::SPL,
        Code::Mov_rm16_r16 => Register::SP,
        Code::Mov_rm32_r32 => Register::ESP,
        Code::Mov_rm64_r64 => Register::RSP,
        _ => return None,
    };
    let is_store = original.op0_kind() == OpKind::Memory && original.op1_register() != register;
    is_store.then(|| {
        let mut changed = *original;
        changed.set_op1_register(register);
        changed
    })
}

pub(crate) fn is_jump(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
    )
}

/// The instruction with a prefix, for each group of which it has none.
pub(crate) fn prefixes(original: &Instruction) -> Vec<(&'static str, Instruction)> {
    let mut found = Vec::new();
    let mut add = |name, set: &dyn Fn(&mut Instruction)| {
        let mut changed = *original;
        set(&mut changed);
        found.push((name, changed));
    };
    if original.segment_prefix() == Register::None {
        add("cs", &|changed| changed.set_segment_prefix(Register::CS));
        add("ds", &|changed| changed.set_segment_prefix(Register::DS));
    }
    add("lock", &|changed| changed.set_has_lock_prefix(true));
    add("repne", &|changed| changed.set_has_repne_prefix(true));
    add("rep", &|changed| changed.set_has_rep_prefix(true));
    found
}

/// Other constants: a little off, and each bit flipped.
pub(crate) fn immediates(original: &Instruction) -> Vec<Instruction> {
    let Some(operand) = (0..original.op_count()).find(|op| immediate_bits(original, *op) > 0)
    else {
        return Vec::new();
    };
    let bits = immediate_bits(original, operand);
    let old = original.immediate(operand).cast_signed();
    let mut others: Vec<_> = [-8, -1, 1, 8].map(|by| old.wrapping_add(by)).into();
    others.extend((0..bits).map(|bit| old ^ (1 << bit)));
    // Constants as they are once encoded: sign-extended from their width.
    let unused = 64 - bits;
    others.iter_mut().for_each(|other| *other = *other << unused >> unused);
    others.sort_unstable();
    others.dedup();
    others.retain(|other| *other != old << unused >> unused);
    let change = |other: i64| {
        let mut changed = *original;
        match original.op_kind(operand) {
            OpKind::Immediate8 => changed.set_immediate8(other as u8),
            OpKind::Immediate16 => changed.set_immediate16(other as u16),
            OpKind::Immediate32 => changed.set_immediate32(other as u32),
            OpKind::Immediate8to16 => changed.set_immediate8to16(other as i16),
            OpKind::Immediate8to32 => changed.set_immediate8to32(other as i32),
            OpKind::Immediate8to64 => changed.set_immediate8to64(other),
            OpKind::Immediate32to64 => changed.set_immediate32to64(other),
            _ => changed.set_immediate64(other.cast_unsigned()),
        }
        changed
    };
    others.into_iter().map(change).collect()
}

/// How wide an operand is encoded, if it is an immediate.
fn immediate_bits(instruction: &Instruction, operand: u32) -> u32 {
    match instruction.op_kind(operand) {
        OpKind::Immediate8
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64 => 8,
        OpKind::Immediate16 => 16,
        OpKind::Immediate32 | OpKind::Immediate32to64 => 32,
        OpKind::Immediate64 => 64,
        _ => 0,
    }
}

/// Other registers, of the same size: each of the fifteen in each place.
pub(crate) fn registers(original: &Instruction) -> Vec<Instruction> {
    let mut found = Vec::new();
    let mut others = |old: Register, set: &dyn Fn(&mut Instruction, Register)| {
        if !old.is_gpr() || old.size() == 1 {
            return;
        }
        let first = old as usize - old.number();
        for number in (0..16).filter(|number| *number != old.number()) {
            let Ok(register) = Register::try_from(first + number) else { continue };
            let mut changed = *original;
            set(&mut changed, register);
            found.push(changed);
        }
    };
    for operand in 0..original.op_count() {
        if original.op_kind(operand) == OpKind::Register {
            others(original.op_register(operand), &|i, r| i.set_op_register(operand, r));
        }
    }
    if memory_operand(original).is_some() {
        others(original.memory_base(), &|i, r| i.set_memory_base(r));
    }
    found
}

/// The same operation on operands of other sizes.
pub(crate) fn sizes(original: &Instruction) -> Vec<Instruction> {
    static CODES: LazyLock<HashMap<String, Code>> =
        LazyLock::new(|| Code::values().map(|code| (format!("{code:?}"), code)).collect());
    let name = format!("{:?}", original.code());
    let forms: &[(&str, &[&str])] = &[
        ("rm64_r64", &["rm32_r32", "rm16_r16", "rm8_r8"]),
        ("r64_rm64", &["r32_rm32", "r16_rm16", "r8_rm8"]),
        ("rm32_r32", &["rm64_r64", "rm16_r16", "rm8_r8"]),
        ("r32_rm32", &["r64_rm64", "r16_rm16", "r8_rm8"]),
        ("rm64_imm32", &["rm32_imm32", "rm16_imm16", "rm8_imm8"]),
        ("rm32_imm32", &["rm64_imm32", "rm16_imm16", "rm8_imm8"]),
        ("r32_imm32", &["r64_imm64", "r16_imm16", "r8_imm8"]),
        ("rm64_imm8", &["rm32_imm8", "rm16_imm8", "rm8_imm8"]),
        ("rm32_imm8", &["rm64_imm8", "rm16_imm8", "rm8_imm8"]),
        ("rm8_imm8", &["rm64_imm8", "rm32_imm8", "rm16_imm8"]),
        ("gsbase_r64", &["gsbase_r32"]),
    ];
    let Some((form, others)) =
        forms.iter().find_map(|(form, others)| name.ends_with(form).then_some((form, others)))
    else {
        return Vec::new();
    };
    let stem = &name[..name.len() - form.len()];
    let code = |other: &&str| CODES.get(&format!("{stem}{other}")).copied();
    others.iter().filter_map(code).filter_map(|code| resized(original, code)).collect()
}

/// An operand, whatever its size.
enum Operand {
    Register(usize),
    Memory(MemoryOperand),
    Immediate(i64),
}

/// `original` as another form of its operation.
fn resized(original: &Instruction, code: Code) -> Option<Instruction> {
    let sizes = code.op_code();
    let register = |number: usize, operand: u32| {
        use iced_x86::OpCodeOperandKind as Kind;
        let first = match sizes.op_kind(operand) {
            Kind::r64_or_mem | Kind::r64_reg | Kind::r64_opcode => Register::RAX,
            Kind::r32_or_mem | Kind::r32_reg | Kind::r32_opcode => Register::EAX,
            Kind::r16_or_mem | Kind::r16_reg | Kind::r16_opcode => Register::AX,
            // SPL and its like follow BH in the enumeration: only the first four are simple.
            Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode if number < 4 => Register::AL,
            Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => {
                return Register::try_from(Register::SPL as usize + number - 4).ok();
            }
            _ => return None,
        };
        Register::try_from(first as usize + number).ok()
    };
    let part = |operand: u32| match original.op_kind(operand) {
        OpKind::Register => {
            Some(Operand::Register(original.op_register(operand).full_register().number()))
        }
        OpKind::Memory => memory_operand(original).map(Operand::Memory),
        _ if immediate_bits(original, operand) > 0 => {
            Some(Operand::Immediate(original.immediate(operand).cast_signed()))
        }
        _ => None,
    };
    let made = match (part(0)?, (original.op_count() > 1).then(|| part(1)).flatten()) {
        (Operand::Register(a), None) => Instruction::with1(code, register(a, 0)?),
        (Operand::Register(a), Some(Operand::Register(b))) => {
            Instruction::with2(code, register(a, 0)?, register(b, 1)?)
        }
        (Operand::Register(a), Some(Operand::Memory(b))) => {
            Instruction::with2(code, register(a, 0)?, b)
        }
        (Operand::Memory(a), Some(Operand::Register(b))) => {
            Instruction::with2(code, a, register(b, 1)?)
        }
        (Operand::Register(a), Some(Operand::Immediate(b))) => {
            Instruction::with2(code, register(a, 0)?, b)
        }
        (Operand::Memory(a), Some(Operand::Immediate(b))) => Instruction::with2(code, a, b as i32),
        _ => return None,
    };
    made.ok()
}

pub(crate) fn memory_operand(i: &Instruction) -> Option<MemoryOperand> {
    let has_memory = (0..i.op_count()).any(|operand| i.op_kind(operand) == OpKind::Memory);
    if !has_memory {
        return None;
    }
    Some(MemoryOperand::new(
        i.memory_base(),
        i.memory_index(),
        i.memory_index_scale(),
        i.memory_displacement64().cast_signed(),
        i.memory_displ_size(),
        false,
        i.segment_prefix(),
    ))
}
