//! Where an image has an instruction, for tests that break it.

use switcher_gen::Image;
use switcher_gen::asm::Label;
use switcher_model::Program;

/// The offset in the image of the first instruction at or after `label` that `is_it` accepts. It is
/// given whole instructions alone: bytes within another instruction are never taken for one.
#[track_caller]
pub(crate) fn instruction(
    image: &Image,
    label: Label,
    is_it: impl Fn(&Program, u64) -> bool,
) -> usize {
    let program = Program::new(0, image.bytes().to_vec());
    let mut at = u64::from(image.offset(label));
    while program.contains(at) {
        if is_it(&program, at) {
            return at as usize;
        }
        at += program.instruction(at).len().max(1) as u64;
    }
    panic!("there is no such instruction after {label:?}")
}

/// The offset of the first instructions at or after `label` that are encoded as `wanted`, which
/// tests write with `program!`: the operands are the names of fields.
#[track_caller]
pub(crate) fn encoded(image: &Image, label: Label, wanted: &[u8]) -> usize {
    instruction(image, label, |program, at| program.from(at).starts_with(wanted))
}

#[test]
fn what_is_found_is_a_whole_instruction() {
    use switcher_gen::{Variant, program};

    let image = Image::new(&Variant::REFERENCE).unwrap();
    let at = encoded(&image, Label::Syscall64, program!(; swapgs));
    assert_eq!(at, image.offset(Label::Syscall64) as usize);
    // The second half of a SWAPGS is no instruction of its own.
    let half = &program!(; swapgs)[1..];
    assert!(image.bytes()[at..].windows(half.len()).any(|bytes| bytes == half));
    let missed = std::panic::catch_unwind(|| encoded(&image, Label::Syscall64, half));
    assert!(missed.is_err());
}
