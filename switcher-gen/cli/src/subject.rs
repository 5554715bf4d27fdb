//! Code that is judged, and what is known of it beside its bytes: its name, its instructions as
//! text, and where they were written.

use std::collections::BTreeMap;
use std::fs;

use switcher_gen::{Image, Variant};
use switcher_listing::{Line, Listing, ListingOptions};
use switcher_prove::{BadCode, Target, elf};

use crate::layout::Layout;
use crate::operands;
use crate::output::Failure;

/// Code, and what is known of it beside its bytes.
pub(crate) struct Subject {
    /// In reports.
    pub(crate) name: String,
    /// The code.
    pub(crate) target: Target,
    /// The image, if it is one of ours.
    pub(crate) image: Option<Image>,
    /// The file, if it is one of somebody's.
    pub(crate) file: Option<OpenFile>,
    /// What is known of its structs.
    pub(crate) layout: Layout,
}

/// A file, with what was read of it.
pub(crate) type OpenFile = (fs::File, elf::Foreign);

impl Subject {
    /// One of ours.
    pub(crate) fn of_variant(variant: &Variant) -> Result<Self, Failure> {
        let image = Image::new(variant)
            .map_err(|error| Failure::failed(format!("cannot assemble {variant}"), error))?;
        let target = Target::image(&image);
        Ok(Self {
            name: variant.to_string(),
            target,
            image: Some(image),
            file: None,
            layout: Layout::default(),
        })
    }

    /// Every instruction's text by its address. Those of our images have names for numbers, and the
    /// emitter's file and line.
    pub(crate) fn texts(&self) -> Texts<'_> {
        let listing = self.image.as_ref().and_then(|image| {
            let paging = image.variant().paging();
            let options = ListingOptions { base: paging.address(Target::BASE).ok(), source: true };
            // Whoever cannot be listed is shown as anybody's code is.
            Listing::new(image, &options).ok()
        });
        let symbols = self.file.iter().flat_map(|(_, foreign)| &foreign.symbols);
        let names = symbols.map(|(name, at)| (*at, name.clone())).collect();
        Texts { target: &self.target, listing, names }
    }

    /// Why there is no telling what the code does, and where.
    pub(crate) fn refused(&self, error: &BadCode) -> String {
        let Self { name, .. } = self;
        let text = place(error).and_then(|at| Some((at, self.texts().annotated(at)?)));
        match text {
            Some((at, text)) => {
                format!("{name} is no code to be reasoned about: {error}\n  {at:x}  {text}")
            }
            None => format!("{name} is no code to be reasoned about: {error}"),
        }
    }
}

/// The instruction that an error is about.
fn place(error: &BadCode) -> Option<u64> {
    match error {
        BadCode::Program(error) => Some(error.at()),
        BadCode::Leaves { at, .. }
        | BadCode::Loop { at, .. }
        | BadCode::Open { at, .. }
        | BadCode::Work { at, .. }
        | BadCode::Arms { at, .. }
        | BadCode::States { at, .. }
        | BadCode::Several { at }
        | BadCode::Count { at }
        | BadCode::SelfModifying { at }
        | BadCode::Msr { at } => Some(*at),
        BadCode::Overlap(_) => None,
    }
}

/// See [`Subject::texts`].
pub(crate) struct Texts<'a> {
    target: &'a Target,
    listing: Option<Listing>,
    /// The names of addresses.
    names: BTreeMap<u64, String>,
}

impl Texts<'_> {
    pub(crate) fn line(&self, at: u64) -> Option<&switcher_listing::Instruction> {
        self.listing.as_ref()?.lines.iter().find_map(|line| match line {
            Line::Instruction(instruction) if instruction.address == at => Some(instruction),
            _ => None,
        })
    }

    /// The emitter's file and line.
    pub(crate) fn source(&self, at: u64) -> Option<String> {
        let source = self.line(at)?.source.as_ref()?;
        Some(format!("{}:{}", source.file, source.line))
    }

    /// The instruction, followed by its source.
    pub(crate) fn annotated(&self, at: u64) -> Option<String> {
        let Some(line) = self.line(at) else {
            let is_code = matches!(self.target.program.at(at), Some(Ok(_)));
            return match is_code {
                true => Some(operands::text(self.target, at, &self.names, &[])),
                false => self.target.program.text(at),
            };
        };
        let mut text = match line.operands.as_slice() {
            [] => line.mnemonic.clone(),
            operands => format!("{:<7} {}", line.mnemonic, operands.join(", ")),
        };
        if let Some(source) = self.source(at) {
            text = format!("{text:<52}  {source}");
        }
        Some(text)
    }
}
