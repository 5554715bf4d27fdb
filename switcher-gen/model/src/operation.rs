//! Operations: what an instruction is once it is decoded, and how one of iced-x86's becomes one.
//!
//! [`program`](super::program) decodes, [`second`](super::second) makes the same of another
//! decoder's reading, and [`step`](super::step) says what each operation does.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::domain::low_bytes;
use super::flags::Condition;

/// A general register, numbered as instructions number it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "registers are what they are called")]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl Gpr {
    /// All, by number.
    pub const ALL: [Self; 16] = [
        Self::Rax,
        Self::Rcx,
        Self::Rdx,
        Self::Rbx,
        Self::Rsp,
        Self::Rbp,
        Self::Rsi,
        Self::Rdi,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
    ];

    /// As in manuals.
    #[must_use]
    pub const fn name(self) -> &'static str {
        const NAMES: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11",
            "r12", "r13", "r14", "r15",
        ];
        NAMES[self as usize]
    }
}

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// What it does.
    pub kind: Operation,
    /// Operand size in bytes.
    pub size: usize,
    /// Destination or first operand.
    pub first: Operand,
    /// Source or second operand.
    pub second: Operand,
    /// Whether it has a LOCK prefix, which changes nothing for whoever looks from this CPU.
    pub locked: bool,
    /// The address of the next instruction.
    pub next: u64,
}

/// What an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// The operation has no such operand.
    None,
    /// A general register, or its low `size` bytes.
    Gpr {
        /// Its number, as in ModR/M.
        index: usize,
        /// In bytes.
        size: usize,
    },
    /// AH, CH, DH or BH: bits 8 to 15 of a register.
    High {
        /// The register's number.
        index: usize,
    },
    /// In memory.
    Memory(MemoryOperand),
    /// Sign-extended to 64 bits.
    Immediate(u64),
}

/// An address and how wide the access is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOperand {
    /// What the address is relative to.
    pub segment: Segment,
    /// The base register's number.
    pub base: Option<usize>,
    /// The index register's number, and the power of two it is multiplied by.
    pub index: Option<(usize, u32)>,
    /// If it is relative to RIP, this is the address itself, at the program's base.
    pub displacement: u64,
    /// Whether it is relative to RIP: it moves with the code.
    pub is_code: bool,
    /// How many bytes are accessed.
    pub size: usize,
}

/// Segments with a base in 64-bit mode, and the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// A segment whose base is zero.
    Flat,
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// Operations. Operands are in the order of Intel's manuals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// MOV of data.
    Mov,
    /// MOVZX.
    MovZeroExtended,
    /// MOVSX and MOVSXD.
    MovSignExtended,
    /// LEA.
    Lea,
    /// XCHG.
    Xchg,
    /// XADD.
    ExchangeAdd,
    /// CMPXCHG.
    CompareExchange,
    /// STOS.
    StoreString {
        /// REP.
        repeats: bool,
    },
    /// MOVS.
    CopyString {
        /// REP.
        repeats: bool,
    },
    /// ADD.
    Add,
    /// SUB.
    Sub,
    /// CMP.
    Cmp,
    /// AND.
    And,
    /// OR.
    Or,
    /// XOR.
    Xor,
    /// TEST.
    Test,
    /// NOT.
    Not,
    /// NEG.
    Neg,
    /// INC.
    Inc,
    /// DEC.
    Dec,
    /// SHL.
    Shl,
    /// SHR.
    Shr,
    /// SAR.
    Sar,
    /// BT.
    Bt,
    /// BTS.
    Bts,
    /// BTR.
    Btr,
    /// SETcc.
    Set(Condition),
    /// CMOVcc.
    MovIf(Condition),
    /// PUSH.
    Push,
    /// POP.
    Pop,
    /// PUSHFQ.
    PushFlags,
    /// POPFQ.
    PopFlags,
    /// JMP, direct or indirect.
    Jump,
    /// Jcc.
    JumpIf(Condition),
    /// LOOP, LOOPE or LOOPNE: the condition that it has besides the count.
    Loop(Option<Condition>),
    /// JRCXZ.
    JumpIfZero,
    /// CALL, direct or indirect.
    Call,
    /// And the bytes to release.
    Return(u16),
    /// RET to another code segment, or to the same one, and the number of bytes to release.
    ReturnFar(u16),
    /// SWAPGS.
    SwapGs,
    /// RDGSBASE.
    ReadGsBase,
    /// WRGSBASE.
    WriteGsBase,
    /// RDFSBASE.
    ReadFsBase,
    /// WRFSBASE.
    WriteFsBase,
    /// MOV from CR3.
    ReadCr3,
    /// MOV from CR4.
    ReadCr4,
    /// MOV to CR3.
    WriteCr3,
    /// RDMSR.
    ReadMsr,
    /// WRMSR.
    WriteMsr,
    /// RDPKRU.
    ReadPkru,
    /// WRPKRU.
    WritePkru,
    /// MOV to SS.
    WriteSs,
    /// MOV from a segment register.
    ReadSegment(SegmentRegister),
    /// SYSRET to 64-bit code.
    Sysretq,
    /// SYSRET to 32-bit code.
    Sysretl,
    /// IRETQ.
    Iretq,
    /// SYSCALL.
    Syscall,
    /// CLAC.
    ClearAc,
    /// STAC.
    SetAc,
    /// CLD.
    ClearDirection,
    /// STD.
    SetDirection,
    /// CLI.
    ClearInterrupt,
    /// STI.
    SetInterrupt,
    /// NOP, ENDBR64, PAUSE, ...: no effect on what is modelled.
    Nothing,
    /// An instruction without an effect on what is modelled, except that others wait for it.
    Fence(Fence),
    /// VERW: the selector is read.
    Verw,
    /// UD2.
    Ud2,
    /// INT3.
    Int3,
    /// INT of this vector.
    Int(u8),
    /// SYSENTER.
    Sysenter,
    /// IN, of any size.
    In,
    /// HLT.
    Halt,
}

/// Segment registers that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentRegister {
    /// CS.
    Cs,
    /// SS.
    Ss,
}

/// Instructions that others wait for, or that might be thought to have this effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "instructions are what they are called")]
pub enum Fence {
    Lfence,
    Mfence,
    Sfence,
    LoadCr3,
    Iretq,
    WriteMsr,
}

impl Fence {
    /// Whether nothing after it is executed, not even speculatively, before all in front of it is
    /// certain. LFENCE does so (AMD's where DE_CFG says so, which is the host's to see to), and
    /// what serialises: Intel SDM vol. 3, 9.3; AMD APM vol. 2, 7.6.4. SFENCE and MFENCE order
    /// accesses to memory and nothing else; whether a WRMSR serialises depends on the MSR, and
    /// those that have to do with speculation are among those that need not.
    #[must_use]
    pub const fn stops_dispatch(self) -> bool {
        matches!(self, Self::Lfence | Self::LoadCr3 | Self::Iretq)
    }
}

/// An exception.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault<W> {
    /// Its vector.
    pub vector: u8,
    /// Its error code, if it has one.
    pub error_code: Option<W>,
}

impl<W> Fault<W> {
    /// #UD.
    pub const UNDEFINED: Self = Self { vector: 6, error_code: None };
    /// #BP.
    pub const BREAKPOINT: Self = Self { vector: 3, error_code: None };

    /// #GP.
    pub const fn protection(error_code: W) -> Self {
        Self { vector: 13, error_code: Some(error_code) }
    }
}

impl Op {
    /// The same, of which the address in memory is a number and does not move with the code.
    #[must_use]
    pub(super) const fn with_number(self) -> Self {
        const fn fixed(operand: Operand) -> Operand {
            match operand {
                Operand::Memory(memory) => {
                    Operand::Memory(MemoryOperand { is_code: false, ..memory })
                }
                other => other,
            }
        }
        Self { first: fixed(self.first), second: fixed(self.second), ..self }
    }

    /// Whether it is IRETQ.
    #[must_use]
    pub fn is_iretq(&self) -> bool {
        self.kind == Operation::Iretq
    }

    /// Whether it changes its operand in memory in one instruction, by what it adds to the value or
    /// flips in it, or by nothing unless it is as expected. Bits that it leaves alone, it leaves
    /// alone whatever they are: AND and its like do not, for they clear a bit that was clear
    /// before, and that somebody has set since.
    #[must_use]
    pub fn updates_memory(&self) -> bool {
        let updates = matches!(
            self.kind,
            Operation::Add
                | Operation::Sub
                | Operation::Or
                | Operation::Xor
                | Operation::Inc
                | Operation::Dec
                | Operation::ExchangeAdd
                | Operation::CompareExchange
        );
        updates && matches!(self.first, Operand::Memory(_))
    }

    /// Whether it reads its operand in memory and writes it, in one instruction.
    pub(super) fn changes_memory(&self) -> bool {
        let changes = matches!(
            self.kind,
            Operation::And
                | Operation::Not
                | Operation::Neg
                | Operation::Shl
                | Operation::Shr
                | Operation::Sar
                | Operation::Bts
                | Operation::Btr
                | Operation::Xchg
        );
        changes && matches!(self.first, Operand::Memory(_)) || self.updates_memory()
    }

    /// Whether it is a jump or call to what a register or memory says.
    #[must_use]
    pub fn is_indirect(&self) -> bool {
        let is_branch = matches!(self.kind, Operation::Jump | Operation::Call);
        is_branch && !matches!(self.first, Operand::Immediate(_))
    }

    /// Whether it is a string instruction with REP.
    #[must_use]
    pub const fn repeats(&self) -> bool {
        matches!(
            self.kind,
            Operation::StoreString { repeats: true } | Operation::CopyString { repeats: true }
        )
    }

    /// Whether it is a near RET.
    #[must_use]
    pub fn is_return(&self) -> bool {
        matches!(self.kind, Operation::Return(_))
    }

    /// Whether it leads where a register or memory says.
    #[must_use]
    pub fn is_computed(&self) -> bool {
        self.is_predicted() || self.is_return_of_event()
    }

    /// Whether a predictor says where it leads.
    #[must_use]
    pub fn is_predicted(&self) -> bool {
        self.is_return() || self.is_indirect()
    }

    /// Whether a CPU may speculate past it although it never falls through: its target is found out
    /// late, and it has no condition.
    #[must_use]
    pub fn wants_trap(&self) -> bool {
        let is_jump = self.kind == Operation::Jump && self.is_indirect();
        is_jump
            || self.is_return()
            || matches!(
                self.kind,
                Operation::Iretq
                    | Operation::Sysretq
                    | Operation::Sysretl
                    | Operation::ReturnFar(_)
            )
    }

    /// Whether it is an instruction by which interrupted code of ring 0 goes on.
    pub fn is_return_of_event(&self) -> bool {
        matches!(self.kind, Operation::Iretq | Operation::ReturnFar(_))
    }

    /// Whether this exception comes after the instruction, as those do that INT and INT3 ask for.
    #[must_use]
    pub fn is_trap<W>(&self, fault: &Fault<W>) -> bool {
        matches!(self.kind, Operation::Int3 | Operation::Int(_)) && fault.error_code.is_none()
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
            Operation::Push
                | Operation::Pop
                | Operation::PushFlags
                | Operation::PopFlags
                | Operation::Call
                | Operation::Return(_)
                | Operation::ReturnFar(_)
                | Operation::Iretq
        )
    }

    /// Whether another reading of the same bytes agrees with this one. Of a constant, only the bits
    /// that an operand of this size has are compared.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        let is_count = matches!(
            self.kind,
            Operation::Shl
                | Operation::Shr
                | Operation::Sar
                | Operation::Bt
                | Operation::Bts
                | Operation::Btr
        );
        let constant = low_bytes(if is_count { 1 } else { self.size });
        let known = |operand| match (operand, self.kind) {
            (Operand::Immediate(value), _) => Operand::Immediate(value & constant),
            // A selector has 16 bits: the others are zero, or not read.
            (Operand::Gpr { index, .. }, Operation::WriteSs | Operation::Verw) => {
                Operand::Gpr { index, size: 2 }
            }
            (Operand::Gpr { index, size: 8 }, Operation::ReadSegment(_)) => {
                Operand::Gpr { index, size: 4 }
            }
            (other, _) => other,
        };
        let of = |op: &Self| {
            let is_selector = matches!(op.kind, Operation::ReadSegment(_) | Operation::Verw);
            let size = if is_selector { 8 } else { op.size };
            Self { first: known(op.first), second: known(op.second), size, ..*op }
        };
        // An exchange of registers has no direction, and the decoders order its operands
        // differently.
        let turned = |op: Self| Self { first: op.second, second: op.first, ..op };
        let is_gpr = |operand| matches!(operand, Operand::Gpr { .. } | Operand::High { .. });
        let is_turned = self.kind == Operation::Xchg && is_gpr(self.first) && is_gpr(self.second);
        of(self) == of(other) || is_turned && of(self) == turned(of(other))
    }

    /// Whether its access to memory is locked. XCHG always locks.
    pub fn locks(&self) -> bool {
        let is_memory = |operand| matches!(operand, Operand::Memory(_));
        let has_memory = is_memory(self.first) || is_memory(self.second);
        has_memory && (self.locked || self.kind == Operation::Xchg)
    }

    /// Whether LOCK is allowed (Intel SDM vol. 2, LOCK): elsewhere it is #UD.
    pub(super) fn is_lockable(&self) -> bool {
        let is_one = matches!(
            self.kind,
            Operation::Add
                | Operation::And
                | Operation::Bts
                | Operation::Btr
                | Operation::Dec
                | Operation::Inc
                | Operation::Neg
                | Operation::Not
                | Operation::Or
                | Operation::Sub
                | Operation::Xor
                | Operation::Xchg
                | Operation::ExchangeAdd
                | Operation::CompareExchange
        );
        is_one && matches!(self.first, Operand::Memory(_))
    }

    pub(super) fn new(i: &Instruction) -> Option<Self> {
        let op = Self::of(i)?;
        (!op.locked || op.is_lockable()).then_some(op)
    }

    fn of(i: &Instruction) -> Option<Self> {
        if let Some(op) = string(i) {
            return Some(op);
        }
        // REP changes what is not modelled; on what else is modelled it is a hint, or an error.
        if i.is_invalid() || i.has_rep_prefix() || i.has_repne_prefix() {
            return None;
        }
        let mut op = Self {
            kind: Operation::Nothing,
            size: 8,
            first: Operand::None,
            second: Operand::None,
            locked: i.has_lock_prefix(),
            next: i.next_ip(),
        };
        if let Some(kind) = kind_without_operands(i) {
            let size = if kind == Operation::In { i.op0_register().size() } else { op.size };
            return Some(Self { kind, size, ..op });
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

/// STOS and MOVS, whose operands are where RDI and RSI say, once or as often as RCX says. With 32
/// bits of these they are not modelled.
fn string(i: &Instruction) -> Option<Op> {
    let repeats = i.has_rep_prefix();
    let kind = match i.code() {
        Code::Stosb_m8_AL | Code::Stosw_m16_AX | Code::Stosd_m32_EAX | Code::Stosq_m64_RAX => {
            Operation::StoreString { repeats }
        }
        Code::Movsb_m8_m8 | Code::Movsw_m16_m16 | Code::Movsd_m32_m32 | Code::Movsq_m64_m64 => {
            Operation::CopyString { repeats }
        }
        _ => return None,
    };
    // REPNE is not written with these, whatever CPUs make of it.
    if i.has_repne_prefix() || i.has_lock_prefix() || i.op0_kind() != OpKind::MemoryESRDI {
        return None;
    }
    let size = i.memory_size().size();
    let at = |segment, register| {
        let (base, index) = (Some(register as usize), None);
        Operand::Memory(MemoryOperand {
            segment,
            base,
            index,
            displacement: 0,
            is_code: false,
            size,
        })
    };
    let second = match i.op1_kind() {
        OpKind::Register => register(i.op1_register())?,
        OpKind::MemorySegRSI => at(segment(i.memory_segment()), Gpr::Rsi),
        _ => return None,
    };
    let first = at(Segment::Flat, Gpr::Rdi);
    Some(Op { kind, size, first, second, locked: false, next: i.next_ip() })
}

/// Operations without operands, or with operands that need not be looked at.
fn kind_without_operands(i: &Instruction) -> Option<Operation> {
    Some(match i.code() {
        Code::Swapgs => Operation::SwapGs,
        Code::Rdmsr => Operation::ReadMsr,
        Code::Wrmsr => Operation::WriteMsr,
        Code::Rdpkru => Operation::ReadPkru,
        Code::Wrpkru => Operation::WritePkru,
        Code::Sysretq => Operation::Sysretq,
        Code::Sysretd => Operation::Sysretl,
        Code::Iretq => Operation::Iretq,
        Code::Syscall => Operation::Syscall,
        Code::Clac => Operation::ClearAc,
        Code::Stac => Operation::SetAc,
        Code::Cld => Operation::ClearDirection,
        Code::Std => Operation::SetDirection,
        Code::Cli => Operation::ClearInterrupt,
        Code::Sti => Operation::SetInterrupt,
        Code::Pushfq => Operation::PushFlags,
        Code::Popfq => Operation::PopFlags,
        Code::Lfence => Operation::Fence(Fence::Lfence),
        Code::Mfence => Operation::Fence(Fence::Mfence),
        Code::Sfence => Operation::Fence(Fence::Sfence),
        Code::Endbr64 | Code::Pause => Operation::Nothing,
        Code::Ud2 => Operation::Ud2,
        Code::Int3 => Operation::Int3,
        Code::Int_imm8 => Operation::Int(i.immediate8()),
        Code::Sysenter => Operation::Sysenter,
        Code::In_AL_DX | Code::In_EAX_DX | Code::In_AX_DX => Operation::In,
        Code::Hlt => Operation::Halt,
        Code::Retnq => Operation::Return(0),
        Code::Retnq_imm16 => Operation::Return(i.immediate16()),
        Code::Retfq => Operation::ReturnFar(0),
        Code::Retfq_imm16 => Operation::ReturnFar(i.immediate16()),
        // This holds for every form of NOP, because its operand is not accessed.
        _ if i.mnemonic() == Mnemonic::Nop => Operation::Nothing,
        _ => return None,
    })
}

fn kind_with_operands(i: &Instruction, op: &Op) -> Option<Operation> {
    use iced_x86::ConditionCode as Cc;
    match i.code() {
        Code::Loop_rel8_64_RCX => return Some(Operation::Loop(None)),
        Code::Loope_rel8_64_RCX => return Some(Operation::Loop(Some(Condition::E))),
        Code::Loopne_rel8_64_RCX => return Some(Operation::Loop(Some(Condition::Ne))),
        Code::Jrcxz_rel8_64 => return Some(Operation::JumpIfZero),
        _ => {}
    }
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
                Some(Operation::JumpIf(condition))
            }
            (_, Operand::None) if op.size == 1 => Some(Operation::Set(condition)),
            (Operand::Gpr { .. }, Operand::Gpr { .. } | Operand::Memory(_)) => {
                Some(Operation::MovIf(condition))
            }
            _ => None,
        };
    }
    let is_control = |register| (0..2).any(|n| i.op_register(n) == register);
    Some(match i.mnemonic() {
        Mnemonic::Mov if is_control(Register::CR3) => {
            if i.op0_register() == Register::CR3 {
                Operation::WriteCr3
            } else {
                Operation::ReadCr3
            }
        }
        // Writing it changes more than is modelled.
        Mnemonic::Mov if i.op1_register() == Register::CR4 => Operation::ReadCr4,
        Mnemonic::Mov if is_control(Register::CR4) => return None,
        Mnemonic::Mov if i.op0_register() == Register::SS => Operation::WriteSs,
        Mnemonic::Mov if i.op1_register() == Register::SS => {
            Operation::ReadSegment(SegmentRegister::Ss)
        }
        Mnemonic::Mov if i.op1_register() == Register::CS => {
            Operation::ReadSegment(SegmentRegister::Cs)
        }
        Mnemonic::Mov => Operation::Mov,
        Mnemonic::Movzx => Operation::MovZeroExtended,
        Mnemonic::Movsx | Mnemonic::Movsxd => Operation::MovSignExtended,
        Mnemonic::Lea => Operation::Lea,
        Mnemonic::Xchg => Operation::Xchg,
        Mnemonic::Xadd => Operation::ExchangeAdd,
        Mnemonic::Cmpxchg => Operation::CompareExchange,
        Mnemonic::Add => Operation::Add,
        Mnemonic::Sub => Operation::Sub,
        Mnemonic::Cmp => Operation::Cmp,
        Mnemonic::And => Operation::And,
        Mnemonic::Or => Operation::Or,
        Mnemonic::Xor => Operation::Xor,
        Mnemonic::Test => Operation::Test,
        Mnemonic::Not => Operation::Not,
        Mnemonic::Neg => Operation::Neg,
        Mnemonic::Inc => Operation::Inc,
        Mnemonic::Dec => Operation::Dec,
        // By a constant: a count in CL would be one more unknown.
        Mnemonic::Shl | Mnemonic::Sal if is_constant(op.second) => Operation::Shl,
        Mnemonic::Shr if is_constant(op.second) => Operation::Shr,
        Mnemonic::Sar if is_constant(op.second) => Operation::Sar,
        // With a register as the index, the operand in memory could be anywhere.
        Mnemonic::Bt if is_constant(op.second) => Operation::Bt,
        Mnemonic::Bts if is_constant(op.second) => Operation::Bts,
        Mnemonic::Btr if is_constant(op.second) => Operation::Btr,
        // A constant has no size of its own.
        _ if matches!(i.code(), Code::Push_imm16 | Code::Pushw_imm8) => return None,
        Mnemonic::Push if op.size == 8 => Operation::Push,
        Mnemonic::Pop if op.size == 8 => Operation::Pop,
        Mnemonic::Jmp if op.size == 8 => Operation::Jump,
        Mnemonic::Call if op.size == 8 => Operation::Call,
        Mnemonic::Rdgsbase if op.size == 8 => Operation::ReadGsBase,
        Mnemonic::Wrgsbase if op.size == 8 => Operation::WriteGsBase,
        Mnemonic::Rdfsbase if op.size == 8 => Operation::ReadFsBase,
        Mnemonic::Wrfsbase if op.size == 8 => Operation::WriteFsBase,
        Mnemonic::Verw => Operation::Verw,
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

const fn segment(register: Register) -> Segment {
    match register {
        Register::FS => Segment::Fs,
        Register::GS => Segment::Gs,
        _ => Segment::Flat,
    }
}

fn memory(i: &Instruction) -> Option<MemoryOperand> {
    let segment = match i.memory_segment() {
        // LEA accesses nothing: the address is relative to its segment, whatever that is.
        _ if i.mnemonic() == Mnemonic::Lea => Segment::Flat,
        other => segment(other),
    };
    let number = |register: Register| match register {
        Register::None => Some(None),
        // Switchers have no 32-bit addresses, so they are not modelled.
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
    let (displacement, is_code) = (i.memory_displacement64(), i.is_ip_rel_memory_operand());
    Some(MemoryOperand { segment, base, index, displacement, is_code, size })
}
