//! `switcher offsets --from`: the layouts of somebody else's structs beside ours.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Serialize;
use switcher_gen::layout::{AsmLayout, Layout, PerCpu, Pvcs, PvcsV2026, Revision, Tss, TssExtra};
use switcher_offsets::{Found, Names, Options, Source, Struct, merge, read_file_with};

use crate::output::Failure;

/// The structs whose names in C can be said, as they are called on the command line.
const NAMED: [&str; 4] = ["tss_struct", "tss", "tss_extra", "pvcs"];

/// Fields of ours that have other names in Linux: those that are there count, in this order.
const ALIASES: &[(&str, &[&str])] = &[
    ("ist1", &["ist[0]", "ist"]),
    ("ist2", &["ist[1]"]),
    ("ist3", &["ist[2]"]),
    ("ist4", &["ist[3]"]),
    ("ist5", &["ist[4]"]),
    ("ist6", &["ist[5]"]),
    ("ist7", &["ist[6]"]),
    ("iomap_base", &["io_bitmap_base"]),
];

/// A struct and its name in C, as an argument.
#[derive(Clone)]
pub(crate) struct Named {
    of: &'static str,
    name: String,
}

/// Reads `tss_extra=my_extra`.
pub(crate) fn named(text: &str) -> Result<Named, String> {
    let known = || format!("the structs are {}", NAMED.join(", "));
    let Some((of, name)) = text.split_once('=') else {
        return Err(format!("write it as tss_extra=NAME; {}", known()));
    };
    let Some(of) = NAMED.iter().find(|known| **known == of) else {
        let distance = |it: &&&str| strsim::damerau_levenshtein(it, of);
        let nearest = NAMED.iter().min_by_key(distance).filter(|it| distance(it) < 4);
        let nearest = nearest.map_or(String::new(), |it| format!(", maybe it is `{it}`"));
        return Err(format!("there is no struct `{of}`{nearest}; {}", known()));
    };
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    if name.is_empty() || !name.chars().all(is_of_name) {
        return Err(format!("`{name}` is no name of a struct in C"));
    }
    Ok(Named { of, name: name.to_owned() })
}

/// What was read, and with what it is compared.
pub(crate) fn compare(
    from: &[PathBuf],
    named: &[Named],
    revision: Option<Revision>,
) -> Result<Comparison, Failure> {
    let (files, found) = read(from, named)?;
    Ok(Comparison::new(files, &found, revision))
}

/// What several files say together.
pub(crate) fn found(from: &[PathBuf], named: &[Named]) -> Result<Found, Failure> {
    read(from, named).map(|(_, found)| found)
}

fn read(from: &[PathBuf], named: &[Named]) -> Result<(Vec<FileRead>, Found), Failure> {
    let options = Options { names: names(named)?, ..Options::default() };
    let mut files = Vec::new();
    let mut read = Vec::new();
    for path in from {
        let file = path.display().to_string();
        let found = read_one(path, &options)
            .map_err(|error| Failure::Usage(format!("cannot use {file}: {error}")))?;
        files.push(FileRead { file: file.clone(), source: found.source });
        read.push((file, found));
    }
    let found = merge(read).map_err(|contradiction| Failure::Usage(contradiction.to_string()))?;
    let found = found.ok_or_else(|| Failure::Usage("no file was given".into()))?;
    Ok((files, found))
}

fn read_one(path: &Path, options: &Options) -> Result<Found, String> {
    // A pipe might never begin.
    if !std::fs::metadata(path).map_err(|error| error.to_string())?.is_file() {
        return Err("it is not a file".into());
    }
    let file = File::open(path).map_err(|error| error.to_string())?;
    read_file_with(&file, options).map_err(|error| error.to_string())
}

fn names(named: &[Named]) -> Result<Names, Failure> {
    let mut names = Names::default();
    for (number, Named { of, name }) in named.iter().enumerate() {
        if named[..number].iter().any(|earlier| earlier.of == *of) {
            return Err(Failure::Usage(format!("`--struct {of}=` is given twice")));
        }
        let slot = match *of {
            "tss_struct" => &mut names.tss_struct,
            "tss" => &mut names.tss,
            "tss_extra" => &mut names.tss_extra,
            _ => &mut names.pvcs,
        };
        slot.clone_from(name);
    }
    Ok(names)
}

/// Their structs beside ours.
#[derive(Serialize)]
pub(crate) struct Comparison {
    files: Vec<FileRead>,
    /// With which of our PVCS theirs is compared.
    pvcs_revision: &'static str,
    /// Whether it is known where their `tss_extra` begins.
    is_start_known: bool,
    structs: Vec<Compared>,
}

#[derive(Serialize)]
struct FileRead {
    file: String,
    source: Source,
}

#[derive(Serialize)]
struct Compared {
    name: &'static str,
    ours: Whole,
    /// Nothing if no file has it.
    theirs: Option<Whole>,
    fields: Vec<Row>,
    /// Their bit fields, which are not compared.
    bit_fields: Vec<String>,
}

/// A struct as a whole.
#[derive(Clone, Copy, Serialize)]
struct Whole {
    /// Where it lies in the block of a CPU.
    at: Option<u64>,
    size: Option<u64>,
}

/// A field, of one or of both.
#[derive(Serialize)]
struct Row {
    ours: Option<Place>,
    theirs: Option<Place>,
    difference: Option<Difference>,
}

#[derive(Clone, Serialize)]
struct Place {
    name: String,
    at: u64,
    size: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Difference {
    Moved,
    Resized,
    OnlyOurs,
    OnlyTheirs,
}

impl Difference {
    fn words(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Resized => "resized",
            Self::OnlyOurs => "only ours",
            Self::OnlyTheirs => "only theirs",
        }
    }
}

/// Where a field of a CPU's block lies in it.
fn in_block(name: &str) -> Option<u64> {
    let field = PerCpu::LAYOUT.fields.iter().find(|field| field.name == name);
    field.map(|field| field.offset as u64)
}

impl Comparison {
    fn new(files: Vec<FileRead>, found: &Found, revision: Option<Revision>) -> Self {
        let pvcs = |revision| {
            let layout = match revision {
                Revision::V2024 => Pvcs::LAYOUT,
                Revision::V2026 => PvcsV2026::LAYOUT,
            };
            Compared::new("pvcs", layout, found.pvcs.as_ref(), None)
        };
        let differences = |revision: &Revision| {
            // What only they have tells nothing of the revision.
            let differs = |row: &&Row| {
                row.difference.is_some_and(|difference| difference != Difference::OnlyTheirs)
            };
            pvcs(*revision).fields.iter().filter(differs).count()
        };
        let nearest = || {
            let all = [Revision::V2024, Revision::V2026];
            all.into_iter().min_by_key(differences).unwrap_or_default()
        };
        let revision = revision.unwrap_or_else(nearest);
        Self {
            files,
            pvcs_revision: match revision {
                Revision::V2024 => "v2024",
                Revision::V2026 => "v2026",
            },
            is_start_known: found.is_start_known,
            structs: vec![
                Compared::new("tss", Tss::LAYOUT, found.tss.as_ref(), found.tss_at),
                Compared::new(
                    "tss_extra",
                    TssExtra::LAYOUT,
                    found.tss_extra.as_ref(),
                    found.tss_extra_at,
                ),
                pvcs(revision),
            ],
        }
    }

    /// As tables.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for FileRead { file, source } in &self.files {
            text += &format!("{file}: {source}\n");
        }
        for compared in &self.structs {
            text += "\n";
            text += &compared.text();
            if compared.theirs.is_some() {
                match compared.name {
                    "tss_extra" if !self.is_start_known => {
                        text += "  a header does not say where the struct begins: offsets count \
                                 from its first field\n";
                    }
                    "pvcs" => text += &format!("  ours is of {}\n", &self.pvcs_revision[1..]),
                    _ => {}
                }
            }
        }
        text
    }
}

impl Compared {
    fn new(name: &'static str, ours: &Layout, theirs: Option<&Struct>, at: Option<u64>) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        let mut taken: Vec<&str> = Vec::new();
        // Padding starts with `_`.
        for field in ours.fields.iter().filter(|field| !field.name.starts_with('_')) {
            let alias = ALIASES.iter().find(|(own, _)| *own == field.name);
            let names = alias.into_iter().flat_map(|(_, names)| *names).copied();
            let mut names = [field.name].into_iter().chain(names);
            let theirs = theirs.and_then(|theirs| names.find_map(|name| theirs.field(name)));
            taken.extend(theirs.map(|field| field.name.as_str()));
            let size = Some(field.size as u64);
            let ours = Place { name: field.name.into(), at: field.offset as u64, size };
            rows.push(Row::new(Some(ours), theirs.map(Place::of)));
        }
        let theirs_alone = theirs.iter().flat_map(|theirs| &theirs.fields);
        let theirs_alone = theirs_alone.filter(|field| !taken.contains(&field.name.as_str()));
        rows.extend(theirs_alone.map(|field| Row::new(None, Some(Place::of(field)))));
        rows.sort_by_key(Row::at);
        Self {
            name,
            ours: Whole { at: in_block(name), size: Some(ours.size as u64) },
            theirs: theirs.map(|theirs| Whole { at, size: theirs.size }),
            fields: rows,
            bit_fields: theirs.map_or_else(Vec::new, |theirs| theirs.bit_fields.clone()),
        }
    }

    fn text(&self) -> String {
        let Some(theirs) = self.theirs else {
            return format!("{}: in none of the files\n", self.name);
        };
        let whole = |whole: Whole| {
            let place = whole.at.map_or(String::new(), |at| format!(" at +{at:#x} of the block"));
            format!("{} bytes{place}", number(whole.size))
        };
        let mut text = format!("{}: ours {}", self.name, whole(self.ours));
        text += &format!("; theirs {}\n", whole(theirs));
        let name = |row: &Row| match (&row.ours, &row.theirs) {
            (Some(ours), Some(theirs)) if ours.name != theirs.name => {
                format!("{} = {}", ours.name, theirs.name)
            }
            (Some(place), _) | (None, Some(place)) => place.name.clone(),
            (None, None) => String::new(),
        };
        let width = self.fields.iter().map(|row| name(row).len()).max().unwrap_or(0).max(5);
        let line = |name: &str, ours: &str, theirs: &str, mark: &str| {
            let line = format!("  {name:<width$}  {ours:<12}  {theirs:<12}  {mark}");
            line.trim_end().to_owned() + "\n"
        };
        text += &line("field", "ours", "theirs", "");
        let place = |place: &Option<Place>| {
            place.as_ref().map_or(String::new(), |it| format!("{:#06x} {}", it.at, number(it.size)))
        };
        for row in &self.fields {
            let mark = row.difference.map_or("", Difference::words);
            text += &line(&name(row), &place(&row.ours), &place(&row.theirs), mark);
        }
        if !self.bit_fields.is_empty() {
            text += &format!("  bit fields, not compared: {}\n", self.bit_fields.join(", "));
        }
        text
    }
}

/// A size, or that it is not known.
fn number(size: Option<u64>) -> String {
    size.map_or("?".into(), |size| size.to_string())
}

impl Place {
    fn of(field: &switcher_offsets::Field) -> Self {
        Self { name: field.name.clone(), at: field.at, size: field.size }
    }
}

impl Row {
    fn new(ours: Option<Place>, theirs: Option<Place>) -> Self {
        let difference = match (&ours, &theirs) {
            (Some(ours), Some(theirs)) if ours.at != theirs.at => Some(Difference::Moved),
            // An unknown size is no difference.
            (Some(ours), Some(theirs)) => {
                let is_resized = theirs.size.is_some() && ours.size != theirs.size;
                is_resized.then_some(Difference::Resized)
            }
            (Some(_), None) => Some(Difference::OnlyOurs),
            (None, _) => Some(Difference::OnlyTheirs),
        };
        Self { ours, theirs, difference }
    }

    /// What the rows are ordered by: where they have it, or where we do.
    fn at(&self) -> u64 {
        self.theirs.as_ref().or(self.ours.as_ref()).map_or(0, |place| place.at)
    }
}
