//! What a switcher does against speculative execution: one choice per axis, made from what is known
//! of the CPU (spec/switcher.md, "Mitigations").
//!
//! Direct switches carry none: both modes are the same guest's, and what one of them leaves in the
//! predictors for the other is between the two. What is here stands on the way between guest and
//! host. What every variant does anyway has no axis: registers are cleared on exits, DF and AC too,
//! and no image has an indirect jump or call, so nothing needs a retpoline.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use crate::arch::{ArchCapabilities, HostFeatures, HostState, Speculation, Vendor};

/// What becomes of the return stack buffer on an exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rsb {
    /// Nothing: the CPU keeps privilege levels apart.
    #[default]
    Left,
    /// One harmless entry: for CPUs on which only the first RET of an exit may be predicted by what
    /// the guest has left there.
    Lite,
    /// All entries become harmless.
    Full,
}

/// The mitigations of a variant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mitigations {
    /// MSR SPEC_CTRL is switched: an exit writes the host's value, an entry the guest's.
    pub ibrs: bool,
    /// An exit empties the branch predictors (MSR PRED_CMD). AMD's CPUs that predict returns by
    /// what a guest has trained need that, or [`untrain`](Self::untrain).
    pub ibpb: bool,
    /// An exit calls the host's untraining of returns, and returns through the host's return thunk:
    /// for hosts all of whose RETs do. See [`HostSymbol::RETURNS`](crate::asm::HostSymbol::RETURNS).
    pub untrain: bool,
    /// The return stack buffer.
    pub rsb: Rsb,
    /// An exit overwrites the history of branches.
    pub bhb: bool,
    /// An entry ends with VERW, which overwrites the CPU's buffers.
    pub verw: bool,
}

/// A mitigation that means nothing on the vendor's CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not for CPUs of vendor `{vendor}`: drop it")]
pub struct NotForVendor {
    /// The mitigation.
    pub name: &'static str,
    /// The vendor.
    pub vendor: Vendor,
}

/// No mitigation has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown mitigation `{0}`; known are: {known}", known = NAMES.join(", "))]
pub struct UnknownMitigation(pub String);

const IBRS: &str = "ibrs";
const IBPB: &str = "ibpb";
const UNTRAIN: &str = "untrain";
const RSB: &str = "rsb";
const RSBLITE: &str = "rsblite";
const BHB: &str = "bhb";
const VERW: &str = "verw";
const NAMES: [&str; 7] = [IBRS, IBPB, UNTRAIN, RSB, RSBLITE, BHB, VERW];

impl Mitigations {
    /// Nothing: for hosts that need nothing, and as the base of comparisons.
    pub const NONE: Self =
        Self { ibrs: false, ibpb: false, untrain: false, rsb: Rsb::Left, bhb: false, verw: false };

    /// Every combination that means something on the vendor's CPUs, none first.
    pub fn all(vendor: Vendor) -> Vec<Self> {
        let all = (0..1 << 5).flat_map(|on| {
            let [ibrs, ibpb, untrain, bhb, verw] = [16, 8, 4, 2, 1].map(|bit| on & bit != 0);
            [Rsb::Left, Rsb::Full, Rsb::Lite].map(|rsb| Self {
                ibrs,
                ibpb,
                untrain,
                rsb,
                bhb,
                verw,
            })
        });
        all.filter(|one| one.fit(vendor).is_ok()).collect()
    }

    /// # Errors
    /// The first that means nothing on the vendor's CPUs.
    pub const fn fit(self, vendor: Vendor) -> Result<(), NotForVendor> {
        let name = match vendor {
            // What it is for there is done by IBRS.
            Vendor::Intel if self.ibpb => IBPB,
            Vendor::Intel if self.untrain => UNTRAIN,
            Vendor::Amd if self.bhb => BHB,
            Vendor::Amd if self.verw => VERW,
            _ => return Ok(()),
        };
        Err(NotForVendor { name, vendor })
    }

    /// The mitigations that a vendor's CPU needs which says of itself what this one does: cautious
    /// where a host may know better. AMD's CPUs whose returns a guest can train get IBPB, which is
    /// the slow way: see [`with_return_thunks`](Self::with_return_thunks).
    #[must_use]
    pub fn for_cpu(features: &HostFeatures, vendor: Vendor) -> Self {
        let says = |flag| features.speculation().contains(flag);
        let HostState { automatic_ibrs, arch_capabilities: caps, .. } = features.state();
        let is = |flag| caps.contains(flag);
        match vendor {
            Vendor::Intel => {
                let enhanced = is(ArchCapabilities::IBRS_ALL);
                let samples = !is(ArchCapabilities::MDS_NO)
                    || is(ArchCapabilities::RFDS_CLEAR) && !is(ArchCapabilities::RFDS_NO)
                    || is(ArchCapabilities::FB_CLEAR)
                        && !is(ArchCapabilities::SBDR_SSDP_NO
                            | ArchCapabilities::FBSDP_NO
                            | ArchCapabilities::PSDP_NO);
                let clears = says(Speculation::MD_CLEAR)
                    || caps.intersects(ArchCapabilities::RFDS_CLEAR | ArchCapabilities::FB_CLEAR);
                Self {
                    ibrs: says(Speculation::IBRS) && !enhanced,
                    ibpb: false,
                    untrain: false,
                    rsb: match (enhanced, is(ArchCapabilities::PBRSB_NO)) {
                        (false, _) => Rsb::Full,
                        (true, false) => Rsb::Lite,
                        (true, true) => Rsb::Left,
                    },
                    bhb: !is(ArchCapabilities::BHI_NO) && !says(Speculation::BHI_CTRL),
                    verw: samples && clears,
                }
            }
            Vendor::Amd => Self {
                ibrs: says(Speculation::IBRS | Speculation::IBRS_PREFERRED) && !automatic_ibrs,
                ibpb: says(Speculation::IBPB) && !says(Speculation::BTC_NO | Speculation::SRSO_NO),
                untrain: false,
                rsb: if automatic_ibrs { Rsb::Left } else { Rsb::Full },
                bhb: false,
                verw: false,
            },
        }
    }

    /// The same for a host all of whose code returns through its return thunk: untraining takes the
    /// place of IBPB.
    #[must_use]
    pub const fn with_return_thunks(self) -> Self {
        Self { ibpb: false, untrain: self.untrain || self.ibpb, ..self }
    }

    /// Whether an exit has anything to do.
    #[must_use]
    pub const fn at_exit(self) -> bool {
        self.ibrs || self.ibpb || self.untrain || self.bhb || !matches!(self.rsb, Rsb::Left)
    }

    /// The names of those that are on, in the order in which a variant's name has them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let rsb = match self.rsb {
            Rsb::Left => None,
            Rsb::Lite => Some(RSBLITE),
            Rsb::Full => Some(RSB),
        };
        let on = |is_on: bool, name| is_on.then_some(name);
        let names = [
            on(self.ibrs, IBRS),
            on(self.ibpb, IBPB),
            on(self.untrain, UNTRAIN),
            rsb,
            on(self.bhb, BHB),
            on(self.verw, VERW),
        ];
        names.into_iter().flatten()
    }
}

/// `+ibrs+rsb`; nothing if there is none.
impl fmt::Display for Mitigations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.names().try_for_each(|name| write!(f, "+{name}"))
    }
}

/// Reads what [`Display`](fmt::Display) writes, in any order.
impl FromStr for Mitigations {
    type Err = UnknownMitigation;

    fn from_str(text: &str) -> Result<Self, UnknownMitigation> {
        let mut read = Self::NONE;
        for name in text.split('+').skip(1) {
            match name {
                IBRS => read.ibrs = true,
                IBPB => read.ibpb = true,
                UNTRAIN => read.untrain = true,
                RSB => read.rsb = Rsb::Full,
                RSBLITE => read.rsb = Rsb::Lite,
                BHB => read.bhb = true,
                VERW => read.verw = true,
                other => return Err(UnknownMitigation(other.into())),
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::fake::{FakeCpu, STATE, features};
    use alloc::string::ToString;

    #[test]
    fn names_read_back_and_each_is_known() {
        let mut met = std::collections::BTreeSet::new();
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let all = Mitigations::all(vendor);
            assert_eq!(all[0], Mitigations::NONE);
            for one in all {
                assert_eq!(one.to_string().parse(), Ok(one));
                met.extend(one.names());
            }
        }
        assert!(NAMES.iter().all(|name| met.contains(name)));
        let refused = "+ibrs+magic".parse::<Mitigations>().unwrap_err().to_string();
        assert_eq!(
            refused,
            "unknown mitigation `magic`; known are: ibrs, ibpb, untrain, rsb, rsblite, bhb, verw"
        );
    }

    #[test]
    fn what_means_nothing_on_a_vendors_cpus_is_refused() {
        let count = |vendor| Mitigations::all(vendor).len();
        assert_eq!((count(Vendor::Intel), count(Vendor::Amd)), (24, 24));
        let verw = Mitigations { verw: true, ..Mitigations::NONE };
        assert_eq!(verw.fit(Vendor::Intel), Ok(()));
        let refused = verw.fit(Vendor::Amd).unwrap_err().to_string();
        assert_eq!(refused, "`verw` is not for CPUs of vendor `amd`: drop it");
    }

    fn chosen(cpu: &'static [u8; 12], speculation: [u32; 4], state: HostState) -> String {
        let features = features(FakeCpu { speculation, ..FakeCpu::complete(cpu) }, state);
        Mitigations::for_cpu(&features, features.fit().unwrap()).to_string()
    }

    #[test]
    fn an_intel_cpu_gets_what_it_does_not_say_it_can_do_without() {
        const ALL: [u32; 4] = [1 << 10 | 1 << 26 | 1 << 29, 0, 0, 0];
        let chosen = |speculation, arch_capabilities| {
            chosen(b"GenuineIntel", speculation, HostState { arch_capabilities, ..STATE })
        };
        type Caps = ArchCapabilities;
        // Skylake: IBRS is to be written each time.
        assert_eq!(chosen(ALL, Caps::empty()), "+ibrs+rsb+bhb+verw");
        // No microcode for any of it.
        assert_eq!(chosen([0; 4], Caps::empty()), "+rsb+bhb");
        // Cascade Lake and later: IBRS stays on.
        assert_eq!(chosen(ALL, Caps::IBRS_ALL | Caps::MDS_NO), "+rsblite+bhb");
        let fill_buffers = Caps::IBRS_ALL | Caps::MDS_NO | Caps::FB_CLEAR | Caps::PBRSB_NO;
        assert_eq!(chosen(ALL, fill_buffers), "+bhb+verw");
        let no_fill_buffers = Caps::SBDR_SSDP_NO | Caps::FBSDP_NO | Caps::PSDP_NO;
        assert_eq!(chosen(ALL, fill_buffers | no_fill_buffers), "+bhb");
        // Atoms.
        let atom = Caps::IBRS_ALL | Caps::MDS_NO | Caps::PBRSB_NO | Caps::BHI_NO;
        assert_eq!(chosen(ALL, atom | Caps::RFDS_CLEAR), "+verw");
        assert_eq!(chosen(ALL, atom | Caps::RFDS_NO), "");
        // BHI_DIS_S stays on.
        assert_eq!(chosen([ALL[0], 1 << 4, 0, 0], Caps::empty()), "+ibrs+rsb+verw");
    }

    #[test]
    fn an_amd_cpu_gets_what_it_does_not_say_it_can_do_without() {
        let chosen = |sizes, amd, automatic_ibrs| {
            let state = HostState { automatic_ibrs, ..STATE };
            chosen(b"AuthenticAMD", [0, 0, sizes, amd], state)
        };
        let (ibpb, ibrs, preferred, btc_no) = (1 << 12, 1 << 14, 1 << 18, 1 << 29);
        assert_eq!(chosen(0, 0, false), "+rsb");
        assert_eq!(chosen(ibpb | ibrs, 0, false), "+ibpb+rsb");
        assert_eq!(chosen(ibpb | ibrs | preferred | btc_no, 0, false), "+ibrs+ibpb+rsb");
        assert_eq!(chosen(ibpb | ibrs | preferred | btc_no, 0, true), "+ibpb");
        assert_eq!(chosen(ibpb | ibrs | btc_no, 1 << 29, true), "");
    }
}
