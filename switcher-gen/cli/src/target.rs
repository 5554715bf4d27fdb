//! Which code a command is about: one of our variants, or what others have assembled.

use switcher_gen::{Image, Variant};
use switcher_prove::Target;

use crate::foreign::ForeignArgs;
use crate::host;
use crate::names;
use crate::output::Failure;
use crate::subject::Subject;

/// To be flattened into a command's arguments.
#[derive(clap::Args)]
pub(crate) struct TargetArgs {
    /// Which variant [default: the one for this host; intel-4level if there is none]
    #[arg(long, value_name = "NAME", value_parser = names::variant)]
    variant: Option<Variant>,
    #[command(flatten)]
    pub(crate) foreign: ForeignArgs,
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

    /// All that there is to be judged: of a file, each image that can run.
    pub(crate) fn subjects(&self) -> Result<Vec<Subject>, Failure> {
        let variant = self.variant();
        match self.foreign.subjects(&variant)? {
            subjects if subjects.is_empty() => Ok(vec![Subject::of_variant(&variant)?]),
            subjects => Ok(subjects),
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
