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
    pub kind: Kind,
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
    /// There is none.
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
    /// Where it is relative to RIP: the address itself, as the program has it.
    pub displacement: u64,
    /// Whether it is relative to RIP: it moves with the code.
    pub is_code: bool,
    /// How many bytes are accessed.
    pub size: usize,
}

/// Segments with a base in 64-bit mode, and the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// One whose base is zero.
    Flat,
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// Operations. Operands are in the order of Intel's manuals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
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
    /// To another code segment, or the same: likewise.
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
    /// Nor have these, but something waits for something else.
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

/// What others wait for, or might be thought to.
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
    /// Whether nothing behind it is executed, not even speculatively, before all in front of it is
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
    /// Whether it is IRETQ.
    #[must_use]
    pub fn is_iretq(&self) -> bool {
        self.kind == Kind::Iretq
    }

    /// Whether it changes its operand in memory in one instruction, by what it adds to the value or
    /// flips in it, or by nothing unless it is as expected. Bits that it leaves alone, it leaves
    /// alone whatever they are: AND and its like do not, for they clear a bit that was clear
    /// before, and that somebody has set since.
    #[must_use]
    pub fn updates_memory(&self) -> bool {
        let updates = matches!(
            self.kind,
            Kind::Add
                | Kind::Sub
                | Kind::Or
                | Kind::Xor
                | Kind::Inc
                | Kind::Dec
                | Kind::ExchangeAdd
                | Kind::CompareExchange
        );
        updates && matches!(self.first, Operand::Memory(_))
    }

    /// Whether it reads its operand in memory and writes it, in one instruction.
    pub(super) fn changes_memory(&self) -> bool {
        let changes = matches!(
            self.kind,
            Kind::And
                | Kind::Not
                | Kind::Neg
                | Kind::Shl
                | Kind::Shr
                | Kind::Sar
                | Kind::Bts
                | Kind::Btr
                | Kind::Xchg
        );
        changes && matches!(self.first, Operand::Memory(_)) || self.updates_memory()
    }

    /// Whether it is a jump or call to what a register or memory says.
    #[must_use]
    pub fn is_indirect(&self) -> bool {
        let is_branch = matches!(self.kind, Kind::Jump | Kind::Call);
        is_branch && !matches!(self.first, Operand::Immediate(_))
    }

    /// Whether it is a string instruction with REP.
    #[must_use]
    pub const fn repeats(&self) -> bool {
        matches!(
            self.kind,
            Kind::StoreString { repeats: true } | Kind::CopyString { repeats: true }
        )
    }

    /// Whether it is a near RET.
    #[must_use]
    pub fn is_return(&self) -> bool {
        matches!(self.kind, Kind::Return(_))
    }

    /// Whether a predictor says where it leads.
    #[must_use]
    pub fn is_predicted(&self) -> bool {
        self.is_return() || self.is_indirect()
    }

    /// Whether a CPU may go on behind it although it never does so for good: where it leads is
    /// found out late, and there is no condition.
    #[must_use]
    pub fn wants_trap(&self) -> bool {
        let is_jump = self.kind == Kind::Jump && self.is_indirect();
        is_jump
            || self.is_return()
            || matches!(self.kind, Kind::Iretq | Kind::Sysretq | Kind::Sysretl | Kind::ReturnFar(_))
    }

    /// Whether ring 0 goes on by it where an event has interrupted it.
    pub fn is_return_of_event(&self) -> bool {
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

    /// Whether another reading of the same bytes is this one. Of a constant, what an operand of
    /// this size holds is compared.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        let is_count = matches!(
            self.kind,
            Kind::Shl | Kind::Shr | Kind::Sar | Kind::Bt | Kind::Bts | Kind::Btr
        );
        let constant = low_bytes(if is_count { 1 } else { self.size });
        let known = |operand| match (operand, self.kind) {
            (Operand::Immediate(value), _) => Operand::Immediate(value & constant),
            // A selector has 16 bits: the others are zero, or not read.
            (Operand::Gpr { index, .. }, Kind::WriteSs | Kind::Verw) => {
                Operand::Gpr { index, size: 2 }
            }
            (Operand::Gpr { index, size: 8 }, Kind::ReadSegment(_)) => {
                Operand::Gpr { index, size: 4 }
            }
            (other, _) => other,
        };
        let of = |op: &Self| {
            let is_selector = matches!(op.kind, Kind::ReadSegment(_) | Kind::Verw);
            let size = if is_selector { 8 } else { op.size };
            Self { first: known(op.first), second: known(op.second), size, ..*op }
        };
        // An exchange of registers has no direction, and each decoder another one.
        let turned = |op: Self| Self { first: op.second, second: op.first, ..op };
        let is_gpr = |operand| matches!(operand, Operand::Gpr { .. } | Operand::High { .. });
        let is_turned = self.kind == Kind::Xchg && is_gpr(self.first) && is_gpr(self.second);
        of(self) == of(other) || is_turned && of(self) == turned(of(other))
    }

    /// Whether its access to memory is locked: XCHG's always is.
    pub fn locks(&self) -> bool {
        let is_memory = |operand| matches!(operand, Operand::Memory(_));
        let has_memory = is_memory(self.first) || is_memory(self.second);
        has_memory && (self.locked || self.kind == Kind::Xchg)
    }

    /// Whether LOCK is allowed (Intel SDM vol. 2, LOCK): elsewhere it is #UD.
    pub(super) fn is_lockable(&self) -> bool {
        let is_one = matches!(
            self.kind,
            Kind::Add
                | Kind::And
                | Kind::Bts
                | Kind::Btr
                | Kind::Dec
                | Kind::Inc
                | Kind::Neg
                | Kind::Not
                | Kind::Or
                | Kind::Sub
                | Kind::Xor
                | Kind::Xchg
                | Kind::ExchangeAdd
                | Kind::CompareExchange
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
            kind: Kind::Nothing,
            size: 8,
            first: Operand::None,
            second: Operand::None,
            locked: i.has_lock_prefix(),
            next: i.next_ip(),
        };
        if let Some(kind) = kind_without_operands(i) {
            let size = if kind == Kind::In { i.op0_register().size() } else { op.size };
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
            Kind::StoreString { repeats }
        }
        Code::Movsb_m8_m8 | Code::Movsw_m16_m16 | Code::Movsd_m32_m32 | Code::Movsq_m64_m64 => {
            Kind::CopyString { repeats }
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
        Code::Lfence => Kind::Fence(Fence::Lfence),
        Code::Mfence => Kind::Fence(Fence::Mfence),
        Code::Sfence => Kind::Fence(Fence::Sfence),
        Code::Endbr64 | Code::Pause => Kind::Nothing,
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
        _ if i.mnemonic() == Mnemonic::Nop => Kind::Nothing,
        _ => return None,
    })
}

fn kind_with_operands(i: &Instruction, op: &Op) -> Option<Kind> {
    use iced_x86::ConditionCode as Cc;
    match i.code() {
        Code::Loop_rel8_64_RCX => return Some(Kind::Loop(None)),
        Code::Loope_rel8_64_RCX => return Some(Kind::Loop(Some(Condition::E))),
        Code::Loopne_rel8_64_RCX => return Some(Kind::Loop(Some(Condition::Ne))),
        Code::Jrcxz_rel8_64 => return Some(Kind::JumpIfZero),
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
        Mnemonic::Xadd => Kind::ExchangeAdd,
        Mnemonic::Cmpxchg => Kind::CompareExchange,
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
    let (displacement, is_code) = (i.memory_displacement64(), i.is_ip_rel_memory_operand());
    Some(MemoryOperand { segment, base, index, displacement, is_code, size })
}
