//! Bytes as operations: decoded by iced-x86, reduced to what [`step`](super::step) has a semantics
//! for. Whatever it has none for is an error that names the instruction, never a guess.
//!
//! One decoder is not trusted alone: [`second`] decodes the same bytes by another, and both must agree
//! in length, operation and operands; and a prefix that means nothing is refused ([`prefixes`]).

use std::cell::OnceCell;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::domain::low_bytes;
use super::flags::Condition;
use super::prefixes::{self, Superfluous};
use super::second;
use super::state::{Fault, Gpr};
use super::step::Fence;

/// Code at an address: one piece of memory, or several of which nothing between them is known.
#[derive(Clone, Debug)]
pub struct Program {
    base: u64,
    /// Whether it lies there and nowhere else.
    is_fixed: bool,
    /// In the order of their addresses, apart from each other; at least one.
    pieces: Vec<Piece>,
}

/// Bytes that follow each other.
#[derive(Clone, Debug)]
struct Piece {
    start: u64,
    bytes: Vec<u8>,
    /// Decoded when first executed, by offset. Code is large and little of it is executed, so there
    /// is room for a block of offsets once one of them is asked for.
    blocks: Vec<OnceCell<Box<Block>>>,
}

/// So many offsets have their room together.
const BLOCK: usize = 64;
type Block = [OnceCell<Result<Op, ProgramError>>; BLOCK];

impl Piece {
    fn new(start: u64, bytes: Vec<u8>) -> Self {
        let blocks = vec![OnceCell::new(); bytes.len().div_ceil(BLOCK)];
        Self { start, bytes, blocks }
    }

    /// The offset of `address`, if it lies within.
    #[inline]
    fn offset(&self, address: u64) -> Option<usize> {
        let offset = address.wrapping_sub(self.start);
        (offset < self.bytes.len() as u64).then_some(offset as usize)
    }
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
    /// The same instruction is modelled in the form that assemblers give it.
    #[error(
        "{at:#x}: {bytes} has a prefix or an encoding that is not modelled, of an instruction that \
         is: write `{text}` as assemblers do ({usual})"
    )]
    Encoding {
        /// Where.
        at: u64,
        /// What stands there.
        bytes: String,
        /// The instruction, as it is usually.
        text: String,
        /// Its usual bytes.
        usual: String,
    },
    /// Two decoders read the bytes in two ways: a CPU may do so in a third.
    #[error("{at:#x}: {bytes} is `{first}` to one decoder and `{second}` to another")]
    Disagreement {
        /// Where.
        at: u64,
        /// What stands there.
        bytes: String,
        /// What iced-x86 makes of it.
        first: String,
        /// What yaxpeax-x86 makes of it.
        second: String,
    },
    /// A prefix without which the instruction would be the same, and not one of the forms that are
    /// known.
    #[error("{at:#x}: {bytes} is `{text}`, and its prefix {prefix} means nothing there")]
    Prefix {
        /// Where.
        at: u64,
        /// What stands there.
        bytes: String,
        /// Its name and its byte.
        prefix: String,
        /// The instruction.
        text: String,
    },
}

impl ProgramError {
    /// Where it is.
    #[must_use]
    pub const fn at(&self) -> u64 {
        match self {
            Self::Invalid { at, .. }
            | Self::NotModelled { at, .. }
            | Self::Encoding { at, .. }
            | Self::Disagreement { at, .. }
            | Self::Prefix { at, .. } => *at,
        }
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

impl Program {
    /// `bytes` at `base`.
    #[must_use]
    pub fn new(base: u64, bytes: Vec<u8>) -> Self {
        Self { base, is_fixed: false, pieces: vec![Piece::new(base, bytes)] }
    }

    /// The same of code that holds addresses of its own as numbers, so that it can lie nowhere else.
    #[must_use]
    pub fn fixed(self) -> Self {
        Self { is_fixed: true, ..self }
    }

    /// Whether the code lies where it says, and nowhere else.
    #[must_use]
    pub const fn is_fixed(&self) -> bool {
        self.is_fixed
    }

    /// What is known of the code at `base`: these bytes at these addresses, of which none overlap.
    /// An address between them is as far outside as any other.
    #[must_use]
    pub fn of_pieces(base: u64, pieces: impl IntoIterator<Item = (u64, Vec<u8>)>) -> Self {
        let pieces = pieces.into_iter().filter(|(_, bytes)| !bytes.is_empty());
        let mut pieces: Vec<_> = pieces.map(|(start, bytes)| Piece::new(start, bytes)).collect();
        pieces.sort_by_key(|piece| piece.start);
        if pieces.is_empty() {
            pieces.push(Piece::new(base, Vec::new()));
        }
        Self { base, is_fixed: false, pieces }
    }

    /// Where the code begins: the first byte of it that is known, or before it.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// The bytes of the first piece: all there are, unless others have made the code.
    #[must_use]
    pub fn first_piece(&self) -> &[u8] {
        &self.pieces[0].bytes
    }

    /// The address after the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        let ends = self.pieces.iter().map(|piece| piece.start + piece.bytes.len() as u64);
        ends.max().unwrap_or(self.base)
    }

    /// All bytes, with their addresses.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pieces.iter().map(|piece| (piece.start, piece.bytes.as_slice()))
    }

    /// The bytes from `address` on to the end of their piece; none if it is outside.
    #[must_use]
    pub fn from(&self, address: u64) -> &[u8] {
        self.find(address).map_or(&[], |(piece, offset)| &piece.bytes[offset..])
    }

    /// Whether an address lies within.
    #[must_use]
    pub fn contains(&self, address: u64) -> bool {
        self.find(address).is_some()
    }

    #[inline]
    fn find(&self, address: u64) -> Option<(&Piece, usize)> {
        let piece = match self.pieces.as_slice() {
            [piece] => piece,
            pieces => {
                let behind = pieces.partition_point(|piece| piece.start <= address);
                pieces.get(behind.checked_sub(1)?)?
            }
        };
        Some((piece, piece.offset(address)?))
    }

    /// Changes bytes, as whoever breaks code on purpose does.
    ///
    /// # Panics
    /// If they are not all within one piece.
    pub fn patch(&mut self, address: u64, bytes: &[u8]) {
        let piece = self.pieces.iter_mut().find(|piece| piece.offset(address).is_some());
        let piece = piece.expect("what is patched lies within the code");
        let offset = address.wrapping_sub(piece.start) as usize;
        piece.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        // An instruction is at most 15 bytes long: those before may have changed too.
        for stale in offset.saturating_sub(15)..offset + bytes.len() {
            if let Some(block) = piece.blocks[stale / BLOCK].get_mut() {
                block[stale % BLOCK] = OnceCell::new();
            }
        }
    }

    /// The operation at `address`; `None` if that is elsewhere.
    ///
    /// # Errors
    /// If it is none, or not modelled.
    #[inline]
    pub fn at(&self, address: u64) -> Option<Result<&Op, &ProgramError>> {
        let (piece, offset) = self.find(address)?;
        let block = piece.blocks[offset / BLOCK].get_or_init(empty_block);
        Some(block[offset % BLOCK].get_or_init(|| self.decode(address)).as_ref())
    }

    /// The instruction at `address` as text.
    #[must_use]
    pub fn text(&self, address: u64) -> Option<String> {
        self.contains(address).then(|| self.instruction(address).to_string())
    }

    /// The instruction at `address`, which is within.
    #[must_use]
    pub fn instruction(&self, address: u64) -> Instruction {
        Decoder::with_ip(64, self.from(address), address, DecoderOptions::NONE).decode()
    }

    /// A branch with an operand-size prefix: AMD's CPUs cut RIP to 16 bits, Intel's do not.
    fn is_short_branch(&self, i: &Instruction) -> bool {
        use iced_x86::FlowControl;
        let is_prefix =
            |byte: &u8| matches!(byte, 0x26 | 0x2E | 0x36 | 0x3E | 0x64..=0x67 | 0xF2 | 0xF3);
        let mut prefixes =
            self.from(i.ip()).iter().take(i.len()).take_while(|byte| is_prefix(byte));
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
        let code = self.from(at);
        if instruction.is_invalid() {
            return Err(ProgramError::Invalid { at, bytes: hexadecimal(code.iter().take(8)) });
        }
        let text = || instruction.to_string();
        let own = &code[..instruction.len()];
        let meaningless = |Superfluous { name, byte }| {
            let (bytes, prefix) = (hexadecimal(own.iter()), format!("{name} ({byte:02x})"));
            ProgramError::Prefix { at, bytes, prefix, text: text() }
        };
        if let Some(prefix) = prefixes::misplaced(own) {
            return Err(meaningless(prefix));
        }
        let op = if self.is_short_branch(&instruction) { None } else { Op::new(&instruction) };
        let op = op.ok_or_else(|| match usual(&instruction, own) {
            Some((plain, usual)) => ProgramError::Encoding {
                at,
                bytes: hexadecimal(own.iter()),
                text: plain.to_string(),
                usual: hexadecimal(usual.iter()),
            },
            None => ProgramError::NotModelled { at, text: text() },
        })?;
        if !second::op(code, at).is_some_and(|other| op.agrees(&other)) {
            let first = format!("{} ({} bytes)", text(), own.len());
            let (bytes, second) = (hexadecimal(code.iter().take(15)), second::text(code));
            return Err(ProgramError::Disagreement { at, bytes, first, second });
        }
        // What is shorter begins later, so that it ends at the same address and names the same ones.
        let decode = |shorter: &[u8]| {
            let at = op.next.wrapping_sub(shorter.len() as u64);
            Op::new(&Decoder::with_ip(64, shorter, at, DecoderOptions::NONE).decode())
        };
        prefixes::superfluous(own, &op, decode).map_or(Ok(op), |prefix| Err(meaningless(prefix)))
    }
}

/// The form that is modelled of an instruction that is not, if there is one: another encoding, or
/// without its prefixes.
fn usual(i: &Instruction, own: &[u8]) -> Option<(Instruction, Vec<u8>)> {
    let mut plain = *i;
    plain.set_has_rep_prefix(false);
    plain.set_has_repne_prefix(false);
    // CPUs do not look at all bits of these.
    match i.mnemonic() {
        Mnemonic::Lfence => plain.set_code(Code::Lfence),
        Mnemonic::Mfence => plain.set_code(Code::Mfence),
        Mnemonic::Sfence => plain.set_code(Code::Sfence),
        _ => {}
    }
    let mut encoder = iced_x86::Encoder::new(64);
    encoder.encode(&plain, i.ip()).ok()?;
    let bytes = encoder.take_buffer();
    let again = Decoder::with_ip(64, &bytes, i.ip(), DecoderOptions::NONE).decode();
    (bytes != own && Op::new(&again).is_some()).then_some((again, bytes))
}

fn hexadecimal<'a>(bytes: impl Iterator<Item = &'a u8>) -> String {
    bytes.map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// Not in the way of what is executed again and again.
#[cold]
fn empty_block() -> Box<Block> {
    Box::new([const { OnceCell::new() }; BLOCK])
}

impl Op {
    /// Whether it is IRETQ.
    #[must_use]
    pub fn is_iretq(&self) -> bool {
        self.kind == Kind::Iretq
    }

    /// Whether it changes its operand in memory in one instruction, by what it adds to the value or flips
    /// in it, or by nothing unless it is as expected. Bits that it leaves alone, it leaves alone whatever they are: AND and its like do not,
    /// for they clear a bit that was clear before, and that somebody has set since.
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

    /// Whether a CPU may go on behind it although it never does so for good: where it leads is found
    /// out late, and there is no condition.
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

    /// Whether another reading of the same bytes is this one. Of a constant, what an operand of this
    /// size holds is compared.
    fn agrees(&self, other: &Self) -> bool {
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
    fn is_lockable(&self) -> bool {
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

    fn new(i: &Instruction) -> Option<Self> {
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

/// STOS and MOVS, whose operands are where RDI and RSI say, once or as often as RCX says. With 32 bits of
/// these they are not modelled.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Random bytes, with more prefixes than those would have.
    fn random_code(random: &mut fastrand::Rng) -> Vec<u8> {
        const PREFIXES: [u8; 11] =
            [0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3];
        let mut code = Vec::with_capacity(20);
        for _ in 0..random.usize(0..7).saturating_sub(3) {
            code.push(PREFIXES[random.usize(..PREFIXES.len())]);
        }
        if random.u8(..) < 100 {
            code.push(0x40 | random.u8(..16));
        }
        if random.bool() {
            code.push(0x0F);
        }
        code.resize_with(15, || random.u8(..));
        code
    }

    /// What the decoders are known to disagree about, where the first says that it is an instruction
    /// of the model's: all of it is refused.
    fn known(code: &[u8], first: Op, second: Option<Op>) -> Option<&'static str> {
        let prefixes = code.iter().take_while(|byte| {
            matches!(byte, 0x26 | 0x2E | 0x36 | 0x3E | 0x64..=0x67 | 0xF0 | 0xF2 | 0xF3)
        });
        let rex = code.get(prefixes.clone().count()).copied().filter(|byte| byte >> 4 == 4);
        let opcode = code.get(prefixes.clone().count() + usize::from(rex.is_some())).copied();
        let has = |wanted| prefixes.clone().any(|byte| *byte == wanted);
        let has_rex = |bit| rex.is_some_and(|rex| rex & bit != 0);
        Some(match (first.kind, second.map(|op| op.kind)) {
            _ if prefixes::misplaced(code).is_some() => {
                "REX in front of another prefix, which CPUs ignore: yaxpeax-x86 does not"
            }
            (Kind::MovSignExtended, Some(Kind::MovSignExtended)) if !has_rex(8) => {
                "MOVSXD without REX.W: yaxpeax-x86 has a destination of 64 bits"
            }
            (Kind::ReadSegment(_) | Kind::WriteSs, None) if has_rex(4) => {
                "MOV of a segment register with REX.R, which CPUs ignore: yaxpeax-x86 refuses it"
            }
            (Kind::Push | Kind::Pop | Kind::PushFlags | Kind::PopFlags, None)
                if has(0x66) && has_rex(8) =>
            {
                "66 and REX.W with PUSH and POP: to yaxpeax-x86, 66 counts"
            }
            (Kind::Push | Kind::Pop, None) if matches!(opcode, Some(0x8F | 0xFF)) => {
                "PUSH and POP of a register by FF and 8F: yaxpeax-x86 has one of 32 bits"
            }
            (Kind::Nothing, None) if has(0xF3) && has_rex(1) => {
                "F3 41 90 and its like: iced-x86 does not see that REX.B makes it XCHG"
            }
            (Kind::Nothing, None) if has(0xF3) => {
                "PAUSE with further prefixes: to yaxpeax-x86 it is not"
            }
            _ => return None,
        })
    }

    #[test]
    fn all_that_two_decoders_disagree_about_is_known_and_refused() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut met: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut alike, mut prefixed, mut none, mut unknown) = (0, 0, 0, Vec::new());
        for _ in 0..1_000_000 {
            let code = random_code(&mut random);
            let at = 0xFFFF_FE80_0000_0000;
            let program = Program::new(at, code.clone());
            let first = Op::new(&program.instruction(at));
            let second = second::op(&code, at);
            let read = program.at(at).unwrap();
            match (first, second, read) {
                (Some(first), Some(second), read) if first.agrees(&second) => {
                    alike += 1;
                    match read {
                        Ok(op) => assert_eq!(*op, first),
                        Err(ProgramError::Prefix { .. }) => prefixed += 1,
                        // A short branch; a form that no assembler writes.
                        Err(ProgramError::NotModelled { .. } | ProgramError::Encoding { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                (None, _, read) => {
                    none += 1;
                    assert!(read.is_err(), "{}: {read:?}", hexadecimal(code.iter()));
                }
                (Some(first), second, Err(_)) => match known(&code, first, second) {
                    Some(why) => *met.entry(why).or_default() += 1,
                    None => unknown.push((
                        hexadecimal(code.iter()),
                        program.text(at),
                        second::text(&code),
                    )),
                },
                (Some(_), _, Ok(op)) => panic!("{}: {op:?}", hexadecimal(code.iter())),
            }
        }
        println!(
            "{alike} alike ({prefixed} of them with a prefix for nothing), {none} not modelled"
        );
        met.iter().for_each(|(why, count)| println!("{count:>7}  {why}"));
        assert!(unknown.is_empty(), "{unknown:#?}");
        assert!(alike > 200_000 && met.len() == 7, "{met:?}");
    }

    #[test]
    fn xchg_that_one_decoder_takes_for_pause_is_refused_by_name() {
        for code in [&[0xF3, 0x41, 0x90][..], &[0xF3, 0x49, 0x90], &[0xF3, 0x45, 0x90]] {
            let program = Program::new(0x1000, code.to_vec());
            match program.at(0x1000).unwrap() {
                Err(ProgramError::Disagreement { at: 0x1000, bytes, first, second }) => {
                    assert_eq!(*bytes, hexadecimal(code.iter()));
                    assert!(first.starts_with("pause") && second.starts_with("xchg"), "{second}");
                }
                other => panic!("{}: {other:?}", hexadecimal(code.iter())),
            }
        }
    }

    #[test]
    fn lock_is_read_where_a_cpu_takes_it() {
        let read = |code: &[u8]| {
            Program::new(0x1000, code.to_vec()).at(0x1000).unwrap().copied().map_err(Clone::clone)
        };
        // ADD, AND, BTS, BTR, DEC, INC, NEG, NOT, OR, SUB, XOR, XCHG, CMPXCHG, XADD of memory at RDI.
        let legal: [&[u8]; 14] = [
            &[0xF0, 0x48, 0x01, 0x07],
            &[0xF0, 0x83, 0x27, 0x01],
            &[0xF0, 0x0F, 0xBA, 0x2F, 0x01],
            &[0xF0, 0x48, 0x0F, 0xBA, 0x37, 0x01],
            &[0xF0, 0xFF, 0x0F],
            &[0xF0, 0x66, 0xFF, 0x07],
            &[0xF0, 0xF7, 0x1F],
            &[0xF0, 0xF6, 0x17],
            &[0xF0, 0x09, 0x07],
            &[0xF0, 0x29, 0x07],
            &[0x65, 0xF0, 0x31, 0x07],
            &[0xF0, 0x87, 0x07],
            &[0xF0, 0x0F, 0xB1, 0x0F],
            &[0xF0, 0x48, 0x0F, 0xC1, 0x0F],
        ];
        for code in legal {
            let op = read(code).unwrap();
            assert!(op.locked && op.is_lockable(), "{}", hexadecimal(code.iter()));
            let plain: Vec<_> = code.iter().copied().filter(|byte| *byte != 0xF0).collect();
            assert!(!read(&plain).unwrap().locked);
        }
        // To a register; of what takes none; of what is not modelled.
        let illegal: [&[u8]; 9] = [
            &[0xF0, 0x48, 0x01, 0xC7],
            &[0xF0, 0x48, 0x03, 0x07],
            &[0xF0, 0x48, 0x89, 0x07],
            &[0xF0, 0x3B, 0x07],
            &[0xF0, 0x0F, 0xBA, 0x27, 0x01],
            &[0xF0, 0x0F, 0x01, 0xF8],
            &[0xF0, 0xC3],
            &[0xF0, 0x0F, 0xB1, 0xCF],
            &[0xF0, 0x0F, 0xC1, 0xCF],
        ];
        for code in illegal {
            assert!(read(code).is_err(), "{}", hexadecimal(code.iter()));
        }
    }
}
