//! Runs the emitters once more and keeps every note that they make.

use switcher_asm::Sink;
use switcher_gen::asm::Switcher;
use switcher_gen::asm::{AsmError, Code, CodeBuffer, External, Label, Window};
use switcher_gen::layout::{Operand, Placement};

/// A stretch of the code, or a point in it, and what the emitter said of it.
pub(super) struct Item {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) what: What,
}

pub(super) enum What {
    Comment(&'static str),
    Label(Label),
    Instruction(Notes),
    /// What stands between routines.
    Filler,
    /// Bytes without a source note in front: the listing has nothing to say of them.
    Unexplained,
}

/// What `asm!` says of one instruction.
pub(super) struct Notes {
    pub(super) file: &'static str,
    pub(super) line: u32,
    pub(super) operands: Vec<Operand>,
    pub(super) immediates: Vec<&'static str>,
}

/// A [`CodeBuffer`] that also remembers.
pub(super) struct Recorder {
    buffer: CodeBuffer,
    items: Vec<Item>,
}

/// Returns what was said on the way beside the code that `emit` emits. The items cover the code
/// without gap or overlap, in its order.
pub(super) fn record(emit: impl FnOnce(&mut Recorder)) -> Result<(Vec<Item>, Code), AsmError> {
    let mut recorder = Recorder { buffer: CodeBuffer::new(), items: Vec::new() };
    emit(&mut recorder);
    recorder.settle();
    Ok((recorder.items, recorder.buffer.finish()?))
}

impl Recorder {
    /// Attributes what has been written since the last note to the instruction that note was about.
    fn settle(&mut self) {
        let here = self.buffer.offset();
        match self.items.last_mut() {
            Some(item) if matches!(item.what, What::Instruction(_)) && item.start == item.end => {
                item.end = here;
            }
            last => {
                let covered = last.map_or(0, |item| item.end);
                if covered != here {
                    let what = What::Unexplained;
                    self.items.push(Item { start: covered, end: here, what });
                }
            }
        }
    }

    fn note(&mut self, what: What) {
        self.settle();
        let here = self.buffer.offset();
        self.items.push(Item { start: here, end: here, what });
    }

    fn instruction(&mut self) -> Option<&mut Notes> {
        match self.items.last_mut() {
            Some(Item { what: What::Instruction(notes), .. }) => Some(notes),
            _ => None,
        }
    }
}

impl Sink for Recorder {
    type Names = Switcher;

    fn push(&mut self, byte: u8) {
        self.buffer.push(byte);
    }

    fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend(bytes);
    }

    fn dynamic_label(&mut self, label: Label) {
        self.note(What::Label(label));
        self.buffer.dynamic_label(label);
    }

    fn dynamic_reloc(
        &mut self,
        label: Label,
        target_offset: isize,
        field_offset: u8,
        ref_offset: u8,
        kind: u8,
    ) {
        self.buffer.dynamic_reloc(label, target_offset, field_offset, ref_offset, kind);
    }

    fn value_reloc(
        &mut self,
        target: impl Into<External>,
        field_offset: u8,
        ref_offset: u8,
        kind: u8,
    ) {
        self.buffer.value_reloc(target, field_offset, ref_offset, kind);
    }

    fn place(&mut self, placement: Placement) {
        self.buffer.place(placement);
    }

    fn placement(&self) -> Placement {
        self.buffer.placement()
    }

    fn align(&mut self, alignment: usize, byte: u8) {
        self.note(What::Filler);
        self.buffer.align(alignment, byte);
        let end = self.buffer.offset();
        if let Some(filler) = self.items.last_mut() {
            filler.end = end;
        }
    }

    fn upper_half(&mut self, distance: usize, byte: u8) {
        self.note(What::Filler);
        self.buffer.upper_half(distance, byte);
        let end = self.buffer.offset();
        if let Some(filler) = self.items.last_mut() {
            filler.end = end;
        }
    }

    fn open(&mut self, window: Window) {
        self.settle();
        self.buffer.open(window);
    }

    fn close(&mut self, window: Window) {
        self.settle();
        self.buffer.close(window);
    }

    fn comment(&mut self, text: &'static str) {
        self.note(What::Comment(text));
    }

    fn source(&mut self, file: &'static str, line: u32) {
        let (operands, immediates) = (Vec::new(), Vec::new());
        self.note(What::Instruction(Notes { file, line, operands, immediates }));
    }

    fn operand(&mut self, operand: Operand) {
        if let Some(notes) = self.instruction() {
            notes.operands.push(operand);
        }
    }

    fn immediate(&mut self, text: &'static str) {
        if let Some(notes) = self.instruction() {
            notes.immediates.push(text);
        }
    }
}
