//! The structs that are looked for, and what was found of them: the same for DWARF and BTF.

use std::collections::BTreeSet;

use crate::flatten::Flat;
use crate::{Found, Names, OffsetsError, Source, Struct};

/// A struct that is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Block,
    Tss,
    Extra,
    Pvcs,
}

impl Wanted {
    pub(crate) const ALL: [Self; 4] = [Self::Block, Self::Tss, Self::Extra, Self::Pvcs];

    /// What it is called in C.
    pub(crate) fn name(self, names: &Names) -> &str {
        match self {
            Self::Block => &names.tss_struct,
            Self::Tss => &names.tss,
            Self::Extra => &names.tss_extra,
            Self::Pvcs => &names.pvcs,
        }
    }

    /// The struct of this name.
    pub(crate) fn of_name(name: &[u8], names: &Names) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name(names).as_bytes() == name)
    }
}

/// The definitions so far.
pub(crate) struct Definitions<'n> {
    names: &'n Names,
    /// Each with where it was found.
    found: [Option<(Flat, String)>; Wanted::ALL.len()],
}

impl<'n> Definitions<'n> {
    pub(crate) fn new(names: &'n Names) -> Self {
        Self { names, found: [const { None }; Wanted::ALL.len()] }
    }

    /// Adds a definition from `place`, which is asked for only where it counts.
    pub(crate) fn add(
        &mut self,
        wanted: Wanted,
        flat: Flat,
        place: impl FnOnce() -> Result<String, OffsetsError>,
    ) -> Result<(), OffsetsError> {
        let slot = &mut self.found[wanted as usize];
        match slot {
            None => *slot = Some((flat, place()?)),
            Some((same, _)) if *same == flat => {}
            Some((other, first)) => {
                return Err(OffsetsError::TwoDefinitions {
                    name: wanted.name(self.names).into(),
                    difference: difference(&other.layout, &flat.layout),
                    first: first.clone(),
                    second: place()?,
                });
            }
        }
        Ok(())
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.found.iter().all(Option::is_some)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.iter().all(Option::is_none)
    }

    /// All of them, at their places in the block.
    pub(crate) fn finish(self, source: Source) -> Result<Found, OffsetsError> {
        let names = self.names;
        let [block, tss, extra, pvcs] = self.found.map(|found| found.map(|(flat, _)| flat));
        let place = |name: &str| {
            let nested = block.iter().flat_map(|block| &block.nested);
            let mut places = nested.filter(|(of, _)| of == name).map(|(_, at)| *at);
            match (places.next(), places.next()) {
                (Some(first), Some(second)) => Err(OffsetsError::TwoPlaces {
                    name: name.into(),
                    block: names.tss_struct.clone(),
                    first,
                    second,
                }),
                (place, _) => Ok(place),
            }
        };
        let (tss_at, tss_extra_at) = (place(&names.tss)?, place(&names.tss_extra)?);
        let layout = |flat: Option<Flat>| flat.map(|flat| flat.layout);
        Ok(Found {
            tss: layout(tss),
            tss_at,
            tss_extra: layout(extra),
            tss_extra_at,
            pvcs: layout(pvcs),
            ..Found::nothing(source)
        })
    }
}

/// Where two layouts differ first, in words.
fn difference(first: &Struct, second: &Struct) -> String {
    let bytes =
        |size: Option<u64>| size.map_or("an unknown size".into(), |it| format!("{it} bytes"));
    for field in first.fields.iter().chain(&second.fields) {
        match (first.field(&field.name), second.field(&field.name)) {
            (Some(a), Some(b)) if a.at != b.at => {
                return format!("{} lies at {:#x} and at {:#x}", field.name, a.at, b.at);
            }
            (Some(a), Some(b)) if a.size != b.size => {
                return format!("{} has {} and {}", field.name, bytes(a.size), bytes(b.size));
            }
            (Some(_), Some(_)) => {}
            _ => return format!("only one of them has {}", field.name),
        }
    }
    if first.size != second.size {
        return format!("it has {} and {}", bytes(first.size), bytes(second.size));
    }
    "their nested structs or bit fields differ".into()
}

/// The error for a source that has none of the structs, with those of its own names that may be
/// meant.
pub(crate) fn not_found(names: &Names, there: impl IntoIterator<Item = String>) -> OffsetsError {
    /// How many names are shown.
    const FEW: usize = 5;
    /// How alike names must be.
    const ALIKE: f64 = 0.88;
    let there: BTreeSet<String> = there.into_iter().collect();
    let wanted = Wanted::ALL.map(|wanted| wanted.name(names));
    let score = |name: &str| {
        let of_one = |wanted: &&str| {
            let is_part = wanted.len() > 3 && name.contains(*wanted);
            if is_part { 1.0 } else { strsim::jaro_winkler(wanted, name) }
        };
        wanted.iter().map(of_one).fold(0.0, f64::max)
    };
    let mut alike: Vec<_> = there.iter().map(|name| (score(name), name)).collect();
    alike.retain(|(score, _)| *score >= ALIKE);
    alike.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    let alike: Vec<_> = alike.iter().take(FEW).map(|(_, name)| format!("struct {name}")).collect();
    OffsetsError::NotFound {
        looked_for: wanted.map(|name| format!("struct {name}")).join(", "),
        similar: match alike.as_slice() {
            [] => ", nor anything of a similar name: is this a file of the kernel's, and of a \
                   part that uses the structs?"
                .into(),
            alike => format!("; of similar names there are {}", alike.join(", ")),
        },
    }
}
