//! The local APIC: interrupt commands from one CPU to another (Intel SDM vol. 3, 11).

use raw_cpuid::CpuId;

use crate::memory::{self, Flags, HIGH_BASE, HOST_RANGE, MapError};

/// The address of the registers on every PC, which is also the one at which they are mapped.
const PHYSICAL: u64 = 0xFEE0_0000;
const REGISTERS: u64 = HIGH_BASE + HOST_RANGE / 2;
/// The offsets of the registers that are used.
const SPURIOUS: u64 = 0xF0;
const COMMAND_LOW: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
/// The commands for an INIT and a SIPI, each edge-triggered and asserted, to one CPU.
pub(crate) const COMMAND_INIT: u32 = 0x4500;
pub(crate) const COMMAND_START: u32 = 0x4600;
/// The command for an NMI.
pub const COMMAND_NMI: u32 = 0x4400;
/// Writing [`COMMAND_NMI`] here sends one, to the CPU that it was [aimed](crate::smp::aim_nmis) at.
pub const COMMAND: u64 = REGISTERS + COMMAND_LOW;
/// Writing this and a vector to [`COMMAND`] sends the interrupt to this CPU.
pub const COMMAND_SELF: u32 = 0x4_4000;
/// Writing 0 here ends the interrupt that is in service.
pub const END_OF_INTERRUPT: u64 = REGISTERS + 0xB0;
/// The bit that says that the command has not been taken yet.
const COMMAND_PENDING: u32 = 1 << 12;

/// Whether this CPU has an APIC, and so can send interrupts, if only to itself.
#[must_use]
pub fn is_there() -> bool {
    CpuId::new().get_feature_info().is_some_and(|info| info.has_apic())
}

/// Maps the registers.
///
/// # Errors
/// If the registers cannot be mapped.
pub(crate) fn map() -> Result<(), MapError> {
    memory::map_host(REGISTERS, PHYSICAL, Flags::WRITE)
}

/// Enables this CPU's APIC by software, without which it sends nothing. The vector of spurious
/// interrupts is 255.
pub(crate) fn enable() {
    write(SPURIOUS, 0x1FF);
}

/// Sets the CPU that the next command is for.
pub(crate) fn aim(id: u32) {
    write(COMMAND_HIGH, id << 24);
}

/// Sends a command, and waits until it has been taken.
pub(crate) fn send(command: u32) {
    write(COMMAND_LOW, command);
    while read(COMMAND_LOW) & COMMAND_PENDING != 0 {
        core::hint::spin_loop();
    }
}

fn place(register: u64) -> *mut u32 {
    core::ptr::with_exposed_provenance_mut((REGISTERS + register) as usize)
}

fn write(register: u64, value: u32) {
    // SAFETY: `map` has mapped the registers, which reach no memory.
    unsafe { place(register).write_volatile(value) }
}

fn read(register: u64) -> u32 {
    // SAFETY: `map` has mapped the registers, and reading one changes no memory.
    unsafe { place(register).read_volatile() }
}
