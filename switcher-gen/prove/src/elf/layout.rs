//! Where the parts of an object are taken to lie, until a linker decides.
//!
//! What a linker puts between two sections, or between the code and the host's routines, nobody
//! knows. So the distances are not those of any usual linker: they follow from the file's content,
//! and code that has one of them as a number would have to know the hash of a file that it is in.

use object::elf::{SHF_ALLOC, SHT_PROGBITS, SHT_REL, SHT_RELA};
use object::pod::bytes_of;
use object::read::elf::SectionHeader;
use sha2::{Digest, Sha256};

use super::contents::{Contents, E};
use super::file::{File, Section};
use super::labels::hosts;
use super::places::{BASE, ELSEWHERE, REACH};
use switcher_gen::asm::Label;

/// The routines of the host lie in front of the code, each in a range of its own.
const HOSTS: u64 = 1 << 25;
/// How large the range of each of them is.
const HOST: u64 = 1 << 26;

/// The distances between the parts of one object.
pub(super) struct Layout {
    seed: [u8; 32],
    /// How far two sections may be apart, so that all of them are within reach.
    room: u64,
}

impl Layout {
    /// The sections lie end to end if no switcher is in the file, so that all of it can be shown.
    pub(super) fn of<'data, R: Contents<'data>>(file: &File<'data, R>, is_switcher: bool) -> Self {
        if !is_switcher {
            return Self { seed: [0; 32], room: 0 };
        }
        let sections = file.sections.iter().filter(|section| section.is_code());
        let (mut size, mut count) = (0_u64, 1);
        for section in sections {
            size = size.saturating_add(section.size).saturating_add(section.usual_alignment());
            count += 1;
        }
        let room = (REACH - ELSEWHERE).saturating_sub(size) / count;
        Self { seed: hash(file), room: room.max(1) }
    }

    fn number(&self, what: u8, index: u64) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.seed);
        hash.update([what]);
        hash.update(index.to_le_bytes());
        hash.finalize().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// How many bytes are left in front of a section: of a switcher never none, so that the end of
    /// one is not the start of another.
    pub(super) fn gap(&self, section: usize) -> u64 {
        if self.room == 0 { 0 } else { 1 + self.number(0, section as u64) % self.room }
    }

    /// How far after its first possible place a per-CPU variable lies, at most so far: at the start
    /// of a page.
    pub(super) fn variable(&self, index: u64, most: u64) -> u64 {
        /// In bytes.
        const PAGE: u64 = 1 << 12;
        PAGE * (self.number(2, index) % (most / PAGE))
    }

    /// Where the IRETQ to a guest is taken to lie, if an object jumps to it and does not have it.
    pub(super) fn iretq(&self) -> u64 {
        BASE + REACH - ELSEWHERE + self.number(3, 0) % (ELSEWHERE / 2)
    }

    /// Where a routine of the host's is taken to lie. It is within reach of the code and overlaps
    /// nothing.
    pub(super) fn host(&self, name: &str) -> Option<u64> {
        if name == Label::Iretq.name() {
            return Some(self.iretq());
        }
        let index = hosts().position(|known| known == name)? as u64;
        Some(BASE - HOSTS - HOST * (index + 1) + self.number(1, index) % HOST)
    }
}

/// The hash of all that code could know its distances by: what is loaded, what is relocated in it,
/// and the tables that lead there. What is for debuggers is most of a file, and decides nothing.
fn hash<'data, R: Contents<'data>>(file: &File<'data, R>) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let is_loaded = |section: &Section<'_>| section.has(SHF_ALLOC);
    for section in &file.sections {
        let header = section.header;
        hash.update(bytes_of(header));
        let counts = match header.sh_type(E) {
            SHT_PROGBITS => is_loaded(section),
            SHT_REL | SHT_RELA => {
                file.sections.get(header.sh_info(E) as usize).is_none_or(is_loaded)
            }
            _ => section.has_bytes(),
        };
        let (mut at, mut left) = (section.offset(), if counts { section.size } else { 0 });
        while left > 0 {
            let part = left.min(buffer.len() as u64);
            let bytes = &mut buffer[..part as usize];
            // What cannot be read decides about nothing.
            if file.data.copy(at, bytes).is_err() {
                break;
            }
            hash.update(bytes);
            (at, left) = (at.saturating_add(part), left - part);
        }
    }
    hash.finalize().into()
}
