//! Output: COM1, port 0xE9 where it exists (Bochs), and the screen where it is in text mode.
//!
//! One CPU prints at a time. But the handler of a fatal event must be able to print whatever it has
//! interrupted, so a CPU that has waited long enough prints in any case.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::screen;
use x86_64::instructions::port::{Port, PortReadOnly, PortWriteOnly};

const COM1: u16 = 0x3F8;
/// Line status register: the transmit holding register is empty.
const LSR_THRE: u8 = 1 << 5;
/// Line status register: everything has been sent.
const LSR_TEMT: u8 = 1 << 6;
/// The port at which Bochs (`port_e9_hack`) prints what is written; there it reads as 0xE9.
const DEBUG_PORT: u16 = 0xE9;

static HAS_COM1: AtomicBool = AtomicBool::new(false);
static HAS_DEBUG_PORT: AtomicBool = AtomicBool::new(false);

/// One register of COM1.
fn com1(register: u16) -> Port<u8> {
    Port::new(COM1 + register)
}

fn write_com1(register: u16, value: u8) {
    // SAFETY: COM1's registers are in the I/O space and reach no memory; nothing else drives it.
    unsafe { com1(register).write(value) }
}

fn read_com1(register: u16) -> u8 {
    // SAFETY: COM1's registers reach no memory, and nothing else drives it; reading has no effect
    // that this module does not expect.
    unsafe { com1(register).read() }
}

/// Sets COM1 to 115200 baud, 8N1, polled, and finds out which outputs exist.
pub(crate) fn init() {
    write_com1(1, 0x00); // no interrupts
    write_com1(3, 0x80); // DLAB
    write_com1(0, 0x01); // divisor 1
    write_com1(1, 0x00);
    write_com1(3, 0x03); // 8N1
    write_com1(2, 0xC7); // FIFO on and cleared
    write_com1(4, 0x03); // DTR, RTS
    // The scratch register distinguishes a UART from an empty port, which reads as 0xFF.
    write_com1(7, 0x5A);
    HAS_COM1.store(read_com1(7) == 0x5A, Ordering::Relaxed);
    // SAFETY: reading port 0xE9 has no effect on a PC, where no device has it.
    let debug = unsafe { PortReadOnly::<u8>::new(DEBUG_PORT).read() };
    HAS_DEBUG_PORT.store(debug == DEBUG_PORT as u8, Ordering::Relaxed);
}

fn put(byte: u8) {
    screen::put(byte);
    if HAS_DEBUG_PORT.load(Ordering::Relaxed) {
        // SAFETY: `init` found the debug port, which only prints.
        unsafe { PortWriteOnly::<u8>::new(DEBUG_PORT).write(byte) }
    }
    if HAS_COM1.load(Ordering::Relaxed) {
        while read_com1(5) & LSR_THRE == 0 {
            core::hint::spin_loop();
        }
        write_com1(0, byte);
    }
}

/// Waits until everything has been sent. An emulator that ends before that loses the last line.
pub(crate) fn flush() {
    if HAS_COM1.load(Ordering::Relaxed) {
        while read_com1(5) & LSR_TEMT == 0 {
            core::hint::spin_loop();
        }
    }
}

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            put(byte);
        }
        Ok(())
    }
}

/// Whether a CPU is printing.
static PRINTING: AtomicBool = AtomicBool::new(false);
/// How often to look whether a CPU is still printing: longer than any line takes.
const PATIENCE: u32 = 1 << 26;

/// Prints to every output that exists. [`serial_print!`](crate::serial_print) expands to this.
pub fn print(arguments: fmt::Arguments<'_>) {
    for _ in 0..PATIENCE {
        let taken = PRINTING.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_ok() {
            break;
        }
        core::hint::spin_loop();
    }
    // `put` cannot fail. A `Display` implementation that fails loses only its own output.
    let _ = Serial.write_fmt(arguments);
    PRINTING.store(false, Ordering::Release);
}

/// Prints to the serial port and the other outputs.
#[macro_export]
macro_rules! serial_print {
    ($($argument:tt)*) => { $crate::serial::print(::core::format_args!($($argument)*)) };
}

/// Prints a line to the serial port and the other outputs.
#[macro_export]
macro_rules! serial_println {
    () => { $crate::serial_print!("\n") };
    ($($argument:tt)*) => {
        $crate::serial::print(::core::format_args!("{}\n", ::core::format_args!($($argument)*)))
    };
}
