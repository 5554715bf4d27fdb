//! The runtime's answers to a CPU whose state it should refuse. Each state is really set on this
//! CPU, for as long as the runtime is asked (spec/hazards.md, rows 51 to 58).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::NonNull;

use hw_cases::Expected;
use hw_platform::memory::Frame;
use hw_platform::{cpu, gs, memory, percpu};
use switcher_runtime::{
    DescriptorTablePointer, EnterError, Guest, Mode, PrepareError, State, StateError, Tables,
};

use crate::case_host::BareMetal;
use crate::programs::PROBE;
use crate::setup::{check, setup};

/// A guest in umod that runs `code`.
pub(crate) fn guest(host: &mut BareMetal<'_>, code: &[u8]) -> Guest {
    let mut rng = fastrand::Rng::with_seed(51);
    let setup = setup(host, &mut rng, Mode::Umod, &[code, PROBE].concat());
    host.prepare(&setup)
}

/// The objection of `enter` to this CPU's state, with a guest that is in order.
pub(crate) fn by_enter(host: &mut BareMetal<'_>) -> Result<StateError, String> {
    let mut guest = guest(host, PROBE);
    refused(host, &mut guest)
}

/// The objection of `enter` to a guest.
pub(crate) fn refused(host: &mut BareMetal<'_>, guest: &mut Guest) -> Result<StateError, String> {
    match host.cpu_mut().enter(guest) {
        Err(EnterError::State(why)) => Ok(why),
        other => Err(format!("`enter` said {other:?}")),
    }
}

/// The objection of `prepare`.
pub(crate) fn by_prepare(host: &BareMetal<'_>) -> Result<StateError, String> {
    let block = NonNull::new(percpu::block(0)).ok_or("no block")?;
    // SAFETY: the CPU is prepared already, with this block. If `prepare` refuses, it changes
    // nothing; if it does not, it writes the same values once more.
    match cpu::tracked(|| unsafe { host.cpu().switcher().prepare(block, Tables::Hosts) }) {
        Err(PrepareError::State(why)) => Ok(why),
        Err(other) => Err(format!("`prepare` said {other}")),
        Ok(_) => Err("`prepare` had no objection".into()),
    }
}

/// Checks that the runtime's objection is about this state.
pub(crate) fn expect(
    what: &str,
    said: Result<StateError, String>,
    state: State,
) -> Result<(), String> {
    match said {
        Ok(why) if why.state == state => Ok(()),
        Ok(why) => Err(format!("{what}: {why}")),
        Err(why) => Err(format!("{what}: {why}")),
    }
}

/// Checks that the guest still runs, although it has been refused before.
pub(crate) fn runs(host: &mut BareMetal<'_>) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(52);
    let setup = setup(host, &mut rng, Mode::Umod, PROBE);
    check(host, &setup, &Expected::unchanged(&setup, Expected::UD))
}

/// Enters a guest that ends at its probe, with a GS base of the host's own, as every kernel has
/// one. It is the host's again afterwards, and nothing is allocated, with either.
pub(crate) fn enter(host: &mut BareMetal<'_>, guest: &mut Guest) -> Result<(), String> {
    const OWN: u64 = 0x5A5A_0000;
    let block = gs::base();
    let mut ended = Err(String::new());
    for watched in [block, OWN] {
        let mut one = guest.clone();
        memory::watch(watched);
        // SAFETY: nothing here asks for the CPU's number until the former base is back.
        unsafe { gs::set_base(OWN) };
        let exit = host.cpu_mut().enter(&mut one);
        let (times, left) = (memory::watched(), gs::base());
        // SAFETY: this is the value that GS base had before.
        unsafe { gs::set_base(block) };
        if (times, left) != (0, OWN) {
            return Err(format!(
                "`enter` has used the allocator {times} times, and left GS base as {left:#x}"
            ));
        }
        ended = exit.map_err(|why| format!("{why}")).map(|exit| (exit, one));
    }
    let ended = ended.map(|(exit, one)| {
        *guest = one;
        exit
    });
    match ended {
        Ok(exit) if exit == Expected::UD => Ok(()),
        other => Err(format!("{other:?}: {guest:x?}")),
    }
}

/// Runs `then` under a copy of the GDT with a change. No guest can be entered meanwhile, because
/// its root does not map the copy.
pub(crate) fn with_gdt<T>(
    change: impl FnOnce(&mut Vec<u64>),
    then: impl FnOnce() -> Result<T, String>,
) -> Result<T, String> {
    let own = DescriptorTablePointer::gdtr();
    let entries = (0..=own.limit() as usize).step_by(8).map(|at| {
        let entry = core::ptr::with_exposed_provenance::<u64>(own.base() as usize + at);
        // SAFETY: the entry is in the GDT that is loaded, on a static's page.
        unsafe { entry.read_volatile() }
    });
    let mut entries: Vec<u64> = entries.collect();
    change(&mut entries);
    let mut page = Frame::new().map_err(|why| format!("a GDT: {why}"))?;
    for (at, entry) in entries.iter().enumerate() {
        page.write(8 * at, &entry.to_le_bytes());
    }
    let limit = (8 * entries.len() - 1) as u16;
    let copy = DescriptorTablePointer::new(page.address(), limit, memory::paging())
        .map_err(|why| format!("{why}"))?;
    // SAFETY: the table is the same, except for what a case changes, which nothing in ring 0 has
    // loaded.
    unsafe { copy.load_gdt() };
    let done = then();
    // SAFETY: this is the kernel's own GDTR.
    unsafe { own.load_gdt() };
    done
}

/// A code, data or system descriptor with this type and S, DPL and flags.
pub(crate) const fn descriptor(kind: u64, dpl: u64, flags: u64) -> u64 {
    const PRESENT: u64 = 1 << 47;
    0xFFFF | kind << 40 | dpl << 45 | PRESENT | 0xF << 48 | flags << 52
}
