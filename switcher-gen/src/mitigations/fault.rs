//! The parts of a table of faults, and what follows from the table for a host.
//!
//! A [`Fault`] says in data which CPUs have it, what the switcher's code does about it, which
//! **setting** of the host makes that superfluous, and what only the host can do. A capability is
//! not a setting: that a CPU offers enhanced IBRS, BHI_DIS_S or automatic IBRS spares the code
//! nothing before the bit of the MSR is seen to be set (hazards.md, row 59).

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use super::{Bhb, Mitigations, Rsb};
use crate::arch::{
    ArchCapabilities, HostFeatures, McuOptCtrl, Msr, Signature, SpecCtrl, Speculation, TsxCtrl,
    Vendor,
};

/// A fault of some of a vendor's CPUs.
#[derive(Debug)]
pub struct Fault {
    /// The fault's public name.
    pub name: &'static str,
    /// The fault's CVE numbers.
    pub cves: &'static [&'static str],
    /// Which CPUs have the fault.
    pub affects: Condition,
    /// What the switcher's code does about it: the first countermeasure whose
    /// [`when`](Countermeasure::when) holds.
    pub code: &'static [Countermeasure],
    /// The setting of the host that makes it superfluous, if there is one.
    pub instead: Option<Instead>,
    /// What is left to the host.
    pub duties: &'static [Duty],
    /// The sources of all this.
    pub source: &'static str,
}

/// A publication about the speculation of CPUs that does not concern a switcher.
#[derive(Debug)]
pub struct NotRelevant {
    /// Its public name.
    pub name: &'static str,
    /// Its CVE numbers.
    pub cves: &'static [&'static str],
    /// Why it has no row in a table.
    pub why: &'static str,
}

/// What the switcher's code does about a fault.
#[derive(Debug)]
pub struct Countermeasure {
    /// On which of the CPUs that have the fault.
    pub when: Condition,
    /// What it does.
    pub measure: Measure,
    /// Whether the CPU knows the instruction or the MSR. If it does not, the measure would fault.
    pub exists: Condition,
    /// Whether the measure helps on this CPU. If nothing says so, it is taken all the same, because
    /// a hypervisor may hide what the CPU has, and the host is told.
    pub works: Condition,
}

/// A setting of the host that makes a [`Countermeasure`] superfluous.
#[derive(Debug)]
pub struct Instead {
    /// Whether the CPU offers the setting.
    pub offered: Condition,
    /// The switches that have to be on, all of them.
    pub switches: &'static [Switch],
}

/// What only the host can do about a fault.
#[derive(Debug)]
pub struct Duty {
    /// On which of the CPUs that have the fault.
    pub when: Condition,
    /// Where the host has to do it.
    pub place: Place,
    /// What is to be done.
    pub what: &'static str,
    /// Whether it has been done.
    pub done: Done,
}

/// How one can see that a duty has been done.
#[derive(Debug)]
pub enum Done {
    /// It has been done if this holds.
    If(Condition),
    /// Nothing shows it: it is a matter of the host's code, or of microcode that leaves no trace.
    Unseen,
}

/// What the switcher's code does about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Every variant does it, as the text says.
    Always(&'static str),
    /// [`Mitigations::ibrs`].
    Ibrs,
    /// [`Mitigations::ibpb`].
    Ibpb,
    /// [`Mitigations::untrain`].
    Untrain,
    /// [`Mitigations::rsb`], at least that.
    Rsb(Rsb),
    /// [`Mitigations::bhb`], at least that.
    Bhb(Bhb),
    /// [`Mitigations::verw`].
    Verw,
}

impl Measure {
    fn add_to(self, chosen: &mut Mitigations) {
        match self {
            Self::Always(_) => {}
            Self::Ibrs => chosen.ibrs = true,
            Self::Ibpb => chosen.ibpb = true,
            Self::Untrain => chosen.untrain = true,
            Self::Rsb(rsb) => chosen.rsb = chosen.rsb.max(rsb),
            Self::Bhb(bhb) => chosen.bhb = chosen.bhb.max(bhb),
            Self::Verw => chosen.verw = true,
        }
    }
}

/// Prints the measure as a sentence.
impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always(what) => write!(f, "every variant: {what}"),
            Self::Ibrs => f.write_str(
                "`+ibrs`: an exit writes the host's SPEC_CTRL, with IBRS, an entry the guest's",
            ),
            Self::Ibpb => f.write_str("`+ibpb`: an exit writes IBPB to PRED_CMD"),
            Self::Untrain => f.write_str(
                "`+untrain`: an exit calls the host's untraining of returns, and returns through its thunk",
            ),
            Self::Rsb(Rsb::Left) | Self::Bhb(Bhb::Left) => f.write_str("nothing"),
            Self::Rsb(Rsb::Lite) => {
                f.write_str("`+rsblite`: an exit executes a CALL and LFENCE before its first RET")
            }
            Self::Rsb(Rsb::Full) => f.write_str(
                "`+rsb`: an exit fills the return stack buffer with 32 addresses of traps",
            ),
            Self::Bhb(bhb) => {
                let (rounds, branches) = bhb.sequence().unwrap_or_default();
                let name = Mitigations { bhb: *bhb, ..Mitigations::NONE };
                write!(
                    f,
                    "`{name}`: an exit overwrites the history of branches by {rounds} rounds of \
                     {branches}"
                )
            }
            Self::Verw => f.write_str("`+verw`: an entry ends with VERW"),
        }
    }
}

/// Some CPUs of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// The first and the last family.
    pub families: (u16, u16),
    /// The first and the last model.
    pub models: (u8, u8),
    /// The first and the last stepping.
    pub steppings: (u8, u8),
    /// The name of these CPUs.
    pub name: &'static str,
}

impl Cpus {
    /// One of Intel's models, with all its steppings.
    pub(super) const fn intel(model: u8, name: &'static str) -> Self {
        Self { families: (6, 6), models: (model, model), steppings: (0, 0xF), name }
    }

    /// The same CPUs, from this stepping on.
    pub(super) const fn since_stepping(self, first: u8) -> Self {
        Self { steppings: (first, 0xF), ..self }
    }

    /// Some of AMD's families, with all their models.
    pub(super) const fn families(first: u16, last: u16, name: &'static str) -> Self {
        Self { families: (first, last), models: (0, 0xFF), steppings: (0, 0xF), name }
    }

    /// Some of the models of these families.
    pub(super) const fn models(self, first: u8, last: u8) -> Self {
        Self { models: (first, last), ..self }
    }

    const fn has(&self, cpu: Signature) -> bool {
        self.families.0 <= cpu.family
            && cpu.family <= self.families.1
            && self.models.0 <= cpu.model
            && cpu.model <= self.models.1
            && self.steppings.0 <= cpu.stepping
            && cpu.stepping <= self.steppings.1
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { families, models, steppings, name } = self;
        write!(f, "{name} (")?;
        match families {
            (first, last) if first == last => write!(f, "family {first:X}h")?,
            (0, last) => write!(f, "families up to {last:X}h")?,
            (first, last) => write!(f, "families {first:X}h to {last:X}h")?,
        }
        match models {
            (0, 0xFF) => {}
            (first, last) if first == last => write!(f, " model {first:X}h")?,
            (first, last) => write!(f, " models {first:X}h to {last:X}h")?,
        }
        if steppings.0 > 0 {
            write!(f, " from stepping {} on", steppings.0)?;
        }
        f.write_str(")")
    }
}

/// A condition that holds on a host or does not.
#[derive(Clone, Copy, Debug)]
pub enum Condition {
    /// It holds on every host.
    Always,
    /// The CPU is one of these.
    Cpu(&'static [Cpus]),
    /// The CPU is one of these, or a virtual one: its model is its hypervisor's choice, and it may
    /// be moved to any of these. This is for faults about which hypervisors have no bit to report.
    CpuOrVirtual(&'static [Cpus]),
    /// CPUID reports all of these bits.
    Says(Speculation),
    /// IA32_ARCH_CAPABILITIES has all of these bits.
    Has(ArchCapabilities),
    /// The host has turned the switch on.
    On(Switch),
    /// The host's code has no RET but its return thunk's.
    ReturnThunks,
    /// The condition does not hold.
    Not(&'static Condition),
    /// All of these conditions hold.
    All(&'static [Condition]),
    /// At least one of these conditions holds.
    Any(&'static [Condition]),
}

impl Condition {
    /// Whether the condition holds on `host`.
    #[must_use]
    pub fn on(&self, host: &HostFeatures) -> bool {
        match self {
            Self::Always => true,
            Self::Cpu(some) => some.iter().any(|cpus| cpus.has(host.signature())),
            Self::CpuOrVirtual(some) => {
                host.speculation().contains(Speculation::HYPERVISOR) || Self::Cpu(some).on(host)
            }
            Self::Says(flags) => host.speculation().contains(*flags),
            Self::Has(flags) => host.state().arch_capabilities.contains(*flags),
            Self::On(switch) => switch.is_on(host),
            Self::ReturnThunks => host.state().return_thunks,
            Self::Not(is) => !is.on(host),
            Self::All(all) => all.iter().all(|is| is.on(host)),
            Self::Any(any) => any.iter().any(|is| is.on(host)),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, negated: bool) -> fmt::Result {
        let not =
            |is: &str, is_not: &str| if negated { is_not.to_string() } else { is.to_string() };
        match self {
            Self::Always => f.write_str(&not("always", "never")),
            Self::Cpu(some) => {
                f.write_str(&not("the CPU is one of ", "the CPU is none of "))?;
                let names: Vec<_> = some.iter().map(ToString::to_string).collect();
                f.write_str(&names.join(", "))
            }
            Self::CpuOrVirtual(some) => {
                Self::Says(Speculation::HYPERVISOR).write(f, negated)?;
                f.write_str(&not(" or ", " and "))?;
                Self::Cpu(some).write(f, negated)
            }
            Self::ReturnThunks => f.write_str(&not(
                "all of the host's RETs are its return thunk's",
                "not all of the host's RETs are its return thunk's",
            )),
            Self::Says(flags) => {
                f.write_str(&not("CPUID says ", "CPUID does not say "))?;
                let names = flags.iter().map(|flag| {
                    let (name, _) = flag.iter_names().next().unwrap_or(("", flag));
                    let places: Vec<_> = flag.places().map(|place| place.to_string()).collect();
                    alloc::format!("{name} ({})", places.join(" or "))
                });
                f.write_str(&names.collect::<Vec<_>>().join(" and "))
            }
            Self::Has(flags) => {
                f.write_str(&not(
                    "IA32_ARCH_CAPABILITIES has ",
                    "IA32_ARCH_CAPABILITIES does not have ",
                ))?;
                let names = flags.iter_names().map(|(name, flag)| {
                    alloc::format!("{name} (bit {})", flag.bits().trailing_zeros())
                });
                f.write_str(&names.collect::<Vec<_>>().join(" and "))
            }
            Self::On(switch) => {
                write!(f, "{} {}", switch.place(), switch.state(!negated))
            }
            Self::Not(is) => is.write(f, !negated),
            // By De Morgan, the negation of a conjunction is a disjunction of negations.
            Self::All(parts) => {
                Self::join(parts, f, negated, if negated { " or " } else { " and " })
            }
            Self::Any(parts) => {
                Self::join(parts, f, negated, if negated { " and " } else { " or " })
            }
        }
    }

    fn join(parts: &[Self], f: &mut fmt::Formatter<'_>, negated: bool, word: &str) -> fmt::Result {
        for (at, part) in parts.iter().enumerate() {
            if at > 0 {
                f.write_str(word)?;
            }
            if part.is_compound() {
                f.write_str("(")?;
                part.write(f, negated)?;
                f.write_str(")")?;
            } else {
                part.write(f, negated)?;
            }
        }
        Ok(())
    }

    const fn is_compound(&self) -> bool {
        match self {
            Self::Not(is) => is.is_compound(),
            Self::All(_) | Self::Any(_) | Self::CpuOrVirtual(_) => true,
            _ => false,
        }
    }
}

/// Prints the condition as a clause.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

/// Where a host does its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A bit of an MSR.
    Msr {
        /// The MSR.
        register: Msr,
        /// The bit's number.
        bit: u8,
        /// The register's and the bit's name.
        name: &'static str,
    },
    /// A bit of CR4.
    Cr4 {
        /// The bit's number.
        bit: u8,
        /// The bit's name.
        name: &'static str,
    },
    /// The CPU: newer microcode has to be loaded.
    Microcode,
    /// The host's own code.
    Software,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Msr { register, bit, name } => {
                write!(f, "{name} (MSR {:X}h, bit {bit})", register.address())
            }
            Self::Cr4 { bit, name } => write!(f, "{name} (bit {bit})"),
            Self::Microcode => f.write_str("the microcode"),
            Self::Software => f.write_str("the host's code"),
        }
    }
}

/// A setting of the host that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Switch {
    /// SPEC_CTRL.IBRS is set.
    Ibrs,
    /// SPEC_CTRL.STIBP is set.
    Stibp,
    /// SPEC_CTRL.RRSBA_DIS_S is set.
    RrsbaDisS,
    /// SPEC_CTRL.BHI_DIS_S is set.
    BhiDisS,
    /// EFER.AIBRSE is set.
    AutomaticIbrs,
    /// CR4.SMEP is set.
    Smep,
    /// TSX_CTRL.RTM_DISABLE is set.
    RtmDisable,
    /// MCU_OPT_CTRL.RNGDS_MITG_DIS is **clear**.
    RngdsMitigated,
    /// MCU_OPT_CTRL.GDS_MITG_DIS is **clear**.
    GdsMitigated,
    /// MCU_OPT_CTRL.FB_CLEAR_DIS is **clear**.
    FillBuffersCleared,
}

impl Switch {
    /// All switches.
    pub const ALL: [Self; 10] = [
        Self::Ibrs,
        Self::Stibp,
        Self::RrsbaDisS,
        Self::BhiDisS,
        Self::AutomaticIbrs,
        Self::Smep,
        Self::RtmDisable,
        Self::RngdsMitigated,
        Self::GdsMitigated,
        Self::FillBuffersCleared,
    ];

    /// The register and the bit of the switch.
    #[must_use]
    pub const fn place(self) -> Place {
        let (register, bit, name) = match self {
            Self::Ibrs => (Msr::SpecCtrl, 0, "SPEC_CTRL.IBRS"),
            Self::Stibp => (Msr::SpecCtrl, 1, "SPEC_CTRL.STIBP"),
            Self::RrsbaDisS => (Msr::SpecCtrl, 6, "SPEC_CTRL.RRSBA_DIS_S"),
            Self::BhiDisS => (Msr::SpecCtrl, 10, "SPEC_CTRL.BHI_DIS_S"),
            Self::AutomaticIbrs => (Msr::Efer, 21, "EFER.AIBRSE"),
            Self::Smep => return Place::Cr4 { bit: 20, name: "CR4.SMEP" },
            Self::RtmDisable => (Msr::TsxCtrl, 0, "TSX_CTRL.RTM_DISABLE"),
            Self::RngdsMitigated => (Msr::McuOptCtrl, 0, "MCU_OPT_CTRL.RNGDS_MITG_DIS"),
            Self::GdsMitigated => (Msr::McuOptCtrl, 4, "MCU_OPT_CTRL.GDS_MITG_DIS"),
            Self::FillBuffersCleared => (Msr::McuOptCtrl, 3, "MCU_OPT_CTRL.FB_CLEAR_DIS"),
        };
        Place::Msr { register, bit, name }
    }

    const fn wants_clear(self) -> bool {
        matches!(self, Self::RngdsMitigated | Self::GdsMitigated | Self::FillBuffersCleared)
    }

    const fn state(self, on: bool) -> &'static str {
        if on == self.wants_clear() { "is clear" } else { "is set" }
    }

    /// What the host has to do to turn the switch on.
    #[must_use]
    pub const fn what(self) -> &'static str {
        if self.wants_clear() {
            "clear it on every CPU, and leave it clear"
        } else {
            "set it on every CPU before a switcher is chosen, and leave it set"
        }
    }

    /// Whether the host has turned the switch on.
    #[must_use]
    pub fn is_on(self, host: &HostFeatures) -> bool {
        let state = host.state();
        let option = |bit| state.mcu_opt_ctrl.is_some_and(|set: McuOptCtrl| !set.contains(bit));
        match self {
            Self::Ibrs => state.spec_ctrl.contains(SpecCtrl::IBRS),
            Self::Stibp => state.spec_ctrl.contains(SpecCtrl::STIBP),
            Self::RrsbaDisS => state.spec_ctrl.contains(SpecCtrl::RRSBA_DIS_S),
            Self::BhiDisS => state.spec_ctrl.contains(SpecCtrl::BHI_DIS_S),
            Self::AutomaticIbrs => state.automatic_ibrs,
            Self::Smep => state.smep,
            Self::RtmDisable => state.tsx_ctrl.contains(TsxCtrl::RTM_DISABLE),
            Self::RngdsMitigated => option(McuOptCtrl::RNGDS_MITG_DIS),
            Self::GdsMitigated => option(McuOptCtrl::GDS_MITG_DIS),
            Self::FillBuffersCleared => option(McuOptCtrl::FB_CLEAR_DIS),
        }
    }
}

/// A duty that a host has not done, or of which nobody can see whether it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unmet {
    /// The fault's name.
    pub fault: &'static str,
    /// Where the host has to do it.
    pub place: Place,
    /// What is to be done.
    pub what: &'static str,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.fault, self.place, self.what)
    }
}

const NEWER: &str = "load newer microcode: this CPU does not say that the mitigation works";

/// What follows from a vendor's table for a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assessment {
    /// What the switcher has to do. It is more where the host has not done its part.
    pub mitigations: Mitigations,
    /// The duties that the host is seen not to have done.
    pub unmet: Vec<Unmet>,
    /// The duties that the host is relied on for, and that nobody can see.
    pub unseen: Vec<Unmet>,
}

impl Assessment {
    /// Assesses a host by all faults in the vendor's table.
    #[must_use]
    pub fn of(host: &HostFeatures, vendor: Vendor) -> Self {
        let mut all = Self::default();
        for fault in Fault::of(vendor).iter().filter(|fault| fault.affects.on(host)) {
            all.add(fault, host);
        }
        all
    }

    fn add(&mut self, fault: &Fault, host: &HostFeatures) {
        let told = |place, what| Unmet { fault: fault.name, place, what };
        let offered = fault.instead.as_ref().filter(|instead| instead.offered.on(host));
        let mut off = offered.map_or(&[][..], |instead| instead.switches).to_vec();
        off.retain(|switch| !switch.is_on(host));
        if offered.is_none() || !off.is_empty() {
            self.unmet.extend(off.iter().map(|switch| told(switch.place(), switch.what())));
            if let Some(code) = fault.code.iter().find(|code| code.when.on(host)) {
                let exists = code.exists.on(host);
                if exists {
                    code.measure.add_to(&mut self.mitigations);
                }
                if !exists || !code.works.on(host) {
                    self.unmet.push(told(Place::Microcode, NEWER));
                }
            }
        }
        for duty in fault.duties.iter().filter(|duty| duty.when.on(host)) {
            match &duty.done {
                Done::If(done) if done.on(host) => {}
                Done::If(_) => self.unmet.push(told(duty.place, duty.what)),
                Done::Unseen => self.unseen.push(told(duty.place, duty.what)),
            }
        }
    }
}

impl Fault {
    /// The document of all tables, in Markdown.
    #[must_use]
    pub fn document() -> String {
        let mut text = String::from(HEAD);
        for (vendor, heading) in [(Vendor::Intel, "Intel"), (Vendor::Amd, "AMD and Hygon")] {
            text += &alloc::format!("\n## {heading}\n");
            for fault in Self::of(vendor) {
                text += &fault.section();
            }
        }
        text += "\n## No matter of a switcher's\n\n";
        for NotRelevant { name, cves, why } in NotRelevant::ALL {
            text += &alloc::format!("* **{name}** ({}): {why}.\n", cves.join(", "));
        }
        text
    }

    fn section(&self) -> String {
        let cves = self.cves.join(", ");
        let mut text = alloc::format!("\n### {}\n\n", self.name);
        if !cves.is_empty() {
            text += &alloc::format!("* **Numbers**: {cves}.\n");
        }
        text += &match self.affects {
            Condition::Always => String::from("* **Affected**: every CPU.\n"),
            some => alloc::format!("* **Affected, if** {some}.\n"),
        };
        for (at, Countermeasure { when, measure, exists, works }) in self.code.iter().enumerate() {
            text += "* **The code**";
            match when {
                Condition::Always if at == 0 => {}
                Condition::Always => text += ", otherwise",
                when => text += &alloc::format!(", if {when}"),
            }
            text += &alloc::format!(": {measure}.");
            if !matches!(exists, Condition::Always) {
                text += &alloc::format!(" It can, if {exists}.");
            }
            if !matches!(works, Condition::Always) {
                text += &alloc::format!(" It helps, if {works}.");
            }
            text += "\n";
        }
        if let Some(Instead { offered, switches }) = &self.instead {
            let switches: Vec<_> = switches
                .iter()
                .map(|switch| alloc::format!("{} {}", switch.place(), switch.state(true)))
                .collect();
            let switches = switches.join(" and ");
            text += &alloc::format!("* **Left out, if** {offered}, and {switches}.\n");
        }
        for Duty { when, place, what, done } in self.duties {
            text += "* **The host**";
            if !matches!(when, Condition::Always) {
                text += &alloc::format!(", if {when}");
            }
            text += &alloc::format!(": {place}: {what}.");
            text += &match done {
                Done::If(done) => alloc::format!(" Done, if {done}.\n"),
                Done::Unseen => " Nothing shows whether it is done.\n".into(),
            };
        }
        text + &alloc::format!("* **Source**: {}.\n", self.source)
    }
}

const HEAD: &str = "\
# Faults of CPUs, and who does what about them

This is the table by which `Mitigations::for_cpu` chooses (`switcher-gen/src/mitigations/table.rs`), as \
text; a test holds the two together. `Assessment::of` also says what a host is seen not to have done, \
and what it is relied on for without anybody seeing it.

A capability is no setting. What an MSR has to switch on spares the code nothing before the bit is \
seen to be set, and what cannot be read is taken not to be. An instruction that would fault is left \
out; one that may not help is not, for a hypervisor may hide what a CPU has.
";

#[cfg(test)]
mod tests;
