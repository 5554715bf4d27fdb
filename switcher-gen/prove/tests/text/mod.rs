//! Instructions of a switcher by what they are about: written as its emitters write them, with
//! fields, and looked for as the disassembler shows them.

use switcher_model::Program;

/// The text of one instruction: `text!(; verw WORD [BYTE rsp + FarFrame::cs.low_word()])`.
macro_rules! text {
    ($($code:tt)*) => { $crate::text::of(::switcher_gen::program!($($code)*)) };
}
pub(crate) use text;

pub(crate) fn of(code: &[u8]) -> String {
    let program = Program::new(0, code.to_vec());
    assert_eq!(program.instruction(0).len(), code.len(), "one instruction: {code:02x?}");
    program.text(0).expect("an instruction")
}
