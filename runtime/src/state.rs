//! The table of every register and structure that CPL 3 can see, change or be ruled by, as far as
//! the manuals of Intel and AMD tell (spec/hazards.md, "CPU state"). A CPU that has more is for its
//! host to judge.
//!
//! An entry says what it is about, why that matters and who sees to it, and it *has* the functions
//! that do so: what [`prepare`](crate::Switcher::prepare) checks, what [`enter`](crate::Cpu::enter)
//! checks each time, and what it exchanges. Both go through the table, and call no such function
//! that is not in it. `CPU-STATE.md` is written from it, so the document cannot claim a check that
//! does not exist.
//!
//! Checks are functions of values that were read before, so that tests can make up every CPU. What
//! a check returns names the register, its value, and what to do.

use alloc::vec::Vec;
use core::fmt;

use switcher_gen::Hazard;
use switcher_gen::arch::{
    Msr as MsrName, PagingMode, RFlags, Selectors, cr0, cr4, dr7, efer, s_cet,
};

use crate::exchange::{
    Breakpoints, Context, DebugCtl, Dr6, Exchange, GsBases, Pebs, Pkru, Segments,
};
use crate::exchange::{TscAux, UserCet};
use crate::guest::Guest;
use crate::has::Has;
use crate::registers;
use crate::registers::DescriptorTablePointer;

/// Who sees to a register or a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    /// The emitted code sees to it, and this is proved.
    Switcher(&'static str),
    /// `activate` writes it, and `deactivate` gives it back.
    Activate(&'static str),
    /// `enter` gives the guest its own value, and the host its own back.
    Enter(&'static str),
    /// `prepare` or `enter` refuses a wrong value.
    Checked(&'static str),
    /// The host must see to it, and nobody checks whether it does.
    Duty {
        /// The name of the duty.
        name: &'static str,
        /// What the duty is.
        what: &'static str,
    },
    /// The host may choose any value.
    Choice(&'static str),
}

type HostCheck = fn(&Host) -> Result<(), Wrong>;
type RunningCheck = fn(&Running) -> Result<(), Wrong>;

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What the row is about.
    pub state: State,
    /// The registers or structures, as the manuals call them.
    pub registers: &'static str,
    /// The rows of spec/hazards.md that it is about.
    pub rows: &'static [Hazard],
    /// What would go wrong if nobody saw to it.
    pub why: &'static str,
    /// Who sees to it.
    pub care: &'static [Care],
    /// The checks that `prepare` makes.
    prepare: &'static [HostCheck],
    /// The checks that `enter` makes each time.
    enter: &'static [RunningCheck],
    /// The registers of this row that `enter` exchanges.
    exchanged: &'static [&'static str],
}

impl Entry {
    /// Whether `prepare` checks something of this row.
    #[must_use]
    pub const fn is_checked_by_prepare(&self) -> bool {
        !self.prepare.is_empty()
    }

    /// Whether `enter` checks something of this row.
    #[must_use]
    pub const fn is_checked_by_enter(&self) -> bool {
        !self.enter.is_empty()
    }

    /// Whether `enter` exchanges something of this row.
    #[must_use]
    pub const fn is_exchanged(&self) -> bool {
        !self.exchanged.is_empty()
    }
}

/// A register or structure that is not as it has to be for guests to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StateError {
    /// The row of the table that has the check.
    pub state: State,
    /// The register, or a bit of it.
    pub register: &'static str,
    /// The selector of the descriptor, if the problem is one of a descriptor.
    pub selector: Option<u16>,
    /// The value that was found.
    pub found: u64,
    /// What is wrong about the value.
    pub problem: &'static str,
    /// What the host can do about it.
    pub remedy: &'static str,
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { register, selector, found, problem, remedy, .. } = *self;
        f.write_str(register)?;
        if let Some(selector) = selector {
            write!(f, " {selector:#x}")?;
        }
        write!(f, " is {found:#x}: {problem}; {remedy}")
    }
}

impl core::error::Error for StateError {}

/// What a check has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    register: &'static str,
    selector: Option<u16>,
    found: u64,
    problem: &'static str,
    remedy: &'static str,
}

impl Wrong {
    const fn of(self, state: State) -> StateError {
        let Self { register, selector, found, problem, remedy } = self;
        StateError { state, register, selector, found, problem, remedy }
    }
}

/// The bit of MSR IA32_MISC_ENABLE that says that there is no PEBS (Intel SDM vol. 4).
const PEBS_UNAVAILABLE: u64 = 1 << 12;
/// The bits of MSR SEV_STATUS for guests that #VC tells of what is intercepted (AMD APM vol. 2,
/// 15.34 to 15.36; Linux, asm/msr-index.h): SEV-ES and SEV-SNP. With SEV alone there is no such
/// exception.
const SEV_ES_OR_SNP: u64 = 0b11 << 1;

/// The values that `prepare` checks.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) has: Has,
    pub(crate) paging: PagingMode,
    pub(crate) selectors: Selectors,
    pub(crate) cr0: u64,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    pub(crate) s_cet: Option<u64>,
    pub(crate) user_msr_ctl: Option<u64>,
    pub(crate) sev_status: Option<u64>,
    pub(crate) ldtr: u16,
    pub(crate) tr: u16,
    pub(crate) gdt_base: u64,
    pub(crate) gdt_limit: u16,
    /// The entries of the GDT; none if the table is not within a page.
    pub(crate) gdt: Vec<u64>,
    /// The address that the TSS in the per-CPU block has.
    pub(crate) tss: u64,
    /// The I/O map base of that TSS.
    pub(crate) iomap_base: u16,
}

impl Host {
    /// Reads all values, at CPL 0. With a GDT that is loaded for guests alone, what is read is that
    /// table, and LDTR is null while they run.
    pub(crate) fn read(
        has: Has,
        paging: PagingMode,
        selectors: Selectors,
        of_guests: Option<DescriptorTablePointer>,
        (tss, iomap_base): (u64, u16),
    ) -> Self {
        let gdtr = of_guests.unwrap_or_else(DescriptorTablePointer::gdtr);
        let ldtr = if of_guests.is_some() { 0 } else { registers::ldtr() };
        let cr4 = registers::cr4();
        let (gdt_base, gdt_limit) = (gdtr.base(), gdtr.limit());
        let entries = if is_within_a_page(gdt_base, gdt_limit) { gdt_limit / 8 + 1 } else { 0 };
        // SAFETY: the MSR exists where CR4.CET can be set.
        let s_cet =
            (cr4 & cr4::CET != 0).then(|| unsafe { registers::read_msr(MsrName::SCet.address()) });
        // SAFETY: CPUID says that the MSR exists.
        let user_msr_ctl =
            has.user_msr.then(|| unsafe { registers::read_msr(MsrName::UserMsrCtl.address()) });
        // SAFETY: CPUID says that the CPU can have such guests, and so has the MSR; Linux reads it
        // on the same condition.
        let sev_status =
            has.sev.then(|| unsafe { registers::read_msr(MsrName::SevStatus.address()) });
        Self {
            has,
            paging,
            selectors,
            cr0: registers::cr0(),
            cr4,
            // SAFETY: every 64-bit CPU has EFER.
            efer: unsafe { registers::read_msr(MsrName::Efer.address()) },
            s_cet,
            user_msr_ctl,
            sev_status,
            ldtr,
            tr: registers::tr(),
            gdt_base,
            gdt_limit,
            gdt: (0..entries).map(|entry| descriptor(gdtr, entry * 8)).collect(),
            tss,
            iomap_base,
        }
    }

    fn descriptor(&self, selector: u16) -> u64 {
        self.gdt.get(usize::from(selector >> 3)).copied().unwrap_or_default()
    }
}

/// Whether PEBS is switched off for good on this CPU.
pub(crate) fn pebs_is_unavailable() -> bool {
    // SAFETY: CPUs with a debug store have the MSR.
    unsafe { registers::read_msr(MsrName::MiscEnable.address()) & PEBS_UNAVAILABLE != 0 }
}

/// Whether the last byte of a table is on the page of its first one.
const fn is_within_a_page(base: u64, limit: u16) -> bool {
    const PAGE: u64 = 4096;
    base % PAGE + (limit as u64) < PAGE
}

/// The GDT's entry for a selector, 0 beyond its limit and for selectors of the LDT.
pub(crate) fn descriptor(gdtr: DescriptorTablePointer, selector: u16) -> u64 {
    let offset = u64::from(selector & !0b111);
    if selector & TABLE_INDICATOR != 0 || offset + 7 > u64::from(gdtr.limit()) {
        return 0;
    }
    let entry = core::ptr::with_exposed_provenance::<u64>((gdtr.base() + offset) as usize);
    // SAFETY: GDTR says that a table of `limit + 1` bytes lies at `base`, and the CPU itself reads
    // it through the same mapping; the entry lies within the table. Descriptors may be unaligned.
    unsafe { entry.read_unaligned() }
}

/// The address of the TSS that TR's descriptor names. No two CPUs have one TSS, so this tells them
/// apart, also where they share a GDT.
pub(crate) fn tss_of(gdtr: DescriptorTablePointer, tr: u16) -> u64 {
    SystemSegment::decode(descriptor(gdtr, tr), descriptor(gdtr, tr.wrapping_add(8))).base
}

/// The values that are to be the same whenever a guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) cr4: u64,
    pub(crate) tr: u16,
    pub(crate) gdtr: DescriptorTablePointer,
    /// The address of TR's TSS, by which a CPU is told from another one.
    pub(crate) tss: u64,
    /// LSTAR, where SYSCALL leads. It has another value if this CPU has been reset in between, and
    /// set up anew.
    pub(crate) lstar: u64,
}

impl Control {
    /// Reads the values, at CPL 0.
    pub(crate) fn read() -> Self {
        let (cr4, tr, gdtr) = (registers::cr4(), registers::tr(), DescriptorTablePointer::gdtr());
        // SAFETY: every CPU with long mode has the MSR; reading it changes nothing.
        let lstar = unsafe { registers::read_msr(MsrName::Lstar.address()) };
        Self { cr4, tr, gdtr, tss: tss_of(gdtr, tr), lstar }
    }
}

/// The values that `enter` checks each time.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    /// RFLAGS of the code that enters the guest.
    pub(crate) flags: RFlags,
    pub(crate) cr0: u64,
    /// The values as they are now.
    pub(crate) now: Control,
    /// The values as `prepare` has found them, or `activate` writes them.
    pub(crate) then: Control,
    pub(crate) ldtr: u16,
    pub(crate) dr7: u64,
    /// The selectors that the host has in DS, ES, FS and GS, and gets back.
    pub(crate) hosts: [u16; 4],
    /// The GDT's entries for `hosts`; 0 for null selectors.
    pub(crate) hosts_descriptors: [u64; 4],
    /// The selectors of CS and SS that the guest is to be entered with.
    pub(crate) code_and_stack: [u16; 2],
    /// The selectors of DS, ES, FS and GS that the guest is to be entered with.
    pub(crate) data: [u16; 4],
    /// The GDT's entries for `code_and_stack` and `data`, in this order; 0 for null selectors.
    pub(crate) descriptors: [u64; 6],
}

impl Running {
    /// Reads the values, at CPL 0, except for `cr0`, which was read before anything else. No
    /// descriptor is read for the switcher's own selectors and null ones, because `prepare` has
    /// checked these.
    /// With a GDT that is loaded for guests alone, descriptors are those of that table, and LDTR is
    /// null while they run.
    pub(crate) fn read(
        cr0: u64,
        guest: &Guest,
        selectors: Selectors,
        then: Control,
        of_guests: Option<DescriptorTablePointer>,
    ) -> Self {
        let now = Control::read();
        let gdtr = of_guests.unwrap_or(now.gdtr);
        let ldtr = if of_guests.is_some() { 0 } else { registers::ldtr() };
        let entry = |selector| if selector > NULL { descriptor(gdtr, selector) } else { 0 };
        let hosts = registers::data_selectors();
        let code_and_stack = [guest.regs.cs as u16, guest.regs.ss as u16];
        let data = guest.selectors.as_array();
        let is_usual = code_and_stack == [selectors.user_cs(), selectors.user_ds()];
        let mut descriptors = [0; 6];
        if !is_usual || data.iter().any(|selector| *selector > NULL) {
            let all = code_and_stack.into_iter().chain(data);
            for (found, selector) in descriptors.iter_mut().zip(all) {
                *found = entry(selector);
            }
        }
        Self {
            flags: registers::flags(),
            cr0,
            now,
            then,
            ldtr,
            dr7: registers::dr7(),
            hosts,
            hosts_descriptors: hosts.map(entry),
            code_and_stack,
            data,
            descriptors,
        }
    }
}

/// Selectors up to this one are null, whatever their RPL.
pub(crate) const NULL: u16 = 3;
const RPL: u16 = 3;
const TABLE_INDICATOR: u16 = 1 << 2;

// The bits of descriptors (Intel SDM vol. 3, 3.4.5 and 3.5).
const ACCESSED: u64 = 1 << 40;
/// In data: writable. In code: readable.
const READ_WRITE: u64 = 1 << 41;
/// In data: expands down. In code: conforming.
const DOWN_OR_CONFORMING: u64 = 1 << 42;
const IS_CODE: u64 = 1 << 43;
const IS_SEGMENT: u64 = 1 << 44;
const DPL: u64 = 3 << 45;
const PRESENT: u64 = 1 << 47;
const LONG: u64 = 1 << 53;
/// In code: 32 bits. In data: stacks of 32 bits.
const SIZE32: u64 = 1 << 54;

const fn wrong(
    register: &'static str,
    found: u64,
    problem: &'static str,
    remedy: &'static str,
) -> Result<(), Wrong> {
    Err(Wrong { register, selector: None, found, problem, remedy })
}

/// Checks a bit that must be set, or must be clear.
const fn bit(
    register: &'static str,
    found: u64,
    bit: u64,
    must_be_set: bool,
    problem: &'static str,
    remedy: &'static str,
) -> Result<(), Wrong> {
    if (found & bit != 0) == must_be_set { Ok(()) } else { wrong(register, found, problem, remedy) }
}

/// Checks a bit of CR4 that has to stay as `prepare` has found or made it.
const fn kept(register: &'static str, running: &Running, bit: u64) -> Result<(), Wrong> {
    let (now, then) = (running.now.cr4, running.then.cr4);
    if now & bit == then & bit {
        return Ok(());
    }
    wrong(
        register,
        now,
        "it was another one when this CPU was prepared, which was checked for that",
        "leave it alone, or release this CPU first",
    )
}

fn ldtr_is_null(selector: u16) -> Result<(), Wrong> {
    if selector <= NULL {
        return Ok(());
    }
    wrong(
        "LDTR",
        selector.into(),
        "a guest that has memory of its own where that table lies makes itself a call gate to ring 0",
        "execute LLDT with a null selector before a guest runs",
    )
}

fn gdt_is_bounded(host: &Host) -> Result<(), Wrong> {
    if !host.paging.is_canonical(host.gdt_base) {
        return wrong("GDTR's base", host.gdt_base, "it is no address", "load a GDT");
    }
    if !is_within_a_page(host.gdt_base, host.gdt_limit) || host.gdt_limit % 8 != 7 {
        return wrong(
            "GDTR's limit",
            host.gdt_limit.into(),
            "the table must end with an entry, on the page that it begins on: what follows it would \
             be descriptors, too",
            "load the limit of the entries there are, on a page of their own",
        );
    }
    Ok(())
}

/// Checks that GDTR is as `prepare` has found it: `prepare` has judged the entries of that table,
/// and each guest's root maps it.
fn gdtr_is_as_it_was(running: &Running) -> Result<(), Wrong> {
    const PROBLEM: &str =
        "it is another GDT than when this CPU was prepared, which has judged that one's entries";
    const MEND: &str = "load that one before a guest runs, or release this CPU first";
    let (now, then) = (running.now.gdtr, running.then.gdtr);
    if now.base() != then.base() {
        return wrong("GDTR's base", now.base(), PROBLEM, MEND);
    }
    if now.limit() != then.limit() {
        return wrong("GDTR's limit", now.limit().into(), PROBLEM, MEND);
    }
    Ok(())
}

/// Checks that TR is as `prepare` has found it: the hardware keeps what TR's descriptor said when
/// it was loaded, which `prepare` has judged.
fn tr_is_as_it_was(running: &Running) -> Result<(), Wrong> {
    let tr = running.now.tr;
    if tr == running.then.tr {
        return Ok(());
    }
    wrong(
        "TR",
        tr.into(),
        "it was another one when this CPU was prepared, which was checked for the block's TSS",
        "load that one again, or release this CPU first",
    )
}

fn gdt_entries_are_safe(host: &Host) -> Result<(), Wrong> {
    (0..).step_by(8).zip(&host.gdt).try_for_each(|(selector, entry)| judge(selector, *entry))
}

/// Judges a descriptor that CPL 3 may be able to load. What is not known to be safe is refused.
fn judge(selector: u16, entry: u64) -> Result<(), Wrong> {
    let is = |bits: u64| entry & bits == bits;
    let wrong = |problem, remedy| {
        Err(Wrong {
            register: "GDT entry",
            selector: Some(selector),
            found: entry,
            problem,
            remedy,
        })
    };
    const REMOVE: &str = "take it out of the GDT that is loaded while guests run";
    let conforms = is(PRESENT | IS_SEGMENT | IS_CODE | DOWN_OR_CONFORMING);
    if !is(PRESENT) || !is(DPL) && !conforms {
        // The hardware refuses this descriptor at CPL 3, with a fault that is the guest's.
        return Ok(());
    }
    if !is(IS_SEGMENT) {
        return wrong(
            "CPL 3 can use this system descriptor, which may be a gate to ring 0",
            REMOVE,
        );
    }
    if conforms {
        return wrong("code segments that conform are none of a guest's", REMOVE);
    }
    if is(IS_CODE) {
        if is(LONG) == is(SIZE32) {
            return wrong("a guest's code has 64 or 32 bits, not 16 nor both", REMOVE);
        }
    } else if is(READ_WRITE) && !is(SIZE32) {
        return wrong(
            "IRETQ to a stack of 16 bits leaves the upper part of the host's RSP to the guest",
            "set its B bit, or take it out of the GDT that is loaded while guests run",
        );
    } else if is(READ_WRITE | DOWN_OR_CONFORMING) {
        return wrong("a stack that expands down is none of a guest's", REMOVE);
    }
    if !is(ACCESSED) {
        return wrong(
            "it is not marked as accessed: loading it writes to the GDT, which guests' roots map \
             read-only, and the IRETQ to the guest faults in ring 0",
            "set the bit",
        );
    }
    Ok(())
}

/// Checks the descriptors of the switcher's selectors. SYSCALL and SYSRET load fixed attributes
/// without looking at the descriptors, IRET looks: both ways must lead to the same segments (AMD
/// APM vol. 3, SYSCALL).
fn selectors_are_as_star_has_them(host: &Host) -> Result<(), Wrong> {
    // These are present, DPL, S, type, L and D, and accessed: without it, the hardware would write
    // to the GDT, which guests' roots map read-only.
    const MASK: u64 = PRESENT | DPL | IS_SEGMENT | IS_CODE | READ_WRITE | ACCESSED | LONG | SIZE32;
    const EACH: u64 = PRESENT | IS_SEGMENT | ACCESSED | READ_WRITE;
    // L means nothing in data, nor does B in data of ring 0.
    const DATA: u64 = MASK & !LONG | DOWN_OR_CONFORMING;
    const CODE: u64 = MASK | DOWN_OR_CONFORMING;

    let selectors = host.selectors;
    let wanted = [
        (
            "KERNEL_CS",
            selectors.kernel_cs(),
            CODE,
            IS_CODE | LONG,
            "it must be accessed 64-bit code of DPL 0",
        ),
        (
            "KERNEL_DS",
            selectors.kernel_ds(),
            DATA & !SIZE32,
            0,
            "it must be accessed writable data of DPL 0",
        ),
        (
            "USER32_CS",
            selectors.user32_cs(),
            CODE,
            IS_CODE | SIZE32 | DPL,
            "it must be accessed 32-bit code of DPL 3",
        ),
        (
            "USER_DS",
            selectors.user_ds(),
            DATA,
            SIZE32 | DPL,
            "it must be accessed writable data of DPL 3, with stacks of 32 bits",
        ),
        (
            "USER_CS",
            selectors.user_cs(),
            CODE,
            IS_CODE | LONG | DPL,
            "it must be accessed 64-bit code of DPL 3",
        ),
    ];
    for (register, selector, mask, attributes, problem) in wanted {
        let found = host.descriptor(selector);
        if found & mask != EACH | attributes {
            let remedy = "correct the GDT, or tell the variant the selectors of this host";
            return Err(Wrong { register, selector: Some(selector), found, problem, remedy });
        }
    }
    Ok(())
}

/// Where a TSS descriptor says the segment lies (Intel SDM vol. 3, figure 8-4).
#[derive(Debug, PartialEq, Eq)]
struct SystemSegment {
    base: u64,
    limit: u32,
}

impl SystemSegment {
    const fn decode(low: u64, high: u64) -> Self {
        const GRANULARITY: u64 = 1 << 55;
        let base = low >> 16 & 0xFF_FFFF | low >> 56 << 24 | high << 32;
        let limit = (low & 0xFFFF | low >> 32 & 0xF_0000) as u32;
        let limit = if low & GRANULARITY == 0 { limit } else { limit << 12 | 0xFFF };
        Self { base, limit }
    }
}

/// Checks that TR's TSS is the one in the per-CPU block: the hardware takes sp0 and the IST from
/// the former, the switcher from the latter. The hardware also lets CPL 3 use ports by an I/O
/// bitmap, if there is one within the TSS's limit.
fn tss_is_the_blocks(host: &Host) -> Result<(), Wrong> {
    const LEAST: u32 = 103;
    let low = host.descriptor(host.tr);
    let found = SystemSegment::decode(low, host.descriptor(host.tr.wrapping_add(8)));
    if low & PRESENT == 0 || found.base != host.tss {
        return wrong(
            "TR's TSS",
            found.base,
            "hardware and switcher would use different stacks",
            "load TR with a descriptor of the TSS in the per-CPU block",
        );
    }
    if found.limit < LEAST {
        return wrong(
            "TR's limit",
            found.limit.into(),
            "the stacks of the IST are not within it",
            "give the TSS's descriptor a limit of 103, and load TR again: the CPU keeps the limit that LTR has found",
        );
    }
    if u32::from(host.iomap_base) <= found.limit {
        return wrong(
            "the TSS's I/O map base",
            host.iomap_base.into(),
            "there is an I/O bitmap within the TSS's limit: guests could use ports",
            "set the base to the limit plus one, or more; after a change of the limit, load TR again",
        );
    }
    Ok(())
}

/// Checks that MOV to each data segment register takes the guest's selector: if it does not, it
/// faults in ring 0. It takes whatever a guest has loaded itself, unless the GDT has changed: CPL 3
/// may load what the DPL allows for it and for the selector's RPL, whatever that is, and the
/// register keeps the RPL (Intel SDM vol. 3, 5.5). Whatever CPL 3 may load, CPL 0 may.
fn data_selectors_load(running: &Running) -> Result<(), Wrong> {
    const NAMES: [&str; 4] =
        ["the guest's DS", "the guest's ES", "the guest's FS", "the guest's GS"];
    for ((register, selector), entry) in
        NAMES.into_iter().zip(running.data).zip(&running.descriptors[2..])
    {
        if selector <= NULL {
            continue;
        }
        let is = |bits: u64| entry & bits == bits;
        let is_for_cpl_3 = is(DPL) || is(IS_CODE | DOWN_OR_CONFORMING);
        let loads = selector & TABLE_INDICATOR == 0
            && is(PRESENT | IS_SEGMENT)
            && is_for_cpl_3
            && (!is(IS_CODE) || is(READ_WRITE));
        if !loads {
            return wrong(
                register,
                selector.into(),
                "it must be null, or name a present segment of DPL 3 in the GDT that can be read: CPL 3 could \
                 not have loaded it, and loading it may fault in ring 0",
                "clear it, or load the GDT that the guest had when it exited",
            );
        }
        judge(selector & !RPL, *entry)?;
    }
    Ok(())
}

/// Checks that the host's own selectors can be loaded once more when the guest has exited: this
/// happens in ring 0, under the switcher's IDT, where a fault is fatal. That they are loaded now
/// does not show this: the LDT is null by now, and an entry of the GDT may be gone, as a thread's
/// entries are in another thread. They must be accessed, too, because loading them would write to
/// the GDT otherwise, which hosts map read-only as well.
fn hosts_selectors_load(running: &Running) -> Result<(), Wrong> {
    const NAMES: [&str; 4] = ["the host's DS", "the host's ES", "the host's FS", "the host's GS"];
    for ((register, selector), entry) in
        NAMES.into_iter().zip(running.hosts).zip(running.hosts_descriptors)
    {
        if selector <= NULL {
            continue;
        }
        let is = |bits: u64| entry & bits == bits;
        let is_for_this_level =
            is(IS_CODE | DOWN_OR_CONFORMING) || entry & DPL >= u64::from(selector & RPL) << 45;
        let loads = selector & TABLE_INDICATOR == 0
            && is(PRESENT | IS_SEGMENT | ACCESSED)
            && (!is(IS_CODE) || is(READ_WRITE))
            && is_for_this_level;
        if !loads {
            return wrong(
                register,
                selector.into(),
                "it must be null, or name a present, accessed segment in the GDT that can be read: loading it \
                 again after the guest would fault under the switcher's IDT",
                "load a null selector before `enter`, and that one again when it has returned",
            );
        }
    }
    Ok(())
}

fn code_and_stack_are_safe(running: &Running) -> Result<(), Wrong> {
    let names = ["the guest's CS", "the guest's SS"];
    for ((register, selector), entry) in
        names.into_iter().zip(running.code_and_stack).zip(running.descriptors)
    {
        if selector & RPL != RPL {
            return wrong(
                register,
                selector.into(),
                "its RPL must be 3: IRETQ would obey it, and the guest would not run at CPL 3",
                "enter the guest with selectors of CPL 3",
            );
        }
        // Anything else that is wrong with the selector makes the IRETQ to the guest fault, which
        // is the guest's fault.
        judge(selector & !RPL, entry)?;
    }
    Ok(())
}

/// Checks the caller's flags, which the proofs take to be clear, except for IF, for which `enter`
/// has an error of its own.
fn flags_are_clear(running: &Running) -> Result<(), Wrong> {
    let Running { flags, now, .. } = running;
    let wanted = [
        (
            RFlags::DF,
            "the host's RFLAGS.DF",
            "the ABI has it clear, and so have the proofs",
            "execute CLD",
        ),
        (
            RFlags::NT,
            "the host's RFLAGS.NT",
            "the IRETQ to the guest would fault, which would be taken for a fault of the guest's",
            "clear it: CPL 3 may have set it before it came to the host",
        ),
        (
            RFlags::TF,
            "the host's RFLAGS.TF",
            "each instruction of the switcher would end with a #DB",
            "do not single-step `enter`",
        ),
        (
            RFlags::AC,
            "the host's RFLAGS.AC",
            "ring 0 could access pages of CPL 3, from which CR4.SMAP keeps it",
            "execute CLAC",
        ),
    ];
    for (flag, register, problem, remedy) in wanted {
        let matters = flag != RFlags::AC || now.cr4 & cr4::SMAP != 0;
        if flags.contains(flag) && matters {
            return wrong(register, flags.bits(), problem, remedy);
        }
    }
    Ok(())
}

fn lstar_is_the_switchers(running: &Running) -> Result<(), Wrong> {
    let lstar = running.now.lstar;
    if lstar == running.then.lstar {
        return Ok(());
    }
    wrong(
        "LSTAR",
        lstar,
        "a guest's SYSCALL would come to ring 0 elsewhere than in the switcher: this CPU has been reset since, or \
         somebody has changed the register",
        "give it its value back; or, after a reset, call `Cpu::gone`, and prepare this CPU anew",
    )
}

fn no_breakpoint_is_armed(running: &Running) -> Result<(), Wrong> {
    /// L0 to G3, and GD.
    const LIVE: u64 = dr7::ARMED | dr7::GD;
    if running.dr7 & LIVE == 0 {
        return Ok(());
    }
    wrong(
        "DR7",
        running.dr7,
        "a breakpoint of the host's would be met on a guest's root, in the middle of the switcher, or \
         by a guest at the same address",
        "disarm it around `enter`; the guest's own go into `Guest::debug`",
    )
}

macro_rules! cpu_state {
    ($(
        $state:ident: $registers:literal,
        rows [$($row:ident),*],
        why $why:literal,
        care $care:expr,
        prepare [$($prepare:expr),*],
        enter [$($enter:expr),*],
        exchange [$($field:ident: $exchange:ty),*];
    )*) => {
        /// The rows of [`CPU_STATE`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum State {
            $(
                #[doc = $registers]
                $state,
            )*
        }

        /// The table of every register and structure that CPL 3 can see, change or be ruled by.
        pub const CPU_STATE: &[Entry] = &[$(
            Entry {
                state: State::$state,
                registers: $registers,
                rows: &[$(Hazard::$row),*],
                why: $why,
                care: &$care,
                prepare: &[$($prepare),*],
                enter: &[$($enter),*],
                exchanged: &[$(<$exchange as Exchange>::REGISTERS),*],
            },
        )*];

        /// Makes all checks that the table has for the time when a CPU is prepared.
        pub(crate) fn check_host(host: &Host) -> Result<(), StateError> {
            $($({
                let check: HostCheck = $prepare;
                check(host).map_err(|wrong| wrong.of(State::$state))?;
            })*)*
            Ok(())
        }

        /// Makes all checks that the table has for the time when a guest is entered.
        pub(crate) fn check_running(running: &Running) -> Result<(), StateError> {
            $($({
                let check: RunningCheck = $enter;
                check(running).map_err(|wrong| wrong.of(State::$state))?;
            })*)*
            Ok(())
        }

        /// The host's values, while a guest has its own.
        #[derive(Debug)]
        #[must_use = "the host's state is to be put back"]
        pub(crate) struct Exchanged {
            $($($field: <$exchange as Exchange>::Kept,)*)*
        }

        impl Exchanged {
            /// Loads the guest's values, in the order of the table.
            ///
            /// # Safety
            /// The contract of [`Exchange::load`] must hold for each exchange.
            pub(crate) unsafe fn load(context: &Context, guest: &Guest) -> Self {
                $($(
                    // SAFETY: the caller vouches for the contract of each `load`.
                    let $field = unsafe { <$exchange as Exchange>::load(context, guest) };
                )*)*
                Self { $($($field,)*)* }
            }

            /// Names the registers that somebody has changed who must not, if anybody has: see
            /// [`Exchange::is_untouched`].
            ///
            /// # Safety
            /// The contract of [`Exchange::is_untouched`] must hold for each exchange.
            pub(crate) unsafe fn touched(&self, context: &Context, guest: &Guest) -> Option<&'static str> {
                $($(
                    // SAFETY: the caller vouches for the contract of each `is_untouched`.
                    if !unsafe { <$exchange as Exchange>::is_untouched(context, &self.$field, guest) } {
                        return Some(<$exchange as Exchange>::REGISTERS);
                    }
                )*)*
                None
            }

            /// Loads the host's values again, in the same order.
            ///
            /// # Safety
            /// The contract of [`Exchange::restore`] must hold for each exchange.
            pub(crate) unsafe fn restore(self, context: &Context, guest: &mut Guest) {
                $($(
                    // SAFETY: the caller vouches for the contract of each `restore`.
                    unsafe { <$exchange as Exchange>::restore(context, self.$field, guest) };
                )*)*
            }
        }
    };
}

use Care::{Activate, Checked, Choice, Duty, Enter, Switcher};

cpu_state! {
    GeneralRegisters: "RAX to R15, RIP, RFLAGS, CS, SS",
        rows [PrivilegedFlags, Registers],
        why "The guest's own.",
        care [
            Switcher("exchanged; forbidden flags are dropped"),
            Checked("`enter` refuses a CS or SS whose RPL is not 3, and selectors of 16-bit, conforming or gate descriptors, should the GDT have changed"),
        ],
        prepare [],
        enter [code_and_stack_are_safe],
        exchange [];
    HostFlags: "RFLAGS of the host: IF, DF, NT, TF, AC; NMI blocking",
        rows [PrivilegedFlags, EarlyNmi],
        why "The switcher runs with them. With NT, the IRETQ to a guest faults, and the guest is blamed; with AC, SMAP is off.",
        care [
            Checked("`enter` refuses while IF, DF, NT or TF is set, and AC where CR4.SMAP is; so does `prepare` with IF"),
            Checked("`enter` refuses after an exit by an NMI until the blocking has ended, by the host's handler or `unblock_nmis`"),
            Duty { name: "NMI blocking", what: "`enter` is not called by an NMI's handler: the IRETQ to a guest ends the blocking" },
        ],
        prepare [],
        enter [flags_are_clear],
        exchange [];
    TaskPriority: "CR8, the local APIC's task priority",
        rows [HandedOn],
        why "It decides which interrupts end a guest's run; CPL 3 can neither read nor write it.",
        care [Choice("what it holds back stays pending; a guest runs on meanwhile")],
        prepare [],
        enter [],
        exchange [];
    Gdt: "GDT: base, limit, and every descriptor that CPL 3 can load (its accessed, D, B and L bits)",
        rows [LdtGate, IretqReads],
        why "A gate of DPL 3 leads to ring 0; a stack of 16 bits leaks the host's RSP by IRETQ; loading a descriptor that is not marked as accessed writes to the GDT.",
        care [
            Checked("`prepare` judges every entry up to the limit, and refuses what is not known to be safe; `enter` finds the same base and limit"),
            Enter("a GDT that `prepare` has made is loaded around the guest, with `Tables::Own`"),
            Duty { name: "GDT entries", what: "while the CPU is prepared, none becomes what `prepare` would refuse: in a host whose threads have entries of their own, those of the thread that enters count, and a 16-bit one is cleared before" },
        ],
        prepare [gdt_is_bounded, gdt_entries_are_safe, selectors_are_as_star_has_them],
        enter [gdtr_is_as_it_was],
        exchange [];
    DescriptorRegisters: "GDTR, IDTR, TR and LDTR as SGDT, SIDT, STR and SLDT show them; CR4.UMIP",
        rows [VisibleHostState],
        why "Without UMIP, CPL 3 reads where the GDT and the switcher's IDT lie.",
        care [
            Checked("on CPUs with UMIP, CR4.UMIP must be set"),
            Duty { name: "descriptor addresses", what: "on CPUs without UMIP, guests know where the GDT and the switcher's IDT lie: their addresses should tell nothing of the rest of the host" },
        ],
        prepare [|host| bit("CR4.UMIP", host.cr4, cr4::UMIP, host.has.umip || host.cr4 & cr4::UMIP != 0, "guests could read where the GDT and the IDT lie", "set it: this CPU has it")],
        enter [|it| kept("CR4.UMIP", it, cr4::UMIP)],
        exchange [];
    Ldtr: "LDTR",
        rows [LdtGate],
        why "A guest that has memory where a forgotten LDT points makes itself a call gate.",
        care [
            Checked("it must be null"),
            Enter("null while a guest runs, and the host's again, with `Tables::Own`"),
        ],
        prepare [|host| ldtr_is_null(host.ldtr)],
        enter [|it| ldtr_is_null(it.ldtr)],
        exchange [];
    Tr: "TR: base, limit and I/O bitmap of the TSS",
        rows [MappedSet, LdtGate],
        why "Stacks of events, and the ports that CPL 3 may use.",
        care [
            Checked("it must be the per-CPU block's TSS, whole, with no I/O bitmap within its limit; `enter` finds the same selector"),
            Enter("the block's TSS is loaded around the guest, with `Tables::Own`"),
            Duty { name: "TR's limit", what: "TR's descriptor is as LTR has found it: the CPU keeps the base and the limit that it read then, which no instruction shows. A host that has changed the descriptor loads TR again before it prepares the CPU" },
            Duty { name: "I/O bitmap", what: "while the CPU is prepared, the TSS's I/O map base stays beyond its limit: a host that gives threads ports moves it back before it enters a guest" },
        ],
        prepare [tss_is_the_blocks],
        enter [tr_is_as_it_was],
        exchange [];
    Idt: "IDTR",
        rows [VectorSpoofing, TruncatedAddress],
        why "Its gates decide what CPL 3 may call, and where events go.",
        care [Enter("the switcher's is loaded around the guest, with gates of DPL 3 for vectors 3, 4 and 0x80 alone; its address is one of the paging mode")],
        prepare [],
        enter [],
        exchange [];
    Pkru: "PKRU; CR4.PKE",
        rows [VisibleHostState],
        why "CPL 3 writes it; it rules user pages, of whoever runs.",
        care [
            Switcher("exchanged by direct switches, in variants with `pku`"),
            Enter("exchanged, in variants with `pku`"),
            Checked("CR4.PKE is as the variant has it"),
        ],
        prepare [],
        enter [|it| kept("CR4.PKE", it, cr4::PKE)],
        exchange [pkru: Pkru];
    GsBase: "both GS bases",
        rows [WrgsbaseFault, StaleGsBase, SwapgsParity],
        why "CPL 3 writes the active one.",
        care [
            Switcher("exchanged"),
            Enter("GS base is the per-CPU block's under the switcher's IDT, and the host's again; the guest's is loaded and taken back, which uses up KERNEL_GS_BASE"),
            Activate("CR4.FSGSBASE"),
            Checked("CR4.FSGSBASE stays set"),
        ],
        prepare [],
        enter [|it| kept("CR4.FSGSBASE", it, cr4::FSGSBASE)],
        exchange [gs_bases: GsBases];
    Segments: "DS, ES, FS and GS selectors; FS base",
        rows [VisibleHostState],
        why "CPL 3 sees and changes them; a leak each way.",
        care [
            Enter("exchanged: the guest's are kept in `Guest`"),
            Checked("the guest's selectors, and the host's, are null or load without a fault"),
        ],
        prepare [],
        enter [data_selectors_load, hosts_selectors_load],
        exchange [segments: Segments];
    TscAux: "MSR TSC_AUX; segment limits of the GDT, as LSL shows them",
        rows [VisibleHostState],
        why "RDTSCP and RDPID show the former: on most hosts, the number of the CPU. Some have that in the limit of an entry of DPL 3, too.",
        care [
            Enter("exchanged, if `Guest::tsc_aux` says what the guest has"),
            Duty { name: "TSC_AUX", what: "otherwise guests see the host's: it should be nothing that they may not know, and so should the limit of every entry of DPL 3" },
        ],
        prepare [],
        enter [],
        exchange [tsc_aux: TscAux];
    Cr0: "CR0.TS, EM, MP, NE, AM, WP",
        rows [FpuControl],
        why "With TS or EM, the host's own STMXCSR and FNSTCW around a guest fault in ring 0, and guests see FPU state that is switched lazily. Without NE, a guest's FPU error is an external interrupt.",
        care [
            Checked("TS and EM must be clear, NE and WP set"),
            Choice("MP means nothing then; AM decides whether AC has an effect in guests"),
        ],
        prepare [
            |host| bit("CR0.NE", host.cr0, cr0::NE, true, "a guest's FPU errors would be external interrupts", "set it"),
            |host| bit("CR0.WP", host.cr0, cr0::WP, true, "ring 0 would write to pages that are read-only", "set it")
        ],
        enter [
            |it| bit("CR0.TS", it.cr0, cr0::TS, false, "the first FPU instruction in ring 0 would fault under the switcher's IDT", "give the FPU to the guest before `enter`: execute CLTS"),
            |it| bit("CR0.EM", it.cr0, cr0::EM, false, "FPU instructions would fault in ring 0, under the switcher's IDT", "clear it"),
            |it| bit("CR0.NE", it.cr0, cr0::NE, true, "a guest's FPU errors would be external interrupts", "set it"),
            |it| bit("CR0.WP", it.cr0, cr0::WP, true, "ring 0 would write to pages that are read-only", "set it")
        ],
        exchange [];
    Cr4Ring0: "CR4.SMXE, VMXE, MCE, PSE, PAE; CR0.CD, NW; PAT, MTRRs",
        rows [VisibleHostState],
        why "With SMXE, CPL 3 may ask GETSEC what the chipset can do; its other leaves, and all that VMXE allows but VMCALL and VMFUNC, fault at CPL 3. Without MCE, a machine check stops the CPU. The others decide how memory is cached.",
        care [Choice("none of them gives a guest anything of the host's")],
        prepare [],
        enter [],
        exchange [];
    Cr2: "CR2",
        rows [VisibleHostState],
        why "The address of a guest's page fault; CPL 3 cannot read it.",
        care [Enter("a part of the exit, and read before anything else can fault")],
        prepare [],
        enter [],
        exchange [];
    Time: "TSC, TSC_ADJUST, MPERF, APERF",
        rows [VisibleHostState],
        why "RDTSC, RDTSCP and RDPRU show them.",
        care [Choice("they are the host's; CR4.TSD makes the three fault at CPL 3")],
        prepare [],
        enter [],
        exchange [];
    Cr4Fpu: "CR4.OSFXSR, OSXMMEXCPT, OSXSAVE",
        rows [FpuControl],
        why "Without OSFXSR, STMXCSR is #UD in ring 0. The others decide how a guest's SSE errors come and whether it has XSAVE.",
        care [
            Checked("OSFXSR must be set; OSXSAVE is as it was when this CPU was prepared"),
            Choice("OSXMMEXCPT"),
        ],
        prepare [],
        enter [
            |it| bit("CR4.OSFXSR", it.now.cr4, cr4::OSFXSR, true, "STMXCSR would be undefined in ring 0, under the switcher's IDT", "set it"),
            |it| kept("CR4.OSXSAVE", it, cr4::OSXSAVE)
        ],
        exchange [];
    Cr4User: "CR4.PVI, PCE, UINTR, KL, TSD, DE, VME",
        rows [PrivilegedFlags, VisibleHostState],
        why "With PVI, CLI and STI of CPL 3 change VIF, which no guest may have. With PCE, guests read the host's performance counters. With UINTR, they send and get user interrupts. With KL, they use the host's wrapping key for AES keys.",
        care [
            Checked("PVI, PCE, UINTR and KL must be clear"),
            Choice("TSD makes a guest's RDTSC, RDTSCP and RDPRU fault, the last of which shows how fast the host's CPU runs; DE and VME mean nothing to one"),
        ],
        prepare [],
        enter [
            |it| bit("CR4.PVI", it.now.cr4, cr4::PVI, false, "CLI and STI of a guest would change VIF", "clear it"),
            |it| bit("CR4.PCE", it.now.cr4, cr4::PCE, false, "guests would read the host's performance counters", "clear it around `enter`"),
            |it| bit("CR4.UINTR", it.now.cr4, cr4::UINTR, false, "guests would send user interrupts, and get the host's", "clear it around `enter`"),
            |it| bit("CR4.KL", it.now.cr4, cr4::KL, false, "guests would use key handles of the host's, and of each other's", "clear it around `enter`")
        ],
        exchange [];
    Cr4Paging: "CR4.LA57, PCIDE, SMEP, SMAP, PGE, PKS, LASS, LAM_SUP; CR3.LAM_U48, LAM_U57; PCIDs and global translations",
        rows [AddressWidth, StaleTranslations, GlobalEntries],
        why "The variant is chosen by LA57 and PCIDE: they decide what an address and what a root is. SMEP and SMAP keep ring 0 from a guest's pages. LASS keeps CPL 3 from addresses with bit 63 set, where guests' kernels are; LAM_SUP lets through such as are not canonical. A translation under a PCID or with G set outlives the root.",
        care [
            Checked("LA57, PCIDE, SMEP and SMAP are as they were when this CPU was prepared, and the variant is one for these; LASS and LAM_SUP must be clear; a root has neither LAM_U48 nor LAM_U57, by type"),
            Duty { name: "global entries", what: "of any two roots that are loaded on this CPU, the host's own among them, an entry at an address that the other one does not translate alike (to the same page, with the same rights) has G clear: MOV to CR3 does not flush global translations (Intel SDM vol. 3, 4.10.2.4 and 4.10.4.1). So what of a guest's root is for CPL 3 has G clear, whatever the guest's own tables have, and what maps a PVCS; and so have the host's pages that a guest's root does not map, or maps something else at the address of, or the guest would find them there, and on a CPU without RDCL_NO read them. What may be global, `Mapping::may_be_global` says; with CR4.PGE clear, nothing is" },
            Duty { name: "PCIDs", what: "while the CPU is prepared, the PCIDs of `Switcher::pcids` (32 to 63, unless the host has chosen others) of this CPU are the guests' alone: the host loads no CR3 with one of them, tags of a TLB shared by CPUs included" },
            Choice("PKS is about pages of the supervisor's"),
        ],
        prepare [],
        enter [
            |it| kept("CR4.LA57", it, cr4::LA57),
            |it| kept("CR4.PCIDE", it, cr4::PCIDE),
            |it| kept("CR4.SMEP", it, cr4::SMEP),
            |it| kept("CR4.SMAP", it, cr4::SMAP),
            |it| bit("CR4.LASS", it.now.cr4, cr4::LASS, false, "a guest's accesses to addresses with bit 63 set would fault, and its kernel is there", "clear it around `enter`"),
            |it| bit("CR4.LAM_SUP", it.now.cr4, cr4::LAM_SUP, false, "the proofs take addresses that are not canonical to fault", "clear it around `enter`")
        ],
        exchange [];
    Fred: "CR4.FRED",
        rows [FredAndIbt],
        why "SWAPGS is undefined then, and events do not come through the IDT (Intel FRED specification, 9).",
        care [Checked("it must be clear")],
        prepare [|host| bit("CR4.FRED", host.cr4, cr4::FRED, false, "no switcher supports it", "use the IDT on this CPU")],
        enter [|it| bit("CR4.FRED", it.now.cr4, cr4::FRED, false, "no switcher supports it", "use the IDT on this CPU")],
        exchange [];
    Efer: "EFER: SCE, NXE, LMSLE, UAIE, SVME, AIBRSE, FFXSR, TCE, MCOMMIT, INTWB",
        rows [AddressWidth, OpenEntries],
        why "LMSLE gives segments limits in 64-bit mode; with UAIE, addresses that are not canonical are taken.",
        care [
            Activate("SCE"),
            Checked("LMSLE and UAIE must be clear when the CPU is prepared"),
            Duty { name: "EFER", what: "while the CPU is prepared, they stay so" },
            Choice("the others: mitigations are chosen with AIBRSE in view; FFXSR, TCE and INTWB are about ring 0; with MCOMMIT, a guest waits for its own stores"),
        ],
        prepare [
            |host| bit("EFER.LMSLE", host.efer, efer::LMSLE, false, "segments would have limits in 64-bit mode", "clear it"),
            |host| bit("EFER.UAIE", host.efer, efer::UAIE, false, "the proofs take addresses that are not canonical to fault", "clear it")
        ],
        enter [],
        exchange [];
    Xcr0: "XCR0, IA32_XSS; x87, XMM to ZMM, AMX and APX registers; LWP_CFG, BNDCFGU; IA32_XFD, XFD_ERR; IA32_PASID",
        rows [VisibleHostState],
        why "The guest runs with the host's, sees what was left there and leaves its own.",
        care [Duty { name: "vector state", what: "switch XCR0, XFD and all that XSAVE knows, in the `call` of `enter_with` or around `enter`, or have no secrets in registers and keep nothing there; #NM of a guest with XFD_ERR set is the guest's. IA32_PASID is 0 while a guest runs, or no guest has a portal for ENQCMD" }],
        prepare [],
        enter [],
        exchange [];
    Mxcsr: "MXCSR, x87 control word and stack",
        rows [VisibleHostState],
        why "A function has to preserve the first two, and finds the third empty.",
        care [Enter("the host's are put back by `enter`; by `enter_with`, `call` has to")],
        prepare [],
        enter [],
        exchange [];
    UserCet: "U_CET, PL3_SSP; CR4.CET",
        rows [VisibleHostState],
        why "A guest would run with the shadow stack of the host's thread, and RDSSP shows where it lies.",
        care [
            Enter("U_CET is 0 while a guest runs, where CR4.CET is set, so PL3_SSP is not used"),
            Checked("CR4.CET is as it was when this CPU was prepared"),
        ],
        prepare [],
        enter [|it| kept("CR4.CET", it, cr4::CET)],
        exchange [user_cet: UserCet];
    SupervisorCet: "S_CET",
        rows [FredAndIbt],
        why "A shadow stack of ring 0 would not survive a call that returns elsewhere (Intel SDM vol. 1, 17.1). Indirect branch tracking wants ENDBR64.",
        care [
            Checked("no supervisor shadow stacks when the CPU is prepared; ENDBR_EN is as the variant has it"),
            Duty { name: "S_CET", what: "while the CPU is prepared, it stays as it was" },
        ],
        prepare [|host| bit("S_CET.SH_STK_EN", host.s_cet.unwrap_or_default(), s_cet::SH_STK_EN, false, "no switcher supports supervisor shadow stacks", "run without them on this CPU")],
        enter [],
        exchange [];
    DebugRegisters: "DR0 to DR3, DR7; AMD's masks of their addresses (MSRs C001_1027h, C001_1019h to C001_101Bh)",
        rows [GuestBreakpoints],
        why "A breakpoint on an address of the host's fires in the middle of the switcher, and tells the guest what the host does; one of the host's fires in guests. A mask that a debugger has left makes a guest's breakpoint one on the host's addresses.",
        care [
            Checked("`enter` refuses while a breakpoint is armed"),
            Enter("arms the guest's, which are on its own addresses alone, with masks of 0, disarms them, and puts DR0 to DR3 and the masks back; without any, the host's stay there, disarmed"),
        ],
        prepare [],
        enter [no_breakpoint_is_armed],
        exchange [breakpoints: Breakpoints];
    Dr6: "DR6",
        rows [DebugControl],
        why "The hardware sets causes and never clears them.",
        care [Enter("it has no cause when a guest is entered; a #DB exit has all its causes, but for matches of breakpoints that are not the guest's, and DR6 none any more")],
        prepare [],
        enter [],
        exchange [dr6: Dr6];
    DebugCtl: "DEBUGCTL: BTF, LBR, BTS, bus-lock detection",
        rows [DebugControl],
        why "BTF changes what a guest's TF means; BTS stores to an address of the host's on a guest's root; bus-lock detection makes a #DB of what a guest may do.",
        care [Enter("0 while a guest runs, but for bus-lock detection if `Guest::trap_bus_locks` asks for it")],
        prepare [],
        enter [],
        exchange [debugctl: DebugCtl];
    DebugStore: "DS area, IA32_PEBS_ENABLE",
        rows [DebugControl],
        why "PEBS stores to an address of the host's, on whatever root is loaded.",
        care [
            Enter("IA32_PEBS_ENABLE is 0 while a guest runs, where it exists"),
            Choice("architectural PEBS (CPUID leaf 23h), which retires that MSR, stores to a physical address"),
        ],
        prepare [],
        enter [],
        exchange [pebs: Pebs];
    Tracing: "LBR, PT (PTWRITE), IBS, PMU counters, architectural PEBS",
        rows [VisibleHostState],
        why "They record what guests do, for the host; to physical addresses or registers that CPL 3 cannot read.",
        care [Choice("their interrupts are exits: NMIs or interrupts of the host's")],
        prepare [],
        enter [],
        exchange [];
    SpecCtrl: "SPEC_CTRL: IBRS, STIBP, SSBD, BHI_DIS_S; virtual SPEC_CTRL",
        rows [MitigationOrder, GuestAfterGuest, CapabilityForSetting],
        why "IBRS protects ring 0, and stands for STIBP while it is set: without it the other thread of a core trains a guest's branches (CVE-2023-1998).",
        care [
            Switcher("exchanged in variants with `ibrs`"),
            Enter("in those, the guest's is the host's without IBRS, and with STIBP where the CPU has it, and the host's has IBRS set from then on"),
            Duty { name: "thread siblings", what: "in variants without `ibrs`, SPEC_CTRL is the host's for guests, too: STIBP or core scheduling keep two guests on one core apart" },
        ],
        prepare [],
        enter [],
        exchange [];
    PredCmd: "PRED_CMD, and the branch predictors behind it",
        rows [GuestAfterGuest],
        why "What one guest has trained steers the next, and the user part of its host (VMScape, CVE-2025-40300); what that trains steers guests.",
        care [
            Enter("IBPB before a guest of another domain than the last one's on this CPU, and after code of the host's at CPL 3, where it exists, unless `Cpu::set_barriers` leaves it to the host"),
            Duty { name: "user part", what: "a host that has code at CPL 3 of its own calls `Cpu::barrier_before_user_mode` before it runs that after a guest, whoever sees to the barriers between guests; between two processes of its own, it has barriers of its own" },
        ],
        prepare [],
        enter [],
        exchange [];
    BusLocks: "split-lock detection (TEST_CTRL)",
        rows [DebugControl],
        why "A guest's split lock is #AC, whose error code is 0.",
        care [Choice("the exit is an exception as any other")],
        prepare [],
        enter [],
        exchange [];
    SyscallMsrs: "STAR, LSTAR, CSTAR, SFMASK, SYSENTER MSRs",
        rows [OpenEntries],
        why "Where CPL 3 comes to ring 0.",
        care [
            Activate("SYSENTER_CS is 0, so that SYSENTER faults; the others lead to the switcher"),
            Checked("`enter` finds LSTAR to be the switcher's: a CPU that has been reset, and set up by its host, has another one"),
            Duty { name: "power states", what: "before a CPU is taken offline, suspended with the machine, or sent INIT, the switcher is deactivated there; or `Cpu::gone` is called afterwards, and the CPU prepared anew. Who sets the CPU up again does not write these MSRs, EFER, CR4 or SYSENTER_CS one by one to what `activate` had written" },
        ],
        prepare [],
        enter [lstar_is_the_switchers],
        exchange [];
    UserMsr: "IA32_USER_MSR_CTL",
        rows [VisibleHostState],
        why "URDMSR and UWRMSR give CPL 3 MSRs, user interrupts among them.",
        care [
            Checked("where it exists, it must be 0 when the CPU is prepared"),
            Duty { name: "USER_MSR_CTL", what: "while the CPU is prepared, it stays 0" },
        ],
        prepare [|host| match host.user_msr_ctl {
            None | Some(0) => Ok(()),
            Some(found) => wrong("IA32_USER_MSR_CTL", found, "CPL 3 could access MSRs", "clear it on this CPU"),
        }],
        enter [],
        exchange [];
    Waiting: "UMWAIT and TPAUSE control; MWAITX; MONITOR and MWAIT for CPL 3 (MISC_FEATURES_ENABLES.RING3MWAIT, HWCR.MonMwaitUserEn)",
        rows [VisibleHostState],
        why "A guest stops the CPU for as long as that allows; an interrupt ends it.",
        care [
            Duty { name: "user waits", what: "IA32_UMWAIT_CONTROL bounds the time, and its C0.2 bit the depth; RING3MWAIT and HWCR.MonMwaitUserEn are clear" },
            Choice("on CPUs with MWAITX every CPL may execute it; it waits in a light state"),
        ],
        prepare [],
        enter [],
        exchange [];
    Confidential: "SEV_STATUS; CPUID leaf 21h: a host that is itself a guest with a sealed state",
        rows [Nonexistent],
        why "Where the hypervisor below intercepts, #VC or #VE come in ring 0: the switcher's IDT has no handler of them.",
        care [Checked("no SEV-ES, SEV-SNP or TDX")],
        prepare [
            |host| bit("SEV_STATUS", host.sev_status.unwrap_or_default(), SEV_ES_OR_SNP, false, "with SEV-ES or SEV-SNP, #VC would come in ring 0, under the switcher's IDT", "run guests elsewhere"),
            |host| bit("CPUID leaf 21h", host.has.tdx.into(), 1, false, "in a guest of a TDX module's, #VE would come in ring 0, under the switcher's IDT", "run guests elsewhere")
        ],
        enter [],
        exchange [];
    Hypercalls: "VMCALL, VMMCALL and VMFUNC; ports that a hypervisor answers whatever the CPL, such as VMware's",
        rows [VisibleHostState],
        why "Where the host runs in a virtual machine, the hypervisor below takes them for calls of the host's.",
        care [Duty { name: "hypervisor below", what: "it refuses them at CPL 3, or what it does for them is nothing that guests may not have; on a CPU of one's own they are #UD and #GP" }],
        prepare [],
        enter [],
        exchange [];
    Enclaves: "SGX: FEATURE_CONTROL, ENCLU",
        rows [VisibleHostState],
        why "CPL 3 enters enclaves whose pages are mapped for it.",
        care [Choice("no guest's root maps such pages, unless the host gives it some")],
        prepare [],
        enter [],
        exchange [];
    Transactions: "TSX_CTRL; MCU_OPT_CTRL: transactions, RDRAND and RDSEED",
        rows [CapabilityForSetting],
        why "They decide whether CPL 3 has transactions, and what random numbers cost it.",
        care [Choice("mitigations are chosen with them in view")],
        prepare [],
        enter [],
        exchange [];
    CpuidFaulting: "MISC_FEATURES_ENABLES, HWCR.CpuidUserDis: CPUID faulting",
        rows [VisibleHostState],
        why "CPUID shows guests the host's CPU, unless it faults at CPL 3.",
        care [Duty { name: "CPUID", what: "a host that wants to say what its guests' CPU is switches faulting on around `enter`" }],
        prepare [],
        enter [],
        exchange [];
}

/// The table as a document: `runtime/CPU-STATE.md`.
#[must_use]
pub fn document() -> alloc::string::String {
    use core::fmt::Write;

    let mut text = alloc::string::String::from(
        "# CPU state\n\n\
         What CPL 3 can see, change or be ruled by, every register and structure that the manuals of Intel and \
         AMD tell of, and who sees to it; a CPU that has more is for its host to judge. Written from `src/state.rs`, whose table has the functions that check and exchange; a test \
         compares, `BLESS=1 cargo test -p switcher-runtime` renews.\n\n\
         | state | why it matters | rows of hazards.md | `prepare` | `enter` | who sees to it |\n\
         |---|---|---|---|---|---|\n",
    );
    let mut duties = alloc::string::String::new();
    for entry in CPU_STATE {
        let rows: Vec<_> =
            entry.rows.iter().map(|row| alloc::format!("{}", row.number())).collect();
        let prepare = if entry.is_checked_by_prepare() { "checks" } else { "" };
        let enter = match (entry.is_checked_by_enter(), entry.is_exchanged()) {
            (true, true) => "checks, exchanges",
            (true, false) => "checks",
            (false, true) => "exchanges",
            (false, false) => "",
        };
        let care: Vec<_> = entry
            .care
            .iter()
            .map(|care| match care {
                Switcher(what) => alloc::format!("switcher: {what}"),
                Activate(what) => alloc::format!("`activate` writes: {what}"),
                Enter(what) => alloc::format!("`enter`: {what}"),
                Checked(what) => alloc::format!("checked: {what}"),
                Duty { name, what } => {
                    // Writing to a string does not fail.
                    let _ = writeln!(duties, "* **{name}** ({}): {what}.", entry.registers);
                    alloc::format!("host, duty *{name}*")
                }
                Choice(what) => alloc::format!("host's choice: {what}"),
            })
            .collect();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {prepare} | {enter} | {} |",
            entry.registers,
            entry.why,
            rows.join(", "),
            care.join("; "),
        );
    }
    text.push_str("\n## Duties of the host\n\nNobody checks these.\n\n");
    text.push_str(&duties);
    text.push_str("\n## What is not the host's while a guest runs\n\n");
    text.push_str(&exchanged());
    text
}

/// What `enter` exchanges, as a document for those who run meanwhile: `runtime/EXCHANGED.md`, which
/// the contracts of [`Hooks`](crate::Hooks) and of [`Cpu::enter_with`](crate::Cpu::enter_with)
/// include.
#[must_use]
pub fn exchanged() -> alloc::string::String {
    use core::fmt::Write;

    let mut text = alloc::string::String::from(
        "From before the switcher is called until it has returned, these have a guest's values, or are off. A hook, \
         and the `call` that `enter_with` is given, rely on none of them, and leave each as it is; debug builds \
         look whether those of them have stayed so that no guest can change.\n\n",
    );
    for registers in CPU_STATE.iter().flat_map(|entry| entry.exchanged) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "* {registers}");
    }
    text
}

#[cfg(test)]
mod tests;
