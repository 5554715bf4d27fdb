//! The faults of each vendor's CPUs, as data.
//!
//! The lists of models are those that Intel publishes ("Affected Processors: Transient Execution
//! Attacks & Related Security Issues by CPU") and that AMD's bulletins name; they were compared
//! with Linux' documentation (Documentation/admin-guide/hw-vuln). A CPU is taken to have every
//! fault that it is not known to be free of. The list decides only where a vendor lists the
//! affected CPUs and gives no bit for the others.

use super::fault::{
    Condition, Countermeasure, Cpus, Done, Duty, Fault, Instead, Measure, NotRelevant, Place,
    Switch,
};
use super::{Bhb, Rsb};
use crate::arch::{ArchCapabilities as Caps, Speculation as Said};

// These are Intel's models.
const IVY_BRIDGE: Cpus = Cpus::intel(0x3A, "Ivy Bridge");
const HASWELL: Cpus = Cpus::intel(0x3C, "Haswell");
const HASWELL_L: Cpus = Cpus::intel(0x45, "Haswell-ULT");
const HASWELL_G: Cpus = Cpus::intel(0x46, "Haswell with GT3e");
const HASWELL_X: Cpus = Cpus::intel(0x3F, "Haswell-EP");
const BROADWELL: Cpus = Cpus::intel(0x3D, "Broadwell");
const BROADWELL_G: Cpus = Cpus::intel(0x47, "Broadwell with GT3e");
const BROADWELL_X: Cpus = Cpus::intel(0x4F, "Broadwell-EP");
const BROADWELL_D: Cpus = Cpus::intel(0x56, "Broadwell-DE");
const SKYLAKE: Cpus = Cpus::intel(0x5E, "Skylake");
const SKYLAKE_L: Cpus = Cpus::intel(0x4E, "Skylake-U");
const SKYLAKE_X: Cpus = Cpus::intel(0x55, "Skylake-SP and Cascade Lake");
const KABY_LAKE: Cpus = Cpus::intel(0x9E, "Kaby Lake and Coffee Lake");
const KABY_LAKE_L: Cpus = Cpus::intel(0x8E, "Kaby Lake-U and Whiskey Lake");
const CANNON_LAKE: Cpus = Cpus::intel(0x66, "Cannon Lake");
const COMET_LAKE: Cpus = Cpus::intel(0xA5, "Comet Lake");
const COMET_LAKE_L: Cpus = Cpus::intel(0xA6, "Comet Lake-U");
const ICE_LAKE_L: Cpus = Cpus::intel(0x7E, "Ice Lake-U");
const ICE_LAKE_X: Cpus = Cpus::intel(0x6A, "Ice Lake-SP");
const ICE_LAKE_D: Cpus = Cpus::intel(0x6C, "Ice Lake-D");
const TIGER_LAKE: Cpus = Cpus::intel(0x8D, "Tiger Lake-H");
const TIGER_LAKE_L: Cpus = Cpus::intel(0x8C, "Tiger Lake-U");
const ROCKET_LAKE: Cpus = Cpus::intel(0xA7, "Rocket Lake");
const LAKEFIELD: Cpus = Cpus::intel(0x8A, "Lakefield");
const ALDER_LAKE: Cpus = Cpus::intel(0x97, "Alder Lake");
const ALDER_LAKE_L: Cpus = Cpus::intel(0x9A, "Alder Lake-P");
const RAPTOR_LAKE: Cpus = Cpus::intel(0xB7, "Raptor Lake");
const RAPTOR_LAKE_P: Cpus = Cpus::intel(0xBA, "Raptor Lake-P");
const RAPTOR_LAKE_S: Cpus = Cpus::intel(0xBF, "Raptor Lake-S");
const SILVERMONT: Cpus = Cpus::intel(0x37, "Silvermont");
const SILVERMONT_D: Cpus = Cpus::intel(0x4D, "Avoton");
const SILVERMONT_MID: Cpus = Cpus::intel(0x4A, "Merrifield");
const AIRMONT: Cpus = Cpus::intel(0x4C, "Airmont");
const AIRMONT_MID: Cpus = Cpus::intel(0x5A, "Moorefield");
const AIRMONT_NP: Cpus = Cpus::intel(0x75, "Lightning Mountain");
const KNIGHTS_LANDING: Cpus = Cpus::intel(0x57, "Knights Landing");
const KNIGHTS_MILL: Cpus = Cpus::intel(0x85, "Knights Mill");
const GOLDMONT: Cpus = Cpus::intel(0x5C, "Goldmont");
const GOLDMONT_D: Cpus = Cpus::intel(0x5F, "Denverton");
const GOLDMONT_PLUS: Cpus = Cpus::intel(0x7A, "Goldmont Plus");
const TREMONT: Cpus = Cpus::intel(0x96, "Elkhart Lake");
const TREMONT_D: Cpus = Cpus::intel(0x86, "Snow Ridge");
const TREMONT_L: Cpus = Cpus::intel(0x9C, "Jasper Lake");
const LUNAR_LAKE: Cpus = Cpus::intel(0xBD, "Lunar Lake");
const ARROW_LAKE: Cpus = Cpus::intel(0xC6, "Arrow Lake");
const ARROW_LAKE_H: Cpus = Cpus::intel(0xC5, "Arrow Lake-H");
const ARROW_LAKE_U: Cpus = Cpus::intel(0xB5, "Arrow Lake-U");
const GRACEMONT: Cpus = Cpus::intel(0xBE, "Alder Lake-N");

// These are AMD's families.
const UP_TO_ZEN_2: Cpus = Cpus::families(0, 0x18, "all up to Zen 2 and Hygon's Dhyana");
const ZEN_3_AND_4: Cpus = Cpus::families(0x19, 0x19, "Zen 3 and 4");
const ZEN_TO_ZEN_2: Cpus = Cpus::families(0x17, 0x18, "Zen 1, Zen 2 and Hygon's Dhyana");

/// Enhanced IBRS is switched on: what less privileged code has trained predicts nothing.
const ENHANCED_IBRS_ON: Condition =
    Condition::All(&[Condition::Has(Caps::IBRS_ALL), Condition::On(Switch::Ibrs)]);

const ENHANCED_IBRS: Instead =
    Instead { offered: Condition::Has(Caps::IBRS_ALL), switches: &[Switch::Ibrs] };

/// The return stack buffer is filled on every CPU, whatever the host has set. Other hosts do
/// without because under SMEP the return addresses that a guest leaves there lead to no code that
/// the supervisor could execute. But on a root of its own a guest may execute at the address of any
/// function of the host's that its root does not map, and what a CALL there has left leads, after
/// an exit, to that function. So Linux says of poisoned entries after a VM's exit that "SMEP
/// provides no protection here" (arch/x86/kernel/cpu/bugs.c). That enhanced IBRS removes them is
/// promised for exits of VMX, and that automatic IBRS does is promised for those of SVM, but not
/// for a way from CPL 3 to CPL 0.
const FILL_RETURNS: Countermeasure = plain(Measure::Rsb(Rsb::Full));

/// What SMEP is still needed for.
const LEADS_TO_NO_USER_PAGE: Duty = Duty {
    when: Condition::Always,
    place: Switch::Smep.place(),
    what: "set it on every CPU, and leave it set: what is predicted before the buffer is filled, or by \
           something else, then leads to no page of a guest's",
    done: Done::If(Condition::On(Switch::Smep)),
};

/// A [`Countermeasure`] that cannot fault and needs no microcode.
const fn plain(measure: Measure) -> Countermeasure {
    Countermeasure {
        when: Condition::Always,
        measure,
        exists: Condition::Always,
        works: Condition::Always,
    }
}

const fn verw(works: Condition) -> Countermeasure {
    Countermeasure { works, ..plain(Measure::Verw) }
}

const IBRS: Countermeasure =
    Countermeasure { exists: Condition::Says(Said::IBRS), ..plain(Measure::Ibrs) };

const NO_INDIRECT: &str = "it has no indirect jump or call, and the runtime leads to it and to far hooks by \
                           retpolines (with `+untrain`, `Cpu::enter` leads to it by IRETQ, unless the host \
                           brings a call of its own)";

const SMT: &str = "run no other guest, and nothing with secrets, on the core's other thread while a \
                   guest runs on this one, or switch the other off";

/// The core has another thread, or may have one: what a hypervisor lets a virtual CPU report of its
/// siblings need not be true.
const THREADS: Condition =
    Condition::Any(&[Condition::Says(Said::SMT), Condition::Says(Said::HYPERVISOR)]);

/// What the host's returns need of an exit where a guest can train them. Untraining needs nothing
/// of the CPU, and it comes first, so that a host with return thunks has it whatever the CPU
/// reports of IBPB.
const fn returns(works: Condition) -> [Countermeasure; 2] {
    [
        Countermeasure { when: Condition::ReturnThunks, works, ..plain(Measure::Untrain) },
        Countermeasure { exists: Condition::Says(Said::IBPB), works, ..plain(Measure::Ibpb) },
    ]
}

const SIBLINGS: Duty =
    Duty { when: THREADS, place: Place::Software, what: SMT, done: Done::Unseen };

const BETWEEN_GUESTS: &str = "write IBPB to PRED_CMD before another guest, or a process of the \
                              host's that does not trust this one, runs on the same CPU";

const BEFORE_THE_VMM: &str = "write IBPB to PRED_CMD before the VMM's part in user mode runs after a \
                              guest on this CPU, as `Cpu::barrier_before_user_mode` of the runtime does";

const BEFORE_THE_VMM_OR_BY_AN_EXIT: &str = "write IBPB to PRED_CMD before the VMM's part in user mode runs \
                                            after a guest on this CPU, as `Cpu::barrier_before_user_mode` \
                                            of the runtime does; or exit with `+ibpb`, which has done it";

/// The published lists of affected CPUs are about guests of VMX and SVM, where some CPUs
/// distinguish guest and host. A guest of a switcher is at CPL 3 like the VMM, so no CPU
/// distinguishes them, and neither does a virtual CPU: no exit of its hypervisor's lies between the
/// two.
const VMM: Duty =
    Duty { when: Condition::Always, place: Place::Software, what: "", done: Done::Unseen };

const VMSCAPE: &str = "ETH Zurich, \"VMScape\"; Linux, hw-vuln/vmscape.rst; the affected CPUs named there are \
                       those that do not tell the guests of VMX from user mode, and here guests are user mode";

const VMSCAPE_AND_AMD: &str = "ETH Zurich, \"VMScape\" (AMD-SB-7046); Linux, hw-vuln/vmscape.rst; the affected \
                               CPUs named there are those that do not tell the guests of SVM from user \
                               mode, and here guests are user mode";

/// VERW does not overwrite fill buffers any more: hypervisors use this switch for guests (Linux,
/// arch/x86/kvm/vmx/vmx.c, vmx_disable_fb_clear).
const FILL_BUFFERS: Duty = Duty {
    when: Condition::Has(Caps::FB_CLEAR_CTRL),
    place: Switch::FillBuffersCleared.place(),
    what: "clear it while `+verw` is relied on: VERW spares the fill buffers with it",
    done: Done::If(Condition::On(Switch::FillBuffersCleared)),
};

const MITIGATION_OF_SSB: Duty = Duty {
    when: Condition::Always,
    place: Place::Software,
    what: "set SSBD for a guest that asks for it, and for code of the host's that runs untrusted \
           programs in its own address space",
    done: Done::Unseen,
};

/// The faults of Intel's CPUs.
pub(super) static INTEL: &[Fault] = &[
    Fault {
        name: "Branch target injection (Spectre variant 2)",
        cves: &["CVE-2017-5715"],
        affects: Condition::Always,
        code: &[IBRS],
        instead: Some(ENHANCED_IBRS),
        duties: &[Duty {
            when: Condition::Always,
            place: Place::Software,
            what: BETWEEN_GUESTS,
            done: Done::Unseen,
        }],
        source: "Intel, \"Branch Target Injection\" and \"Speculative Execution Side Channel \
                 Mitigations\", 2.4: with IBRS_ALL, software still has to set IBRS once",
    },
    Fault {
        name: "Branch target injection from the core's other thread",
        cves: &["CVE-2017-5715"],
        affects: THREADS,
        code: &[],
        instead: None,
        duties: &[Duty {
            when: Condition::Always,
            place: Switch::Stibp.place(),
            what: "set it while a guest runs (with enhanced IBRS, IBRS does it), or run nothing \
                   else on the core",
            done: Done::If(Condition::Any(&[Condition::On(Switch::Stibp), ENHANCED_IBRS_ON])),
        }],
        source: "Intel, \"Single Thread Indirect Branch Predictors\"",
    },
    Fault {
        name: "Return stack buffer left by a guest (SpectreRSB, ret2spec)",
        cves: &["CVE-2018-15572"],
        affects: Condition::Always,
        code: &[FILL_RETURNS],
        instead: None,
        duties: &[LEADS_TO_NO_USER_PAGE],
        source: "Intel, \"Retpoline: A Branch Target Injection Mitigation\", \"RSB stuffing\"; Linux, \
                 arch/x86/kernel/cpu/bugs.c, on RSB filling: SMEP does not help where a guest executes \
                 at the host's addresses, and enhanced IBRS' promise is of VM exits",
    },
    Fault {
        name: "Post-barrier return stack buffer (PBRSB)",
        cves: &["CVE-2022-26373"],
        affects: Condition::All(&[
            Condition::Has(Caps::IBRS_ALL),
            Condition::Not(&Condition::Has(Caps::PBRSB_NO)),
        ]),
        code: &[plain(Measure::Rsb(Rsb::Lite))],
        instead: None,
        duties: &[],
        source: "Intel, \"Post-barrier Return Stack Buffer Predictions\" (INTEL-SA-00706)",
    },
    Fault {
        name: "Retbleed (RSB underflow)",
        cves: &["CVE-2022-29901", "CVE-2022-28693"],
        affects: Condition::Any(&[
            Condition::Has(Caps::RSBA),
            Condition::Cpu(&[
                SKYLAKE,
                SKYLAKE_L,
                SKYLAKE_X,
                KABY_LAKE,
                KABY_LAKE_L,
                CANNON_LAKE,
                COMET_LAKE,
                COMET_LAKE_L,
                ICE_LAKE_L,
                ROCKET_LAKE,
                LAKEFIELD,
            ]),
        ]),
        code: &[IBRS],
        instead: Some(ENHANCED_IBRS),
        duties: &[],
        source: "Intel, \"Return Stack Buffer Underflow\" (INTEL-SA-00702)",
    },
    Fault {
        name: "Restricted alternative predictions of returns (RRSBA)",
        cves: &["CVE-2022-28693"],
        affects: Condition::Has(Caps::RRSBA),
        code: &[],
        instead: None,
        duties: &[Duty {
            when: Condition::Says(Said::RRSBA_CTRL),
            place: Switch::RrsbaDisS.place(),
            what: "set it if the host's indirect branches are retpolines; without them, enhanced \
                   IBRS is enough",
            done: Done::If(Condition::Any(&[Condition::On(Switch::RrsbaDisS), ENHANCED_IBRS_ON])),
        }],
        source: "Intel, \"Return Stack Buffer Underflow\", RRSBA_DIS_S",
    },
    Fault {
        name: "Branch history injection (BHI, Native BHI)",
        cves: &["CVE-2022-0001", "CVE-2022-0002", "CVE-2024-2201"],
        affects: Condition::Not(&Condition::Has(Caps::BHI_NO)),
        code: &[
            // The sequence is short only where the history is known to be short. That BHI_CTRL is
            // not reported shows nothing: older microcode lacks it, a hypervisor may hide it, and a
            // virtual CPU's model is its hypervisor's choice.
            Countermeasure {
                when: Condition::All(&[
                    Condition::Cpu(&[
                        SKYLAKE,
                        SKYLAKE_L,
                        SKYLAKE_X,
                        KABY_LAKE,
                        KABY_LAKE_L,
                        CANNON_LAKE,
                        COMET_LAKE,
                        COMET_LAKE_L,
                        ICE_LAKE_L,
                        ICE_LAKE_D,
                        ICE_LAKE_X,
                        TIGER_LAKE,
                        TIGER_LAKE_L,
                        ROCKET_LAKE,
                    ]),
                    Condition::Not(&Condition::Says(Said::BHI_CTRL)),
                    Condition::Not(&Condition::Says(Said::HYPERVISOR)),
                ]),
                ..plain(Measure::Bhb(Bhb::Short))
            },
            plain(Measure::Bhb(Bhb::Long)),
        ],
        instead: Some(Instead {
            offered: Condition::Says(Said::BHI_CTRL),
            switches: &[Switch::BhiDisS],
        }),
        duties: &[],
        source: "Intel, \"Branch History Injection and Intra-mode Branch Target Injection\": \
                 BHI_DIS_S, and the software sequences, of which cores since Golden Cove need the longer \
                 one, whether their microcode has BHI_CTRL or not",
    },
    Fault {
        name: "Indirect target selection (ITS)",
        cves: &["CVE-2024-28956"],
        affects: Condition::All(&[
            Condition::Not(&Condition::Has(Caps::ITS_NO)),
            Condition::Not(&Condition::Says(Said::BHI_CTRL)),
            Condition::CpuOrVirtual(&[
                SKYLAKE_X.since_stepping(6),
                KABY_LAKE_L.since_stepping(12),
                KABY_LAKE.since_stepping(13),
                COMET_LAKE,
                COMET_LAKE_L,
                ICE_LAKE_X,
                ICE_LAKE_D,
                ICE_LAKE_L,
                TIGER_LAKE,
                TIGER_LAKE_L,
                ROCKET_LAKE,
            ]),
        ]),
        code: &[plain(Measure::Always(
            "neither it nor the thunks to far hooks have an indirect jump or call, and all their RETs end in \
             the upper half of a cache line",
        ))],
        instead: None,
        duties: &[
            Duty {
                when: Condition::Always,
                place: Place::Software,
                what: "have no RET and no indirect branch that ends in the lower half of a cache \
                       line, as compilers and return thunks can arrange",
                done: Done::Unseen,
            },
            Duty {
                when: Condition::Always,
                place: Place::Microcode,
                what: "load that of May 2025 or later, without which IBPB leaves direct branches' \
                       targets",
                done: Done::Unseen,
            },
        ],
        source: "Intel, \"Indirect Target Selection\" (INTEL-SA-01153); Linux, \
                 hw-vuln/indirect-target-selection.rst, and vulnerable_to_its in \
                 arch/x86/kernel/cpu/common.c: without ITS_NO, a virtual CPU is taken to be affected",
    },
    Fault {
        name: "Branch predictor isolation of Lion Cove",
        cves: &["CVE-2025-24495"],
        affects: Condition::CpuOrVirtual(&[LUNAR_LAKE, ARROW_LAKE, ARROW_LAKE_H, ARROW_LAKE_U]),
        code: &[],
        instead: None,
        duties: &[Duty {
            when: Condition::Always,
            place: Place::Microcode,
            what: "load that of May 2025 or later: direct branches train indirect ones without it",
            done: Done::Unseen,
        }],
        source: "Intel, INTEL-SA-01322; VU Amsterdam, \"Training Solo\"",
    },
    Fault {
        name: "Return predictor targets shared between contexts",
        cves: &["CVE-2023-38575"],
        affects: Condition::Always,
        code: &[FILL_RETURNS],
        instead: None,
        duties: &[Duty {
            when: Condition::Always,
            place: Place::Microcode,
            what: "load that of March 2024 or later",
            done: Done::Unseen,
        }],
        source: "Intel, INTEL-SA-00982; no bit tells the affected CPUs from others",
    },
    Fault {
        name: "Branch privilege injection",
        cves: &["CVE-2024-45332"],
        affects: Condition::Has(Caps::IBRS_ALL),
        code: &[],
        instead: None,
        duties: &[Duty {
            when: Condition::Always,
            place: Place::Microcode,
            what: "load that of May 2025 or later: predictions in flight keep a wrong privilege \
                   without it",
            done: Done::Unseen,
        }],
        source: "Intel, INTEL-SA-01247; ETH Zurich, \"Branch Privilege Injection\"",
    },
    Fault {
        name: "VMSCAPE",
        cves: &["CVE-2025-40300"],
        affects: Condition::Always,
        code: &[],
        instead: None,
        duties: &[Duty { what: BEFORE_THE_VMM, ..VMM }],
        source: VMSCAPE,
    },
    Fault {
        name: "SWAPGS speculation",
        cves: &["CVE-2019-1125"],
        affects: Condition::Always,
        code: &[plain(Measure::Always(
            "nothing is accessed by GS behind a branch and a SWAPGS before an instruction \
             serialises, which is proved",
        ))],
        instead: None,
        duties: &[],
        source: "Intel, \"Speculative Behavior of SWAPGS and Segment Registers\"",
    },
    Fault {
        name: "Meltdown",
        cves: &["CVE-2017-5754"],
        affects: Condition::Not(&Condition::Has(Caps::RDCL_NO)),
        code: &[plain(Measure::Always(
            "on a guest's root it accesses only what every guest's root has to map",
        ))],
        instead: None,
        duties: &[
            Duty {
                when: Condition::Always,
                place: Place::Software,
                what: "map nothing else of the host's in a guest's root",
                done: Done::Unseen,
            },
            Duty {
                when: Condition::Always,
                place: Place::Software,
                what: "leave G clear in every entry of the host's own root, too, that a guest's root does \
                       not have alike, or CR4.PGE clear: MOV to CR3 keeps global translations, and what \
                       the TLB has a guest reads, mapped in its root or not",
                done: Done::Unseen,
            },
        ],
        source: "Intel, \"Rogue Data Cache Load\"; SDM vol. 3, 4.10.2.4, on global pages; Linux, \
                 arch/x86/mm/pti.c, which clears _PAGE_GLOBAL in the kernel's own mappings",
    },
    Fault {
        name: "Rogue system register read (variant 3a)",
        cves: &["CVE-2018-3640"],
        affects: Condition::Always,
        code: &[],
        instead: None,
        duties: &[Duty {
            when: Condition::Always,
            place: Place::Microcode,
            what: "load that of May 2018 or later, which also brings SSBD",
            done: Done::If(Condition::Says(Said::SSBD)),
        }],
        source: "Intel, \"Rogue System Register Read\" (INTEL-SA-00115)",
    },
    Fault {
        name: "L1 terminal fault (L1TF, Foreshadow)",
        cves: &["CVE-2018-3620", "CVE-2018-3646"],
        affects: Condition::Not(&Condition::Has(Caps::RDCL_NO)),
        code: &[],
        instead: None,
        duties: &[
            Duty {
                when: Condition::Always,
                place: Place::Software,
                what: "let no entry of a guest's page tables that is not present name memory of \
                       the host or of another guest: write the guest's roots yourself, absent \
                       entries as zero or inverted",
                done: Done::Unseen,
            },
            SIBLINGS,
        ],
        source: "Intel, \"L1 Terminal Fault\" (INTEL-SA-00161)",
    },
    Fault {
        name: "Machine check by a changed page size (iTLB multihit)",
        cves: &["CVE-2018-12207"],
        affects: Condition::All(&[
            Condition::Not(&Condition::Has(Caps::PSCHANGE_MC_NO)),
            Condition::Not(&Condition::Cpu(&[
                SILVERMONT,
                SILVERMONT_D,
                SILVERMONT_MID,
                AIRMONT,
                AIRMONT_MID,
                AIRMONT_NP,
                KNIGHTS_LANDING,
                KNIGHTS_MILL,
                GOLDMONT,
                GOLDMONT_D,
                GOLDMONT_PLUS,
                TREMONT_D,
            ])),
        ]),
        code: &[],
        instead: None,
        duties: &[Duty {
            when: Condition::Always,
            place: Place::Software,
            what: "map what a guest may execute by 4-KiB pages alone; or never change the size of such a \
                   page in a guest's root but by clearing the entry, flushing the TLBs of all CPUs that \
                   may have it, and only then writing the new one",
            done: Done::Unseen,
        }],
        source: "Intel, \"Machine Check Error Avoidance on Page Size Change\" (INTEL-SA-00210); Linux, \
                 hw-vuln/multihit.rst, and NO_ITLB_MULTIHIT in arch/x86/kernel/cpu/common.c",
    },
    Fault {
        name: "Microarchitectural data sampling (MDS)",
        cves: &["CVE-2018-12126", "CVE-2018-12127", "CVE-2018-12130", "CVE-2019-11091"],
        affects: Condition::Not(&Condition::Has(Caps::MDS_NO)),
        code: &[verw(Condition::Says(Said::MD_CLEAR))],
        instead: None,
        duties: &[FILL_BUFFERS, SIBLINGS],
        source: "Intel, \"Microarchitectural Data Sampling\" (INTEL-SA-00233)",
    },
    Fault {
        name: "L1 data cache eviction and vector register sampling (CacheOut)",
        cves: &["CVE-2020-0548", "CVE-2020-0549"],
        affects: Condition::All(&[
            Condition::Not(&Condition::Has(Caps::RDCL_NO.union(Caps::MDS_NO).union(Caps::TAA_NO))),
            Condition::CpuOrVirtual(&[
                SKYLAKE,
                SKYLAKE_L,
                SKYLAKE_X,
                KABY_LAKE,
                KABY_LAKE_L,
                CANNON_LAKE,
                COMET_LAKE,
                COMET_LAKE_L,
            ]),
        ]),
        code: &[],
        instead: None,
        duties: &[
            Duty {
                when: Condition::Always,
                place: Place::Microcode,
                what: "load that of June 2020 or later: VERW does not keep evicted lines from the fill \
                       buffers",
                done: Done::Unseen,
            },
            SIBLINGS,
        ],
        source: "Intel, \"L1D Eviction Sampling\" and \"Vector Register Sampling\" (INTEL-SA-00329)",
    },
    Fault {
        name: "Asynchronous abort of transactions (TAA)",
        cves: &["CVE-2019-11135"],
        affects: Condition::All(&[
            Condition::Not(&Condition::Has(Caps::TAA_NO)),
            Condition::Any(&[Condition::Says(Said::RTM), Condition::Has(Caps::TSX_CTRL)]),
        ]),
        // Where MDS_NO is set, VERW clears buffers only with the microcode that also brings
        // TSX_CTRL.
        code: &[verw(Condition::All(&[
            Condition::Says(Said::MD_CLEAR),
            Condition::Any(&[
                Condition::Not(&Condition::Has(Caps::MDS_NO)),
                Condition::Has(Caps::TSX_CTRL),
            ]),
        ]))],
        instead: Some(Instead {
            offered: Condition::Has(Caps::TSX_CTRL),
            switches: &[Switch::RtmDisable],
        }),
        duties: &[FILL_BUFFERS, SIBLINGS],
        source: "Intel, \"TSX Asynchronous Abort\" (INTEL-SA-00270); Linux, arch/x86/kernel/cpu/bugs.c, \
                 taa_update_mitigation: with MDS_NO, VERW needs the microcode that brings TSX_CTRL",
    },
    Fault {
        name: "Stale data by memory-mapped I/O",
        cves: &["CVE-2022-21123", "CVE-2022-21125", "CVE-2022-21127", "CVE-2022-21166"],
        affects: Condition::All(&[
            Condition::Not(&Condition::Has(
                Caps::SBDR_SSDP_NO.union(Caps::FBSDP_NO).union(Caps::PSDP_NO),
            )),
            Condition::Any(&[
                Condition::Has(Caps::FB_CLEAR),
                Condition::Cpu(&[
                    HASWELL_X,
                    BROADWELL_D,
                    BROADWELL_X,
                    SKYLAKE,
                    SKYLAKE_L,
                    SKYLAKE_X,
                    KABY_LAKE,
                    KABY_LAKE_L,
                    ICE_LAKE_L,
                    ICE_LAKE_D,
                    ICE_LAKE_X,
                    COMET_LAKE,
                    COMET_LAKE_L,
                    LAKEFIELD,
                    ROCKET_LAKE,
                    TREMONT,
                    TREMONT_D,
                    TREMONT_L,
                ]),
            ]),
        ]),
        code: &[verw(Condition::Any(&[
            Condition::Has(Caps::FB_CLEAR),
            Condition::All(&[
                Condition::Says(Said::MD_CLEAR),
                Condition::Not(&Condition::Has(Caps::MDS_NO)),
            ]),
        ]))],
        instead: None,
        duties: &[FILL_BUFFERS, SIBLINGS],
        source: "Intel, \"Processor MMIO Stale Data Vulnerabilities\" (INTEL-SA-00615)",
    },
    Fault {
        name: "Register file data sampling (RFDS)",
        cves: &["CVE-2023-28746"],
        affects: Condition::All(&[
            Condition::Not(&Condition::Has(Caps::RFDS_NO)),
            Condition::Any(&[
                Condition::Has(Caps::RFDS_CLEAR),
                Condition::Cpu(&[
                    GOLDMONT,
                    GOLDMONT_D,
                    GOLDMONT_PLUS,
                    TREMONT,
                    TREMONT_D,
                    TREMONT_L,
                    GRACEMONT,
                    ALDER_LAKE,
                    ALDER_LAKE_L,
                    RAPTOR_LAKE,
                    RAPTOR_LAKE_P,
                    RAPTOR_LAKE_S,
                ]),
            ]),
        ]),
        code: &[verw(Condition::Has(Caps::RFDS_CLEAR))],
        instead: None,
        duties: &[],
        source: "Intel, \"Register File Data Sampling\" (INTEL-SA-00898)",
    },
    Fault {
        name: "Special register buffer data sampling (SRBDS, CrossTalk)",
        cves: &["CVE-2020-0543"],
        affects: Condition::All(&[
            Condition::Any(&[Condition::Says(Said::RDRAND), Condition::Says(Said::RDSEED)]),
            Condition::CpuOrVirtual(&[
                IVY_BRIDGE,
                HASWELL,
                HASWELL_L,
                HASWELL_G,
                BROADWELL,
                BROADWELL_G,
                SKYLAKE,
                SKYLAKE_L,
                KABY_LAKE,
                KABY_LAKE_L,
                ICE_LAKE_L,
                COMET_LAKE,
                COMET_LAKE_L,
                LAKEFIELD,
                TREMONT,
                TREMONT_L,
            ]),
        ]),
        code: &[],
        instead: None,
        duties: &[Duty {
            when: Condition::Always,
            place: Place::Microcode,
            what: "load that which has SRBDS_CTRL, and leave RNGDS_MITG_DIS clear",
            done: Done::If(Condition::All(&[
                Condition::Says(Said::SRBDS_CTRL),
                Condition::On(Switch::RngdsMitigated),
            ])),
        }],
        source: "Intel, \"Special Register Buffer Data Sampling\" (INTEL-SA-00320)",
    },
    Fault {
        name: "Gather data sampling (GDS, Downfall)",
        cves: &["CVE-2022-40982"],
        affects: Condition::All(&[
            Condition::Not(&Condition::Has(Caps::GDS_NO)),
            Condition::Says(Said::AVX),
            Condition::CpuOrVirtual(&[
                SKYLAKE,
                SKYLAKE_L,
                SKYLAKE_X,
                KABY_LAKE,
                KABY_LAKE_L,
                ICE_LAKE_L,
                ICE_LAKE_D,
                ICE_LAKE_X,
                COMET_LAKE,
                COMET_LAKE_L,
                TIGER_LAKE,
                TIGER_LAKE_L,
                ROCKET_LAKE,
            ]),
        ]),
        code: &[],
        instead: None,
        duties: &[Duty {
            when: Condition::Always,
            place: Place::Microcode,
            what: "load that which has GDS_CTRL, and leave GDS_MITG_DIS clear; or take AVX away \
                   from guests (XCR0)",
            done: Done::If(Condition::All(&[
                Condition::Has(Caps::GDS_CTRL),
                Condition::On(Switch::GdsMitigated),
            ])),
        }],
        source: "Intel, \"Gather Data Sampling\" (INTEL-SA-00828)",
    },
    Fault {
        name: "Speculative store bypass (Spectre variant 4)",
        cves: &["CVE-2018-3639"],
        affects: Condition::Not(&Condition::Has(Caps::SSB_NO)),
        code: &[],
        instead: None,
        duties: &[MITIGATION_OF_SSB],
        source: "Intel, \"Speculative Store Bypass\" (INTEL-SA-00115)",
    },
];

const AUTOMATIC_IBRS: Instead =
    Instead { offered: Condition::Says(Said::AUTOMATIC_IBRS), switches: &[Switch::AutomaticIbrs] };

/// A guest's speculation ignores UMIP and CR4.TSD, and AMD mends neither.
const NO_SECRETS: &str = "have no secret in CR0, CR4, GDTR, IDTR, LDTR, TR or TSC_AUX while a guest runs, whatever \
                          UMIP and TSD forbid: `Guest::tsc_aux` gives a guest one of its own";

/// The faults of AMD's CPUs, and of Hygon's.
pub(super) static AMD: &[Fault] = &[
    Fault {
        name: "Branch target injection (Spectre variant 2)",
        cves: &["CVE-2017-5715"],
        affects: Condition::Always,
        code: &[
            Countermeasure { when: Condition::Says(Said::IBRS_PREFERRED), ..IBRS },
            plain(Measure::Always(NO_INDIRECT)),
        ],
        instead: Some(AUTOMATIC_IBRS),
        duties: &[
            Duty {
                when: Condition::Not(&Condition::Any(&[
                    Condition::Says(Said::IBRS_PREFERRED),
                    Condition::On(Switch::AutomaticIbrs),
                ])),
                place: Place::Software,
                what: "make all indirect branches retpolines",
                done: Done::Unseen,
            },
            Duty {
                when: Condition::Not(&Condition::Says(Said::SBPB)),
                place: Place::Software,
                what: BETWEEN_GUESTS,
                done: Done::Unseen,
            },
            Duty {
                when: Condition::Says(Said::SBPB),
                place: Place::Software,
                what: "write IBPB to PRED_CMD before another guest, or a process of the host's that \
                       does not trust this one, runs on the same CPU; SBPB (bit 7) is enough where \
                       returns are safe by untraining or by SRSO_NO",
                done: Done::Unseen,
            },
        ],
        source: "AMD, \"Software Techniques for Managing Speculation on AMD Processors\"; APM vol. 2, \
                 3.2.9 and 3.1.7: automatic IBRS is EFER.AIBRSE",
    },
    Fault {
        name: "LFENCE in front of an indirect branch (LFENCE/JMP)",
        cves: &["CVE-2021-26401"],
        affects: Condition::Always,
        code: &[plain(Measure::Always(
            "neither it nor the runtime takes LFENCE for a mitigation of the indirect branch behind it",
        ))],
        instead: None,
        duties: &[Duty {
            when: Condition::Not(&Condition::Any(&[
                Condition::Says(Said::IBRS_PREFERRED),
                Condition::On(Switch::AutomaticIbrs),
            ])),
            place: Place::Software,
            what: "make the retpolines of your own the generic ones, of CALL and RET, and not of LFENCE and \
                   an indirect branch",
            done: Done::Unseen,
        }],
        source: "AMD, \"LFENCE/JMP Mitigation Update for CVE-2017-5715\" (AMD-SB-1036); Linux, \
                 arch/x86/kernel/cpu/bugs.c, SPECTRE_V2_LFENCE",
    },
    Fault {
        name: "Straight-line speculation",
        cves: &["CVE-2021-26341"],
        affects: Condition::Always,
        code: &[plain(Measure::Always(
            "a trap follows every return, which is proved, and it has no indirect jump or call",
        ))],
        instead: None,
        duties: &[],
        source: "AMD, \"Software Techniques for Managing Speculation on AMD Processors\", and AMD-SB-1026",
    },
    Fault {
        name: "Branch target injection from the core's other thread",
        cves: &["CVE-2017-5715"],
        affects: THREADS,
        code: &[],
        instead: None,
        duties: &[Duty {
            when: Condition::Always,
            place: Switch::Stibp.place(),
            what: "set it while a guest runs (automatic IBRS does not do it for user mode), or run \
                   nothing else on the core",
            done: Done::If(Condition::On(Switch::Stibp)),
        }],
        source: "AMD, \"Indirect Branch Control Extension\"; APM vol. 2, 3.2.9",
    },
    Fault {
        name: "Return stack buffer left by a guest (SpectreRSB, ret2spec)",
        cves: &["CVE-2018-15572"],
        affects: Condition::Always,
        code: &[FILL_RETURNS],
        instead: None,
        duties: &[LEADS_TO_NO_USER_PAGE],
        source: "AMD, \"Software Techniques for Managing Speculation on AMD Processors\", V2-3, which \
                 takes SMEP to do for guests that execute nowhere in the host's addresses; Linux, \
                 arch/x86/kernel/cpu/bugs.c, on RSB filling: it does not for others",
    },
    Fault {
        name: "Return predictions left by IBPB",
        cves: &["CVE-2022-23824"],
        affects: Condition::All(&[
            Condition::Says(Said::IBPB),
            Condition::Not(&Condition::Says(Said::IBPB_RET)),
        ]),
        code: &[FILL_RETURNS],
        instead: None,
        duties: &[Duty {
            when: Condition::Always,
            place: Place::Software,
            what: "fill the return stack buffer behind each IBPB of your own, by 32 CALLs whose return \
                   addresses are traps, as the runtime does behind its own",
            done: Done::Unseen,
        }],
        source: "AMD, \"IBPB and Return Address Predictor Interactions\" (AMD-SB-1040); Linux, \
                 arch/x86/kernel/cpu/common.c, IBPB_NO_RET",
    },
    Fault {
        name: "Return predictions of the core's other thread",
        cves: &["CVE-2022-27672"],
        affects: Condition::All(&[THREADS, Condition::CpuOrVirtual(&[ZEN_TO_ZEN_2])]),
        code: &[FILL_RETURNS],
        instead: None,
        duties: &[Duty {
            when: Condition::Always,
            place: Place::Software,
            what: "run nothing of other trust on the core's other thread while a guest runs on this one, or \
                   fill the return stack buffer by 32 CALLs wherever one changes to another there: a \
                   thread that goes idle, as MWAITX lets CPL 3, leaves its entries to the other",
            done: Done::Unseen,
        }],
        source: "AMD, \"Cross-Thread Return Address Predictions\" (AMD-SB-1045); Linux, \
                 hw-vuln/cross-thread-rsb.rst, and SMT_RSB in arch/x86/kernel/cpu/common.c",
    },
    Fault {
        name: "Fences that do not serialise",
        cves: &[],
        affects: Condition::Not(&Condition::Says(Said::LFENCE_ALWAYS)),
        code: &[],
        instead: None,
        duties: &[Duty {
            when: Condition::Always,
            place: Place::Software,
            what: "set bit 1 of MSR DE_CFG (C001_1029h), where it exists: LFENCE, on which the \
                   switcher's sequences rely, serialises only then",
            done: Done::Unseen,
        }],
        source: "AMD, \"Software Techniques for Managing Speculation on AMD Processors\", G-2",
    },
    Fault {
        name: "Branch type confusion (Retbleed)",
        cves: &["CVE-2022-29900", "CVE-2022-23825"],
        affects: Condition::All(&[
            Condition::Not(&Condition::Says(Said::BTC_NO)),
            Condition::CpuOrVirtual(&[UP_TO_ZEN_2]),
        ]),
        code: &returns(Condition::Always),
        instead: None,
        duties: &[SIBLINGS],
        source: "AMD, \"Technical Guidance for Mitigating Branch Type Confusion\" (AMD-SB-1037)",
    },
    Fault {
        name: "Speculative return stack overflow (SRSO, Inception)",
        cves: &["CVE-2023-20569"],
        affects: Condition::Not(&Condition::Any(&[
            Condition::Says(Said::SRSO_NO),
            Condition::Says(Said::SRSO_USER_KERNEL_NO),
        ])),
        code: &returns(Condition::Any(&[
            Condition::Says(Said::IBPB_BRTYPE),
            Condition::Cpu(&[UP_TO_ZEN_2]),
        ])),
        instead: None,
        duties: &[],
        source: "AMD, \"Technical Update Regarding Speculative Return Stack Overflow\" (AMD-SB-7005): \
                 SBPB, PRED_CMD bit 7, would leave the predictions of returns; Linux, \
                 hw-vuln/srso.rst",
    },
    Fault {
        name: "Transient scheduler attacks (TSA)",
        cves: &["CVE-2024-36350", "CVE-2024-36357"],
        affects: Condition::All(&[
            Condition::Not(&Condition::Says(Said::TSA_SQ_NO.union(Said::TSA_L1_NO))),
            Condition::Any(&[Condition::Says(Said::VERW_CLEAR), Condition::Cpu(&[ZEN_3_AND_4])]),
        ]),
        code: &[verw(Condition::Says(Said::VERW_CLEAR))],
        instead: None,
        duties: &[Duty {
            when: THREADS,
            place: Place::Software,
            what: "execute VERW before a thread that has run secrets goes idle",
            done: Done::Unseen,
        }],
        source: "AMD, \"Technical Guidance for Mitigating Transient Scheduler Attacks\" (AMD-SB-7029)",
    },
    Fault {
        name: "System registers read by speculation (TSA)",
        cves: &["CVE-2024-36348", "CVE-2024-36349"],
        affects: Condition::Always,
        code: &[],
        instead: None,
        duties: &[Duty {
            when: Condition::Always,
            place: Place::Software,
            what: NO_SECRETS,
            done: Done::Unseen,
        }],
        source: "AMD-SB-7029, which has them beside the transient scheduler attacks and mends neither",
    },
    Fault {
        name: "VMSCAPE",
        cves: &["CVE-2025-40300"],
        affects: Condition::Always,
        code: &[],
        instead: None,
        duties: &[Duty { what: BEFORE_THE_VMM_OR_BY_AN_EXIT, ..VMM }],
        source: VMSCAPE_AND_AMD,
    },
    Fault {
        name: "Zenbleed",
        cves: &["CVE-2023-20593"],
        affects: Condition::CpuOrVirtual(&[
            Cpus::families(0x17, 0x17, "Zen 2").models(0x30, 0x4F),
            Cpus::families(0x17, 0x17, "Zen 2").models(0x60, 0x7F),
            Cpus::families(0x17, 0x17, "Zen 2").models(0x90, 0x91),
            Cpus::families(0x17, 0x17, "Zen 2").models(0xA0, 0xAF),
        ]),
        code: &[],
        instead: None,
        duties: &[Duty {
            when: Condition::Always,
            place: Place::Microcode,
            what: "load that which mends it, or set bit 9 of MSR DE_CFG (C001_1029h)",
            done: Done::Unseen,
        }],
        source: "AMD-SB-7008",
    },
    Fault {
        name: "Division by zero leaves a quotient",
        cves: &["CVE-2023-20588"],
        affects: Condition::CpuOrVirtual(&[
            Cpus::families(0x17, 0x17, "Zen 1").models(0x00, 0x2F),
            Cpus::families(0x17, 0x17, "Zen 1").models(0x50, 0x5F),
            Cpus::families(0x18, 0x18, "Hygon's Dhyana"),
        ]),
        code: &[],
        instead: None,
        duties: &[Duty {
            when: Condition::Always,
            place: Place::Software,
            what: "divide something harmless before a guest is entered",
            done: Done::Unseen,
        }],
        source: "AMD-SB-7007",
    },
    Fault {
        name: "Speculative store bypass (Spectre variant 4)",
        cves: &["CVE-2018-3639"],
        affects: Condition::Not(&Condition::Says(Said::SSB_NO)),
        code: &[],
        instead: None,
        duties: &[MITIGATION_OF_SSB],
        source: "AMD, \"Speculative Store Bypass Disable\"",
    },
];

/// Publications about speculation that ask nothing of a switcher, nor of its host for the
/// switcher's sake.
pub(super) static ELSEWHERE: &[NotRelevant] = &[
    NotRelevant {
        name: "Bounds check bypass (Spectre variant 1)",
        cves: &["CVE-2017-5753"],
        why: "a switcher has no array that a guest's number selects from. What both arms of its branches may \
              do is proved; a host's own code is its own matter",
    },
    NotRelevant {
        name: "Lazy FPU state restore",
        cves: &["CVE-2018-3665"],
        why: "`enter` refuses while CR0.TS is set, so no guest runs with registers that are another's: see \
              `runtime/CPU-STATE.md`",
    },
    NotRelevant {
        name: "Foreshadow (SGX)",
        cves: &["CVE-2018-3615"],
        why: "it is about enclaves. What it is for page tables is L1 terminal fault's row",
    },
    NotRelevant {
        name: "Load value injection (LVI)",
        cves: &["CVE-2020-0551"],
        why: "its victim loads where the load faults or takes an assist. A switcher loads only what every root \
              maps, which is proved and a duty, so none of its loads faults; Intel asks for fences behind loads \
              in enclaves alone (INTEL-SA-00334)",
    },
    NotRelevant {
        name: "Snoop-assisted L1 data sampling",
        cves: &["CVE-2020-0550"],
        why: "where L1 terminal fault is dealt with, so is this, and Intel asks for nothing else \
              (INTEL-SA-00330)",
    },
    NotRelevant {
        name: "Floating-point value injection",
        cves: &["CVE-2021-0086", "CVE-2021-26314"],
        why: "a switcher computes nothing with floating-point numbers (INTEL-SA-00516, AMD-SB-1003)",
    },
    NotRelevant {
        name: "Speculative code store bypass",
        cves: &["CVE-2021-0089", "CVE-2021-26313"],
        why: "its victim executes what it has just written. A switcher's code is written before it is sealed, \
              and executed only when the pages have been made executable, of which the TLBs of all CPUs had to \
              be told (INTEL-SA-00516, AMD-SB-1003)",
    },
];
