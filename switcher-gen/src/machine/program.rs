//! Bytes as operations: decoded by iced-x86, reduced to what [`step`](super::step) has a semantics
//! for. Whatever it has none for is an error that names the instruction, never a guess.

use std::cell::OnceCell;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::flags::Condition;
use super::state::{Fault, Gpr};

/// Code at an address.
#[derive(Clone, Debug)]
pub struct Program {
    base: u64,
    bytes: Vec<u8>,
    /// Decoded when first executed, by offset.
    ops: Vec<OnceCell<Result<Op, ProgramError>>>,
}

/// Why there is no operation at an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// No instruction, or one that reaches beyond the end.
    #[error("{at:#x}: {bytes} is no instruction")]
    Invalid {
        /// Where.
        at: u64,
        /// What stands there.
        bytes: String,
    },
    /// An instruction for which there is no semantics.
    #[error(
        "{at:#x}: `{text}` is not modelled: the model has what switchers use, see machine/program.rs"
    )]
    NotModelled {
        /// Where.
        at: u64,
        /// The instruction.
        text: String,
    },
}

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// What it does.
    pub(crate) kind: Kind,
    /// Operand size in bytes.
    pub(super) size: usize,
    /// Destination or first operand.
    pub(super) first: Operand,
    /// Source or second operand.
    pub(super) second: Operand,
    /// The address of the next instruction.
    pub next: u64,
}

/// What an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    None,
    /// A general register, or its low `size` bytes.
    Gpr {
        index: usize,
        size: usize,
    },
    /// AH, CH, DH or BH: bits 8 to 15 of a register.
    High {
        index: usize,
    },
    Memory(MemoryOperand),
    /// Sign-extended to 64 bits.
    Immediate(u64),
}

/// An address and how wide the access is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryOperand {
    pub(super) segment: Segment,
    pub(super) base: Option<usize>,
    /// And the power of two it is multiplied by.
    pub(super) index: Option<(usize, u32)>,
    /// The address itself where it is relative to RIP.
    pub(super) displacement: u64,
    pub(super) size: usize,
}

/// Segments with a base in 64-bit mode, and the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Flat,
    Fs,
    Gs,
}

/// Operations. Operands are in the order of Intel's manuals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Mov,
    MovZeroExtended,
    MovSignExtended,
    Lea,
    Xchg,
    Add,
    Sub,
    Cmp,
    And,
    Or,
    Xor,
    Test,
    Not,
    Neg,
    Inc,
    Dec,
    Shl,
    Shr,
    Sar,
    Bt,
    Bts,
    Btr,
    Set(Condition),
    MovIf(Condition),
    Push,
    Pop,
    PushFlags,
    PopFlags,
    Jump,
    JumpIf(Condition),
    Call,
    /// And the bytes to release.
    Return(u16),
    /// To another code segment, or the same: likewise.
    ReturnFar(u16),
    SwapGs,
    ReadGsBase,
    WriteGsBase,
    ReadFsBase,
    WriteFsBase,
    ReadCr3,
    ReadCr4,
    WriteCr3,
    ReadMsr,
    WriteMsr,
    ReadPkru,
    WritePkru,
    WriteSs,
    ReadSegment(SegmentRegister),
    Sysretq,
    /// SYSRET to 32-bit code.
    Sysretl,
    Iretq,
    Syscall,
    ClearAc,
    SetAc,
    ClearDirection,
    SetDirection,
    ClearInterrupt,
    SetInterrupt,
    /// VERW, LFENCE, NOP, ENDBR64, ...: no effect on what is modelled.
    Nothing {
        is_fence: bool,
    },
    /// VERW of memory: the selector is read.
    Verw,
    Ud2,
    Int3,
    /// INT of this vector.
    Int(u8),
    Sysenter,
    /// IN, of any size.
    In,
    Halt,
}

/// Segment registers that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentRegister {
    Cs,
    Ss,
}

impl Program {
    /// `bytes` at `base`.
    #[must_use]
    pub fn new(base: u64, bytes: Vec<u8>) -> Self {
        let ops = vec![OnceCell::new(); bytes.len()];
        Self { base, bytes, ops }
    }

    /// Where the first byte lies.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether an address lies within.
    #[must_use]
    pub fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(self.base) < self.bytes.len() as u64
    }

    /// Changes bytes, as whoever breaks code on purpose does.
    ///
    /// # Panics
    /// If they are not all within.
    pub fn patch(&mut self, address: u64, bytes: &[u8]) {
        let offset = address.wrapping_sub(self.base) as usize;
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        // An instruction is at most 15 bytes long: those before may have changed too.
        let stale = offset.saturating_sub(15)..offset + bytes.len();
        self.ops[stale].iter_mut().for_each(|op| *op = OnceCell::new());
    }

    /// The operation at `address`; `None` if that is elsewhere.
    ///
    /// # Errors
    /// If it is none, or not modelled.
    #[inline]
    pub fn at(&self, address: u64) -> Option<Result<&Op, &ProgramError>> {
        let offset = address.wrapping_sub(self.base);
        let op = self.ops.get(usize::try_from(offset).ok()?)?;
        Some(op.get_or_init(|| self.decode(address)).as_ref())
    }

    /// The instruction at `address` as text.
    #[must_use]
    pub fn text(&self, address: u64) -> Option<String> {
        self.contains(address).then(|| self.instruction(address).to_string())
    }

    /// The instruction at `address`, which is within.
    #[must_use]
    pub fn instruction(&self, address: u64) -> Instruction {
        let code = &self.bytes[address.wrapping_sub(self.base) as usize..];
        Decoder::with_ip(64, code, address, DecoderOptions::NONE).decode()
    }

    /// A branch with an operand-size prefix: AMD's CPUs cut RIP to 16 bits, Intel's do not.
    fn is_short_branch(&self, i: &Instruction) -> bool {
        use iced_x86::FlowControl;
        let is_prefix =
            |byte: &u8| matches!(byte, 0x26 | 0x2E | 0x36 | 0x3E | 0x64..=0x67 | 0xF2 | 0xF3);
        let code = &self.bytes[i.ip().wrapping_sub(self.base) as usize..];
        let mut prefixes = code.iter().take(i.len()).take_while(|byte| is_prefix(byte));
        let is_branch = matches!(
            i.flow_control(),
            FlowControl::UnconditionalBranch
                | FlowControl::IndirectBranch
                | FlowControl::ConditionalBranch
                | FlowControl::Return
                | FlowControl::Call
                | FlowControl::IndirectCall
        );
        is_branch && prefixes.any(|byte| *byte == 0x66)
    }

    fn decode(&self, at: u64) -> Result<Op, ProgramError> {
        let instruction = self.instruction(at);
        if instruction.is_invalid() {
            let offset = at.wrapping_sub(self.base) as usize;
            let bytes = self.bytes[offset..].iter().take(8).map(|byte| format!("{byte:02x} "));
            let bytes = bytes.collect::<String>().trim_end().to_owned();
            return Err(ProgramError::Invalid { at, bytes });
        }
        let op = if self.is_short_branch(&instruction) { None } else { Op::new(&instruction) };
        op.ok_or_else(|| ProgramError::NotModelled { at, text: instruction.to_string() })
    }
}

impl Op {
    /// Whether it is IRETQ.
    #[must_use]
    pub fn is_iretq(&self) -> bool {
        self.kind == Kind::Iretq
    }

    /// Whether ring 0 goes on by it where an event has interrupted it.
    pub(crate) fn is_return_of_event(&self) -> bool {
        matches!(self.kind, Kind::Iretq | Kind::ReturnFar(_))
    }

    /// Whether an exception of it comes after it: what INT and INT3 ask for.
    #[must_use]
    pub fn is_trap<W>(&self, fault: &Fault<W>) -> bool {
        matches!(self.kind, Kind::Int3 | Kind::Int(_)) && fault.error_code.is_none()
    }

    /// Whether a bad address in it is #SS and not #GP: RSP and RBP imply the stack segment.
    #[must_use]
    pub fn is_on_stack(&self) -> bool {
        let operands = [self.first, self.second];
        if operands.iter().any(|operand| matches!(operand, Operand::Memory(_))) {
            return operands.iter().any(|operand| match operand {
                Operand::Memory(memory) => {
                    let stack = [Gpr::Rsp, Gpr::Rbp].map(|register| Some(register as usize));
                    memory.segment == Segment::Flat && stack.contains(&memory.base)
                }
                _ => false,
            });
        }
        matches!(
            self.kind,
            Kind::Push
                | Kind::Pop
                | Kind::PushFlags
                | Kind::PopFlags
                | Kind::Call
                | Kind::Return(_)
                | Kind::ReturnFar(_)
                | Kind::Iretq
        )
    }

    fn new(i: &Instruction) -> Option<Self> {
        // LOCK and REP change what is modelled here; on what is modelled they are errors.
        if i.has_lock_prefix() || i.has_rep_prefix() || i.has_repne_prefix() {
            return None;
        }
        let mut op = Self {
            kind: Kind::Nothing { is_fence: false },
            size: 8,
            first: Operand::None,
            second: Operand::None,
            next: i.next_ip(),
        };
        if let Some(kind) = kind_without_operands(i) {
            return Some(Self { kind, ..op });
        }
        if i.op_count() > 2 {
            return None;
        }
        if i.op_count() > 0 {
            op.first = operand(i, 0)?;
        }
        if i.op_count() > 1 {
            op.second = operand(i, 1)?;
        }
        op.size = match (op.first, op.second) {
            (Operand::Gpr { size, .. }, _) => size,
            (Operand::High { .. }, _) => 1,
            (Operand::Memory(memory), _) => memory.size,
            _ => 8,
        };
        op.kind = kind_with_operands(i, &op)?;
        Some(op)
    }
}

/// What takes no operands, or operands that need no look.
fn kind_without_operands(i: &Instruction) -> Option<Kind> {
    Some(match i.code() {
        Code::Swapgs => Kind::SwapGs,
        Code::Rdmsr => Kind::ReadMsr,
        Code::Wrmsr => Kind::WriteMsr,
        Code::Rdpkru => Kind::ReadPkru,
        Code::Wrpkru => Kind::WritePkru,
        Code::Sysretq => Kind::Sysretq,
        Code::Sysretd => Kind::Sysretl,
        Code::Iretq => Kind::Iretq,
        Code::Syscall => Kind::Syscall,
        Code::Clac => Kind::ClearAc,
        Code::Stac => Kind::SetAc,
        Code::Cld => Kind::ClearDirection,
        Code::Std => Kind::SetDirection,
        Code::Cli => Kind::ClearInterrupt,
        Code::Sti => Kind::SetInterrupt,
        Code::Pushfq => Kind::PushFlags,
        Code::Popfq => Kind::PopFlags,
        Code::Lfence | Code::Mfence | Code::Sfence => Kind::Nothing { is_fence: true },
        Code::Endbr64 | Code::Pause => Kind::Nothing { is_fence: false },
        Code::Ud2 => Kind::Ud2,
        Code::Int3 => Kind::Int3,
        Code::Int_imm8 => Kind::Int(i.immediate8()),
        Code::Sysenter => Kind::Sysenter,
        Code::In_AL_DX | Code::In_EAX_DX | Code::In_AX_DX => Kind::In,
        Code::Hlt => Kind::Halt,
        Code::Retnq => Kind::Return(0),
        Code::Retnq_imm16 => Kind::Return(i.immediate16()),
        Code::Retfq => Kind::ReturnFar(0),
        Code::Retfq_imm16 => Kind::ReturnFar(i.immediate16()),
        // Of every form: the operand is not accessed.
        _ if i.mnemonic() == Mnemonic::Nop => Kind::Nothing { is_fence: false },
        _ => return None,
    })
}

fn kind_with_operands(i: &Instruction, op: &Op) -> Option<Kind> {
    use iced_x86::ConditionCode as Cc;
    let condition = match i.condition_code() {
        Cc::None => None,
        Cc::o => Some(Condition::O),
        Cc::no => Some(Condition::No),
        Cc::b => Some(Condition::B),
        Cc::ae => Some(Condition::Ae),
        Cc::e => Some(Condition::E),
        Cc::ne => Some(Condition::Ne),
        Cc::be => Some(Condition::Be),
        Cc::a => Some(Condition::A),
        Cc::s => Some(Condition::S),
        Cc::ns => Some(Condition::Ns),
        Cc::p => Some(Condition::P),
        Cc::np => Some(Condition::Np),
        Cc::l => Some(Condition::L),
        Cc::ge => Some(Condition::Ge),
        Cc::le => Some(Condition::Le),
        Cc::g => Some(Condition::G),
    };
    if let Some(condition) = condition {
        // What has a condition and two operands is CMOVcc: it takes at least 16 bits.
        return match (op.first, op.second) {
            (Operand::Immediate(_), Operand::None) if i.is_jcc_short_or_near() => {
                Some(Kind::JumpIf(condition))
            }
            (_, Operand::None) if op.size == 1 => Some(Kind::Set(condition)),
            (Operand::Gpr { .. }, Operand::Gpr { .. } | Operand::Memory(_)) => {
                Some(Kind::MovIf(condition))
            }
            _ => None,
        };
    }
    let is_control = |register| (0..2).any(|n| i.op_register(n) == register);
    Some(match i.mnemonic() {
        Mnemonic::Mov if is_control(Register::CR3) => {
            if i.op0_register() == Register::CR3 {
                Kind::WriteCr3
            } else {
                Kind::ReadCr3
            }
        }
        // Writing it changes more than is modelled.
        Mnemonic::Mov if i.op1_register() == Register::CR4 => Kind::ReadCr4,
        Mnemonic::Mov if is_control(Register::CR4) => return None,
        Mnemonic::Mov if i.op0_register() == Register::SS => Kind::WriteSs,
        Mnemonic::Mov if i.op1_register() == Register::SS => Kind::ReadSegment(SegmentRegister::Ss),
        Mnemonic::Mov if i.op1_register() == Register::CS => Kind::ReadSegment(SegmentRegister::Cs),
        Mnemonic::Mov => Kind::Mov,
        Mnemonic::Movzx => Kind::MovZeroExtended,
        Mnemonic::Movsx | Mnemonic::Movsxd => Kind::MovSignExtended,
        Mnemonic::Lea => Kind::Lea,
        Mnemonic::Xchg => Kind::Xchg,
        Mnemonic::Add => Kind::Add,
        Mnemonic::Sub => Kind::Sub,
        Mnemonic::Cmp => Kind::Cmp,
        Mnemonic::And => Kind::And,
        Mnemonic::Or => Kind::Or,
        Mnemonic::Xor => Kind::Xor,
        Mnemonic::Test => Kind::Test,
        Mnemonic::Not => Kind::Not,
        Mnemonic::Neg => Kind::Neg,
        Mnemonic::Inc => Kind::Inc,
        Mnemonic::Dec => Kind::Dec,
        // By a constant: a count in CL would be one more unknown.
        Mnemonic::Shl | Mnemonic::Sal if is_constant(op.second) => Kind::Shl,
        Mnemonic::Shr if is_constant(op.second) => Kind::Shr,
        Mnemonic::Sar if is_constant(op.second) => Kind::Sar,
        // With a register as the index, the operand in memory could be anywhere.
        Mnemonic::Bt if is_constant(op.second) => Kind::Bt,
        Mnemonic::Bts if is_constant(op.second) => Kind::Bts,
        Mnemonic::Btr if is_constant(op.second) => Kind::Btr,
        // A constant has no size of its own.
        _ if matches!(i.code(), Code::Push_imm16 | Code::Pushw_imm8) => return None,
        Mnemonic::Push if op.size == 8 => Kind::Push,
        Mnemonic::Pop if op.size == 8 => Kind::Pop,
        Mnemonic::Jmp if op.size == 8 => Kind::Jump,
        Mnemonic::Call if op.size == 8 => Kind::Call,
        Mnemonic::Rdgsbase if op.size == 8 => Kind::ReadGsBase,
        Mnemonic::Wrgsbase if op.size == 8 => Kind::WriteGsBase,
        Mnemonic::Rdfsbase if op.size == 8 => Kind::ReadFsBase,
        Mnemonic::Wrfsbase if op.size == 8 => Kind::WriteFsBase,
        Mnemonic::Verw => Kind::Verw,
        _ => return None,
    })
}

fn is_constant(operand: Operand) -> bool {
    matches!(operand, Operand::Immediate(_))
}

fn operand(i: &Instruction, n: u32) -> Option<Operand> {
    Some(match i.op_kind(n) {
        OpKind::Register => register(i.op_register(n))?,
        OpKind::NearBranch64 => Operand::Immediate(i.near_branch64()),
        OpKind::Immediate8 if i.op_count() == 2 && is_count(i) => {
            Operand::Immediate(i.immediate8().into())
        }
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Operand::Immediate(i.immediate(n)),
        OpKind::Memory => Operand::Memory(memory(i)?),
        _ => return None,
    })
}

fn is_count(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        Mnemonic::Shl
            | Mnemonic::Sal
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Bt
            | Mnemonic::Bts
            | Mnemonic::Btr
    )
}

fn register(register: Register) -> Option<Operand> {
    if matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) {
        return Some(Operand::High { index: register.full_register().number() });
    }
    let is_named_otherwise =
        matches!(register, Register::CR3 | Register::CR4 | Register::SS | Register::CS);
    match register {
        _ if register.is_gpr() => {
            Some(Operand::Gpr { index: register.full_register().number(), size: register.size() })
        }
        // The kind says which.
        _ if is_named_otherwise => Some(Operand::None),
        _ => None,
    }
}

fn memory(i: &Instruction) -> Option<MemoryOperand> {
    let segment = match i.memory_segment() {
        Register::FS => Segment::Fs,
        Register::GS => Segment::Gs,
        _ => Segment::Flat,
    };
    let number = |register: Register| match register {
        Register::None => Some(None),
        // A 32-bit address is not something switchers have.
        _ if register.is_gpr64() => Some(Some(register.number())),
        _ => None,
    };
    let base = if i.is_ip_rel_memory_operand() {
        if i.memory_base() != Register::RIP {
            return None;
        }
        None
    } else {
        number(i.memory_base())?
    };
    let index = number(i.memory_index())?;
    let index = index.map(|index| (index, i.memory_index_scale().trailing_zeros()));
    if base.is_none() && i.memory_displ_size() == 4 && !i.is_ip_rel_memory_operand() {
        // An absolute address: with an address-size prefix it would be zero-extended, too.
        return None;
    }
    let size = i.memory_size().size();
    // LEA accesses nothing.
    let size = if i.mnemonic() == Mnemonic::Lea { 8 } else { size };
    if !matches!(size, 1 | 2 | 4 | 8) {
        return None;
    }
    Some(MemoryOperand { segment, base, index, displacement: i.memory_displacement64(), size })
}
