//! Bytes as operations: decoded by iced-x86, reduced to what `step` has a semantics
//! for. An instruction without a semantics is an error that names it, never a guess.
//!
//! No decoder is trusted alone: `second` decodes the same bytes by another one, and both must
//! agree in length, operation and operands. A prefix that means nothing is refused (`prefixes`).

use std::cell::OnceCell;
use std::ops::Range;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, Register};

use super::prefixes::{self, MeaninglessPrefix};
use super::second;

pub use super::operation::{MemoryOperand, Op, Operand, Operation, Segment, SegmentRegister};

/// Code at an address. It is one piece of memory, or several pieces; nothing is known of what lies
/// between them.
#[derive(Clone, Debug)]
pub struct Program {
    base: u64,
    /// Whether the code can lie at this address only.
    is_fixed: bool,
    /// Whether operands that are relative to RIP and go through GS are numbers: see
    /// [`with_linked_gs`](Self::with_linked_gs).
    has_linked_gs: bool,
    /// At least one piece, in the order of their addresses. No two touch each other.
    pieces: Vec<Piece>,
    /// What is written while the code is loaded.
    changed: Vec<Changed>,
}

/// A place whose bytes are written while the code is loaded, by somebody who reads it instruction
/// by instruction and may write others that do the same. So it means what it says only to who
/// executes it from where one of these begins, and to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Its addresses.
    pub range: Range<u64>,
    /// Where its instructions begin, in order.
    pub begins: Vec<u64>,
    /// Which of these may be jumped to: of several NOPs in a row others may be made, in which no
    /// instruction begins where the second one did.
    pub entries: Vec<u64>,
}

impl Changed {
    /// Whether a jump that is computed may lead to an address.
    fn may_be_entered(&self, at: u64) -> bool {
        let is_inside = self.range.start < at && at < self.range.end;
        !is_inside || self.entries.binary_search(&at).is_ok()
    }

    /// Whether an instruction at these addresses is one of its own, or outside.
    fn has_whole(&self, own: &Range<u64>) -> bool {
        let is_outside = own.end <= self.range.start || self.range.end <= own.start;
        is_outside || own.end <= self.range.end && self.begins.binary_search(&own.start).is_ok()
    }
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

/// How many offsets share one block.
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
        /// The address.
        at: u64,
        /// The bytes at that address.
        bytes: String,
    },
    /// An instruction for which there is no semantics.
    #[error(
        "{at:#x}: `{text}` is not modelled: the model has the instructions that switchers use, see \
         switcher-gen/model/src/operation.rs"
    )]
    NotModelled {
        /// The address.
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
        /// The address.
        at: u64,
        /// The bytes at that address.
        bytes: String,
        /// The instruction, as it is usually.
        text: String,
        /// Its usual bytes.
        usual: String,
    },
    /// Two decoders read the bytes in two ways: a CPU may do so in a third.
    #[error("{at:#x}: {bytes} is `{first}` to one decoder and `{second}` to another")]
    Disagreement {
        /// The address.
        at: u64,
        /// The bytes at that address.
        bytes: String,
        /// The instruction that iced-x86 reads.
        first: String,
        /// The instruction that yaxpeax-x86 reads.
        second: String,
    },
    /// It begins or ends in the middle of an instruction that is changed when the code is loaded.
    #[error(
        "{at:#x}: `{text}` begins or ends in the middle of an instruction that Linux changes, and not \
         all versions put the same bytes there"
    )]
    Inside {
        /// The address.
        at: u64,
        /// The instruction, as the bytes are read here.
        text: String,
    },
    /// A prefix without which the instruction would be the same, and not one of the forms that are
    /// known.
    #[error("{at:#x}: {bytes} is `{text}`, and its prefix {prefix} means nothing there")]
    Prefix {
        /// The address.
        at: u64,
        /// The bytes at that address.
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
            | Self::Inside { at, .. }
            | Self::Prefix { at, .. } => *at,
        }
    }
}

impl Program {
    /// `bytes` at `base`.
    #[must_use]
    pub fn new(base: u64, bytes: Vec<u8>) -> Self {
        let pieces = vec![Piece::new(base, bytes)];
        Self { base, is_fixed: false, has_linked_gs: false, pieces, changed: Vec::new() }
    }

    /// This program, of code that holds addresses of its own as numbers, so that it can lie nowhere
    /// else.
    #[must_use]
    pub fn fixed(self) -> Self {
        Self { is_fixed: true, ..self }
    }

    /// Whether the code can lie at its address only.
    #[must_use]
    pub const fn is_fixed(&self) -> bool {
        self.is_fixed
    }

    /// This program, of code in which these places are written while it is loaded.
    #[must_use]
    pub fn with_changed(self, changed: Vec<Changed>) -> Self {
        Self { changed, ..self }
    }

    /// Other bytes, as of [`of_pieces`](Self::of_pieces), of code that is like this in everything
    /// else.
    #[must_use]
    pub fn with_pieces(&self, base: u64, pieces: impl IntoIterator<Item = (u64, Vec<u8>)>) -> Self {
        let Self { is_fixed, has_linked_gs, .. } = *self;
        Self { is_fixed, has_linked_gs, ..Self::of_pieces(base, pieces) }
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
        Self { base, is_fixed: false, has_linked_gs: false, pieces, changed: Vec::new() }
    }

    /// This program, of code whose per-CPU data is reached through GS and relative to RIP, as
    /// Linux's is: such an operand is GS base and the address that it has where the code is linked,
    /// wherever the code lies. Linux sees to that when it moves itself: before 6.15 it corrects the
    /// distances, and since then GS base is counted from the data, which moves along.
    #[must_use]
    pub fn with_linked_gs(self) -> Self {
        Self { has_linked_gs: true, ..self }
    }

    /// The address that the operand of `i` adds to GS base, where it is a number although the
    /// instruction counts it from RIP.
    #[must_use]
    pub fn linked_gs(&self, i: &Instruction) -> Option<u64> {
        let is_linked = self.has_linked_gs
            && i.is_ip_rel_memory_operand()
            && i.mnemonic() != Mnemonic::Lea
            && i.memory_segment() == Register::GS;
        is_linked.then(|| i.ip_rel_memory_address())
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

    /// Changes bytes, for those who break code on purpose.
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
    /// If the bytes are no instruction, or one that is not modelled.
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
        let mut i = self.encoded(address);
        if let Some(number) = self.linked_gs(&i) {
            i.set_memory_base(Register::None);
            i.set_memory_displ_size(8);
            i.set_memory_displacement64(number);
        }
        i
    }

    /// The same as it is encoded.
    fn encoded(&self, address: u64) -> Instruction {
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

    /// Whether a jump whose target is computed, a return among them, may lead to an address: not
    /// into what is changed, where other instructions may be by then.
    ///
    /// # Errors
    /// If it may not.
    pub fn check_entered(&self, at: u64) -> Result<(), ProgramError> {
        if self.changed.iter().all(|changed| changed.may_be_entered(at)) {
            return Ok(());
        }
        Err(ProgramError::Inside { at, text: self.encoded(at).to_string() })
    }

    fn decode(&self, at: u64) -> Result<Op, ProgramError> {
        let instruction = self.encoded(at);
        let code = self.from(at);
        if instruction.is_invalid() {
            return Err(ProgramError::Invalid { at, bytes: hexadecimal(code.iter().take(8)) });
        }
        let text = || instruction.to_string();
        let range = at..at.saturating_add(instruction.len() as u64);
        if !self.changed.iter().all(|changed| changed.has_whole(&range)) {
            return Err(ProgramError::Inside { at, text: text() });
        }
        let own = &code[..instruction.len()];
        let meaningless = |MeaninglessPrefix { name, byte }| {
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
        // What is shorter begins later, so that it ends at the same address and names the same
        // ones.
        let decode = |shorter: &[u8]| {
            let at = op.next.wrapping_sub(shorter.len() as u64);
            Op::new(&Decoder::with_ip(64, shorter, at, DecoderOptions::NONE).decode())
        };
        match prefixes::superfluous(own, &op, decode) {
            Some(prefix) => Err(meaningless(prefix)),
            None if self.linked_gs(&instruction).is_some() => Ok(op.with_number()),
            None => Ok(op),
        }
    }
}

/// The form that is modelled of an instruction that is not, if there is one: another encoding, or
/// without its prefixes.
fn usual(i: &Instruction, own: &[u8]) -> Option<(Instruction, Vec<u8>)> {
    let mut plain = *i;
    plain.set_has_rep_prefix(false);
    plain.set_has_repne_prefix(false);
    // CPUs ignore some bits of these instructions.
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

/// Kept out of line, because code that is executed again and again does not come here.
#[cold]
fn empty_block() -> Box<Block> {
    Box::new([const { OnceCell::new() }; BLOCK])
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

    /// What the decoders are known to disagree about, where the first says that it is an
    /// instruction of the model's: all of it is refused.
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
            (Operation::MovSignExtended, Some(Operation::MovSignExtended)) if !has_rex(8) => {
                "MOVSXD without REX.W: yaxpeax-x86 has a destination of 64 bits"
            }
            (Operation::ReadSegment(_) | Operation::WriteSs, None) if has_rex(4) => {
                "MOV of a segment register with REX.R, which CPUs ignore: yaxpeax-x86 refuses it"
            }
            (
                Operation::Push | Operation::Pop | Operation::PushFlags | Operation::PopFlags,
                None,
            ) if has(0x66) && has_rex(8) => {
                "66 and REX.W with PUSH and POP: to yaxpeax-x86, 66 counts"
            }
            (Operation::Push | Operation::Pop, None) if matches!(opcode, Some(0x8F | 0xFF)) => {
                "PUSH and POP of a register by FF and 8F: yaxpeax-x86 has one of 32 bits"
            }
            (Operation::Nothing, None) if has(0xF3) && has_rex(1) => {
                "F3 41 90 and its like: iced-x86 does not see that REX.B makes it XCHG"
            }
            (Operation::Nothing, None) if has(0xF3) => {
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
        // ADD, AND, BTS, BTR, DEC, INC, NEG, NOT, OR, SUB, XOR, XCHG, CMPXCHG, XADD of memory at
        // RDI.
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
