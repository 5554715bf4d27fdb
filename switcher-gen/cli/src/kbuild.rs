//! `switcher emit --format kbuild`: a switcher in the place of a kernel's own, proved before it is
//! written.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use switcher_gen::kernels::ModuleBlock;
use switcher_gen::{Policy, Variant};
use switcher_listing::drop_in::{DropIn, DropInError};
use switcher_prove::{Profile, Prover, Target, Verdict, elf};

use crate::interrupt;
use crate::output::{Failure, print};

/// Emits a switcher for a kernel.
type Emit = fn(&Variant, &[(&str, &str)]) -> Result<DropIn, DropInError>;

/// The kernels whose switcher can be replaced, with the emitters for their structs. The others have
/// their IRETQ in a file of their own.
const EMIT: &[(&str, Emit)] = &[("linux-pvm-module-2026", DropIn::new::<ModuleBlock>)];

/// What is written, by name.
type Files = [(&'static str, Vec<u8>); 5];

/// Emits the switcher for the kernel of `profile`, proves it and writes it to `folder`.
pub(crate) fn write(
    profile: &Profile,
    variant: &Variant,
    folder: &Path,
    force: bool,
) -> Result<(), Failure> {
    let Some((_, emit)) = EMIT.iter().find(|(name, _)| *name == profile.name) else {
        let known = EMIT.iter().map(|(name, _)| *name).collect::<Vec<_>>().join("`, `");
        return Err(Failure::Usage(format!(
            "no switcher can be written for `{}`: there is one for `{known}`",
            profile.name
        )));
    };
    let policy = variant.policy();
    let revision = profile.pvcs.unwrap_or(policy.revision);
    let variant = variant.with_policy(Policy { revision, ..policy });
    // Before it takes the time that a proof takes.
    let folder = Folder::at(folder, force)?;
    let drop_in = emit(&variant, profile.symbols).map_err(|error| match error {
        DropInError::Placement { .. } | DropInError::NoField { .. } => {
            Failure::Usage(error.to_string())
        }
        error => Failure::failed(format!("cannot assemble {variant}"), error),
    })?;
    let wrong = |error: DropInError| Failure::failed(format!("cannot write {variant}"), error);
    let object = drop_in.object().map_err(wrong)?;
    let source = drop_in.source().map_err(wrong)?;
    let proof = prove(&object, profile, &variant)?;
    folder.write(&[
        ("switcher.S", source.into_bytes()),
        ("switcher.o", object),
        ("switcher.h", drop_in.header().into_bytes()),
        ("switcher_layout.c", DropIn::layout_check().into()),
        ("Kbuild", DropIn::kbuild().into()),
    ])?;
    print(format!("{proof}written to {}\n", folder.path.display()))
}

/// Proves the object as it would be read from a file, for the kernel of `profile`. Returns what is
/// to be said of the proof.
fn prove(object: &[u8], profile: &Profile, variant: &Variant) -> Result<String, Failure> {
    let unread = |error: &dyn std::fmt::Display| {
        Failure::failed("nothing is written: the object cannot be read back", error)
    };
    let foreign = elf::read_as(object, profile.request()).map_err(|error| unread(&error))?;
    let block = profile.block(&foreign).ok_or_else(|| unread(&"no variable holds the TSS"))?;
    let setting = profile.setting(variant).map_err(|error| unread(&error))?.with_block(block);
    let target = Target::foreign(&foreign, setting).map_err(|error| unread(&error))?;
    let target = profile.with_windows(target, &foreign);
    interrupt::listen();
    let prover = Prover::default().stopped_by(interrupt::flag());
    match prover.prove(&target) {
        Verdict::Proved(reports) => {
            let goals: usize = reports.iter().map(|report| report.goals).sum();
            let mut text = format!(
                "{variant} for {}: proved, {} theorems and {goals} goals\n",
                profile.name,
                reports.len()
            );
            let assumed = target.assumed.iter().map(|what| ("taken for granted", what.clone()));
            let not_judged = target.not_judged().into_iter();
            let not_judged = not_judged.map(|what| ("not judged", what.to_string()));
            for (heading, what) in assumed.chain(not_judged) {
                text += &format!("  {heading}: {what}\n");
            }
            Ok(text)
        }
        Verdict::Refuted(found) => {
            Err(Failure::failed("nothing is written: the switcher is refuted", found))
        }
        Verdict::Unknown(why) => {
            Err(Failure::Unknown(format!("nothing is written: neither proved nor refuted: {why}")))
        }
        Verdict::Unsupported(code) => {
            Err(Failure::failed("nothing is written: no theorem can be about the code", code))
        }
        Verdict::Interrupted(theorem) => Err(Failure::Interrupted(format!(
            "interrupted in the proof of {theorem}: nothing is written"
        ))),
    }
}

/// The file whose name others use as well.
const KBUILD: &str = "Kbuild";

/// Whether a file is what is written here.
fn is_ours(path: &Path) -> io::Result<bool> {
    Ok(fs::read(path)? == DropIn::kbuild().as_bytes())
}

/// Where the files go.
struct Folder {
    path: PathBuf,
    exists: bool,
}

impl Folder {
    /// The names of all that is written.
    const NAMES: [&'static str; 5] =
        ["Kbuild", "switcher.S", "switcher.h", "switcher.o", "switcher_layout.c"];

    /// The folder at `path`, which may have been written before. Other files are refused, unless
    /// somebody uses `force`.
    fn at(path: &Path, force: bool) -> Result<Self, Failure> {
        let unreadable =
            |error: io::Error| Failure::failed(format!("cannot read {}", path.display()), error);
        let path = path.to_owned();
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path, exists: false });
            }
            Err(error) => return Err(unreadable(error)),
            Ok(found) if !found.is_dir() => {
                let message = format!("{} is no folder: name one with `-o DIR`", path.display());
                return Err(Failure::Usage(message));
            }
            Ok(_) => {}
        }
        let mut others = BTreeSet::new();
        for entry in fs::read_dir(&path).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !Self::NAMES.contains(&name.as_str()) {
                others.insert(name);
            } else if !entry.file_type().map_err(unreadable)?.is_file() {
                return Err(Failure::Usage(format!(
                    "`{name}` in {} is no file, and would have to be replaced: take it away",
                    path.display()
                )));
            } else if name == KBUILD && !is_ours(&entry.path()).map_err(unreadable)? {
                others.insert(name);
            }
        }
        if !others.is_empty() && !force {
            let others = others.into_iter().collect::<Vec<_>>().join("`, `");
            return Err(Failure::Usage(format!(
                "{} has other files (`{others}`): name an empty folder, or say `--force`, which \
                 replaces a Kbuild and leaves the others alone",
                path.display()
            )));
        }
        Ok(Self { path, exists: true })
    }

    /// Writes all files, or none: a new folder gets its name once all are in it, and in one that
    /// exists each file is replaced as a whole, once all are written.
    fn write(&self, files: &Files) -> Result<(), Failure> {
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned());
        let part =
            format!(".{}.{}.part", name.as_deref().unwrap_or("switcher"), std::process::id());
        let part = if self.exists { self.path.join(part) } else { self.path.with_file_name(part) };
        let written = self.write_by(&part, files);
        // What is reported is why it could not be written, not what became of the rest.
        let _ = fs::remove_dir_all(&part);
        written.map_err(|error| {
            Failure::failed(format!("cannot write {}", self.path.display()), error)
        })
    }

    fn write_by(&self, part: &Path, files: &Files) -> io::Result<()> {
        fs::create_dir(part)?;
        for (name, contents) in files {
            fs::write(part.join(name), contents)?;
        }
        if !self.exists {
            return fs::rename(part, &self.path);
        }
        for (name, _) in files {
            fs::rename(part.join(name), self.path.join(name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module() -> Profile {
        *Profile::named("linux-pvm-module-2026").unwrap()
    }

    /// The code reads a field where it is not: the proof objects, and nothing is there.
    #[test]
    fn a_wrong_place_of_a_field_is_refuted_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("out");
        let places: Vec<_> = module().extra.to_vec();
        for (field, place) in [("smod_cr3", 0x80), ("enter_cr3", 0x28)] {
            let moved =
                places.iter().map(|(name, at)| (*name, if *name == field { place } else { *at }));
            let extra: &[_] = Box::leak(moved.collect::<Vec<_>>().into_boxed_slice());
            let profile = Profile { extra, ..module() };
            let refused = write(&profile, &Variant::REFERENCE, &folder, false).unwrap_err();
            let Failure::Failed(message) = refused else { panic!("{refused}") };
            assert!(
                message.starts_with("nothing is written: the switcher is refuted"),
                "{message}"
            );
            assert!(message.contains("Replayed"), "{message}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn every_kernel_that_has_emitters_has_a_profile() {
        for (name, _) in EMIT {
            assert_eq!(Profile::named(name).map(|profile| profile.name), Ok(*name));
        }
        let ours = Profile::named("ours").unwrap();
        let error = write(ours, &Variant::REFERENCE, Path::new("out"), false).unwrap_err();
        assert!(error.to_string().contains("there is one for `linux-pvm-module-2026`"), "{error}");
    }

    #[test]
    fn files_are_written_together_and_others_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let files = Folder::NAMES.map(|name| {
            let text = if name == KBUILD { DropIn::kbuild() } else { name };
            (name, text.as_bytes().to_vec())
        });
        Folder::at(&path, false).unwrap().write(&files).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), files.len());
        fs::write(path.join("switcher.S"), "old").unwrap();
        Folder::at(&path, false).unwrap().write(&files).unwrap();
        assert_eq!(fs::read(path.join("switcher.S")).unwrap(), b"switcher.S");
        fs::write(path.join(KBUILD), "obj-m += theirs.o\n").unwrap();
        let Err(Failure::Usage(message)) = Folder::at(&path, false) else { panic!("not refused") };
        assert!(message.contains(KBUILD), "{message}");
        Folder::at(&path, true).unwrap().write(&files).unwrap();
        assert_eq!(fs::read(path.join(KBUILD)).unwrap(), DropIn::kbuild().as_bytes());
        fs::write(path.join("theirs.c"), "theirs").unwrap();
        let Err(Failure::Usage(message)) = Folder::at(&path, false) else { panic!("not refused") };
        assert!(message.contains("theirs.c"), "{message}");
        Folder::at(&path, true).unwrap().write(&files).unwrap();
        assert_eq!(fs::read(path.join("theirs.c")).unwrap(), b"theirs");
        assert_eq!(fs::read_dir(&path).unwrap().count(), files.len() + 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(matches!(Folder::at(&path.join("theirs.c"), true), Err(Failure::Usage(_))));
    }
}
