//! Machine code that the compiler assembles: the programs that guests of tests run, and the
//! instructions that are looked for in a switcher.

use crate::layout::Operand;

/// Machine code as a constant: `program!(; syscall ; ud2)` is a `&'static [u8]`.
///
/// It takes what [`asm!`](switcher_macros::asm!) takes, except for labels: there is at most one,
/// with a name of its own, `again:`, and `<again` or `>again` refers to it, each in a jump of two
/// bytes.
#[macro_export]
macro_rules! program {
    ($($code:tt)*) => {{
        const PROGRAM: $crate::asm::Program = {
            let mut program = $crate::asm::Program::new();
            $crate::__private::asm!(program $($code)*);
            program
        };
        const { PROGRAM.bytes() }
    }};
}

/// A program that is being written. Its methods are those that `asm!` calls; as they are constant,
/// they cannot be a [`Sink`](super::Sink)'s.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    bytes: [u8; Self::ROOM],
    len: usize,
    /// The offset of the program's one label, once it is known.
    label: Option<usize>,
    /// The jump ahead to the label, if there is one: the offset of its byte for the distance.
    jump: Option<usize>,
}

impl Program {
    /// How many bytes there is room for. Nobody needs a longer program.
    const ROOM: usize = 64;

    /// An empty program.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "`Default` is not constant")]
    pub const fn new() -> Self {
        Self { bytes: [0; Self::ROOM], len: 0, label: None, jump: None }
    }

    /// The bytes that have been written.
    ///
    /// # Panics
    /// If the program jumps to a label that has not been written.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        assert!(self.jump.is_none(), "there is no label to jump to");
        self.bytes.split_at(self.len).0
    }

    /// Appends one byte.
    pub const fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    /// Appends several bytes.
    pub const fn extend(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            self.push(bytes[at]);
            at += 1;
        }
    }

    /// Appends a signed byte.
    pub const fn push_i8(&mut self, value: i8) {
        self.push(value.cast_unsigned());
    }

    /// Appends a signed word of 16 bits.
    pub const fn push_i16(&mut self, value: i16) {
        self.extend(&value.to_le_bytes());
    }

    /// Appends a signed dword of 32 bits.
    pub const fn push_i32(&mut self, value: i32) {
        self.extend(&value.to_le_bytes());
    }

    /// Appends a signed qword of 64 bits.
    pub const fn push_i64(&mut self, value: i64) {
        self.extend(&value.to_le_bytes());
    }

    /// Defines the label as the current position.
    pub const fn local_label(&mut self, _name: &'static str) {
        assert!(self.label.is_none(), "one label at most");
        self.label = Some(self.len);
        if let Some(field) = self.jump.take() {
            self.bytes[field] = distance(field + 1, self.len);
        }
    }

    /// Fills the byte before this position with the distance back to the label.
    pub const fn backward_reloc(&mut self, _: &'static str, _: isize, _: u8, _: u8, kind: u8) {
        assert!(kind & 0x3F == 0, "write `jmp BYTE <label`");
        let Some(label) = self.label else { panic!("there is no label to jump back to") };
        self.bytes[self.len - 1] = distance(self.len, label);
    }

    /// Remembers that the byte before this position has the distance to the label, which comes
    /// later.
    pub const fn forward_reloc(&mut self, _: &'static str, _: isize, _: u8, _: u8, kind: u8) {
        assert!(kind & 0x3F == 0, "write `jmp BYTE >label`");
        assert!(self.jump.is_none(), "one jump ahead at most");
        self.jump = Some(self.len - 1);
    }

    /// `asm!` tells where an instruction is written; a program has no use for it.
    pub const fn source(&mut self, _file: &'static str, _line: u32) {}

    /// `asm!` tells how an immediate is written; a program has no use for it.
    pub const fn immediate(&mut self, _text: &'static str) {}

    /// `asm!` tells what a memory operand is about; a program has no use for it.
    pub const fn operand(&mut self, _operand: Operand) {}
}

/// The distance that a short jump goes, as its byte.
const fn distance(from: usize, to: usize) -> u8 {
    let distance = to.cast_signed() - from.cast_signed();
    assert!(distance >= i8::MIN as isize && distance <= i8::MAX as isize, "too far away");
    (distance as i8).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Pvcs;
    use switcher_macros::asm;

    #[test]
    fn the_compiler_assembles_what_the_manual_says() {
        assert_eq!(program!(; syscall ; ud2), [0x0F, 0x05, 0x0F, 0x0B]);
        // The program is: 1: SYSCALL; DEC RBX; JNZ 1b; UD2.
        let back = program!(; again: ; syscall ; dec rbx ; jnz BYTE <again ; ud2);
        assert_eq!(back, [0x0F, 0x05, 0x48, 0xFF, 0xCB, 0x75, 0xF9, 0x0F, 0x0B]);
        let ahead = program!(; jmp BYTE >there ; nop ; there: ; ud2);
        assert_eq!(ahead, [0xEB, 0x01, 0x90, 0x0F, 0x0B]);
        assert_eq!(program!(; mov al, BYTE [rdi]), [0x8A, 0x07]);
        let rsp = Pvcs::rsp.bytes() as u8;
        assert_eq!(program!(; mov QWORD [BYTE rdi + Pvcs::rsp], rsp), [0x48, 0x89, 0x67, rsp]);
    }

    #[test]
    fn a_program_is_written_at_run_time_as_well() {
        for vector in [3_u8, 0x80, 0xFF] {
            let mut program = Program::new();
            asm!(program ; int BYTE vector.cast_signed());
            assert_eq!(program.bytes(), [0xCD, vector]);
        }
    }
}
