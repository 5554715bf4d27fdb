//! What has gone wrong in code like this: the rows of spec/hazards.md, by name.
//!
//! Obligations, cases and the runtime's table of CPU state say which of these hazards they serve.
//! Each prints as its row and title, `row 39: NMI blocking ends too early`, which is how the page
//! heads it: searching the page for what the tool has printed finds the row. A test compares the
//! page with this file.

use core::fmt;

macro_rules! hazards {
    ($($number:literal $variant:ident $title:literal;)*) => {
        /// A failure of code between two privilege levels, as a row of spec/hazards.md.
        ///
        /// Its number is that of its row, which never changes: new rows are added at the end.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum Hazard {
            $(
                #[doc = concat!("Row ", stringify!($number), ": ", $title, ".")]
                $variant = $number,
            )*
        }

        impl Hazard {
            /// All hazards, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The title of the row: what goes wrong, in a few words.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self {
                    $(Self::$variant => $title,)*
                }
            }
        }
    };
}

hazards! {
    1 SysretNonCanonical "SYSRET to a non-canonical RIP";
    2 SyscallAtCanonicalEnd "SYSCALL as the last canonical instruction";
    3 AddressWidth "wrong address width";
    4 RcxOnIret "RCX lost on the IRET fallback";
    5 WrgsbaseFault "WRGSBASE faults in ring 0";
    6 StaleGsBase "stale GS base";
    7 SwapgsParity "SWAPGS parity, BadIRET";
    8 NmiRoot "NMI returns on the wrong CR3";
    9 WindowGap "a gap in the fix-up window";
    10 RspAtNmiStack "RSP aimed at the NMI stack";
    11 NmisStayBlocked "NMIs stay blocked";
    12 MovSsSyscall "MOV SS, then SYSCALL";
    13 TrapAndResumeFlags "TF and RF through SYSRET";
    14 PrivilegedFlags "privileged flags from memory";
    15 NestedTask "NT at IRETQ";
    16 FlagsInHost "AC or DF reaches host code";
    17 OpenEntries "SYSENTER or 32-bit SYSCALL left open";
    18 SysretSs "SS attributes after SYSRET on AMD";
    19 BadCr3 "a bad CR3 operand";
    20 StaleTranslations "stale translations through PCIDs";
    21 GlobalEntries "global entries across CR3";
    22 MappedSet "operands not mapped, or too much mapped";
    23 RspToSysret "an instruction between the load of RSP and SYSRETQ";
    24 DoubleFetch "double fetch of the PVCS";
    25 AssumedSelectors "assumed selectors";
    26 ModeConfusion "mode or inhibitor confusion";
    27 Registers "registers corrupted or leaked";
    28 SpeculativeSwapgs "speculative SWAPGS";
    29 MitigationOrder "a mitigation that is missing or out of place";
    30 PastTrap "falling through a trap";
    31 GuestBreakpoints "guest breakpoints on host addresses";
    32 VectorSpoofing "vector spoofing";
    33 FredAndIbt "FRED and IBT";
    34 HostValueInPvcs "a host value passes through memory that the guest reads";
    35 Provenance "host state reaches a guest";
    36 EventFields "a field that event entries rely on is wrong for some instructions";
    37 SplitUpdate "an update that is not one instruction";
    38 VectorUnlikeOthers "a vector treated unlike the others";
    39 EarlyNmi "NMI blocking ends too early";
    40 IretqFrame "the IRETQ to a guest is not where its fault is looked for";
    41 EarlyBranch "branch prediction before it is safe";
    42 BuffersCleared "buffers cleared too early or not at all";
    43 NoFence "what does not fence";
    44 SequenceUndone "a return stack that is used up, or history that is poisoned again";
    45 StraightLine "straight-line speculation";
    46 TargetSelection "indirect target selection";
    47 LiveInHook "registers of a guest live in host code";
    48 Nonexistent "an instruction that the CPU lacks, or reserved bits of an MSR";
    49 TwoDecoders "two decoders disagree";
    50 OtherCode "what is judged is not what runs";
    51 LdtGate "the host's LDT in reach of a guest";
    52 TruncatedAddress "addresses cut to 48 bits";
    53 RecycledTag "a tag outlives what it named";
    54 GuestAfterGuest "guest after guest without a barrier";
    55 VisibleHostState "state of the host visible to a guest";
    56 FpuControl "FPU control bits that fault in ring 0";
    57 DebugControl "DEBUGCTL and #DB by bus locks";
    58 IretqReads "a fault of the IRETQ's own reads";
    59 CapabilityForSetting "a capability taken for a setting";
    60 HandedOn "an interrupt handed on unlike hardware does it";
    61 SecretSelector "a secret chooses the descriptor that is read";
}

// `from_number` finds a hazard by its place.
const _: () = {
    let mut at = 0;
    while at < Hazard::ALL.len() {
        assert!(Hazard::ALL[at].number() as usize == at + 1, "the rows are numbered from 1 on");
        at += 1;
    }
};

impl Hazard {
    /// The number of the row, from 1 on.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The hazard of this row; `None` if there is no such row.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => None,
            number if number as usize > Self::ALL.len() => None,
            number => Some(Self::ALL[number as usize - 1]),
        }
    }

    /// Several hazards in one line, with `; ` between them.
    pub fn join(hazards: &[Self]) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            hazards.iter().enumerate().try_for_each(|(at, hazard)| {
                let separator = if at == 0 { "" } else { "; " };
                write!(f, "{separator}{hazard}")
            })
        })
    }
}

/// Prints the hazard as spec/hazards.md heads it, except for the capital letter.
impl fmt::Display for Hazard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {}: {}", self.number(), self.title())
    }
}

/// A hazard is serialised as an object of two fields, `row` and `title`.
#[cfg(feature = "serde")]
impl serde::Serialize for Hazard {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = serializer.serialize_struct("Hazard", 2)?;
        fields.serialize_field("row", &self.number())?;
        fields.serialize_field("title", self.title())?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::Hazard;
    use alloc::string::ToString;

    #[test]
    fn a_number_leads_to_its_hazard_and_back() {
        for hazard in Hazard::ALL {
            assert_eq!(Hazard::from_number(hazard.number()), Some(*hazard));
        }
        assert_eq!(Hazard::from_number(0), None);
        let beyond = u8::try_from(Hazard::ALL.len() + 1).unwrap();
        assert_eq!(Hazard::from_number(beyond), None);
    }

    #[test]
    fn a_hazard_prints_as_its_row_and_title() {
        let [one, other] = [Hazard::EarlyNmi, Hazard::StraightLine];
        assert_eq!(one.to_string(), "row 39: NMI blocking ends too early");
        assert_eq!(
            Hazard::join(&[one, other]).to_string(),
            "row 39: NMI blocking ends too early; row 45: straight-line speculation"
        );
        assert_eq!(Hazard::join(&[]).to_string(), "");
    }

    #[cfg(feature = "serde")]
    #[test]
    fn json_has_the_number_beside_the_title() {
        let json = serde_json::to_value(Hazard::StaleGsBase).unwrap();
        assert_eq!(json, serde_json::json!({ "row": 6, "title": "stale GS base" }));
    }
}
