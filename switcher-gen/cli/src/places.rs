//! Where an instruction is, for somebody who looks for it: symbol and offset, file and line.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use switcher_listing::{Listing, ListingOptions};
use switcher_prove::{Counterexample, Lines, NoLines, SourceLine, Target};

use crate::layout::Layout;
use crate::subject::{Subject, Texts};

/// The places of a subject's code.
pub(crate) struct Places<'a> {
    texts: Texts<'a>,
    symbols: BTreeMap<u64, String>,
    lines: Result<Lines, NoLines>,
    base: u64,
    is_ours: bool,
    layout: &'a Layout,
}

/// Where an instruction is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Place {
    /// Its address.
    pub(crate) address: u64,
    /// How far it is from the first byte of the code.
    pub(crate) offset: u64,
    /// The nearest symbol at or before it.
    pub(crate) symbol: Option<Symbol>,
    /// Where it was written.
    pub(crate) source: Option<SourceLine>,
}

/// A symbol, and how far behind it something is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Symbol {
    pub(crate) name: String,
    pub(crate) offset: u64,
}

/// Where the emitters' files are named from, as seen from the root of the tree.
const EMITTERS: &str = "switcher-gen/src/";

impl<'a> Places<'a> {
    /// A counterexample in the names of the subject's kernel.
    pub(crate) fn named(&self, found: Counterexample) -> Counterexample {
        self.layout.named(found)
    }

    pub(crate) fn of(subject: &'a Subject) -> Self {
        let (symbols, lines) = match (&subject.image, &subject.file) {
            (_, Some((file, foreign))) => {
                let symbols = foreign.symbols.iter().map(|(name, at)| (*at, name.clone()));
                // Of several names of one place, that of a routine comes last and counts.
                let mut symbols: Vec<_> = symbols.collect();
                symbols.sort_by_key(|(at, name)| (*at, name.contains("switcher")));
                (symbols.into_iter().collect(), Lines::read(file, foreign))
            }
            (Some(image), None) => {
                let base = image.variant().paging().address(Target::BASE).ok();
                let listing = Listing::new(image, &ListingOptions { base, source: false });
                let symbols = listing.map(|listing| listing.symbols).unwrap_or_default();
                let symbols = symbols.into_iter().map(|it| (it.address, it.name.to_owned()));
                (symbols.collect(), Ok(Lines::default()))
            }
            (None, None) => (BTreeMap::new(), Err(NoLines::None)),
        };
        Self {
            layout: &subject.layout,
            texts: subject.texts(),
            symbols,
            lines,
            base: subject.target.program.base(),
            is_ours: subject.image.is_some(),
        }
    }

    /// Where the instruction at `address` is.
    pub(crate) fn at(&self, address: u64) -> Place {
        let symbol = self.symbols.range(..=address).next_back();
        let symbol = symbol.map(|(at, name)| Symbol { name: name.clone(), offset: address - at });
        let offset = address.wrapping_sub(self.base);
        Place { address, offset, symbol, source: self.source(address) }
    }

    /// The instruction's text, with its source if that is known.
    pub(crate) fn text(&self, address: u64) -> Option<String> {
        let text = self.texts.annotated(address)?;
        let source = self.source(address).filter(|_| !self.is_ours);
        Some(match source {
            Some(SourceLine { file, line }) => format!("{text:<40}  {file}:{line}"),
            None => text,
        })
    }

    /// Why a file's lines are not known, if they are not.
    pub(crate) fn why_no_lines(&self) -> Option<&NoLines> {
        self.lines.as_ref().err()
    }

    fn source(&self, address: u64) -> Option<SourceLine> {
        if self.is_ours {
            let source = self.texts.line(address)?.source.as_ref()?;
            let file = format!("{EMITTERS}{}", source.file);
            return Some(SourceLine { file, line: source.line.into() });
        }
        self.lines.as_ref().ok()?.at(address)
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            0 => f.write_str(&self.name),
            offset => write!(f, "{}+{offset:#x}", self.name),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, symbol, source, .. } = self;
        match symbol {
            Some(symbol) => write!(f, "{symbol} ({address:#x})")?,
            None => write!(f, "{address:#x}")?,
        }
        match source {
            Some(SourceLine { file, line }) => write!(f, ", {file}:{line}"),
            None => Ok(()),
        }
    }
}
