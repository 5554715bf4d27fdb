//! These tests make up CPUs, each of which is wrong in one thing.

use super::*;
use std::string::{String, ToString};
use std::{env, format, fs, vec};

use raw_cpuid::{CpuIdReader, CpuIdResult};

const KERNEL_CODE: u64 = 0x00AF_9B00_0000_FFFF;
const KERNEL_DATA: u64 = 0x00CF_9300_0000_FFFF;
const USER_CODE32: u64 = 0x00CF_FB00_0000_FFFF;
const USER_DATA: u64 = 0x00CF_F300_0000_FFFF;
const USER_CODE: u64 = 0x00AF_FB00_0000_FFFF;
/// The address that the TSS in the block has: it has more than 47 bits.
const TSS: u64 = 0xFF10_A000_0004_0080;

/// The descriptor of a busy TSS with a limit of 103.
const fn tss(base: u64) -> [u64; 2] {
    let low = 0x67 | (base & 0xFF_FFFF) << 16 | 0x8B << 40 | (base >> 24 & 0xFF) << 56;
    [low, base >> 32]
}

fn host() -> Host {
    let [low, high] = tss(TSS);
    let gdt = vec![0, 0, KERNEL_CODE, KERNEL_DATA, USER_CODE32, USER_DATA, USER_CODE, low, high];
    Host {
        has: Has { umip: true, user_msr: true, ..Has::default() },
        paging: PagingMode::FiveLevel,
        selectors: Selectors::DEFAULT,
        cr0: 0x8005_0033,
        cr4: cr4::OSFXSR | cr4::UMIP | cr4::LA57,
        efer: 0xD01,
        s_cet: None,
        user_msr_ctl: Some(0),
        sev_status: Some(0),
        ldtr: 0,
        tr: 0x38,
        gdt_base: 0xFF10_A000_0004_2000,
        gdt_limit: 71,
        gdt,
        tss: TSS,
        iomap_base: 104,
    }
}

fn running() -> Running {
    let cr4 = cr4::OSFXSR | cr4::UMIP | cr4::LA57 | cr4::FSGSBASE;
    let gdtr = gdtr(0xFF10_A000_0004_2000, 71);
    let then = Control { cr4, tr: 0x38, gdtr, tss: 0, lstar: 0xFF10_A000_0100_0000 };
    Running {
        flags: RFlags::FIXED,
        cr0: 0x8005_0033,
        now: then,
        then,
        ldtr: 0,
        dr7: 0x400,
        // These are a kernel's data, a null selector, one of a thread's, and code that can be read.
        hosts: [0x18, 0, 0x2B, 0x10],
        hosts_descriptors: [KERNEL_DATA, 0, USER_DATA, KERNEL_CODE],
        code_and_stack: [0x33, 0x2B],
        data: [0x2B, 0, 3, 0x23],
        descriptors: [USER_CODE, USER_DATA, USER_DATA, 0, 0, USER_CODE32],
    }
}

/// The state and register that the check is to name, and a function that makes it wrong.
type Spoilt<T> = (State, &'static str, fn(&mut T));

/// The hosts that `prepare` has to refuse.
fn wrong_hosts() -> Vec<Spoilt<Host>> {
    use State::*;
    vec![
        (Gdt, "GDTR's base", |it| it.gdt_base = 1 << 60),
        (Gdt, "GDTR's base", |it| it.paging = PagingMode::FourLevel),
        (Gdt, "GDTR's limit", |it| it.gdt_limit = u16::MAX),
        (Gdt, "GDTR's limit", |it| it.gdt_limit = 70),
        (Gdt, "GDTR's limit", |it| it.gdt_base += 4096 - 64),
        // These are a call gate of DPL 3 to ring 0, and an LDT and a TSS of DPL 3.
        (Gdt, "GDT entry", |it| it.gdt[1] = 0x0000_EC00_0010_1000),
        (Gdt, "GDT entry", |it| it.gdt[1] = 0x0000_E200_1000_FFFF),
        (Gdt, "GDT entry", |it| it.gdt[7] |= DPL),
        // These are conforming code of DPL 3 and of DPL 0.
        (Gdt, "GDT entry", |it| it.gdt[1] = USER_CODE | DOWN_OR_CONFORMING),
        (Gdt, "GDT entry", |it| it.gdt[1] = KERNEL_CODE | DOWN_OR_CONFORMING),
        // These are 16-bit code, and code of 64 and 32 bits.
        (Gdt, "GDT entry", |it| it.gdt[1] = USER_CODE & !LONG),
        (Gdt, "GDT entry", |it| it.gdt[1] = USER_CODE | SIZE32),
        // These are a 16-bit stack, and one that expands down.
        (Gdt, "GDT entry", |it| it.gdt[1] = USER_DATA & !SIZE32),
        (Gdt, "GDT entry", |it| it.gdt[1] = USER_DATA | DOWN_OR_CONFORMING),
        (Gdt, "GDT entry", |it| it.gdt[5] = USER_DATA & !SIZE32),
        // These descriptors are not accessed, of the switcher's own and beside them.
        (Gdt, "GDT entry", |it| it.gdt[6] = USER_CODE & !ACCESSED),
        (Gdt, "GDT entry", |it| it.gdt[5] = USER_DATA & !ACCESSED),
        (Gdt, "GDT entry", |it| it.gdt[4] = USER_CODE32 & !ACCESSED),
        (Gdt, "GDT entry", |it| it.gdt[1] = USER_DATA & !READ_WRITE & !ACCESSED),
        // The upper half of a system descriptor is an entry of its own to whoever loads its
        // selector.
        (Gdt, "GDT entry", |it| it.gdt[8] = USER_DATA & !SIZE32),
        (Gdt, "KERNEL_CS", |it| it.gdt[2] = KERNEL_CODE & !LONG),
        (Gdt, "KERNEL_CS", |it| it.gdt[2] &= !PRESENT),
        (Gdt, "KERNEL_CS", |it| it.gdt[2] = USER_CODE),
        (Gdt, "KERNEL_DS", |it| it.gdt[3] &= !READ_WRITE),
        (Gdt, "KERNEL_DS", |it| it.gdt[3] |= DOWN_OR_CONFORMING),
        (Gdt, "USER32_CS", |it| it.gdt[4] = USER_CODE),
        (Gdt, "USER_DS", |it| it.gdt[5] = KERNEL_DATA),
        (Gdt, "USER_CS", |it| it.gdt[6] = USER_CODE32),
        (Gdt, "USER_CS", |it| it.gdt.truncate(6)),
        (DescriptorRegisters, "CR4.UMIP", |it| it.cr4 &= !cr4::UMIP),
        (Ldtr, "LDTR", |it| it.ldtr = 0x48),
        (Ldtr, "LDTR", |it| it.ldtr = 4),
        (Tr, "TR's TSS", |it| it.tss += 8),
        (Tr, "TR's TSS", |it| it.tss &= (1 << 48) - 1),
        (Tr, "TR's TSS", |it| it.tr = 0),
        (Tr, "TR's limit", |it| it.gdt[7] -= 1),
        (Tr, "the TSS's I/O map base", |it| it.iomap_base = 103),
        (Cr0, "CR0.NE", |it| it.cr0 &= !cr0::NE),
        (Cr0, "CR0.WP", |it| it.cr0 &= !cr0::WP),
        (Fred, "CR4.FRED", |it| it.cr4 |= cr4::FRED),
        (Efer, "EFER.LMSLE", |it| it.efer |= efer::LMSLE),
        (Efer, "EFER.UAIE", |it| it.efer |= efer::UAIE),
        (SupervisorCet, "S_CET.SH_STK_EN", |it| it.s_cet = Some(s_cet::SH_STK_EN | 1 << 2)),
        (UserMsr, "IA32_USER_MSR_CTL", |it| it.user_msr_ctl = Some(1)),
        (Confidential, "SEV_STATUS", |it| it.sev_status = Some(0b011)),
        (Confidential, "SEV_STATUS", |it| it.sev_status = Some(0b101)),
        (Confidential, "CPUID leaf 21h", |it| it.has.tdx = true),
    ]
}

fn gdtr(base: u64, limit: u16) -> DescriptorTablePointer {
    DescriptorTablePointer::new(base, limit, PagingMode::FiveLevel).unwrap()
}

/// The CPUs on which `enter` has to refuse a guest.
fn wrong_moments() -> Vec<Spoilt<Running>> {
    use State::*;
    vec![
        (GeneralRegisters, "the guest's CS", |it| it.code_and_stack[0] = 0x10),
        (GeneralRegisters, "the guest's CS", |it| it.code_and_stack[0] = 0x32),
        (GeneralRegisters, "the guest's SS", |it| it.code_and_stack[1] = 0x18),
        (GeneralRegisters, "the guest's SS", |it| it.code_and_stack[1] = 0),
        (GeneralRegisters, "GDT entry", |it| it.descriptors[0] |= DOWN_OR_CONFORMING),
        (GeneralRegisters, "GDT entry", |it| it.descriptors[1] &= !SIZE32),
        (GeneralRegisters, "GDT entry", |it| it.descriptors[1] &= !ACCESSED),
        (HostFlags, "the host's RFLAGS.DF", |it| it.flags |= RFlags::DF),
        (HostFlags, "the host's RFLAGS.NT", |it| it.flags |= RFlags::NT),
        (HostFlags, "the host's RFLAGS.TF", |it| it.flags |= RFlags::TF),
        (HostFlags, "the host's RFLAGS.AC", |it| {
            it.flags |= RFlags::AC;
            it.now.cr4 |= cr4::SMAP;
            it.then.cr4 |= cr4::SMAP;
        }),
        (SyscallMsrs, "LSTAR", |it| it.now.lstar = 0),
        (SyscallMsrs, "LSTAR", |it| it.now.lstar += 16),
        (Gdt, "GDTR's base", |it| it.now.gdtr = gdtr(0x1000, 71)),
        (Gdt, "GDTR's limit", |it| it.now.gdtr = gdtr(it.then.gdtr.base(), 79)),
        (Gdt, "GDTR's limit", |it| it.now.gdtr = gdtr(it.then.gdtr.base(), 63)),
        (Tr, "TR", |it| it.now.tr = 0x40),
        (DescriptorRegisters, "CR4.UMIP", |it| it.now.cr4 &= !cr4::UMIP),
        (Ldtr, "LDTR", |it| it.ldtr = 0x48),
        (Pkru, "CR4.PKE", |it| it.now.cr4 |= cr4::PKE),
        (GsBase, "CR4.FSGSBASE", |it| it.now.cr4 &= !cr4::FSGSBASE),
        (Segments, "the guest's DS", |it| it.descriptors[2] = KERNEL_DATA),
        (Segments, "the guest's DS", |it| it.descriptors[2] &= !PRESENT),
        // Execute-only code cannot be loaded, nor a gate, nor a selector of an LDT.
        (Segments, "the guest's GS", |it| it.descriptors[5] &= !READ_WRITE),
        (Segments, "the guest's GS", |it| it.descriptors[5] &= !IS_SEGMENT),
        (Segments, "the guest's GS", |it| it.data[3] = 0x27),
        (Segments, "the guest's ES", |it| it.data[1] = 0x53),
        (Segments, "GDT entry", |it| it.descriptors[2] &= !ACCESSED),
        // These are the host's own: of an LDT that is null by now, and of entries that are gone, or
        // that have become such as cannot be loaded in ring 0.
        (Segments, "the host's FS", |it| it.hosts[2] = 0x2F),
        (Segments, "the host's DS", |it| it.hosts[0] = 4),
        (Segments, "the host's FS", |it| it.hosts_descriptors[2] = 0),
        (Segments, "the host's FS", |it| it.hosts_descriptors[2] &= !PRESENT),
        (Segments, "the host's FS", |it| it.hosts_descriptors[2] &= !ACCESSED),
        (Segments, "the host's FS", |it| it.hosts_descriptors[2] = KERNEL_DATA),
        (Segments, "the host's DS", |it| it.hosts_descriptors[0] &= !IS_SEGMENT),
        (Segments, "the host's DS", |it| it.hosts[0] |= 1),
        (Segments, "the host's GS", |it| it.hosts_descriptors[3] &= !READ_WRITE),
        (Segments, "the host's ES", |it| it.hosts[1] = 0x18),
        (Cr0, "CR0.NE", |it| it.cr0 &= !cr0::NE),
        (Cr0, "CR0.WP", |it| it.cr0 &= !cr0::WP),
        (Cr0, "CR0.TS", |it| it.cr0 |= cr0::TS),
        (Cr0, "CR0.EM", |it| it.cr0 |= cr0::EM),
        (Cr4Fpu, "CR4.OSFXSR", |it| it.now.cr4 &= !cr4::OSFXSR),
        (Cr4Fpu, "CR4.OSXSAVE", |it| it.now.cr4 |= cr4::OSXSAVE),
        (Cr4User, "CR4.PVI", |it| it.now.cr4 |= cr4::PVI),
        (Cr4User, "CR4.PCE", |it| it.now.cr4 |= cr4::PCE),
        (Cr4User, "CR4.UINTR", |it| it.now.cr4 |= cr4::UINTR),
        (Cr4User, "CR4.KL", |it| it.now.cr4 |= cr4::KL),
        (Cr4Paging, "CR4.LASS", |it| it.now.cr4 |= cr4::LASS),
        (Cr4Paging, "CR4.LAM_SUP", |it| it.now.cr4 |= cr4::LAM_SUP),
        // It is also refused if it was so when the CPU was prepared.
        (Cr4Paging, "CR4.LASS", |it| {
            it.now.cr4 |= cr4::LASS;
            it.then.cr4 |= cr4::LASS;
        }),
        (Cr4Paging, "CR4.LA57", |it| it.now.cr4 &= !cr4::LA57),
        (Cr4Paging, "CR4.PCIDE", |it| it.now.cr4 |= cr4::PCIDE),
        (Cr4Paging, "CR4.SMEP", |it| it.now.cr4 |= cr4::SMEP),
        (Cr4Paging, "CR4.SMAP", |it| it.now.cr4 |= cr4::SMAP),
        (Fred, "CR4.FRED", |it| it.now.cr4 |= cr4::FRED),
        (UserCet, "CR4.CET", |it| it.now.cr4 |= cr4::CET),
        (DebugRegisters, "DR7", |it| it.dr7 |= 1 << 1),
        (DebugRegisters, "DR7", |it| it.dr7 |= 1 << 6),
        (DebugRegisters, "DR7", |it| it.dr7 |= 1 << 13),
    ]
}

#[test]
fn a_cpu_in_order_is_accepted() {
    assert_eq!(check_host(&host()), Ok(()));
    assert_eq!(check_running(&running()), Ok(()));
}

#[test]
fn flags_that_mean_nothing_to_ring_0_are_the_hosts() {
    let mut it = running();
    // AC may be set where there is no SMAP.
    it.flags |= RFlags::AC | RFlags::CF | RFlags::ZF | RFlags::ID | RFlags::IOPL;
    assert_eq!(check_running(&it), Ok(()));
}

#[test]
fn whatever_is_wrong_is_refused_by_its_name() {
    for (state, register, spoil) in wrong_hosts() {
        let mut host = host();
        spoil(&mut host);
        let refused = check_host(&host).expect_err(register);
        assert_eq!((refused.state, refused.register), (state, register), "{refused}");
        assert!(!refused.problem.is_empty() && !refused.remedy.is_empty());
    }
    for (state, register, spoil) in wrong_moments() {
        let mut running = running();
        spoil(&mut running);
        let refused = check_running(&running).expect_err(register);
        assert_eq!((refused.state, refused.register), (state, register), "{refused}");
    }
}

#[test]
fn there_is_no_check_in_the_table_that_cannot_fail() {
    for entry in CPU_STATE {
        for check in entry.prepare {
            let fails = wrong_hosts().iter().any(|(state, _, spoil)| {
                let mut host = host();
                spoil(&mut host);
                *state == entry.state && check(&host).is_err()
            });
            assert!(fails && check(&host()).is_ok(), "{:?}", entry.state);
        }
        for check in entry.enter {
            let fails = wrong_moments().iter().any(|(state, _, spoil)| {
                let mut running = running();
                spoil(&mut running);
                *state == entry.state && check(&running).is_err()
            });
            assert!(fails && check(&running()).is_ok(), "{:?}", entry.state);
        }
    }
}

/// This is asked of all kinds of descriptors that `prepare` leaves in the GDT, by the rule that the
/// manual has for CPL 3 (Intel SDM vol. 3, 5.5, and MOV): a guest cannot keep itself from being
/// entered again.
#[test]
fn whatever_cpl_3_can_load_passes_once_more() {
    let mut loaded = 0;
    for kind in 0..=0xFFFF_u64 {
        let entry = (kind & 0xFF) << 40 | (kind >> 8 & 0xF) << 52 | 0xFFFF;
        if judge(0x28, entry).is_err() {
            continue;
        }
        let is = |bits: u64| entry & bits == bits;
        let data_or_readable = is(IS_SEGMENT) && (!is(IS_CODE) || is(READ_WRITE));
        let conforms = is(IS_SEGMENT | IS_CODE | DOWN_OR_CONFORMING);
        for rpl in 0..=3 {
            let (cpl, dpl) = (3, entry >> 45 & 3);
            let allowed = conforms || rpl.max(cpl) <= dpl;
            let cpl_3_loads_it = data_or_readable && allowed && is(PRESENT);
            for register in 0..4 {
                let mut it = running();
                it.data[register] = 0x28 | rpl as u16;
                it.descriptors[2 + register] = entry;
                let passes = check_running(&it).is_ok();
                assert_eq!(passes, cpl_3_loads_it, "{entry:#x}, RPL {rpl}");
                loaded += u64::from(passes);
            }
        }
    }
    assert!(loaded > 0);
}

#[test]
fn a_host_gets_back_whatever_of_its_own_loads_in_ring_0() {
    let ring = |dpl: u64| KERNEL_DATA | dpl << 45;
    let readable = KERNEL_CODE | DOWN_OR_CONFORMING;
    for (selector, entry) in [
        (0x18, ring(0)),
        (0x1A, ring(2)),
        (0x18, ring(3)),
        (0x1B, ring(3)),
        // These are data that cannot be written, of 16 bits, that expand down; and code that
        // conforms, whatever the RPL.
        (0x18, ring(0) & !READ_WRITE & !SIZE32 | DOWN_OR_CONFORMING),
        (0x1B, readable),
        // The selector is null: what lies in the entry means nothing then.
        (0, 0),
        (3, 0),
    ] {
        let mut it = running();
        (it.hosts[2], it.hosts_descriptors[2]) = (selector, entry);
        assert_eq!(check_running(&it), Ok(()), "{selector:#x}, {entry:#x}");
    }
}

#[test]
fn an_error_says_what_was_found_where_and_what_to_do() {
    let mut it = host();
    it.gdt[1] = 0x0000_EC00_0010_1000;
    let text = check_host(&it).unwrap_err().to_string();
    assert!(text.starts_with("GDT entry 0x8 is 0xec0000101000: CPL 3 can use this"), "{text}");
    let mut it = running();
    it.cr0 |= cr0::TS;
    let text = check_running(&it).unwrap_err().to_string();
    assert!(text.starts_with("CR0.TS is 0x8005003b: the first FPU instruction"), "{text}");
    assert!(text.ends_with("; give the FPU to the guest before `enter`: execute CLTS"), "{text}");
}

#[test]
fn descriptors_that_real_hosts_have_are_accepted() {
    // Linux has these: 32-bit code of DPL 0, the CPU's number in the limit of read-only data that
    // expands down, and an empty TLS entry. The last ones are such as CPL 3 cannot load, whatever
    // they are.
    let fine = [
        0x00CF_9B00_0000_FFFF,
        0x0040_F500_0000_0001,
        0,
        0x0000_E200_1000_FFFF & !PRESENT,
        0x0000_8C00_0010_1000,
        USER_DATA & !SIZE32 & !PRESENT,
        KERNEL_DATA & !SIZE32 & !ACCESSED,
    ];
    for entry in fine {
        let mut it = host();
        it.gdt[1] = entry;
        assert_eq!(check_host(&it), Ok(()), "{entry:#x}");
    }
}

/// Of all 2^16 kinds of descriptors, those that pass are known: none is accepted because nobody has
/// thought of it.
#[test]
fn what_is_accepted_of_all_kinds_of_descriptors_is_known() {
    for kind in 0..=0xFFFF_u64 {
        // The bits are: type, S, DPL, P, and the flags nibble.
        let entry = (kind & 0xFF) << 40 | (kind >> 8 & 0xF) << 52 | 0xFFFF;
        let is = |bits: u64| entry & bits == bits;
        let has_dpl3 = is(DPL);
        let conforms = is(IS_SEGMENT | IS_CODE | DOWN_OR_CONFORMING);
        let out_of_reach = !is(PRESENT) || !has_dpl3 && !conforms;
        let code = is(IS_SEGMENT | IS_CODE | ACCESSED)
            && !conforms
            && (is(LONG) && !is(SIZE32) || is(SIZE32) && !is(LONG));
        let read_only = is(IS_SEGMENT | ACCESSED) && !is(IS_CODE) && !is(READ_WRITE);
        let stack = is(IS_SEGMENT | ACCESSED | READ_WRITE | SIZE32)
            && !is(IS_CODE)
            && !is(DOWN_OR_CONFORMING);
        let known = out_of_reach || code || read_only || stack;
        assert_eq!(judge(8, entry).is_ok(), known, "{entry:#x}");
    }
}

#[test]
fn a_tss_descriptor_is_decoded_field_by_field() {
    // The descriptor is an available 64-bit TSS, present, with base 0x8877_6655_4433_2211 and limit
    // 0xA_0067.
    let low = 0x44 << 56 | 0xA << 48 | 0x89 << 40 | 0x33_2211 << 16 | 0x0067;
    let found = SystemSegment::decode(low, 0x8877_6655);
    assert_eq!(found, SystemSegment { base: 0x8877_6655_4433_2211, limit: 0xA_0067 });
    let pages = SystemSegment::decode(low | 1 << 55, 0x8877_6655);
    assert_eq!(pages.limit, 0xA006_7FFF);
    let [low, high] = tss(TSS);
    assert_eq!(SystemSegment::decode(low, high), SystemSegment { base: TSS, limit: 103 });
}

#[test]
fn a_table_is_read_only_where_it_is_bounded() {
    assert!(is_within_a_page(0x1000, 0xFFF) && is_within_a_page(0x1FF8, 7));
    assert!(!is_within_a_page(0x1008, 0xFFF) && !is_within_a_page(0x1000, u16::MAX));
}

/// A register of a leaf and subleaf of CPUID, and its value.
type Word = (u32, u32, Register, u32);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A CPU with all leaves, in which only these words are not 0.
#[derive(Clone)]
struct Cpuid<'w>(&'w [Word]);

impl CpuIdReader for Cpuid<'_> {
    fn cpuid2(&self, leaf: u32, subleaf: u32) -> CpuIdResult {
        const LEAVES: [Word; 3] = [
            (0, 0, Register::Eax, 0x23),
            (7, 0, Register::Eax, 1),
            (0x8000_0000, 0, Register::Eax, 0x8000_001F),
        ];
        let word = |wanted| {
            // Words of a test's own come first, and so are found first.
            let mut all = self.0.iter().chain(&LEAVES);
            let found = all.find(|(l, s, r, _)| (*l, *s) == (leaf, subleaf) && *r == wanted);
            found.map_or(0, |(_, _, _, word)| *word)
        };
        CpuIdResult {
            eax: word(Register::Eax),
            ebx: word(Register::Ebx),
            ecx: word(Register::Ecx),
            edx: word(Register::Edx),
        }
    }
}

#[test]
fn an_msr_is_looked_at_only_where_cpuid_has_it() {
    use Register::{Eax, Ebx, Ecx, Edx};
    const DS: Word = (1, 0, Edx, 1 << 21);
    let found = |words: &[Word]| Has::from_cpuid(&Cpuid(words), || false);
    let nothing = Has::default();
    assert_eq!(found(&[]), nothing);
    assert_eq!(found(&[DS]), Has { pebs: true, ..nothing });
    assert_eq!(Has::from_cpuid(&Cpuid(&[DS]), || true), nothing);
    let is_here = [
        ((7, 0, Ecx, 1 << 2), Has { umip: true, ..nothing }),
        ((7, 0, Ecx, 1 << 7), Has { user_cet: true, ..nothing }),
        ((7, 0, Ecx, 1 << 24), Has { bus_lock_detection: true, ..nothing }),
        ((7, 0, Edx, 1 << 20), Has { user_cet: true, ..nothing }),
        ((7, 0, Edx, 1 << 26), Has { ibpb: true, ..nothing }),
        ((7, 0, Edx, 1 << 27), Has { stibp: true, ..nothing }),
        ((7, 1, Edx, 1 << 15), Has { user_msr: true, ..nothing }),
        ((0x8000_0001, 0, Ecx, 1 << 26), Has { breakpoint_masks: true, ..nothing }),
        ((0x8000_0008, 0, Ebx, 1 << 12), Has { ibpb: true, ..nothing }),
        ((0x8000_0008, 0, Ebx, 1 << 15), Has { stibp: true, ..nothing }),
        ((0x8000_001F, 0, Eax, 1 << 1), Has { sev: true, ..nothing }),
    ];
    for (word, has) in is_here {
        assert_eq!(found(&[word]), has);
    }
    // Leaves that do not exist have no meaning.
    let few = [(0, 0, Eax, 6), (0x8000_0000, 0, Eax, 0x8000_0000)];
    for (word, _) in is_here {
        assert_eq!(found(&[few[0], few[1], word]), nothing);
    }
}

#[test]
fn the_enable_msr_of_pebs_is_left_alone_where_pebs_is_architectural() {
    const DS: Word = (1, 0, Register::Edx, 1 << 21);
    let leaf = |eax| (0x23, 0, Register::Eax, eax);
    for (eax, pebs) in [(0b11_0001, false), (0b01_0001, true), (0b10_0001, true), (0b1, true)] {
        assert_eq!(Has::from_cpuid(&Cpuid(&[DS, leaf(eax)]), || false).pebs, pebs, "{eax:#b}");
    }
    // Nor is MISC_ENABLE read, which says whether there is PEBS.
    let unread = || panic!("nothing says that it is there");
    assert!(!Has::from_cpuid(&Cpuid(&[DS, leaf(0b11_0001)]), unread).pebs);
    // This CPU does not have the leaf.
    let old = [DS, (0, 0, Register::Eax, 0x22), leaf(0b11_0001)];
    assert!(Has::from_cpuid(&Cpuid(&old), || false).pebs);
}

#[test]
fn a_guest_of_a_tdx_modules_is_known_by_its_name() {
    use Register::{Eax, Ebx, Ecx, Edx};
    let name = |ebx: &[u8; 4], edx: &[u8; 4], ecx: &[u8; 4]| {
        [(Ebx, ebx), (Edx, edx), (Ecx, ecx)]
            .map(|(register, text)| (0x21, 0, register, u32::from_le_bytes(*text)))
    };
    let tdx = |words: &[Word]| Has::from_cpuid(&Cpuid(words), || false).tdx;
    let module = name(b"Inte", b"lTDX", b"    ");
    assert!(tdx(&module));
    assert!(!tdx(&name(b"Inte", b"    ", b"lTDX")) && !tdx(&[]));
    assert!(!tdx(&[&module[..], &[(0, 0, Eax, 0x20)]].concat()));
}

#[test]
fn who_sees_to_it_is_what_the_code_does() {
    /// The rows that `enter` sees to by itself, in one place, and not by an exchange.
    const ELSEWHERE: [State; 8] = [
        State::Idt,
        State::Mxcsr,
        State::SpecCtrl,
        State::PredCmd,
        State::Cr2,
        // With tables that are not the host's.
        State::Gdt,
        State::Ldtr,
        State::Tr,
    ];
    let mut names = Vec::new();
    for entry in CPU_STATE {
        let says = |what: fn(&Care) -> bool| entry.care.iter().any(what);
        let is_checked = entry.is_checked_by_prepare() || entry.is_checked_by_enter();
        assert_eq!(says(|care| matches!(care, Checked(_))), is_checked, "{:?}", entry.state);
        let exchanges = entry.is_exchanged() || ELSEWHERE.contains(&entry.state);
        assert_eq!(says(|care| matches!(care, Enter(_))), exchanges, "{:?}", entry.state);
        assert!(!entry.care.is_empty() && !entry.rows.is_empty() && !entry.why.is_empty());
        names.extend(entry.care.iter().filter_map(|care| match care {
            Duty { name, .. } => Some(*name),
            _ => None,
        }));
    }
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all, "a duty has a name of its own");
}

/// What spec/hazards.md lists under "CPU state" is in the table, word for word.
#[test]
fn nothing_that_the_specification_lists_is_missing() {
    let registers: Vec<&str> = CPU_STATE.iter().map(|entry| entry.registers).collect();
    let registers = registers.join("; ");
    let listed = [
        "GDT",
        "descriptor that CPL 3 can load",
        "accessed, D",
        "limit",
        "LDTR",
        "TR",
        "I/O bitmap",
        "IDTR",
        "DS, ES, FS",
        "GS selectors",
        "FS base",
        "both GS bases",
        "TSC_AUX",
        "CR0.TS",
        "EM",
        "MP",
        "AM",
        "FSGSBASE",
        "UMIP",
        "PCE",
        "TSD",
        "DE",
        "OSXSAVE",
        "PKE",
        "CET",
        "SMEP",
        "SMAP",
        "LA57",
        "PCIDE",
        "EFER",
        "XCR0",
        "IA32_XSS",
        "x87",
        "MXCSR",
        "XMM to ZMM",
        "XFD",
        "XFD_ERR",
        "PKRU",
        "AMX",
        "APX",
        "DR0 to DR3",
        "DR6",
        "DR7",
        "DEBUGCTL",
        "BTF",
        "LBR",
        "bus lock",
        "DS area",
        "PT",
        "PMU",
        "SPEC_CTRL",
        "IBRS",
        "STIBP",
        "SSBD",
        "BHI_DIS_S",
        "PRED_CMD",
        "virtual SPEC_CTRL",
        "U_CET",
        "PL3_SSP",
        "S_CET",
        "SYSENTER",
        "STAR",
        "LSTAR",
        "CSTAR",
        "SFMASK",
        "UMWAIT",
        "TPAUSE",
        "MISC_FEATURES",
        "CPUID faulting",
        "user interrupts",
        "USER_MSR",
        "OSFXSR",
        "split-lock",
        "FRED",
        // The rest is in the table although the specification does not list it.
        "C001_1027h",
        "CR8",
        "SMXE",
        "VMXE",
        "MCE",
        "CR2",
        "NT",
        "LASS",
        "LAM_SUP",
        "LAM_U48",
        "KL",
        "PCIDs",
        "global translations",
        "FFXSR",
        "TCE",
        "MCOMMIT",
        "RING3MWAIT",
        "MWAITX",
        "LSL",
        "VMCALL",
        "VMMCALL",
        "VMFUNC",
        "IA32_PASID",
        "SEV_STATUS",
        "architectural PEBS",
        "PTWRITE",
        "ENCLU",
        "TSX_CTRL",
        "MCU_OPT_CTRL",
    ];
    let why: String = CPU_STATE.iter().map(|entry| entry.why).collect();
    for name in listed {
        let wanted = name.replace("FSGSBASE", "both GS bases").replace("bus lock", "bus-lock");
        let there = registers.contains(&wanted) || why.contains(&wanted);
        assert!(there, "{name} is not in the table");
    }
}

/// Row 21 is about pairs of roots.
#[test]
fn global_entries_are_a_duty_about_the_hosts_root_as_well() {
    let duties = CPU_STATE.iter().flat_map(|entry| entry.care);
    let what = duties.filter_map(|care| match care {
        Duty { name: "global entries", what } => Some(*what),
        _ => None,
    });
    let what = what.collect::<Vec<_>>().concat();
    assert!(what.contains("any two roots") && what.contains("the host's own among them"), "{what}");
    assert!(what.contains("RDCL_NO"), "{what}");
}

/// The contracts of hooks and of `enter_with` include the table's list, and the list is complete.
#[test]
fn who_runs_meanwhile_is_told_of_all_that_is_exchanged() {
    is_written("EXCHANGED.md", &exchanged());
    for name in [
        "PKRU",
        "KERNEL_GS_BASE",
        "DS, ES, FS",
        "FS base",
        "TSC_AUX",
        "U_CET",
        "DR0 to DR3",
        "DR6",
        "DR7",
        "DEBUGCTL",
        "PEBS_ENABLE",
    ] {
        assert!(exchanged().contains(name), "{name}");
    }
    let listed: usize = CPU_STATE.iter().map(|entry| entry.exchanged.len()).sum();
    assert_eq!(exchanged().lines().filter(|line| line.starts_with("* ")).count(), listed);
}

#[test]
fn the_document_is_written_from_the_table() {
    is_written("CPU-STATE.md", &document());
}

fn is_written(name: &str, now: &str) {
    let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    if env::var_os("BLESS").is_some() {
        fs::write(&path, now).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let other = written.lines().zip(now.lines()).find(|(written, now)| written != now);
    let renew = "BLESS=1 cargo test -p switcher-runtime";
    assert!(written == now, "{path} is old, from {other:?} on: {renew}");
}
