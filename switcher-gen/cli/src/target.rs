//! Which code a command is about: one of our variants, or what others have assembled.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use switcher_gen::layout::{Revision, Tss, TssExtra};
use switcher_gen::{Image, Policy, Variant};
use switcher_listing::{Line, Listing, ListingOptions};
use switcher_model::Features;
use switcher_prove::elf;
use switcher_prove::{BadCode, BlockOffsets, Setting, Target};

use crate::emit::number;
use crate::host;
use crate::names;
use crate::output::Failure;

/// To be flattened into a command's arguments.
#[derive(clap::Args)]
pub(crate) struct TargetArgs {
    /// Which variant [default: the one for this host; intel-4level if there is none]
    #[arg(long, value_name = "NAME", value_parser = names::variant)]
    variant: Option<Variant>,
    #[command(flatten)]
    pub(crate) foreign: ForeignArgs,
}

/// What others have assembled, and what has to be said of it. Its host is said by the command's
/// argument `variant`.
#[derive(clap::Args)]
pub(crate) struct ForeignArgs {
    /// Somebody else's code: an object or a linked file with the symbols of our images; `--variant`
    /// says for which host it is meant
    #[arg(long, value_name = "FILE", requires = "variant")]
    elf: Option<PathBuf>,
    /// The layout of the PVCS that the code of `--elf` is for [default: the variant's]
    #[arg(long, value_name = "REVISION", value_enum, requires = "elf")]
    pvcs: Option<Pvcs>,
    /// Where the code of `--elf` has the TSS, relative to GS base [default: 0]
    #[arg(
        long,
        value_name = "N",
        value_parser = displacement,
        allow_hyphen_values = true,
        requires = "elf"
    )]
    gs_tss: Option<i64>,
    /// Where it has the switcher's data, relative to GS base [default: 0x80]
    #[arg(
        long,
        value_name = "N",
        value_parser = displacement,
        allow_hyphen_values = true,
        requires = "elf"
    )]
    gs_tss_extra: Option<i64>,
    /// What the CPUs that the code of `--elf` is for have besides what the variant implies
    #[arg(long = "feature", value_name = "NAME", value_parser = str::parse::<Features>, requires = "elf")]
    features: Vec<Features>,
    /// How many instructions a path of `--elf` may have [default: 10000]: more take longer to
    /// prove, and a loop without an end takes as long to be refused
    #[arg(long, value_name = "N", requires = "elf")]
    instructions: Option<NonZeroUsize>,
    /// Take it for granted that sections of `--elf` that name the code, for a purpose that is not
    /// known, do not change it; the verdict says so
    #[arg(long, requires = "elf")]
    assume_unpatched: bool,
}

/// A layout of the PVCS, as an argument.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Pvcs {
    /// Of 2024: smod has a stack of its own
    V2024,
    /// Of 2026: RSP passes through every direct switch
    V2026,
}

impl From<Pvcs> for Revision {
    fn from(pvcs: Pvcs) -> Self {
        match pvcs {
            Pvcs::V2024 => Self::V2024,
            Pvcs::V2026 => Self::V2026,
        }
    }
}

impl TargetArgs {
    /// In reports.
    pub(crate) fn name(&self) -> String {
        self.foreign.name().unwrap_or_else(|| self.variant().to_string())
    }

    /// The variant, also where it only says which host foreign code is for.
    pub(crate) fn variant(&self) -> Variant {
        self.variant.or_else(host::variant_if_known).unwrap_or(Variant::REFERENCE)
    }

    /// The code, with what it is meant for.
    pub(crate) fn target(&self) -> Result<Target, Failure> {
        let variant = self.variant();
        match self.foreign.target(&variant)? {
            Some(target) => Ok(target),
            None => match Image::new(&variant) {
                Ok(image) => Ok(Target::image(&image)),
                Err(error) => Err(Failure::failed(format!("cannot assemble {variant}"), error)),
            },
        }
    }

    /// The same, with what is known of it.
    pub(crate) fn subject(&self) -> Result<Subject, Failure> {
        let variant = self.variant();
        match self.foreign.subject(&variant)? {
            Some(subject) => Ok(subject),
            None => Subject::of_variant(&variant),
        }
    }
}

impl ForeignArgs {
    /// The file's name, if one was given.
    pub(crate) fn name(&self) -> Option<String> {
        self.elf.as_ref().map(|path| path.display().to_string())
    }

    /// Whether something is said of a file, for commands that need not have one: that an argument
    /// requires another one does not count where that one conflicts with a third.
    pub(crate) const fn is_used(&self) -> bool {
        let Self { elf, pvcs, gs_tss, gs_tss_extra, features, instructions, assume_unpatched } =
            self;
        elf.is_some()
            || pvcs.is_some()
            || gs_tss.is_some()
            || gs_tss_extra.is_some()
            || !features.is_empty()
            || instructions.is_some()
            || *assume_unpatched
    }

    /// The file's code, if one was given, for the host that `variant` is for.
    pub(crate) fn target(&self, variant: &Variant) -> Result<Option<Target>, Failure> {
        let read = self.elf.as_ref().map(|path| self.read(path, variant)).transpose()?;
        Ok(read.map(|(target, _)| target))
    }

    /// The same, with what is known of it.
    pub(crate) fn subject(&self, variant: &Variant) -> Result<Option<Subject>, Failure> {
        let read = self.elf.as_ref().map(|path| self.read(path, variant)).transpose()?;
        Ok(self.name().zip(read).map(|(name, (target, file))| Subject {
            name,
            target,
            image: None,
            file: Some(file),
        }))
    }

    fn read(&self, path: &Path, variant: &Variant) -> Result<(Target, OpenFile), Failure> {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::Usage(format!("cannot take {}: {error}", path.display()))
        };
        let policy = variant.policy();
        let revision = self.pvcs.map_or(policy.revision, Revision::from);
        let variant = variant.with_policy(Policy { revision, ..policy });
        let features = self.features.iter().copied().collect();
        let setting = Setting::from(&variant).with_block(self.block()?).with_features(features);
        // A device might never end.
        if !fs::metadata(path).map_err(|error| wrong(&error))?.is_file() {
            return Err(wrong(&"not a file: give an object or a linked file"));
        }
        let file = fs::File::open(path).map_err(|error| wrong(&error))?;
        let mut foreign = elf::read_file(&file).map_err(|error| wrong(&error))?;
        if self.assume_unpatched {
            foreign.assume_unpatched();
        }
        let target = Target::foreign(&foreign, setting).map_err(|error| wrong(&error))?;
        let limit = self.instructions.map_or(target.limit, NonZeroUsize::get);
        Ok((target.with_limit(limit), (file, foreign)))
    }

    fn block(&self) -> Result<BlockOffsets, Failure> {
        let default = BlockOffsets::default();
        let block = BlockOffsets {
            tss: self.gs_tss.unwrap_or(default.tss),
            tss_extra: self.gs_tss_extra.unwrap_or(default.tss_extra),
        };
        let BlockOffsets { tss, tss_extra } = block;
        let (tss_size, extra_size) = (size_of::<Tss>() as i64, size_of::<TssExtra>() as i64);
        if tss < tss_extra + extra_size && tss_extra < tss + tss_size {
            return Err(Failure::Usage(format!(
                "the TSS ({tss_size:#x} bytes at GS{}) and the switcher's data ({extra_size:#x} \
                 bytes at GS{}) overlap: set `--gs-tss` and `--gs-tss-extra` to where the code \
                 has them",
                signed(tss),
                signed(tss_extra),
            )));
        }
        Ok(block)
    }
}

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
}

/// A file, with what was read of it.
pub(crate) type OpenFile = (fs::File, elf::Foreign);

impl Subject {
    /// One of ours.
    pub(crate) fn of_variant(variant: &Variant) -> Result<Self, Failure> {
        let image = Image::new(variant)
            .map_err(|error| Failure::failed(format!("cannot assemble {variant}"), error))?;
        let target = Target::image(&image);
        Ok(Self { name: variant.to_string(), target, image: Some(image), file: None })
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
        Texts { target: &self.target, listing }
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
        let Some(line) = self.line(at) else { return self.target.program.text(at) };
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

fn signed(offset: i64) -> String {
    format!("{}{:#x}", if offset < 0 { '-' } else { '+' }, offset.unsigned_abs())
}

/// A displacement from GS base, as an instruction can have it.
fn displacement(text: &str) -> Result<i64, String> {
    let (digits, sign) = match text.strip_prefix('-') {
        Some(digits) => (digits, -1),
        None => (text, 1),
    };
    number(digits)
        .and_then(|size| i64::try_from(size).ok())
        .map(|size| sign * size)
        .filter(|offset| i32::try_from(*offset).is_ok())
        .ok_or_else(|| "not a 32-bit displacement such as 0x80, 4096 or -0x40".into())
}

#[cfg(test)]
mod tests {
    use super::displacement;

    #[test]
    fn displacements_are_hexadecimal_or_decimal_and_have_32_bits() {
        assert_eq!(displacement("0x80"), Ok(0x80));
        assert_eq!(displacement("-0x8000_0000"), Ok(i32::MIN.into()));
        assert_eq!(displacement("4096"), Ok(4096));
        for bad in ["", "-", "--1", "80h", "0x80000000", "0xffffffffffffffff"] {
            assert!(displacement(bad).is_err(), "{bad}");
        }
    }
}
