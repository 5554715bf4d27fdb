//! The end of a run: it tells the emulator, or stops the CPU.

use x86_64::instructions::port::PortWriteOnly;

use crate::{boot, serial, serial_println};

/// The beginning of the line of a Rust panic.
pub const PANIC: &str = "panic: ";
/// The beginning of the line of an event after which the host cannot go on, or of a machine that it
/// cannot use.
pub const FATAL: &str = "fatal: ";

/// The result of the run as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Every case passed. QEMU exits with 33.
    Success,
    /// A case failed, or the run could not go on. QEMU exits with 35.
    Failure,
}

/// QEMU's `isa-debug-exit`: writing `v` makes it exit with `v * 2 + 1`.
const QEMU_EXIT: u16 = 0xF4;
/// Bochs ends when it has seen the string "Shutdown" here.
const BOCHS_EXIT: u16 = 0x8900;

/// Ends the run. On a real machine, where neither port exists, the CPU stops.
pub fn exit(outcome: ExitStatus) -> ! {
    serial::flush();
    let code: u32 = match outcome {
        ExitStatus::Success => 0x10,
        ExitStatus::Failure => 0x11,
    };
    // SAFETY: on QEMU the port ends the virtual machine; elsewhere no device has it.
    unsafe { PortWriteOnly::<u32>::new(QEMU_EXIT).write(code) }
    for byte in *b"Shutdown" {
        // SAFETY: on Bochs the port ends the simulation; elsewhere no device has it.
        unsafe { PortWriteOnly::<u8>::new(BOCHS_EXIT).write(byte) }
    }
    boot::halt()
}

/// Prints in one line why this machine cannot be used or the run cannot go on, and ends the run.
pub fn fatal(why: core::fmt::Arguments<'_>) -> ! {
    serial_println!("\n{FATAL}{why}");
    exit(ExitStatus::Failure)
}

/// The panic handler: it prints one line with place and message, and ends the run.
///
/// [`kernel_main!`](crate::kernel_main) installs it.
pub fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    /// A writer that keeps a message with line breaks on one line.
    struct OneLine;
    impl core::fmt::Write for OneLine {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            for piece in text.split_inclusive('\n') {
                match piece.strip_suffix('\n') {
                    Some(line) => crate::serial_print!("{line} | "),
                    None => crate::serial_print!("{piece}"),
                }
            }
            Ok(())
        }
    }

    crate::serial_print!("\n{PANIC}");
    if let Some(place) = info.location() {
        crate::serial_print!("{place}: ");
    }
    // Writing to `OneLine` does not fail.
    let _ = core::fmt::write(&mut OneLine, format_args!("{}", info.message()));
    serial_println!();
    exit(ExitStatus::Failure)
}
