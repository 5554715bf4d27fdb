//! Images for people and for other tools: listings with the names of fields, ELF objects, and the
//! layouts as headers for C, gas, Rust and JSON. `switcher emit` and `switcher offsets` print what
//! is made here. [`drop_in`] writes switchers for kernels that have one of their own.
//!
//! A listing is what the bytes are, in the words of those who emitted them.
//!
//! The bytes are decoded by an independent disassembler, and every number in an operand is given
//! its name back: a displacement becomes the field it reaches, found in the struct's layout **by
//! the decoded value**, an immediate becomes its source text, a jump's target its label. The names
//! come from running the emitters once more with a recording [`Sink`](switcher_gen::asm::Sink); if
//! that run does not give the image's bytes, or if a note does not fit what was decoded, there is
//! no listing but a [`ListingError`].
//!
//! ```
//! use switcher_gen::{Image, Variant};
//! use switcher_listing::{Listing, ListingOptions};
//!
//! let image = Image::new(&Variant::REFERENCE)?;
//! let listing = Listing::new(&image, &ListingOptions::default())?;
//! assert!(listing.to_string().contains("gs:[tss_extra.switch_flags], SwitchFlags::UMOD"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod decode;
pub mod drop_in;
pub mod names;
mod object_file;
pub mod offsets;

pub use object_file::object_file;
mod record;
mod text;

use serde::Serialize;

use decode::Decode;
use record::{Item, What};
use switcher_gen::Image;
use switcher_gen::arch::CanonicalAddr;
use switcher_gen::asm::{AsmError, Label, Window};
use switcher_gen::emit;

/// What a listing is to show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListingOptions {
    /// Where the image runs; without it, addresses are offsets into the image.
    pub base: Option<CanonicalAddr>,
    /// Whether instructions carry the file and line of the emitter that wrote them.
    pub source: bool,
}

/// An image, line by line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// The variant's name.
    pub variant: String,
    /// The image's size in bytes.
    pub size: usize,
    /// The image's fingerprint, in hexadecimal.
    pub fingerprint: String,
    /// The address of the first byte, if one was given.
    pub base: Option<u64>,
    /// What a host may refer to, by address.
    pub symbols: Vec<Symbol>,
    /// Where a host's NMI and #MC code must be careful, by address.
    pub windows: Vec<WindowSpan>,
    /// The code.
    pub lines: Vec<Line>,
}

/// An exported label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Symbol {
    /// As the host's linker knows it.
    pub name: &'static str,
    /// Where it is.
    pub address: u64,
}

/// Where a window applies: a half-open range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WindowSpan {
    /// Which window.
    #[serde(serialize_with = "window_name")]
    pub window: Window,
    /// The first byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

/// A line of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    /// What follows comes from another file of `emit/`.
    Routine {
        /// As `emit/to_smod.rs`.
        file: String,
    },
    /// A comment of the emitter's, about the lines that follow.
    Comment {
        /// Without any marker.
        text: &'static str,
    },
    /// The next instruction can be jumped to.
    Label {
        /// The label; local ones start with `.L`.
        name: &'static str,
    },
    /// One instruction.
    Instruction(Instruction),
    /// Bytes between routines, all alike, that are never run.
    Filler {
        /// Where they start.
        address: u64,
        /// The byte.
        byte: u8,
        /// How many there are.
        count: usize,
    },
}

/// An instruction and everything that is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instruction {
    /// Where it is.
    pub address: u64,
    /// Its encoding.
    #[serde(serialize_with = "hex")]
    pub bytes: Vec<u8>,
    /// In Intel's spelling.
    pub mnemonic: String,
    /// In Intel's syntax, with names in place of numbers.
    pub operands: Vec<String>,
    /// The numbers that the names stand for, where the names do not tell them.
    pub encoded: Vec<String>,
    /// The windows it lies in.
    #[serde(serialize_with = "window_names")]
    pub windows: Vec<Window>,
    /// Where in the emitters it was written, if asked for.
    pub source: Option<Source>,
}

/// A line of an emitter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    /// From `src/` on: `emit/to_smod.rs`.
    pub file: String,
    /// Counted from 1.
    pub line: u32,
}

/// Why an image cannot be listed: what its emitters say does not fit its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// Emitting it again failed.
    #[error(transparent)]
    Asm(#[from] AsmError),
    /// Emitting it again gave other bytes, so the image is not what its variant's emitters write.
    #[error("the image is not what its variant's emitters write: it differs at {at:#x}")]
    OtherBytes {
        /// The first offset that differs.
        at: u32,
    },
    /// Bytes of which no emitter said anything.
    #[error("the bytes at {at:#x} were emitted without a source note")]
    Unexplained {
        /// Their offset.
        at: u32,
    },
    /// A source note in front of something that is not one instruction.
    #[error("the {emitted} bytes at {at:#x} were emitted as one instruction and are none")]
    NotOneInstruction {
        /// Their offset.
        at: u32,
        /// How many there are.
        emitted: u32,
    },
    /// A displacement that leads to no field, or an access not as wide as what it leads to.
    #[error("the {size}-byte access at {at:#x} reaches no field of `{layout}`")]
    NoField {
        /// The instruction's offset.
        at: u32,
        /// The struct it should reach into.
        layout: &'static str,
        /// The width of the access in bytes.
        size: usize,
    },
    /// An operand was announced that the instruction does not have.
    #[error("the instruction at {at:#x} does not have the operands that were announced for it")]
    NoSuchOperand {
        /// The instruction's offset.
        at: u32,
    },
}

impl Listing {
    /// Lists `image`.
    ///
    /// # Errors
    /// Only if an emitter is wrong, or `asm!` is; the tests list every variant there is.
    pub fn new(image: &Image, options: &ListingOptions) -> Result<Self, ListingError> {
        let (items, code) = record::record(|sink| emit::switcher(sink, image.variant()))?;
        if code.bytes != image.bytes() {
            let same = code.bytes.iter().zip(image.bytes()).take_while(|(a, b)| a == b).count();
            return Err(ListingError::OtherBytes { at: same as u32 });
        }
        let base = options.base.map(CanonicalAddr::get);
        let address = |offset: u32| base.unwrap_or_default().wrapping_add(offset.into());
        let symbol =
            |(label, offset): (Label, u32)| Symbol { name: label.name(), address: address(offset) };
        Ok(Self {
            variant: image.variant().to_string(),
            size: image.bytes().len(),
            fingerprint: image.fingerprint().to_string(),
            base,
            symbols: image.symbols().into_iter().map(symbol).collect(),
            windows: image
                .windows()
                .iter()
                .map(|w| WindowSpan {
                    window: w.window,
                    start: address(w.start),
                    end: address(w.end),
                })
                .collect(),
            lines: lines(image, &items, options)?,
        })
    }

    /// The lines from label `from` up to label `to`, for showing a part.
    ///
    /// Comments right in front of `from` belong to the part, those in front of `to` do not.
    #[must_use]
    pub fn between(&self, from: Label, to: Label) -> &[Line] {
        let start = |label: Label| {
            let is_it = |line: &Line| matches!(line, Line::Label { name } if *name == label.name());
            let at = self.lines.iter().position(is_it).unwrap_or(self.lines.len());
            let is_lead =
                |line: &&Line| matches!(line, Line::Comment { .. } | Line::Routine { .. });
            at - self.lines[..at].iter().rev().take_while(is_lead).count()
        };
        self.lines.get(start(from)..start(to)).unwrap_or_default()
    }
}

fn lines(
    image: &Image,
    items: &[Item],
    options: &ListingOptions,
) -> Result<Vec<Line>, ListingError> {
    let base = options.base.map_or(0, CanonicalAddr::get);
    let mut decode = Decode::new(image);
    let mut lines = Vec::with_capacity(items.len() + 16);
    let mut routine = None;
    for (item, file) in items.iter().zip(routines(items)) {
        if let Some(file) = file
            && routine != Some(file)
        {
            routine = Some(file);
            lines.push(Line::Routine { file: file.to_owned() });
        }
        let bytes = &image.bytes()[item.start as usize..item.end as usize];
        let address = base.wrapping_add(item.start.into());
        lines.push(match &item.what {
            What::Comment(text) => Line::Comment { text },
            What::Label(label) => Line::Label { name: label.name() },
            What::Unexplained => return Err(ListingError::Unexplained { at: item.start }),
            What::Filler => match bytes {
                [] => continue,
                [byte, ..] => Line::Filler { address, byte: *byte, count: bytes.len() },
            },
            What::Instruction(notes) => {
                let decoded = decode.instruction(item.start, bytes, notes)?;
                let source =
                    Source { file: names::source_file(notes.file).into(), line: notes.line };
                Line::Instruction(Instruction {
                    address,
                    bytes: bytes.to_vec(),
                    mnemonic: decoded.mnemonic,
                    operands: decoded.operands,
                    encoded: decoded.encoded,
                    windows: Window::ALL
                        .into_iter()
                        .filter(|window| image.is_in(*window, item.start))
                        .collect(),
                    source: options.source.then_some(source),
                })
            }
        });
    }
    Ok(lines)
}

/// For each item the file its routine is in: that of the next instruction, as comments and labels
/// stand in front of what they are about. `emit/mod.rs` has no routine; what it emits belongs to
/// the routine that called it.
fn routines(items: &[Item]) -> Vec<Option<&'static str>> {
    let mut files = Vec::with_capacity(items.len());
    let mut file = None;
    for item in items.iter().rev() {
        match &item.what {
            What::Instruction(notes) => match names::source_file(notes.file) {
                "emit/mod.rs" => {}
                routine => file = Some(routine),
            },
            // Filler belongs to the code in front of it.
            What::Filler => file = None,
            _ => {}
        }
        files.push(file);
    }
    files.reverse();
    files
}

fn hex<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&text::Hex(bytes))
}

fn window_name<S: serde::Serializer>(window: &Window, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(window.name())
}

fn window_names<S: serde::Serializer>(
    windows: &[Window],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(windows.iter().map(|window| window.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use switcher_asm::Sink as _;
    use switcher_gen::Variant;
    use switcher_gen::asm::CodeBuffer;

    #[test]
    fn every_variant_can_be_listed() {
        for variant in Variant::representative() {
            let image = Image::new(&variant).unwrap();
            let options = ListingOptions { source: true, ..ListingOptions::default() };
            let listing = Listing::new(&image, &options).unwrap();
            let bytes: Vec<u8> = listing
                .lines
                .iter()
                .flat_map(|line| match line {
                    Line::Instruction(instruction) => instruction.bytes.clone(),
                    Line::Filler { byte, count, .. } => vec![*byte; *count],
                    _ => Vec::new(),
                })
                .collect();
            assert_eq!(bytes, image.bytes(), "{variant}");
        }
    }

    #[test]
    fn an_image_from_elsewhere_is_not_given_the_emitters_words() {
        let mut buffer = CodeBuffer::new();
        emit::switcher(&mut buffer, &Variant::REFERENCE);
        let end = buffer.offset();
        buffer.push(0x90);
        let image = Image::from_code(Variant::REFERENCE, buffer).unwrap();
        let refused = Listing::new(&image, &ListingOptions::default()).unwrap_err();
        assert_eq!(refused, ListingError::OtherBytes { at: end });
    }

    #[test]
    fn a_part_runs_from_label_to_label() {
        let image = Image::new(&Variant::REFERENCE).unwrap();
        let listing = Listing::new(&image, &ListingOptions::default()).unwrap();
        let part = listing.between(Label::Syscall64, Label::ExitEretu);
        assert!(matches!(&part[0], Line::Routine { file } if file == "emit/syscall_64.rs"));
        let files = part.iter().filter(|line| matches!(line, Line::Routine { .. })).count();
        assert_eq!(files, 5, "syscall_64, to_smod, syscall_64, to_umod, syscall_compat");
        assert_eq!(listing.between(Label::ExitEretu, Label::Syscall64), []);
    }
}
