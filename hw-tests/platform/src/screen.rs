//! The screen of a PC in text mode, for a real machine whose serial port nobody listens to.
//!
//! Whatever is sent to the serial port is shown here as well: the last 25 lines of it.

use core::sync::atomic::{AtomicUsize, Ordering};

const COLUMNS: usize = 80;
const ROWS: usize = 25;
/// The text buffer of every colour display: a character and its colours per cell.
const BUFFER: usize = 0xB_8000;
/// The place of the current video mode in the BIOS data area.
const BIOS_VIDEO_MODE: usize = 0x449;
/// 80 x 25 characters in 16 colours, which is how GRUB leaves the screen.
const TEXT_80_25: u8 = 3;
/// Light grey on black.
const COLOURS: u16 = 0x0700;

/// The cell for the next character, or [`ABSENT`].
static CURSOR: AtomicUsize = AtomicUsize::new(ABSENT);
const ABSENT: usize = usize::MAX;

fn cell(index: usize) -> *mut u16 {
    core::ptr::with_exposed_provenance_mut::<u16>(BUFFER).wrapping_add(index)
}

fn write(index: usize, value: u16) {
    debug_assert!(index < COLUMNS * ROWS);
    // SAFETY: `init` found text mode, so the buffer exists; both the boot tables and the identity
    // map have it, and it is no Rust object.
    unsafe { cell(index).write_volatile(value) }
}

fn read(index: usize) -> u16 {
    debug_assert!(index < COLUMNS * ROWS);
    // SAFETY: the buffer exists and is mapped, as for writing; reading it changes nothing.
    unsafe { cell(index).read_volatile() }
}

/// Clears the screen if it is in text mode; if it is not, it stays unused.
///
/// # Safety
/// The boot page tables are loaded: they map the BIOS data area, which the kernel's own do not.
pub(crate) unsafe fn init() {
    let mode = core::ptr::with_exposed_provenance::<u8>(BIOS_VIDEO_MODE);
    // SAFETY: the caller vouches for the mapping; the BIOS data area is plain memory.
    if unsafe { mode.read_volatile() } != TEXT_80_25 {
        return;
    }
    for index in 0..COLUMNS * ROWS {
        write(index, COLOURS);
    }
    CURSOR.store(0, Ordering::Relaxed);
}

/// Shows one byte.
pub(crate) fn put(byte: u8) {
    let mut cursor = CURSOR.load(Ordering::Relaxed);
    if cursor == ABSENT {
        return;
    }
    if byte == b'\n' {
        cursor = cursor.next_multiple_of(COLUMNS);
    } else {
        // The last line is full: the next character scrolls the screen first.
        cursor = scroll(cursor);
        write(cursor, COLOURS | u16::from(byte));
        cursor += 1;
    }
    CURSOR.store(cursor, Ordering::Relaxed);
}

/// Makes room for a character below the last line.
fn scroll(cursor: usize) -> usize {
    if cursor < COLUMNS * ROWS {
        return cursor;
    }
    for index in COLUMNS..COLUMNS * ROWS {
        write(index - COLUMNS, read(index));
    }
    for index in COLUMNS * (ROWS - 1)..COLUMNS * ROWS {
        write(index, COLOURS);
    }
    cursor - COLUMNS
}
