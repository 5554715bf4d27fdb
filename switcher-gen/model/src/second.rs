//! A second opinion on every instruction: what yaxpeax-x86 makes of the bytes, as an [`Op`].
//!
//! Nothing is shared with the first reading (`program.rs`) but the type: another decoder, another
//! mapping. [`Program`](super::Program) compares the two in length, operation and operands, and
//! refuses what they disagree about (hazards.md, row 49).

use yaxpeax_arch::LengthedInstruction;
use yaxpeax_x86::long_mode::{
    ConditionCode, InstDecoder, Instruction, Opcode, Operand as Raw, RegSpec, Segment as Override,
    register_class,
};

use super::flags::Condition;
use super::operation::{Fence, MemoryOperand, Op, Operand, Operation, Segment, SegmentRegister};

/// What stands at the beginning of `code`, which lies at `at`; `None` if that is no instruction, or
/// none of the model's.
pub(super) fn op(code: &[u8], at: u64) -> Option<Op> {
    let i = InstDecoder::default().decode_slice(code).ok()?;
    let length = usize::try_from(i.len().to_const()).ok()?;
    Reading { i, bytes: code.get(..length)?, next: at.wrapping_add(length as u64) }.op()
}

/// The same as text, for whoever is told of a disagreement.
pub(super) fn text(code: &[u8]) -> String {
    match InstDecoder::default().decode_slice(code) {
        Ok(i) => format!("{i} ({} bytes)", i.len().to_const()),
        Err(why) => format!("no instruction: {why}"),
    }
}

/// One instruction.
struct Reading<'a> {
    i: Instruction,
    bytes: &'a [u8],
    next: u64,
}

impl Reading<'_> {
    fn op(&self) -> Option<Op> {
        if let Some(op) = self.string() {
            return Some(op);
        }
        let count = self.i.operand_count();
        let no_operands = Op {
            kind: Operation::Nothing,
            size: 8,
            first: Operand::None,
            second: Operand::None,
            locked: self.i.prefixes.lock(),
            next: self.next,
        };
        if let Some(kind) = self.alone() {
            let size = match self.i.operand(0) {
                Raw::Register { reg } if kind == Operation::In => reg.width().into(),
                _ => no_operands.size,
            };
            return (!self.is_repeated()).then_some(Op { kind, size, ..no_operands });
        }
        if self.is_repeated() || count == 0 || count > 2 {
            return None;
        }
        let first = self.operand(0)?;
        let second = if count == 2 { self.operand(1)? } else { Operand::None };
        let size = match (first, second) {
            (Operand::Gpr { size, .. }, _) => size,
            (Operand::High { .. }, _) => 1,
            (Operand::Memory(memory), _) => memory.size,
            _ => 8,
        };
        let kind = self.with(first, second, size)?;
        Some(Op { kind, size, first, second, ..no_operands })
    }

    /// A repetition prefix that is not a part of the operation's code.
    fn is_repeated(&self) -> bool {
        let is_part = match self.i.opcode() {
            // F3 90 is PAUSE, F3 0F 1E FA ENDBR64, and F3 is a part of RDFSBASE and its like.
            Opcode::NOP => self.bytes == [0xF3, 0x90],
            Opcode::ENDBR64
            | Opcode::RDFSBASE
            | Opcode::RDGSBASE
            | Opcode::WRFSBASE
            | Opcode::WRGSBASE => true,
            _ => false,
        };
        let is_prefix = |byte: &u8| {
            matches!(byte, 0x26 | 0x2E | 0x36 | 0x3E | 0x64..=0x67 | 0xF0 | 0xF2 | 0xF3)
        };
        let mut prefixes = self.bytes.iter().take_while(|byte| is_prefix(byte));
        !is_part && prefixes.any(|byte| matches!(byte, 0xF2 | 0xF3))
    }

    /// What has no operands, or none that need a look.
    fn alone(&self) -> Option<Operation> {
        let wide = self.i.prefixes.rex().is_some_and(|rex| rex.w());
        let narrow = self.i.prefixes.operand_size();
        Some(match self.i.opcode() {
            Opcode::SWAPGS => Operation::SwapGs,
            Opcode::RDMSR => Operation::ReadMsr,
            Opcode::WRMSR => Operation::WriteMsr,
            Opcode::RDPKRU => Operation::ReadPkru,
            Opcode::WRPKRU => Operation::WritePkru,
            Opcode::SYSRET if wide => Operation::Sysretq,
            Opcode::SYSRET => Operation::Sysretl,
            Opcode::IRETQ => Operation::Iretq,
            Opcode::SYSCALL => Operation::Syscall,
            Opcode::CLAC => Operation::ClearAc,
            Opcode::STAC => Operation::SetAc,
            Opcode::CLD => Operation::ClearDirection,
            Opcode::STD => Operation::SetDirection,
            Opcode::CLI => Operation::ClearInterrupt,
            Opcode::STI => Operation::SetInterrupt,
            Opcode::PUSHF if !narrow => Operation::PushFlags,
            Opcode::POPF if !narrow => Operation::PopFlags,
            Opcode::LFENCE => Operation::Fence(Fence::Lfence),
            Opcode::MFENCE => Operation::Fence(Fence::Mfence),
            Opcode::SFENCE => Operation::Fence(Fence::Sfence),
            Opcode::NOP | Opcode::ENDBR64 => Operation::Nothing,
            Opcode::UD2 => Operation::Ud2,
            Opcode::INT => match (self.bytes.last()?, self.i.operand(0)) {
                // The operand is not one of the bytes.
                (0xCC, Raw::ImmediateU8 { imm: 3 }) => Operation::Int3,
                // INT1.
                (0xF1, Raw::ImmediateU8 { imm: 1 }) => return None,
                (_, Raw::ImmediateU8 { imm }) => Operation::Int(imm),
                _ => return None,
            },
            Opcode::SYSENTER => Operation::Sysenter,
            Opcode::IN => match self.i.operand(1) {
                Raw::Register { reg } if reg == RegSpec::dx() => Operation::In,
                _ => return None,
            },
            Opcode::HLT => Operation::Halt,
            Opcode::RETF if wide && self.i.operand_count() == 0 => Operation::ReturnFar(0),
            Opcode::RETF if wide => match self.i.operand(0) {
                Raw::ImmediateU16 { imm } => Operation::ReturnFar(imm),
                Raw::ImmediateI16 { imm } => Operation::ReturnFar(imm.cast_unsigned()),
                _ => return None,
            },
            Opcode::RETURN if self.i.operand_count() == 0 => Operation::Return(0),
            Opcode::RETURN => match self.i.operand(0) {
                Raw::ImmediateU16 { imm } => Operation::Return(imm),
                Raw::ImmediateI16 { imm } => Operation::Return(imm.cast_unsigned()),
                _ => return None,
            },
            _ => return None,
        })
    }

    /// STOS and MOVS. Where they go is said here, by the registers that have no others.
    fn string(&self) -> Option<Op> {
        let (prefixes, repeats) = (&self.i.prefixes, self.i.prefixes.rep());
        let kind = match self.i.opcode() {
            Opcode::STOS => Operation::StoreString { repeats },
            Opcode::MOVS => Operation::CopyString { repeats },
            _ => return None,
        };
        if prefixes.repnz() || prefixes.lock() || prefixes.address_size() {
            return None;
        }
        let size: usize = self.i.mem_size()?.bytes_size()?.into();
        let at = |segment, register: RegSpec| {
            let (base, index) = (Some(usize::from(register.num())), None);
            let (displacement, is_code) = (0, false);
            Operand::Memory(MemoryOperand { segment, base, index, displacement, is_code, size })
        };
        let second = match kind {
            Operation::StoreString { .. } => {
                Operand::Gpr { index: RegSpec::rax().num().into(), size }
            }
            _ => at(segment(prefixes.segment()), RegSpec::rsi()),
        };
        let first = at(Segment::Flat, RegSpec::rdi());
        Some(Op { kind, size, first, second, locked: false, next: self.next })
    }

    fn with(&self, first: Operand, second: Operand, size: usize) -> Option<Operation> {
        let is_constant = matches!(second, Operand::Immediate(_));
        let opcode = self.i.opcode();
        if let Some(condition) = opcode.condition() {
            let condition = self::condition(condition);
            let is_immediate = matches!(first, Operand::Immediate(_));
            return match second {
                Operand::None if opcode.is_jcc() && is_immediate => {
                    Some(Operation::JumpIf(condition))
                }
                Operand::None if opcode.is_setcc() && size == 1 => Some(Operation::Set(condition)),
                Operand::Gpr { .. } | Operand::Memory(_) if opcode.is_cmovcc() => {
                    Some(Operation::MovIf(condition))
                }
                _ => None,
            };
        }
        Some(match opcode {
            Opcode::MOV => return self.mov(),
            Opcode::MOVZX => Operation::MovZeroExtended,
            Opcode::MOVSX | Opcode::MOVSXD => Operation::MovSignExtended,
            Opcode::LEA => Operation::Lea,
            Opcode::XCHG => Operation::Xchg,
            Opcode::XADD => Operation::ExchangeAdd,
            Opcode::CMPXCHG => Operation::CompareExchange,
            Opcode::LOOP if self.is_counted_wide() => Operation::Loop(None),
            Opcode::LOOPZ if self.is_counted_wide() => Operation::Loop(Some(Condition::E)),
            Opcode::LOOPNZ if self.is_counted_wide() => Operation::Loop(Some(Condition::Ne)),
            Opcode::JRCXZ if self.is_counted_wide() => Operation::JumpIfZero,
            Opcode::ADD => Operation::Add,
            Opcode::SUB => Operation::Sub,
            Opcode::CMP => Operation::Cmp,
            Opcode::AND => Operation::And,
            Opcode::OR => Operation::Or,
            Opcode::XOR => Operation::Xor,
            Opcode::TEST => Operation::Test,
            Opcode::NOT => Operation::Not,
            Opcode::NEG => Operation::Neg,
            Opcode::INC => Operation::Inc,
            Opcode::DEC => Operation::Dec,
            Opcode::SHL | Opcode::SAL if is_constant => Operation::Shl,
            Opcode::SHR if is_constant => Operation::Shr,
            Opcode::SAR if is_constant => Operation::Sar,
            Opcode::BT if is_constant => Operation::Bt,
            Opcode::BTS if is_constant => Operation::Bts,
            Opcode::BTR if is_constant => Operation::Btr,
            // FS and GS can be pushed, too.
            Opcode::PUSH | Opcode::POP if first == Operand::None => return None,
            Opcode::PUSH if size == 8 && !self.i.prefixes.operand_size() => Operation::Push,
            Opcode::POP if size == 8 => Operation::Pop,
            Opcode::JMP if size == 8 => Operation::Jump,
            Opcode::CALL if size == 8 => Operation::Call,
            Opcode::RDGSBASE if size == 8 => Operation::ReadGsBase,
            Opcode::WRGSBASE if size == 8 => Operation::WriteGsBase,
            Opcode::RDFSBASE if size == 8 => Operation::ReadFsBase,
            Opcode::WRFSBASE if size == 8 => Operation::WriteFsBase,
            Opcode::VERW => Operation::Verw,
            _ => return None,
        })
    }

    /// MOV, of general or of other registers.
    fn mov(&self) -> Option<Operation> {
        let register = |n| match self.i.operand(n) {
            Raw::Register { reg } => Some((reg.class(), reg.num())),
            _ => None,
        };
        let special = |register: Option<_>| {
            register.filter(|(class, _)| {
                [register_class::CR, register_class::DR, register_class::S].contains(class)
            })
        };
        Some(match (special(register(0)), special(register(1))) {
            (None, None) => Operation::Mov,
            (Some((register_class::CR, 3)), None) => Operation::WriteCr3,
            (None, Some((register_class::CR, 3))) => Operation::ReadCr3,
            (None, Some((register_class::CR, 4))) => Operation::ReadCr4,
            (Some((register_class::S, SS)), None) => Operation::WriteSs,
            (None, Some((register_class::S, SS))) => Operation::ReadSegment(SegmentRegister::Ss),
            (None, Some((register_class::S, CS))) => Operation::ReadSegment(SegmentRegister::Cs),
            _ => return None,
        })
    }

    /// Whether it is RCX that LOOP and its like count by.
    fn is_counted_wide(&self) -> bool {
        !self.i.prefixes.address_size()
    }

    fn operand(&self, n: u8) -> Option<Operand> {
        let is_counted = matches!(
            self.i.opcode(),
            Opcode::LOOP | Opcode::LOOPZ | Opcode::LOOPNZ | Opcode::JRCXZ
        );
        let is_branch = matches!(self.i.opcode(), Opcode::JMP | Opcode::CALL)
            || self.i.opcode().is_jcc()
            || is_counted;
        let immediate = |value: i64| {
            let value = value.cast_unsigned();
            Some(Operand::Immediate(if is_branch { self.next.wrapping_add(value) } else { value }))
        };
        match self.i.operand(n) {
            Raw::ImmediateI8 { imm } => immediate(imm.into()),
            Raw::ImmediateU8 { imm } => immediate(imm.into()),
            Raw::ImmediateI16 { imm } => immediate(imm.into()),
            Raw::ImmediateU16 { imm } => immediate(imm.into()),
            Raw::ImmediateI32 { imm } => immediate(imm.into()),
            Raw::ImmediateU32 { imm } => immediate(imm.into()),
            Raw::ImmediateI64 { imm } => immediate(imm),
            Raw::ImmediateU64 { imm } => immediate(imm.cast_signed()),
            Raw::Register { reg } => register(reg).map(|register| match register {
                Operand::Gpr { index, .. } if self.is_bit_test() || self.is_selector_read() => {
                    Operand::Gpr { index, size: self.size_by_prefixes() }
                }
                other => other,
            }),
            memory => self.memory(&memory).map(Operand::Memory),
        }
    }

    /// Whether it is BT, BTS or BTR by a constant. yaxpeax-x86 2.2.0 has the operand of each as 64
    /// bits wide, so that this one thing has to be said here.
    fn is_bit_test(&self) -> bool {
        let is_one = matches!(self.i.opcode(), Opcode::BT | Opcode::BTS | Opcode::BTR);
        is_one && !matches!(self.i.operand(1), Raw::Register { .. })
    }

    /// Whether it is MOV from a segment register to a general one, whose size it does not tell
    /// either.
    fn is_selector_read(&self) -> bool {
        let is_segment = |register: RegSpec| register.class() == register_class::S;
        let from = self.i.operand(1);
        self.i.opcode() == Opcode::MOV && matches!(from, Raw::Register { reg } if is_segment(reg))
    }

    /// The operand size in bytes of what has one of 32 bits by default.
    fn size_by_prefixes(&self) -> usize {
        match (self.i.prefixes.rex(), self.i.prefixes.operand_size()) {
            (Some(rex), _) if rex.w() => 8,
            (_, true) => 2,
            (_, false) => 4,
        }
    }

    fn memory(&self, operand: &Raw) -> Option<MemoryOperand> {
        // (base, index and scale, displacement)
        let (base, index, displacement) = match *operand {
            Raw::AbsoluteU64 { addr } => (None, None, addr),
            Raw::AbsoluteU32 { addr } => (None, None, extended(addr.cast_signed())),
            Raw::MemDeref { base } => (Some(base), None, 0),
            Raw::Disp { base, disp } => (Some(base), None, extended(disp)),
            Raw::MemIndexScale { index, scale } => (None, Some((index, scale)), 0),
            Raw::MemIndexScaleDisp { index, scale, disp } => {
                (None, Some((index, scale)), extended(disp))
            }
            Raw::MemBaseIndexScale { base, index, scale } => (Some(base), Some((index, scale)), 0),
            Raw::MemBaseIndexScaleDisp { base, index, scale, disp } => {
                (Some(base), Some((index, scale)), extended(disp))
            }
            _ => return None,
        };
        if self.i.prefixes.address_size() {
            return None;
        }
        let is_code = base == Some(RegSpec::RIP);
        let (base, displacement) = match base {
            Some(base) if base == RegSpec::RIP => (None, self.next.wrapping_add(displacement)),
            Some(base) => (Some(address(base)?), displacement),
            None => (None, displacement),
        };
        let index = match index {
            Some((index, scale)) => Some((address(index)?, u32::from(scale).trailing_zeros())),
            None => None,
        };
        // In 64-bit mode, the other segments begin at 0.
        let segment = match self.i.prefixes.segment() {
            _ if self.i.opcode() == Opcode::LEA => Segment::Flat,
            other => segment(other),
        };
        let size = match self.i.opcode() {
            // Accesses nothing.
            Opcode::LEA => 8,
            _ if self.is_bit_test() => self.size_by_prefixes(),
            _ => self.i.mem_size()?.bytes_size()?.into(),
        };
        matches!(size, 1 | 2 | 4 | 8).then_some(MemoryOperand {
            segment,
            base,
            index,
            displacement,
            is_code,
            size,
        })
    }
}

const fn segment(prefix: Override) -> Segment {
    match prefix {
        Override::FS => Segment::Fs,
        Override::GS => Segment::Gs,
        _ => Segment::Flat,
    }
}

const CS: u8 = 1;
const SS: u8 = 2;

fn extended(displacement: i32) -> u64 {
    i64::from(displacement).cast_unsigned()
}

/// A register of an address.
fn address(register: RegSpec) -> Option<usize> {
    (register.class() == register_class::Q).then(|| register.num().into())
}

fn register(register: RegSpec) -> Option<Operand> {
    let index = usize::from(register.num());
    let gpr = |size| Some(Operand::Gpr { index, size });
    match register.class() {
        register_class::Q => gpr(8),
        register_class::D => gpr(4),
        register_class::W => gpr(2),
        // Without REX, 4 to 7 are AH, CH, DH and BH.
        register_class::B if index >= 4 => Some(Operand::High { index: index - 4 }),
        register_class::B | register_class::RB => gpr(1),
        // The kind says which.
        register_class::CR | register_class::S => Some(Operand::None),
        _ => None,
    }
}

const fn condition(code: ConditionCode) -> Condition {
    match code {
        ConditionCode::O => Condition::O,
        ConditionCode::NO => Condition::No,
        ConditionCode::B => Condition::B,
        ConditionCode::AE => Condition::Ae,
        ConditionCode::Z => Condition::E,
        ConditionCode::NZ => Condition::Ne,
        ConditionCode::A => Condition::A,
        ConditionCode::BE => Condition::Be,
        ConditionCode::S => Condition::S,
        ConditionCode::NS => Condition::Ns,
        ConditionCode::P => Condition::P,
        ConditionCode::NP => Condition::Np,
        ConditionCode::L => Condition::L,
        ConditionCode::GE => Condition::Ge,
        ConditionCode::G => Condition::G,
        ConditionCode::LE => Condition::Le,
    }
}
