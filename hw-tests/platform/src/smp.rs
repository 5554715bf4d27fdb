//! Further CPUs: found in ACPI's MADT, started by INIT and SIPI (Intel SDM vol. 3, 9.4).
//!
//! A CPU runs one job and then sleeps, with interrupts off, until the next INIT. So no CPU polls,
//! and every job finds a CPU that has just been reset and set up.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use raw_cpuid::CpuId;
use spin::{Mutex, Once};
use x86_64::instructions::port::Port;

use crate::boot::MAX_CPUS;
use crate::memory::{self, MapError, PAGE};
use crate::{apic, boot, cpu, events, segments};

/// The work for which a CPU is started.
pub type Job = Box<dyn FnOnce() + Send>;

/// The address at which a CPU starts: a page below 1 MiB that nobody uses once the loader's
/// information has been read.
const START_PAGE: u64 = 0x8000;
/// The APIC IDs of the CPUs that are used, the one that has booted first.
static CPUS: Once<Vec<u32>> = Once::new();
/// The job of each CPU, until it takes it.
static JOBS: [Mutex<Option<Job>>; MAX_CPUS] = [const { Mutex::new(None) }; MAX_CPUS];
/// Whether a CPU is still running its job.
static BUSY: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
/// The CPU that is being started, until it has answered; 0 if there is none.
static STARTING: AtomicUsize = AtomicUsize::new(0);

/// Why a CPU could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartError {
    /// The CPU did not answer within a second.
    NoAnswer(usize),
    /// The host's root lies above 4 GiB, but a CPU loads it in 32-bit code.
    RootAbove4Gib,
}

impl core::fmt::Display for StartError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoAnswer(cpu) => write!(f, "CPU {cpu} does not start"),
            Self::RootAbove4Gib => f.write_str("the page table root is above 4 GiB"),
        }
    }
}

/// How many CPUs can run jobs, the calling one included.
pub fn count() -> usize {
    CPUS.get().map_or(1, Vec::len)
}

/// Looks for CPUs.
///
/// # Errors
/// If the APIC cannot be mapped.
pub(crate) fn init() -> Result<(), MapError> {
    let own = CpuId::new().get_feature_info().map_or(0, |info| info.initial_local_apic_id());
    let mut cpus = alloc::vec![u32::from(own)];
    cpus.extend(acpi::cpus().into_iter().filter(|id| *id != u32::from(own)));
    cpus.truncate(MAX_CPUS);
    if apic::is_there() {
        apic::map()?;
        apic::enable();
    }
    CPUS.call_once(|| cpus);
    Ok(())
}

/// Starts a CPU that is asleep: it runs `job`, and sleeps again.
///
/// # Errors
/// If the CPU does not start.
///
/// # Panics
/// If there is no such CPU, if it is the first one, or if it has not finished its last job.
pub fn start(cpu: usize, job: Job) -> Result<(), StartError> {
    assert!(cpu != 0 && cpu < count(), "there is no CPU {cpu} to be started");
    assert!(is_done(cpu), "CPU {cpu} is busy");
    let cr3 = u32::try_from(memory::host_cr3()).map_err(|_| StartError::RootAbove4Gib)?;
    *JOBS[cpu].lock() = Some(job);
    BUSY[cpu].store(true, Ordering::Release);
    STARTING.store(cpu, Ordering::Release);
    // SAFETY: the last CPU that was started has answered: this function has waited for it.
    unsafe { boot::prepare_start(cpu, cr3, started) }
    let code = boot::start_code();
    let page = core::ptr::with_exposed_provenance_mut::<u8>(START_PAGE as usize);
    // SAFETY: the page is below 1 MiB, where no frame is handed out, and in the identity map; the
    // code is shorter than a page.
    unsafe { page.copy_from_nonoverlapping(code.as_ptr(), code.len()) }

    command(cpu, apic::COMMAND_INIT);
    delay(10_000);
    // The second SIPI is for CPUs that miss the first; others ignore it.
    for _ in 0..2 {
        if STARTING.load(Ordering::Acquire) == cpu {
            command(cpu, apic::COMMAND_START | (START_PAGE / PAGE) as u32);
            for _ in 0..5_000 {
                delay(100);
                if STARTING.load(Ordering::Acquire) == 0 {
                    return Ok(());
                }
            }
        }
    }
    Err(StartError::NoAnswer(cpu))
}

/// Sends an NMI to a CPU, which may be this one. This CPU must have an [APIC](apic::is_there).
pub fn send_nmi(cpu: usize) {
    aim_nmis(cpu);
    command(cpu, apic::COMMAND_NMI);
}

/// Prepares this CPU's APIC for assembly that sends NMIs by a write to [`apic::COMMAND`].
pub fn aim_nmis(cpu: usize) {
    // When this CPU was reset, its APIC may have been, too.
    apic::enable();
    apic::aim(apic_id(cpu));
}

/// Whether a CPU has finished its job.
pub fn is_done(cpu: usize) -> bool {
    !BUSY[cpu].load(Ordering::Acquire)
}

/// Waits until a CPU has finished its job.
pub fn wait(cpu: usize) {
    while !is_done(cpu) {
        core::hint::spin_loop();
    }
}

/// The first Rust function of a started CPU.
extern "C" fn started() -> ! {
    let index = STARTING.load(Ordering::Acquire);
    let features = cpu::detect();
    cpu::enable(&features);
    // SAFETY: this CPU has just been reset, and is in the segments of boot.rs.
    unsafe { segments::init(index) }
    events::init_started_cpu();
    // SAFETY: CR3 is the host's root, with PCID 0.
    unsafe { cpu::enable_pcid(&features) };
    STARTING.store(0, Ordering::Release);
    let job = JOBS[index].lock().take();
    if let Some(job) = job {
        job();
    }
    BUSY[index].store(false, Ordering::Release);
    boot::halt()
}

/// Sends an interrupt command to a CPU.
fn command(cpu: usize, command: u32) {
    apic::aim(apic_id(cpu));
    apic::send(command);
}

fn apic_id(cpu: usize) -> u32 {
    CPUS.get().and_then(|cpus| cpus.get(cpu)).copied().unwrap_or_default()
}

/// Waits for some microseconds: an access to port 0x80 takes about one, on any PC.
fn delay(microseconds: u32) {
    for _ in 0..microseconds {
        // SAFETY: the port shows POST codes, if it exists at all.
        unsafe { Port::<u8>::new(0x80).write(0) }
    }
}

/// What ACPI's tables say about CPUs (ACPI specification 6.5, 5.2).
mod acpi {
    use alloc::vec::Vec;

    use crate::memory;

    /// The BIOS's read-only memory, in which the root pointer lies at a multiple of 16.
    const BIOS: core::ops::Range<u64> = 0xE_0000..0x10_0000;
    const HEADER: u64 = 36;

    /// The APIC IDs of all CPUs that can be used; empty if there is no table of them.
    pub(super) fn cpus() -> Vec<u32> {
        madt().map(local_apics).unwrap_or_default()
    }

    fn madt() -> Option<u64> {
        let pointer = BIOS.step_by(16).find(|at| {
            bytes(*at, 8).is_some_and(|text| text == b"RSD PTR ") && has_checksum(*at, 20)
        })?;
        let root = u64::from(number(pointer + 16)?);
        let mut entries = (root + HEADER..end_of(root)?).step_by(4);
        entries.find_map(|at| {
            let table = u64::from(number(at)?);
            (bytes(table, 4)? == b"APIC" && end_of(table).is_some()).then_some(table)
        })
    }

    fn local_apics(madt: u64) -> Vec<u32> {
        /// The type of a local APIC's entry, which has: type, length, CPU, ID, flags of 4 bytes.
        const LOCAL_APIC: u8 = 0;
        const ENABLED: u32 = 1;
        let mut found = Vec::new();
        let mut at = madt + HEADER + 8;
        let end = end_of(madt).unwrap_or(at);
        while let Some(&[kind, len]) = bytes(at, 2).filter(|_| at < end) {
            if len < 2 {
                break;
            }
            if let Some(&[LOCAL_APIC, _, _, id]) = bytes(at, 4).filter(|entry| entry[0] == kind)
                && number(at + 4).is_some_and(|flags| flags & ENABLED != 0)
            {
                found.push(id.into());
            }
            at += u64::from(len);
        }
        found
    }

    /// The address after a table, or `None` if its length or checksum is wrong.
    fn end_of(table: u64) -> Option<u64> {
        let len = u64::from(number(table + 4)?);
        has_checksum(table, len).then_some(table + len)
    }

    fn has_checksum(at: u64, len: u64) -> bool {
        bytes(at, len)
            .is_some_and(|bytes| bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)) == 0)
    }

    fn number(at: u64) -> Option<u32> {
        bytes(at, 4)?.try_into().ok().map(u32::from_le_bytes)
    }

    /// A slice of physical memory, if the identity map has all of it.
    fn bytes(at: u64, len: u64) -> Option<&'static [u8]> {
        let last = at.checked_add(len.checked_sub(1)?)?;
        (at & !0xFFF..=last)
            .step_by(0x1000)
            .find(|page| memory::host_flags(*page).is_none())
            .map_or(Some(()), |_| None)?;
        let start = core::ptr::with_exposed_provenance::<u8>(at as usize);
        // SAFETY: every page of it is mapped, and nobody writes to the firmware's tables.
        Some(unsafe { core::slice::from_raw_parts(start, len as usize) })
    }
}
