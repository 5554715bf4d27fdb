//! Guests' runs under a GDT and a TSS that are not the host's.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::arch::asm;
use core::ptr::NonNull;

use hw_cases::{CaseEnd, Expected};
use hw_platform::high::Half;
use hw_platform::memory::{self, Flags, Frame, PAGE};
use hw_platform::{percpu, segments};
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::layout::Tss;
use switcher_runtime::{DescriptorTablePointer, Mode, PrepareError, State, Tables};

use crate::bench::{Bench, Ended, HostCase};
use crate::programs::PROBE;
use crate::refusal::descriptor;
use crate::setup::{check, setup};
use crate::switchers::{host_of, prepared};

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/guests_run_under_a_gdt_and_a_tss_that_are_not_the_hosts",
    shown: "With tables of the runtime's own, guests run as ever, and the host gets its own back.",
    rows: &[Hazard::LdtGate, Hazard::MappedSet],
    cpus: 1,
    needs: &[],
    run: own_tables,
}];

/// GDTR's base and limit, TR and LDTR.
fn loaded() -> (u64, u16, u16, u16) {
    let (tr, ldtr): (u16, u16);
    // SAFETY: the instructions only store the selectors.
    unsafe {
        asm!("str {0:x}", "sldt {1:x}", out(reg) tr, out(reg) ldtr, options(nomem, nostack));
    }
    let gdtr = DescriptorTablePointer::gdtr();
    (gdtr.base(), gdtr.limit(), tr, ldtr)
}

/// Loads TR and LDTR.
///
/// # Safety
/// The GDT that is loaded has an available TSS and an LDT for them, or `ldtr` is null.
unsafe fn load(tr: u16, ldtr: u16) {
    // SAFETY: the caller vouches for both.
    unsafe { asm!("ltr {0:x}", "lldt {1:x}", in(reg) tr, in(reg) ldtr, options(nostack)) };
}

/// A system descriptor of DPL 0.
fn system(kind: u64, base: u64, limit: u64) -> [u64; 2] {
    const PRESENT: u64 = 1 << 47;
    let low = limit | (base & 0xFF_FFFF) << 16 | kind << 40 | PRESENT | (base >> 24 & 0xFF) << 56;
    [low, base >> 32]
}

/// A host as Linux is one: its GDT can be written elsewhere only, and has an entry that no guest
/// may have; its TSS is in no per-CPU block; and an LDT is loaded.
struct Foreign {
    // They are loaded while this lives.
    _frames: [Frame; 3],
    writable: NonNull<u64>,
    former: DescriptorTablePointer,
}

impl Foreign {
    /// Where the GDT can be read.
    fn place() -> u64 {
        memory::code_start(Half::Lower) + 128 * PAGE
    }

    fn load() -> Result<Self, String> {
        const TSS_KIND: u64 = 9;
        const LDT_KIND: u64 = 2;
        let former = DescriptorTablePointer::gdtr();
        let frame = || Frame::new().map_err(|why| format!("{why}"));
        let [mut gdt, mut tss, ldt] = [frame()?, frame()?, frame()?];
        // SAFETY: the block is this CPU's, and no guest runs.
        let mut content = unsafe { percpu::block(0).read() }.tss;
        // An event from CPL 3 under this TSS would be a double fault.
        content.sp0 = 0.into();
        // SAFETY: a TSS is plain bytes, of which none is padding.
        let bytes: [u8; size_of::<Tss>()] = unsafe { core::mem::transmute(content) };
        tss.write(0, &bytes);
        let entries = (0..=former.limit() as usize).step_by(8).map(|at| {
            let entry = core::ptr::with_exposed_provenance::<u64>(former.base() as usize + at);
            // SAFETY: the entry is in the GDT that is loaded, on a static's page.
            unsafe { entry.read_volatile() }
        });
        let mut entries: Vec<u64> = entries.collect();
        // Writable data of CPL 3 with a stack of 16 bits.
        entries.push(descriptor(0b1_0011, 3, 0));
        let tr = (8 * entries.len()) as u16;
        entries.extend(system(TSS_KIND, tss.address(), size_of::<Tss>() as u64 - 1));
        let ldtr = (8 * entries.len()) as u16;
        entries.extend(system(LDT_KIND, ldt.address(), PAGE - 1));
        for (at, entry) in entries.iter().enumerate() {
            gdt.write(8 * at, &entry.to_le_bytes());
        }
        memory::map_host(Self::place(), gdt.address(), Flags::empty())
            .map_err(|why| format!("a GDT: {why}"))?;
        let limit = (8 * entries.len() - 1) as u16;
        let pointer = |base| {
            DescriptorTablePointer::new(base, limit, memory::paging())
                .map_err(|why| format!("{why}"))
        };
        let (writable, readable) = (pointer(gdt.address())?, pointer(Self::place())?);
        // SAFETY: the table has all entries of the former one.
        unsafe { writable.load_gdt() };
        // SAFETY: both descriptors were made above, of frames that stay.
        unsafe { load(tr, ldtr) };
        // SAFETY: it is the same table.
        unsafe { readable.load_gdt() };
        let writable = NonNull::new(gdt.as_ptr().cast()).ok_or("a GDT at address 0")?;
        Ok(Self { _frames: [gdt, tss, ldt], writable, former })
    }

    /// Loads what was loaded before.
    fn unload(self) -> Result<(), String> {
        const BUSY: u64 = 1 << 41;
        let own = self.former.base() as usize + usize::from(segments::TSS);
        let own = core::ptr::with_exposed_provenance_mut::<u64>(own);
        // SAFETY: it is the descriptor of the block's TSS, in the kernel's own GDT.
        let tss = unsafe { own.read_volatile() };
        // SAFETY: likewise; it is not loaded now.
        unsafe { own.write_volatile(tss & !BUSY) };
        // SAFETY: it is the kernel's own table.
        unsafe { self.former.load_gdt() };
        // SAFETY: the descriptor has just been made available.
        unsafe { load(segments::TSS, 0) };
        // SAFETY: nothing refers to what is there any more.
        unsafe { memory::unmap_host(Self::place()) }.map_err(|why| format!("{why}"))?;
        Ok(())
    }
}

fn own_tables(bench: &mut Bench) -> Ended {
    const KEEP: [u16; 2] = [segments::USER_CS_ALIAS, segments::USER_DS_ALIAS];
    let (host, _) = bench.take_host()?;
    let breakpoints = host.has_breakpoints();
    let released = |cpu: switcher_runtime::Cpu<'static>| {
        let switcher = cpu.switcher();
        let prepared = cpu.deactivate().map_err(|refused| format!("{refused}"))?;
        prepared.release().map_err(|refused| format!("{refused}"))?;
        Ok::<_, String>(switcher)
    };
    let switcher = released(host.into_cpu())?;

    let foreign = Foreign::load()?;
    let mine = loaded();
    // The host's own tables are not fit for guests.
    let refused = match prepared(switcher, 0, Tables::Hosts) {
        Err(PrepareError::State(why)) if why.state == State::Gdt => Ok(()),
        Err(why) => Err(format!("the host's tables: {why}")),
        Ok(_) => Err("the host's tables were taken for guests' tables".into()),
    };
    // Nor is a table of the host's that is somewhere else.
    let mut elsewhere = Box::new([0_u64; 64]);
    let writable = NonNull::from(&mut *elsewhere).cast();
    let wrong = match prepared(switcher, 0, Tables::Own { writable, keep: &KEEP }) {
        Err(PrepareError::Tables(_)) => Ok(()),
        other => Err(format!("another table is not the host's: {other:?}")),
    };
    let tables = Tables::Own { writable: foreign.writable, keep: &KEEP };
    let mut own = host_of(switcher, 0, breakpoints, tables);
    let mut entered = 0;
    let ended = (|| {
        refused?;
        wrong?;
        for mode in [Mode::Smod, Mode::Umod] {
            let mut rng = fastrand::Rng::with_seed(77);
            let setup = setup(&own, &mut rng, mode, PROBE);
            check(&mut own, &setup, &Expected::unchanged(&setup, Expected::UD))?;
            entered += 1;
            if loaded() != mine {
                return Err(format!("the host has {:x?}, not {mine:x?}", loaded()));
            }
        }
        for case in hw_cases::all().iter().step_by(4) {
            let (runs, end) = case.run(&mut own);
            entered += runs;
            match end {
                CaseEnd::Passed | CaseEnd::NotHere(_) => {}
                CaseEnd::Failed(why) => return Err(format!("{}: {why}", case.name)),
            }
        }
        if loaded() != mine {
            return Err(format!("the host has {:x?} at the end, not {mine:x?}", loaded()));
        }
        Ok(())
    })();
    released(own.into_cpu())?;
    foreign.unload()?;
    bench.put_host(host_of(switcher, 0, breakpoints, Tables::Hosts));
    ended.map(|()| entered)
}
