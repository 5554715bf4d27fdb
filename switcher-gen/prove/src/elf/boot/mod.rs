//! What Linux makes of its code when it boots, from the tables that it keeps for that:
//! alternatives, returns, landing pads and static branches.
//!
//! | file | purpose |
//! |---|---|
//! | `tables` | the tables as they are in a file |
//! | `alternatives` | the table of alternatives |
//! | `sites` | the tables of returns and landing pads |
//! | `branches` | the table of static branches |
//! | `calls` | what is changed in front of what named calls lead to |
//! | `boundaries` | where instructions begin in what is changed |
//! | `opcode` | what Linux takes an instruction for |
//! | `bytes` | what is there, and what is put there that is no code of the file's |
//! | `replacement` | the code of an alternative, moved to where it runs |
//!
//! A verdict is about what runs. So each combination of choices that the reached code depends on
//! is made and judged by itself. What a table names that cannot be read entry by entry is refused,
//! like what any other table names that changes code. So is a place that an entry changes in a way
//! that is not known here, where the code reaches it.

mod alternatives;
mod boundaries;
mod branches;
mod bytes;
mod calls;
mod opcode;
mod replacement;
mod sites;
mod tables;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use switcher_model::Changed;

use super::choice::{Choice, Choices};
use super::code::FileCode;
use super::contents::Contents;
use super::error::ReadError;
use super::features::Feature;
use super::front;
use super::overlay::Overlay;
use bytes::{SEALED, jump, nops, plain};
use replacement::Corrected;
use tables::Table;

/// What Linux may change.
#[derive(Default)]
pub(super) struct Boot {
    /// In the order in which Linux does it.
    sites: Vec<Site>,
    /// Where code lies that is put somewhere else, by its ends.
    sources: Vec<Range<u64>>,
    /// What may be changed in front of places that are, and the table.
    fronts: Vec<(Range<u64>, String)>,
    /// What may be changed in front of what a named call leads to, and the table.
    calls: Vec<(Range<u64>, String)>,
    /// The sections of the tables that these are from.
    sections: HashSet<usize>,
    /// What anything in the file depends on, but for its returns.
    choices: BTreeSet<Choice>,
    /// The choice of a key, by the choice of each static branch of it.
    keys: BTreeMap<Choice, Choice>,
}

/// Where a change matters: a kernel has some hundred thousand places that are changed, and a
/// switcher a few.
pub(super) struct Near<'h> {
    /// The sections that its code may be in; all of the code, if there are none.
    homes: &'h [&'h Range<u64>],
    /// What is put there, by where it starts.
    sources: Vec<Range<u64>>,
}

/// A place that is changed if a choice is made.
struct Site {
    range: Range<u64>,
    /// The choice, and how it must be; nothing if the place is changed anyway.
    when: Option<(Choice, bool)>,
    to: To,
    /// What must be known of the version of Linux, if others do something else here.
    since: Option<Choice>,
    /// The table.
    table: String,
}

/// What a place is changed to.
enum To {
    /// The code at these addresses, and NOPs after it. If the choice is another, NOPs that follow
    /// each other become fewer.
    Code(Range<u64>, Corrected),
    /// RET and traps.
    Return,
    /// A NOP of four bytes, where ENDBR64 is.
    Sealed,
    /// A jump.
    Jump(u64),
    /// NOPs.
    Nops,
    /// Something that is not known here, and why.
    Unknown(&'static str),
}

impl To {
    /// Why, of most of what is not known.
    const NOT_MODELLED: &'static str = "an entry changes it in a way that is not modelled";
}

/// No entry puts more bytes somewhere: their number has one byte.
const SOURCE: u64 = 255;

/// Reads the entries of a table; `None` if that cannot be done.
type Reader<'c, 'f, 'data, R> =
    fn(&'c FileCode<'f, 'data, R>, &Table) -> Result<Option<Vec<Site>>, ReadError>;

impl Near<'_> {
    fn has(&self, range: &Range<u64>) -> bool {
        let first = self.sources.partition_point(|from| from.start + SOURCE <= range.start);
        let mut near = self.sources[first..].iter().take_while(|from| from.start < range.end);
        self.is_home(range) || near.any(|from| overlap(from, range))
    }

    fn is_home(&self, range: &Range<u64>) -> bool {
        self.homes.is_empty() || self.homes.iter().any(|home| overlap(home, range))
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Boot {
    /// What the tables of a file that can be read change in the sections that a switcher's code may
    /// be in, and in what is put there.
    pub(super) fn read<'data, R: Contents<'data>>(
        code: &FileCode<'_, 'data, R>,
        homes: &[&Range<u64>],
    ) -> Result<Self, ReadError> {
        // Linux does it in this order, after the returns.
        let readers: [(&str, Reader<'_, '_, 'data, R>); 2] =
            [(".altinstructions", alternatives::read), (".ibt_endbr_seal", sites::seals)];
        let mut boot = Self::default();
        for (name, read) in readers {
            let Some(table) = Table::read(code, name)? else { continue };
            let Some(sites) = read(code, &table)? else { continue };
            boot.sites.extend(sites);
            boot.sections.extend(table.sections);
        }
        if let Some(table) = Table::read(code, "__jump_table")?
            && let Some(branches) = branches::read(code, &table)?
        {
            boot.sites.extend(branches.sites);
            boot.keys = branches.keys;
            boot.sections.extend(table.sections);
        }
        boot.sources = boot.sites.iter().filter_map(Site::source).collect();
        boot.sources.sort_by_key(|from| (from.end, from.start));
        let choices = boot.sites.iter().filter_map(|site| site.when.as_ref());
        boot.choices = choices.map(|(choice, _)| choice.clone()).collect();
        let mut near = Near { homes, sources: Vec::new() };
        let own = boot.sites.iter().filter(|site| near.is_home(&site.range));
        near.sources = own.filter_map(Site::source).collect();
        near.sources.sort_by_key(|from| from.start);
        if let Some(table) = Table::read(code, ".return_sites")?
            && let Some(sites) = sites::returns(code, &table, &near)?
        {
            boot.sites.splice(0..0, sites);
            boot.sections.extend(table.sections);
        }
        boot.fronts = sites::fronts(code, &boot.sites, &near);
        boot.calls = calls::fronts(code, &boot.sites, &near)?;
        boot.sites.retain(|site| near.has(&site.range));
        boot.forget_what_meets();
        boot.forget_equal_versions(code)?;
        Ok(boot)
    }

    /// Takes places that several tables change for places of which nothing is known, but for the
    /// returns in alternatives, which become what they are first. So it is with code that is put
    /// somewhere and is itself changed, other than at its returns.
    fn forget_what_meets(&mut self) {
        let kind = |site: &Site| match site.to {
            To::Return => 0,
            To::Code(..) => 1,
            To::Sealed => 2,
            To::Jump(_) | To::Nops | To::Unknown(_) => 3,
        };
        let mut changed: Vec<(Range<u64>, u8)> =
            self.sites.iter().map(|site| (site.range.clone(), kind(site))).collect();
        changed.sort_by_key(|(range, _)| range.start);
        // No entry is longer than this.
        let near = |of: &Range<u64>| {
            let first = changed.partition_point(|(range, _)| range.start + 256 <= of.start);
            let last = changed.partition_point(|(range, _)| range.start < of.end);
            changed.get(first..last.max(first)).unwrap_or_default()
        };
        let meets = |site: &Site| {
            let own = kind(site);
            let by_another = |(range, other): &(Range<u64>, u8)| {
                overlap(range, &site.range) && own.max(*other) > 1 && own != *other
            };
            let is_source = |(range, other): &(Range<u64>, u8)| match &site.to {
                To::Code(from, _) => *other != 0 && overlap(range, from),
                _ => false,
            };
            near(&site.range).iter().any(by_another)
                || matches!(&site.to, To::Code(from, _) if near(from).iter().any(is_source))
        };
        let met: Vec<bool> = self.sites.iter().map(meets).collect();
        for (site, _) in self.sites.iter_mut().zip(met).filter(|(_, met)| *met) {
            site.to = To::Unknown(To::NOT_MODELLED);
        }
    }

    /// Where all versions of Linux put the same bytes, nothing must be known of the version.
    fn forget_equal_versions<'data, R: Contents<'data>>(
        &mut self,
        code: &FileCode<'_, 'data, R>,
    ) -> Result<(), ReadError> {
        for site in &mut self.sites {
            if let (Some(Choice::Since6_5), To::Code(from, _)) = (&site.since, &site.to)
                && replacement::is_moved_alike(code, from, &site.range)?
            {
                site.since = None;
            }
        }
        Ok(())
    }

    /// Whether code at an address is put somewhere else.
    pub(super) fn copies(&self, address: u64) -> bool {
        let first = self.sources.partition_point(|from| from.end <= address);
        let near = self.sources[first..].iter().take_while(|from| from.end <= address + SOURCE);
        near.into_iter().any(|from| from.contains(&address))
    }

    /// Where the code comes from that is put into these ranges, which are in order.
    pub(super) fn sources(&self, ranges: &[Range<u64>]) -> impl Iterator<Item = u64> {
        self.reached(ranges).filter_map(|site| Some(site.source()?.start))
    }

    /// That code itself, in order.
    pub(super) fn copied(&self, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        let mut copied: Vec<_> = self.reached(ranges).filter_map(Site::source).collect();
        copied.sort_by_key(|from| (from.start, from.end));
        let mut apart: Vec<Range<u64>> = Vec::new();
        for from in copied {
            match apart.last_mut().filter(|last| from.start <= last.end) {
                Some(last) => last.end = last.end.max(from.end),
                None => apart.push(from),
            }
        }
        apart
    }

    /// Refuses returns that Linux does not make the host's, where they have to be.
    pub(super) fn check_returns<'data, R: Contents<'data>>(
        &self,
        code: &FileCode<'_, 'data, R>,
        instructions: &[u64],
        made: &Choices,
    ) -> Result<(), ReadError> {
        match made.get(&Choice::ReturnThunk) {
            Some(true) => sites::check_named(code, &self.sites, instructions),
            _ => Ok(()),
        }
    }

    /// The sections of the tables.
    pub(super) fn tables(&self) -> impl Iterator<Item = usize> {
        self.sections.iter().copied()
    }

    /// What is changed, if these choices are made. Refuses what is executed from the middle of an
    /// instruction there. The ranges and the instructions are in order.
    pub(super) fn changed<'data, R: Contents<'data>>(
        &self,
        code: &FileCode<'_, 'data, R>,
        (ranges, instructions): (&[Range<u64>], &[u64]),
        made: &Choices,
    ) -> Result<Vec<Changed>, ReadError> {
        boundaries::check(code, self.reached(ranges), instructions, made)
    }

    /// Refuses what leads into the middle of a place that is changed: from outside, or to a NOP,
    /// of which Linux makes others.
    pub(super) fn check_led<'data, R: Contents<'data>>(
        &self,
        code: &FileCode<'_, 'data, R>,
        led: &[(u64, u64)],
    ) -> Result<(), ReadError> {
        let mut led = led.to_vec();
        led.sort_by_key(|(_, to)| *to);
        for site in &self.sites {
            let first = led.partition_point(|(_, to)| *to <= site.range.start);
            let last = led.partition_point(|(_, to)| *to < site.range.end);
            for (from, to) in led.get(first..last).unwrap_or_default() {
                let is_nop = || -> Result<bool, ReadError> {
                    let area = code.area(*to).ok_or(ReadError::NoCode)?;
                    let glance = code.glance(area, *to)?;
                    let bytes = &glance.bytes[..glance.len];
                    let i = Decoder::with_ip(64, bytes, *to, DecoderOptions::NONE).decode();
                    Ok(matches!(i.mnemonic(), Mnemonic::Nop | Mnemonic::Int3) || i.is_invalid())
                };
                if !site.range.contains(from) || is_nop()? {
                    let how = "code leads into the middle of what is changed";
                    return Err(site.refused(code, how)?);
                }
            }
        }
        Ok(())
    }

    /// Whether what a section names is known to be changed by it, and how.
    pub(super) fn knows(&self, section: usize) -> bool {
        self.sections.contains(&section)
    }

    /// The first choice that is not made and that these ranges, which are in order, depend on.
    ///
    /// # Errors
    /// If a place there is changed in a way that is not known, or that only some versions of Linux
    /// know, and nothing was said of those.
    pub(super) fn open<'data, R: Contents<'data>>(
        &self,
        code: &FileCode<'_, 'data, R>,
        ranges: &[Range<u64>],
        made: &Choices,
    ) -> Result<Option<&Choice>, ReadError> {
        let unknown = self.reached(ranges).find_map(|site| match site.to {
            To::Unknown(how) => Some((site, how)),
            _ => None,
        });
        if let Some((site, how)) = unknown {
            return Err(site.refused(code, how)?);
        }
        let open = self.choices(ranges).find(|choice| !made.contains_key(choice));
        let unsaid = |site: &&Site| {
            let since = site.since.as_ref().filter(|_| site.is_made(made) == Some(true));
            since.is_some_and(|since| made.get(since) != Some(&true))
        };
        match self.reached(ranges).find(unsaid) {
            Some(site) if open.is_none() => Err(site.refused(code, site.until())?),
            _ => Ok(open),
        }
    }

    /// Judges what these ranges, which are in order, have in front of places that are changed. Says
    /// whether that is left alone only because it was said that the kernel has no FineIBT.
    ///
    /// # Errors
    /// If it may be changed.
    pub(super) fn check_fronts<'data, R: Contents<'data>>(
        &self,
        code: &FileCode<'_, 'data, R>,
        ranges: &[Range<u64>],
    ) -> Result<bool, ReadError> {
        let mut is_said = false;
        for (front, table) in &self.fronts {
            let first = ranges.partition_point(|range| range.end <= front.start);
            let Some(range) = ranges.get(first).filter(|range| range.start < front.end) else {
                continue;
            };
            let at = range.start.max(front.start);
            let area = code.area(at).ok_or(ReadError::NoCode)?;
            is_said |= front::check(code, table, code.place(area, at))?;
        }
        Ok(is_said)
    }

    /// The same in front of what named calls lead to, and whether that is left alone only because
    /// it was said that the kernel does not count calls.
    ///
    /// # Errors
    /// If it may be changed.
    pub(super) fn check_calls<'data, R: Contents<'data>>(
        &self,
        code: &FileCode<'_, 'data, R>,
        ranges: &[Range<u64>],
    ) -> Result<bool, ReadError> {
        calls::check(code, &self.calls, ranges)
    }

    /// The choices that these ranges depend on, of those that are made.
    pub(super) fn made(&self, ranges: &[Range<u64>], made: &Choices) -> Choices {
        let since = self.reached(ranges).filter(|site| site.is_made(made) == Some(true));
        let own = self.choices(ranges).chain(since.filter_map(|site| site.since.as_ref()));
        own.filter_map(|choice| Some((choice.clone(), *made.get(choice)?))).collect()
    }

    /// Whether anything in the file depends on a choice, or would if it were not refused.
    pub(super) fn has(&self, choice: &Choice) -> bool {
        self.choices.contains(choice) || self.keys.values().any(|key| key == choice)
    }

    /// The keys of which some of these choices are static branches, and how many are.
    pub(super) fn keys<'s>(&'s self, of: &Choices) -> BTreeMap<&'s Choice, usize> {
        let mut keys = BTreeMap::new();
        for key in of.keys().filter_map(|choice| self.keys.get(choice)) {
            *keys.entry(key).or_default() += 1;
        }
        keys
    }

    /// The sites in ranges, which are in order.
    fn reached(&self, ranges: &[Range<u64>]) -> impl Iterator<Item = &Site> {
        self.sites.iter().filter(|site| {
            let first = ranges.partition_point(|range| range.end <= site.range.start);
            ranges.get(first).is_some_and(|range| range.start < site.range.end)
        })
    }

    /// The choices that ranges, which are in order, depend on; some more than once.
    fn choices(&self, ranges: &[Range<u64>]) -> impl Iterator<Item = &Choice> {
        self.reached(ranges).filter_map(|site| site.when.as_ref().map(|(choice, _)| choice))
    }

    /// Puts what runs once these choices are made over the bytes of the file.
    pub(super) fn put<'data, R: Contents<'data>>(
        &self,
        code: &mut FileCode<'_, 'data, R>,
        made: &Choices,
    ) -> Result<(), ReadError> {
        code.put(Overlay::default());
        // What is put somewhere may have been changed before: a jump to the thunk of returns.
        let is_return = |site: &&Site| matches!(site.to, To::Return);
        let overlay = self.overlay(code, self.sites.iter().filter(is_return), made)?;
        code.put(overlay);
        let overlay = self.overlay(code, self.sites.iter(), made)?;
        code.put(overlay);
        Ok(())
    }

    fn overlay<'s, 'data, R: Contents<'data>>(
        &self,
        code: &FileCode<'_, 'data, R>,
        sites: impl Iterator<Item = &'s Site>,
        made: &Choices,
    ) -> Result<Overlay, ReadError> {
        let mut overlay = Overlay::default();
        for site in sites {
            let pieces = match (&site.to, site.is_made(made)) {
                (To::Code(from, corrected), Some(true)) => {
                    vec![replacement::moved(code, from, &site.range, *corrected)?]
                }
                (To::Code(..), Some(false)) if !overlay.touches(&site.range) => {
                    replacement::fewer_nops(code, &site.range)?
                }
                (To::Return, Some(true)) => {
                    vec![plain(&site.range, [0xC3, 0xCC, 0xCC, 0xCC, 0xCC].to_vec())]
                }
                (To::Sealed, _) => {
                    vec![plain(&site.range, SEALED.to_vec())]
                }
                (To::Nops, Some(true)) => {
                    vec![plain(&site.range, nops(site.range.end - site.range.start))]
                }
                (To::Jump(target), Some(true)) => {
                    vec![plain(&site.range, jump(&site.range, *target))]
                }
                _ => Vec::new(),
            };
            for piece in pieces {
                if !overlay.put(piece) {
                    return Err(
                        site.refused(code, "another patch changes a part of the same bytes")?
                    );
                }
            }
        }
        Ok(overlay)
    }
}

impl Site {
    /// Whether it is changed once these choices are made; `None` if its own is not.
    fn is_made(&self, made: &Choices) -> Option<bool> {
        match &self.when {
            Some((choice, wanted)) => made.get(choice).map(|is_on| is_on == wanted),
            None => Some(true),
        }
    }

    /// What versions of Linux do here that are not the one that must be known.
    const fn until(&self) -> &'static str {
        match self.since {
            Some(Choice::Since6_10) => {
                "entries about it have several lengths, of which Linux 6.10 and later take the \
                 longest, and others each by itself (say `--boot linux-6.10=on` if the kernel is \
                 one of those)"
            }
            _ => {
                "what is put there has a distance that Linux 6.3 and 6.4 do not correct as later \
                 ones do (say `--boot linux-6.5=on` if the kernel is one of those)"
            }
        }
    }

    /// Where the code lies that is put there.
    fn source(&self) -> Option<Range<u64>> {
        match &self.to {
            To::Code(from, _) if !from.is_empty() => Some(from.clone()),
            _ => None,
        }
    }

    /// Why a file with this site is not taken.
    fn refused<'data, R: Contents<'data>>(
        &self,
        code: &FileCode<'_, 'data, R>,
        how: &'static str,
    ) -> Result<ReadError, ReadError> {
        let area = code.area(self.range.start).ok_or(ReadError::NoCode)?;
        let at = code.place(area, self.range.start);
        Ok(ReadError::Patched { section: self.table.clone(), at, how })
    }
}
