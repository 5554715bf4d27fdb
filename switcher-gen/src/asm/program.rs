//! Machine code that the compiler assembles: what guests of tests run, and what is looked for in a
//! switcher.

use crate::layout::Operand;

/// Machine code as a constant: `program!(; syscall ; ud2)` is a `&'static [u8]`.
///
/// It takes what [`asm!`](switcher_macros::asm!) takes but for labels, of which there is one at
/// most, with a name of its own: `again:`, and `<again` or `>again`, each in a jump of two bytes.
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

/// A program that is being written. Its methods are those that `asm!` calls; being constant, they
/// are no [`Sink`](super::Sink)'s.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    bytes: [u8; Self::ROOM],
    len: usize,
    /// Where its one label is, once it has been met.
    label: Option<usize>,
    /// The jump to it that has been met before, by the byte that says how far.
    jump: Option<usize>,
}

impl Program {
    /// Nobody needs a longer one.
    const ROOM: usize = 64;

    /// An empty one.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "`Default` is not constant")]
    pub const fn new() -> Self {
        Self { bytes: [0; Self::ROOM], len: 0, label: None, jump: None }
    }

    /// What has been written.
    ///
    /// # Panics
    /// It has a jump to a label that has not come.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        assert!(self.jump.is_none(), "there is no label to jump to");
        self.bytes.split_at(self.len).0
    }

    /// One byte.
    pub const fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    /// Many bytes.
    pub const fn extend(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            self.push(bytes[at]);
            at += 1;
        }
    }

    /// A signed byte.
    pub const fn push_i8(&mut self, value: i8) {
        self.push(value.cast_unsigned());
    }

    /// A signed word.
    pub const fn push_i16(&mut self, value: i16) {
        self.extend(&value.to_le_bytes());
    }

    /// A signed dword.
    pub const fn push_i32(&mut self, value: i32) {
        self.extend(&value.to_le_bytes());
    }

    /// The label is here.
    pub const fn local_label(&mut self, _name: &'static str) {
        assert!(self.label.is_none(), "one label at most");
        self.label = Some(self.len);
        if let Some(field) = self.jump.take() {
            self.bytes[field] = distance(field + 1, self.len);
        }
    }

    /// The byte before this one says how far back the label is.
    pub const fn backward_reloc(&mut self, _: &'static str, _: isize, _: u8, _: u8, kind: u8) {
        assert!(kind & 0x3F == 0, "write `jmp BYTE <label`");
        let Some(label) = self.label else { panic!("there is no label to jump back to") };
        self.bytes[self.len - 1] = distance(self.len, label);
    }

    /// The byte before this one says how far the label is, which comes later.
    pub const fn forward_reloc(&mut self, _: &'static str, _: isize, _: u8, _: u8, kind: u8) {
        assert!(kind & 0x3F == 0, "write `jmp BYTE >label`");
        assert!(self.jump.is_none(), "one jump ahead at most");
        self.jump = Some(self.len - 1);
    }

    /// `asm!` says where an instruction is written: nobody asks.
    pub const fn source(&mut self, _file: &'static str, _line: u32) {}

    /// `asm!` says how an immediate is written: nobody asks.
    pub const fn immediate(&mut self, _text: &'static str) {}

    /// `asm!` says what a memory operand is about: nobody asks.
    pub const fn operand(&mut self, _operand: Operand) {}
}

/// How far a short jump goes.
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
        // 1: SYSCALL; DEC RBX; JNZ 1b; UD2.
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
