use std::collections::BTreeSet;
use std::format;

use super::*;
use crate::arch::HostState;
use crate::arch::fake::{FakeCpu, features};

type Caps = ArchCapabilities;
type Said = Speculation;

/// A host that is made up: its CPU, what that reports and has, and how the host is set up.
#[derive(Clone, Copy, Default)]
struct Host {
    cpu: (u16, u8, u8),
    says: Said,
    has: Caps,
    set: Set,
}

#[derive(Clone, Copy, Default)]
struct Set {
    smep: bool,
    automatic_ibrs: bool,
    spec_ctrl: SpecCtrl,
    tsx_ctrl: TsxCtrl,
    mcu_opt_ctrl: Option<McuOptCtrl>,
    return_thunks: bool,
}

impl Set {
    /// Everything is set as the table wants it.
    const ALL: Self = Self {
        smep: true,
        automatic_ibrs: true,
        spec_ctrl: SpecCtrl::all(),
        tsx_ctrl: TsxCtrl::all(),
        mcu_opt_ctrl: Some(McuOptCtrl::empty()),
        return_thunks: false,
    };

    /// Everything is set as the table wants it, except `switch`.
    fn but(switch: Switch) -> Self {
        let mut set = Self::ALL;
        match switch {
            Switch::Ibrs => set.spec_ctrl -= SpecCtrl::IBRS,
            Switch::Stibp => set.spec_ctrl -= SpecCtrl::STIBP,
            Switch::RrsbaDisS => set.spec_ctrl -= SpecCtrl::RRSBA_DIS_S,
            Switch::BhiDisS => set.spec_ctrl -= SpecCtrl::BHI_DIS_S,
            Switch::AutomaticIbrs => set.automatic_ibrs = false,
            Switch::Smep => set.smep = false,
            Switch::RtmDisable => set.tsx_ctrl -= TsxCtrl::RTM_DISABLE,
            Switch::RngdsMitigated => set.mcu_opt_ctrl = Some(McuOptCtrl::RNGDS_MITG_DIS),
            Switch::GdsMitigated => set.mcu_opt_ctrl = Some(McuOptCtrl::GDS_MITG_DIS),
            Switch::FillBuffersCleared => set.mcu_opt_ctrl = Some(McuOptCtrl::FB_CLEAR_DIS),
        }
        set
    }
}

impl Host {
    fn features(self, vendor: Vendor) -> HostFeatures {
        let name = match vendor {
            Vendor::Intel => b"GenuineIntel",
            Vendor::Amd => b"AuthenticAMD",
        };
        let (family, model, stepping) = self.cpu;
        let cpu =
            FakeCpu::complete(name).signed(Signature { family, model, stepping }).saying(self.says);
        let Set { smep, automatic_ibrs, spec_ctrl, tsx_ctrl, mcu_opt_ctrl, return_thunks } =
            self.set;
        let state = HostState {
            smep,
            automatic_ibrs,
            spec_ctrl,
            tsx_ctrl,
            mcu_opt_ctrl,
            return_thunks,
            arch_capabilities: self.has,
            ..HostState::PLAIN
        };
        features(cpu, state)
    }

    const fn set(self, set: Set) -> Self {
        Self { set, ..self }
    }
}

fn fault(vendor: Vendor, name: &str) -> &'static Fault {
    Fault::of(vendor).iter().find(|fault| fault.name.starts_with(name)).unwrap()
}

/// Assesses one fault on one host, whatever other faults it has: what the code does, and where the
/// host is told to do something. The result is `None` if the host does not have the fault.
fn alone(vendor: Vendor, name: &str, host: Host) -> Option<(String, Vec<Place>)> {
    let (fault, host) = (fault(vendor, name), host.features(vendor));
    fault.affects.on(&host).then(|| {
        let mut all = Assessment::default();
        all.add(fault, &host);
        (all.mitigations.to_string(), all.unmet.iter().map(|unmet| unmet.place).collect())
    })
}

const fn cpu(family: u16, model: u8, stepping: u8) -> Host {
    Host { cpu: (family, model, stepping), says: Said::empty(), has: Caps::empty(), set: UNSET }
}

const UNSET: Set = Set {
    smep: false,
    automatic_ibrs: false,
    spec_ctrl: SpecCtrl::empty(),
    tsx_ctrl: TsxCtrl::empty(),
    mcu_opt_ctrl: None,
    return_thunks: false,
};

const fn says(host: Host, says: Said) -> Host {
    Host { says: host.says.union(says), ..host }
}

const fn has(host: Host, has: Caps) -> Host {
    Host { has: host.has.union(has), ..host }
}

/// A CPU that nobody knows.
const NEW: Host = cpu(6, 0xF0, 0);
const SKYLAKE: Host = cpu(6, 0x5E, 3);
const CASCADE_LAKE: Host = cpu(6, 0x55, 7);
const ALDER_LAKE: Host = cpu(6, 0x97, 2);
const MMIO_NO: Caps = Caps::SBDR_SSDP_NO.union(Caps::FBSDP_NO).union(Caps::PSDP_NO);

const SAMPLING_NO: Caps = Caps::RDCL_NO.union(Caps::MDS_NO).union(Caps::TAA_NO);

const ZEN_2: Host = cpu(0x17, 0x31, 0);
const ZEN_4: Host = cpu(0x19, 0x11, 1);
const ZEN_5: Host = cpu(0x1A, 0x02, 1);

/// A fault; a host that has it, with nothing set; what the code does there; where the host is told
/// to do something; and a host that does not have it, if there is one.
type Row = (&'static str, Host, &'static str, &'static [&'static str], Option<Host>);

const INTEL_ROWS: &[Row] = &[
    (
        "Branch target injection (Spectre",
        has(says(NEW, Said::IBRS), Caps::IBRS_ALL),
        "+ibrs",
        &["SPEC_CTRL.IBRS (MSR 48h, bit 0)"],
        None,
    ),
    (
        "Branch target injection from",
        says(NEW, Said::SMT),
        "",
        &["SPEC_CTRL.STIBP (MSR 48h, bit 1)"],
        Some(NEW),
    ),
    ("Return stack buffer", has(NEW, Caps::IBRS_ALL), "+rsb", &["CR4.SMEP (bit 20)"], None),
    (
        "Post-barrier",
        has(NEW, Caps::IBRS_ALL),
        "+rsblite",
        &[],
        Some(has(NEW, Caps::IBRS_ALL.union(Caps::PBRSB_NO))),
    ),
    ("Retbleed", says(SKYLAKE, Said::IBRS), "+ibrs", &[], Some(ALDER_LAKE)),
    (
        "Restricted",
        has(says(ALDER_LAKE, Said::RRSBA_CTRL), Caps::RRSBA),
        "",
        &["SPEC_CTRL.RRSBA_DIS_S (MSR 48h, bit 6)"],
        Some(ALDER_LAKE),
    ),
    (
        "Branch history",
        says(ALDER_LAKE, Said::BHI_CTRL),
        "+bhblong",
        &["SPEC_CTRL.BHI_DIS_S (MSR 48h, bit 10)"],
        Some(has(ALDER_LAKE, Caps::BHI_NO)),
    ),
    ("Indirect target", CASCADE_LAKE, "", &[], Some(cpu(6, 0x55, 5))),
    ("Branch predictor isolation", cpu(6, 0xC6, 2), "", &[], Some(ALDER_LAKE)),
    ("Return predictor targets", NEW, "+rsb", &[], None),
    ("Branch privilege", has(NEW, Caps::IBRS_ALL), "", &[], Some(NEW)),
    ("VMSCAPE", says(NEW, Said::HYPERVISOR), "", &[], None),
    ("SWAPGS", NEW, "", &[], None),
    ("Meltdown", NEW, "", &[], Some(has(NEW, Caps::RDCL_NO))),
    ("Rogue system", NEW, "", &["the microcode"], None),
    ("L1 terminal", NEW, "", &[], Some(has(NEW, Caps::RDCL_NO))),
    ("Machine check", NEW, "", &[], Some(has(NEW, Caps::PSCHANGE_MC_NO))),
    (
        "Microarchitectural data",
        says(NEW, Said::MD_CLEAR),
        "+verw",
        &[],
        Some(has(NEW, Caps::MDS_NO)),
    ),
    ("L1 data cache", SKYLAKE, "", &[], Some(has(SKYLAKE, SAMPLING_NO))),
    (
        "Asynchronous abort",
        has(says(NEW, Said::MD_CLEAR), Caps::TSX_CTRL.union(Caps::MDS_NO)),
        "+verw",
        &["TSX_CTRL.RTM_DISABLE (MSR 122h, bit 0)"],
        Some(has(says(NEW, Said::RTM), Caps::TAA_NO)),
    ),
    (
        "Stale data",
        has(SKYLAKE, Caps::FB_CLEAR),
        "+verw",
        &[],
        Some(has(SKYLAKE, Caps::FB_CLEAR.union(MMIO_NO))),
    ),
    (
        "Register file",
        has(ALDER_LAKE, Caps::RFDS_CLEAR),
        "+verw",
        &[],
        Some(has(ALDER_LAKE, Caps::RFDS_CLEAR.union(Caps::RFDS_NO))),
    ),
    ("Special register", says(SKYLAKE, Said::RDRAND), "", &["the microcode"], Some(SKYLAKE)),
    (
        "Gather data",
        says(SKYLAKE, Said::AVX),
        "",
        &["the microcode"],
        Some(has(says(SKYLAKE, Said::AVX), Caps::GDS_NO)),
    ),
    ("Speculative store", NEW, "", &[], Some(has(NEW, Caps::SSB_NO))),
];

const AMD_ROWS: &[Row] = &[
    (
        "Branch target injection (Spectre",
        says(ZEN_4, Said::IBRS.union(Said::IBRS_PREFERRED).union(Said::AUTOMATIC_IBRS)),
        "+ibrs",
        &["EFER.AIBRSE (MSR C0000080h, bit 21)"],
        None,
    ),
    ("LFENCE in front", ZEN_2, "", &[], None),
    ("Straight-line", ZEN_2, "", &[], None),
    (
        "Branch target injection from",
        says(ZEN_4, Said::SMT),
        "",
        &["SPEC_CTRL.STIBP (MSR 48h, bit 1)"],
        Some(ZEN_4),
    ),
    (
        "Return stack buffer",
        says(ZEN_4, Said::AUTOMATIC_IBRS),
        "+rsb",
        &["CR4.SMEP (bit 20)"],
        None,
    ),
    (
        "Return predictions left by IBPB",
        says(ZEN_2, Said::IBPB),
        "+rsb",
        &[],
        Some(says(ZEN_4, Said::IBPB.union(Said::IBPB_RET))),
    ),
    ("Return predictions of", says(ZEN_2, Said::SMT), "+rsb", &[], Some(says(ZEN_4, Said::SMT))),
    ("Fences", ZEN_2, "", &[], Some(says(ZEN_4, Said::LFENCE_ALWAYS))),
    ("Branch type", says(ZEN_2, Said::IBPB), "+ibpb", &[], Some(says(ZEN_2, Said::BTC_NO))),
    (
        "Speculative return",
        says(ZEN_4, Said::IBPB),
        "+ibpb",
        &["the microcode"],
        Some(says(ZEN_5, Said::SRSO_USER_KERNEL_NO)),
    ),
    ("Transient", says(ZEN_4, Said::VERW_CLEAR), "+verw", &[], Some(ZEN_5)),
    ("System registers", ZEN_4, "", &[], None),
    ("VMSCAPE", says(ZEN_5, Said::HYPERVISOR), "", &[], None),
    ("Zenbleed", ZEN_2, "", &[], Some(ZEN_4)),
    ("Division", cpu(0x17, 0x01, 2), "", &[], Some(ZEN_2)),
    ("Speculative store", ZEN_4, "", &[], Some(says(ZEN_4, Said::SSB_NO))),
];

#[test]
fn each_row_applies_where_it_says_and_nowhere_else() {
    for (vendor, rows) in [(Vendor::Intel, INTEL_ROWS), (Vendor::Amd, AMD_ROWS)] {
        for (name, affects, code, told, free) in rows {
            let (mitigations, places) = alone(vendor, name, *affects).unwrap();
            assert_eq!(mitigations, *code, "{vendor} {name}");
            let places: Vec<_> = places.iter().map(ToString::to_string).collect();
            assert_eq!(places, *told, "{vendor} {name}");
            if let Some(free) = free {
                assert_eq!(alone(vendor, name, *free), None, "{vendor} {name}");
            }
        }
        let tested: Vec<_> = rows.iter().map(|row| fault(vendor, row.0).name).collect();
        let all: Vec<_> = Fault::of(vendor).iter().map(|fault| fault.name).collect();
        assert_eq!(tested, all);
    }
}

/// A capability alone spares nothing (row 59), nor does it with all but one of the switches on.
#[test]
fn code_is_left_out_if_all_that_replaces_it_is_set_and_told_of_each_that_is_not() {
    for (vendor, rows) in [(Vendor::Intel, INTEL_ROWS), (Vendor::Amd, AMD_ROWS)] {
        for (name, host, code, ..) in rows {
            let Some(Instead { offered, switches }) = &fault(vendor, name).instead else {
                let same = alone(vendor, name, host.set(Set::ALL)).unwrap().0;
                assert_eq!(same, *code, "{vendor} {name}");
                continue;
            };
            let done = alone(vendor, name, host.set(Set::ALL)).unwrap();
            let is_offered = offered.on(&host.features(vendor));
            assert_eq!(done.0, if is_offered { "" } else { code }, "{vendor} {name}");
            for switch in *switches {
                let (mitigations, told) = alone(vendor, name, host.set(Set::but(*switch))).unwrap();
                assert_eq!(mitigations, *code, "{vendor} {name}, {switch:?} off");
                let expected: &[_] = if is_offered { &[switch.place()] } else { &[] };
                assert_eq!(told, expected, "{vendor} {name}, {switch:?} off");
            }
        }
    }
    // The bits are set where they do not exist, and so mean nothing.
    let set = SKYLAKE.set(Set::ALL);
    assert_eq!(alone(Vendor::Intel, "Branch target injection (", set).unwrap().0, "");
    assert_eq!(alone(Vendor::Intel, "Branch history", set).unwrap().0, "+bhb");
    let set = says(ZEN_2, Said::IBRS_PREFERRED.union(Said::IBRS)).set(Set::ALL);
    assert_eq!(alone(Vendor::Amd, "Branch target injection (", set).unwrap().0, "+ibrs");
}

/// A guest may execute at the host's addresses, on a root that does not map the host there: neither
/// SMEP nor any IBRS, of which both are set here, lets the buffer be left to it.
#[test]
fn nothing_that_a_host_sets_spares_filling_the_return_stack_buffer() {
    for (vendor, host) in [
        (Vendor::Intel, says(NEW, Said::IBRS)),
        (Vendor::Intel, has(says(NEW, Said::IBRS), Caps::IBRS_ALL.union(Caps::PBRSB_NO))),
        (Vendor::Amd, says(ZEN_5, Said::AUTOMATIC_IBRS.union(Said::IBPB).union(Said::IBPB_RET))),
    ] {
        let all = Assessment::of(&host.set(Set::ALL).features(vendor), vendor);
        assert_eq!(all.mitigations.rsb, Rsb::Full, "{vendor} {:?}", host.cpu);
    }
}

#[test]
fn an_unseen_setting_is_no_setting() {
    for switch in Switch::ALL {
        let unset = cpu(0, 0, 0).features(Vendor::Intel);
        assert!(!switch.is_on(&unset), "{switch:?}");
        let set = cpu(0, 0, 0).set(Set::ALL).features(Vendor::Intel);
        assert!(switch.is_on(&set), "{switch:?}");
        let but = cpu(0, 0, 0).set(Set::but(switch)).features(Vendor::Intel);
        assert!(!switch.is_on(&but), "{switch:?}");
        let others = Switch::ALL.into_iter().filter(|other| *other != switch);
        others.for_each(|other| assert!(other.is_on(&but), "{other:?} without {switch:?}"));
    }
}

#[test]
fn microcode_that_is_missing_is_told_and_only_what_would_fault_is_left_out() {
    let told = |vendor, name, host: Host| {
        let (code, places) = alone(vendor, name, host).unwrap();
        (code, places.contains(&Place::Microcode))
    };
    let intel = |name, host| told(Vendor::Intel, name, host);
    let amd = |name, host| told(Vendor::Amd, name, host);
    let (yes, no) = (true, false);
    assert_eq!(intel("Branch target injection (", SKYLAKE), (String::new(), yes));
    assert_eq!(intel("Microarchitectural", NEW), ("+verw".into(), yes));
    // With MDS_NO, VERW clears for TAA only by the microcode that has brought TSX_CTRL.
    let taa = says(NEW, Said::RTM.union(Said::MD_CLEAR));
    assert_eq!(intel("Asynchronous", taa), ("+verw".into(), no));
    assert_eq!(intel("Asynchronous", has(taa, Caps::MDS_NO)), ("+verw".into(), yes));
    let with_control = has(taa, Caps::MDS_NO.union(Caps::TSX_CTRL));
    assert_eq!(intel("Asynchronous", with_control), ("+verw".into(), no));
    assert_eq!(intel("Stale", has(SKYLAKE, Caps::MDS_NO)), ("+verw".into(), yes));
    assert_eq!(intel("Stale", says(SKYLAKE, Said::MD_CLEAR)), ("+verw".into(), no));
    assert_eq!(intel("Register file", ALDER_LAKE), ("+verw".into(), yes));
    assert_eq!(amd("Branch type", ZEN_2), (String::new(), yes));
    assert_eq!(amd("Speculative return", ZEN_2), (String::new(), yes));
    // Zen 1 and 2 forget the kinds of branches by any IBPB, Zen 3 and 4 by that of newer microcode.
    assert_eq!(amd("Speculative return", says(ZEN_2, Said::IBPB)), ("+ibpb".into(), no));
    let zen_4 = says(ZEN_4, Said::IBPB.union(Said::IBPB_BRTYPE));
    assert_eq!(amd("Speculative return", zen_4), ("+ibpb".into(), no));
    assert_eq!(amd("Transient", ZEN_4), ("+verw".into(), yes));
    // One of the two halves of TSA is enough.
    assert_eq!(amd("Transient", says(ZEN_4, Said::TSA_SQ_NO)).0, "+verw");
    assert_eq!(amd("Transient", says(ZEN_4, Said::TSA_L1_NO)).0, "+verw");
    let neither = says(ZEN_4, Said::TSA_SQ_NO.union(Said::TSA_L1_NO));
    assert_eq!(alone(Vendor::Amd, "Transient", neither), None);
    // This is a virtual CPU that nobody knows, which reports that VERW is of use.
    assert_eq!(amd("Transient", says(cpu(0x1B, 0, 0), Said::VERW_CLEAR)), ("+verw".into(), no));
}

#[test]
fn the_longer_sequence_is_for_longer_histories_and_for_who_cannot_know() {
    let code = |host| alone(Vendor::Intel, "Branch history", host).unwrap().0;
    assert_eq!(code(CASCADE_LAKE), "+bhb");
    assert_eq!(code(says(ALDER_LAKE, Said::BHI_CTRL)), "+bhblong");
    assert_eq!(code(says(CASCADE_LAKE, Said::HYPERVISOR)), "+bhblong");
    // These are physical CPUs without the microcode that brings BHI_CTRL: Alder Lake, Raptor Lake,
    // Meteor Lake, Sapphire Rapids, and one that nobody knows yet.
    for model in [0x97, 0x9A, 0xB7, 0xBA, 0xBF, 0xAA, 0xAC, 0x8F, 0xF0] {
        assert_eq!(code(cpu(6, model, 2)), "+bhblong", "{model:#x}");
    }
    assert_eq!(code(cpu(0x12, 1, 0)), "+bhblong");
    for model in [0x4E, 0x5E, 0x55, 0x8E, 0x9E, 0xA5, 0xA6, 0x7E, 0x6A, 0x6C, 0x8C, 0x8D, 0xA7] {
        assert_eq!(code(cpu(6, model, 2)), "+bhb", "{model:#x}");
    }
}

/// A virtual CPU's model is its hypervisor's choice. Where only a list of models says which CPUs
/// have a fault, it is taken to have the fault, unless it has a bit that says that it has not.
#[test]
fn a_virtual_cpu_of_whatever_model_has_what_only_lists_of_models_tell_of() {
    let named = |vendor| move |name| fault(vendor, name);
    let intel = [
        "Indirect target",
        "Branch predictor isolation",
        "L1 data cache",
        "Special register",
        "Gather",
    ];
    let amd = ["Return predictions of", "Branch type", "Zenbleed", "Division"];
    let intel = intel.map(named(Vendor::Intel)).map(|fault| (Vendor::Intel, NEW, fault));
    let amd = amd.map(named(Vendor::Amd)).map(|fault| (Vendor::Amd, ZEN_5, fault));
    for (vendor, host, fault) in intel.into_iter().chain(amd) {
        let host = says(host, Said::RDRAND.union(Said::AVX));
        assert!(!fault.affects.on(&host.features(vendor)), "{}", fault.name);
        let host = says(host, Said::HYPERVISOR);
        assert!(fault.affects.on(&host.features(vendor)), "{}", fault.name);
        let has_a_duty = !fault.duties.is_empty() || !fault.code.is_empty();
        assert!(has_a_duty, "{}", fault.name);
    }
    let its_no = has(says(NEW, Said::HYPERVISOR), Caps::ITS_NO);
    assert_eq!(alone(Vendor::Intel, "Indirect target", its_no), None);
    // Every other list of models stands beside a bit that hypervisors set for CPUs that they move
    // about, or lists the CPUs that do not have the fault.
    let bits = [Caps::RSBA, Caps::FB_CLEAR, Caps::RFDS_CLEAR];
    let virtual_cpu = says(NEW, Said::HYPERVISOR);
    for (name, bit) in ["Retbleed", "Stale", "Register file"].into_iter().zip(bits) {
        assert_eq!(alone(Vendor::Intel, name, virtual_cpu), None, "{name}");
        assert!(alone(Vendor::Intel, name, has(virtual_cpu, bit)).is_some(), "{name}");
    }
}

/// Hosts of every kind that the tables distinguish.
fn all_hosts(vendor: Vendor) -> Vec<Host> {
    const HOSTS_OF_INTEL: &[Host] = &[NEW, SKYLAKE, CASCADE_LAKE, ALDER_LAKE];
    const SAID_BY_INTEL: &[Said] =
        &[Said::IBRS.union(Said::IBPB), Said::BHI_CTRL, Said::MD_CLEAR, Said::HYPERVISOR];
    const HOSTS_OF_AMD: &[Host] =
        &[ZEN_2, ZEN_4, ZEN_5, cpu(0x17, 1, 2), cpu(0x18, 0, 0), cpu(0x15, 2, 0)];
    const SAID_BY_AMD: &[Said] = &[
        Said::IBPB,
        Said::BTC_NO,
        Said::SRSO_NO,
        Said::SRSO_USER_KERNEL_NO,
        Said::IBPB_BRTYPE,
        Said::IBPB_RET,
        Said::IBRS.union(Said::IBRS_PREFERRED),
        Said::HYPERVISOR,
        Said::SMT,
    ];
    let (hosts, flags) = match vendor {
        Vendor::Intel => (HOSTS_OF_INTEL, SAID_BY_INTEL),
        Vendor::Amd => (HOSTS_OF_AMD, SAID_BY_AMD),
    };
    let some = |chosen: u32| {
        let on = flags.iter().enumerate().filter(move |(bit, _)| chosen >> bit & 1 != 0);
        on.map(|(_, flag)| *flag).fold(Said::empty(), Said::union)
    };
    let all = 0..1 << flags.len();
    hosts.iter().flat_map(|host| all.clone().map(|chosen| says(*host, some(chosen)))).collect()
}

/// Zen 1 and 2 that do not report IBPB once got neither that nor untraining.
#[test]
fn return_thunks_never_mean_fewer_measures() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        for host in all_hosts(vendor) {
            let features = host.features(vendor);
            let plain = Assessment::of(&features, vendor);
            let thunks = Assessment::of(&features.clone().with_return_thunks(), vendor);
            let (has, had) = (thunks.mitigations, plain.mitigations);
            assert!(has.covers(had), "{:?} {:?}: {has}, not {had}", host.cpu, host.says);
            assert!(!has.ibpb && !had.untrain);
            assert_eq!(has.fit(vendor), Ok(()));
            // A host with the fault has one of the two measures; it has none without return thunks
            // only if there is no IBPB.
            let affects = Fault::of(vendor).iter().any(|fault| {
                fault.code.iter().any(|code| matches!(code.measure, Measure::Ibpb))
                    && fault.affects.on(&features)
            });
            assert_eq!(has.untrain, affects, "{:?} {:?}", host.cpu, host.says);
            assert_eq!(had.ibpb, affects && features.speculation().contains(Said::IBPB));
        }
    }
    let thunks = Set { return_thunks: true, ..UNSET };
    let zen_2 = ZEN_2.set(thunks).features(Vendor::Amd);
    assert_eq!(Mitigations::for_cpu(&zen_2, Vendor::Amd).to_string(), "+untrain+rsb");
}

/// The document has every publication of the vendors about speculation that software can know by a
/// number: each has a row, or a line that says why it has none.
#[test]
fn every_number_that_is_public_is_in_the_document() {
    const PUBLIC: &[&str] = &[
        "2017-5715",
        "2017-5753",
        "2017-5754",
        "2018-3615",
        "2018-3620",
        "2018-3639",
        "2018-3640",
        "2018-3646",
        "2018-3665",
        "2018-12126",
        "2018-12127",
        "2018-12130",
        "2018-12207",
        "2018-15572",
        "2019-1125",
        "2019-11091",
        "2019-11135",
        "2020-0543",
        "2020-0548",
        "2020-0549",
        "2020-0550",
        "2020-0551",
        "2021-0086",
        "2021-0089",
        "2021-26313",
        "2021-26314",
        "2021-26341",
        "2021-26401",
        "2022-0001",
        "2022-0002",
        "2022-21123",
        "2022-21125",
        "2022-21127",
        "2022-21166",
        "2022-23824",
        "2022-23825",
        "2022-26373",
        "2022-27672",
        "2022-28693",
        "2022-29900",
        "2022-29901",
        "2022-40982",
        "2023-20569",
        "2023-20588",
        "2023-20593",
        "2023-28746",
        "2023-38575",
        "2024-2201",
        "2024-28956",
        "2024-36348",
        "2024-36349",
        "2024-36350",
        "2024-36357",
        "2024-45332",
        "2025-24495",
        "2025-40300",
    ];
    let document = Fault::document();
    for number in PUBLIC {
        let (before, after) = document.split_once(&format!("CVE-{number}")).expect(number);
        assert!(!before.is_empty() && !after.starts_with(|c: char| c.is_ascii_digit()), "{number}");
    }
    // What has a line under `ELSEWHERE` is in no row.
    for NotRelevant { name, cves, why } in NotRelevant::ALL {
        let rows = [Vendor::Intel, Vendor::Amd].map(Fault::of).into_iter().flatten();
        let mut numbers = rows.flat_map(|fault| fault.cves);
        assert!(!numbers.any(|number| cves.contains(number)) && !why.is_empty(), "{name}");
    }
}

/// Row 21 is about pairs of roots: a page of the host's that no guest's root maps can still be read
/// through its global translation.
#[test]
fn meltdowns_duties_are_about_the_hosts_own_root_too() {
    let duties = fault(Vendor::Intel, "Meltdown").duties;
    let is_global =
        |duty: &Duty| duty.what.contains("leave G clear") && duty.what.contains("host's own root");
    assert!(duties.iter().any(is_global));
}

#[test]
fn microcodes_switches_count_only_where_they_were_read() {
    let told = |name, host: Host| !alone(Vendor::Intel, name, host).unwrap().1.is_empty();
    let srbds = says(SKYLAKE, Said::RDSEED.union(Said::SRBDS_CTRL));
    assert!(told("Special register", srbds));
    assert!(!told("Special register", srbds.set(Set::ALL)));
    assert!(!told("Special register", srbds.set(Set::but(Switch::GdsMitigated))));
    assert!(told("Special register", srbds.set(Set::but(Switch::RngdsMitigated))));
    let gds = has(says(SKYLAKE, Said::AVX), Caps::GDS_CTRL);
    assert!(told("Gather", gds));
    assert!(!told("Gather", gds.set(Set::ALL)));
    assert!(told("Gather", gds.set(Set::but(Switch::GdsMitigated))));
    for (name, host) in [
        ("Microarchitectural", says(NEW, Said::MD_CLEAR)),
        ("Asynchronous", says(NEW, Said::MD_CLEAR.union(Said::RTM))),
        ("Stale", has(SKYLAKE, Caps::FB_CLEAR)),
    ] {
        // Without FB_CLEAR_CTRL no setting can spare the fill buffers.
        assert!(!told(name, host), "{name}");
        let host = has(host, Caps::FB_CLEAR_CTRL);
        assert!(told(name, host), "{name}");
        assert!(!told(name, host.set(Set::ALL)), "{name}");
        assert!(told(name, host.set(Set::but(Switch::FillBuffersCleared))), "{name}");
    }
}

/// What a virtual CPU reports of its siblings need not be true, and threads matter only on some
/// CPUs.
#[test]
fn a_core_of_a_virtual_cpu_is_taken_to_have_threads() {
    let affects = |vendor, name, host| alone(vendor, name, host).is_some();
    for threads in [Said::SMT, Said::HYPERVISOR] {
        assert!(affects(Vendor::Intel, "Branch target injection from", says(NEW, threads)));
        assert!(affects(Vendor::Amd, "Branch target injection from", says(ZEN_4, threads)));
        assert!(affects(Vendor::Amd, "Return predictions of", says(ZEN_2, threads)));
        let host = says(NEW, threads).features(Vendor::Intel);
        let duty = |unmet: &Unmet| unmet.what.contains("other thread");
        assert!(Assessment::of(&host, Vendor::Intel).unseen.iter().any(duty));
    }
    assert!(!affects(Vendor::Amd, "Return predictions of", ZEN_2));
}

#[test]
fn steppings_decide_where_a_model_has_both_kinds() {
    let is_affected = |(model, stepping), name| alone(Vendor::Intel, name, cpu(6, model, stepping));
    for (model, last_free) in [(0x55, 5), (0x8E, 11), (0x9E, 12)] {
        assert!(is_affected((model, last_free), "Indirect target").is_none());
        assert!(is_affected((model, last_free + 1), "Indirect target").is_some());
    }
    // Atoms had no such machine check, though they do not report that.
    assert!(is_affected((0x5C, 0), "Machine check").is_none());
    assert!(is_affected((0x55, 7), "Machine check").is_some());
    // One is the bit that hypervisors set, the other one that only unaffected cores have.
    for free in [has(CASCADE_LAKE, Caps::ITS_NO), says(CASCADE_LAKE, Said::BHI_CTRL)] {
        assert_eq!(alone(Vendor::Intel, "Indirect target", free), None);
    }
}

#[test]
fn what_nobody_can_see_is_listed_apart() {
    let host = says(CASCADE_LAKE, Said::SMT.union(Said::IBRS)).features(Vendor::Intel);
    let all = Assessment::of(&host, Vendor::Intel);
    let has = |list: &[Unmet], fault: &str, place: Place| {
        list.iter().any(|one| one.fault.starts_with(fault) && one.place == place)
    };
    assert!(has(&all.unseen, "VMSCAPE", Place::Software));
    assert!(has(&all.unseen, "Indirect target", Place::Microcode));
    assert!(!has(&all.unmet, "VMSCAPE", Place::Software));
    assert!(has(&all.unmet, "Branch target injection from", Switch::Stibp.place()));
    let text = all.unmet.iter().find(|one| one.place == Switch::Stibp.place()).unwrap().to_string();
    assert!(
        text.contains(": SPEC_CTRL.STIBP (MSR 48h, bit 1): set it while a guest runs"),
        "{text}"
    );
}

/// Otherwise a variant for the host would be refused as illegal.
#[test]
fn what_a_table_chooses_is_for_its_vendors_cpus() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        for code in Fault::of(vendor).iter().flat_map(|fault| fault.code) {
            let mut chosen = Mitigations::NONE;
            code.measure.add_to(&mut chosen);
            assert_eq!(chosen.fit(vendor), Ok(()), "{vendor}: {}", code.measure);
        }
        let names: BTreeSet<_> = Fault::of(vendor).iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), Fault::of(vendor).len());
    }
}

#[test]
fn conditions_read_as_sentences_with_their_opposites() {
    const IS: Condition = Condition::All(&[
        Condition::Not(&Condition::Has(Caps::RFDS_NO)),
        Condition::Any(&[Condition::Has(Caps::RFDS_CLEAR), Condition::On(Switch::GdsMitigated)]),
    ]);
    assert_eq!(
        IS.to_string(),
        "IA32_ARCH_CAPABILITIES does not have RFDS_NO (bit 27) and \
         (IA32_ARCH_CAPABILITIES has RFDS_CLEAR (bit 28) or \
         MCU_OPT_CTRL.GDS_MITG_DIS (MSR 123h, bit 4) is clear)"
    );
    assert_eq!(
        Condition::Not(&IS).to_string(),
        "IA32_ARCH_CAPABILITIES has RFDS_NO (bit 27) or \
         (IA32_ARCH_CAPABILITIES does not have RFDS_CLEAR (bit 28) and \
         MCU_OPT_CTRL.GDS_MITG_DIS (MSR 123h, bit 4) is set)"
    );
}
