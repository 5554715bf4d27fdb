//! What the values of a state are called, and by that where they come from and who may learn them.

use std::hash::Hash;

use crate::host_data::HostData;
use switcher_gen::layout::Revision;
use switcher_model::{Domain, Gpr, Origin, RegionName};

/// Where values come from.
pub trait Source<D: Domain> {
    /// The value called `name`, of `bits` bits.
    fn value(&mut self, d: &D, name: Name, bits: u32) -> D::Word;
}

/// What a value is called. It becomes text where somebody reads it: fuzzers make millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// What the value is a part of.
    pub of: Object,
    /// The part of it that the value is.
    pub part: Part,
    /// Whether it is what was there when the guest was entered, and not what is there now.
    pub at_entry: bool,
}

/// What values are parts of. Who may learn them follows from it: see [`Name::origin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// The host's registers and addresses.
    Host,
    /// The guest's registers as it enters ring 0, or as an event finds them.
    Guest,
    /// The root that the guest runs on.
    GuestRoot,
    /// The guest's registers in the frame that it is entered with, or that a handler has written.
    Frame,
    /// What that frame has besides the guest's registers.
    OrigAx,
    /// The address of the top of the sp0 stack.
    Sp0,
    /// The address of the top of the IST stack.
    Ist,
    /// The host's address of the PVCS.
    PvcsAddress,
    /// The TSS.
    Tss,
    /// The switcher's part of the per-CPU block.
    TssExtra,
    /// The page shared with the guest.
    Pvcs,
    /// What the sp0 stack holds that nobody has written.
    Sp0Stack,
    /// What the IST stack holds that nobody has written.
    IstStack,
    /// What the caller's stack holds that nobody has written.
    HostStack,
    /// FS base.
    FsBase,
    /// PKRU.
    Pkru,
    /// CR4.
    Cr4,
    /// MSR EFER.
    Efer,
    /// MSR SPEC_CTRL.
    SpecCtrl,
    /// What the host's untraining of returns leaves.
    Untraining,
    /// What an event finds in ring 0.
    Interrupted,
    /// What lies below the stack of an interrupted ring 0, and on it.
    InterruptedStack,
    /// What the CPU says of an event.
    Event,
    /// What a hook of the host's leaves in registers.
    Hook,
    /// What a hook of the host's leaves below its stack.
    HookStack,
    /// Data of the host's that somebody's code uses, by its number.
    HostData(u8),
}

impl Object {
    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Guest => "guest",
            Self::GuestRoot => "guest.cr3",
            Self::Frame => "frame",
            Self::OrigAx => "frame.orig_ax",
            Self::Sp0 => "sp0",
            Self::Ist => "ist",
            Self::PvcsAddress | Self::Pvcs => "pvcs",
            Self::Tss => "tss",
            Self::TssExtra => "tss_extra",
            Self::Sp0Stack => RegionName::Sp0Stack.name(),
            Self::IstStack => RegionName::IstStack.name(),
            Self::HostStack => RegionName::HostStack.name(),
            Self::FsBase => "fs_base",
            Self::Pkru => "pkru",
            Self::Cr4 => "cr4",
            Self::Efer => "efer",
            Self::SpecCtrl => "spec_ctrl",
            Self::Untraining => "untraining",
            Self::Interrupted => "interrupted",
            Self::InterruptedStack => RegionName::InterruptedStack.name(),
            Self::Event => "event",
            Self::Hook => "hook",
            Self::HookStack => "hook stack",
            Self::HostData(number) => DATA[number as usize],
        }
    }
}

/// What data of the host's is called in states, by its number.
const DATA: [&str; HostData::MOST] =
    ["data 1", "data 2", "data 3", "data 4", "data 5", "data 6", "data 7", "data 8"];

/// A part of what has a [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The whole of it: `sp0`.
    Whole,
    /// A general register: `frame.rax`.
    Register(Gpr),
    /// A GS base, active or not: `guest.gs_base`.
    GsBase(&'static str),
    /// Another register or a field: `frame.rip`.
    Field(&'static str),
    /// A field in which every routine may leave what it likes, such as `TSS.sp2`.
    Scratch(&'static str),
    /// What lies at an offset: `pvcs+0x80`.
    At(i64),
}

impl Name {
    pub(crate) const fn whole(of: Object) -> Self {
        Self { of, part: Part::Whole, at_entry: false }
    }

    pub(crate) const fn field(of: Object, field: &'static str) -> Self {
        Self { of, part: Part::Field(field), at_entry: false }
    }

    pub(crate) const fn register(of: Object, register: Gpr) -> Self {
        Self { of, part: Part::Register(register), at_entry: false }
    }

    /// Where the value comes from, and so who may learn it (spec/hazards.md, rows 34 and 35). What
    /// is not said to be the guest's, or to be handed to it, is the host's.
    #[must_use]
    pub fn origin(self) -> Origin {
        match (self.of, self.part) {
            (Object::Guest, Part::Register(Gpr::Rsp)) => Origin::GuestStackPointer,
            (Object::Interrupted, Part::Register(Gpr::Rsp) | Part::GsBase(_)) => {
                Origin::InterruptedBase
            }
            (Object::TssExtra, Part::Field(field)) if PUBLISHED.contains(&field) => {
                Origin::Published
            }
            // Nobody compares what is left there: it may be any value of the host's.
            (_, Part::Scratch(_)) => Origin::Stale,
            // A guest chooses the mode that it is in.
            (Object::TssExtra, Part::Field("switch_flags")) => Origin::Stale,
            // What lies below the caller's RSP is left over, from a guest's exit, too.
            (Object::HostStack, Part::At(..0)) => Origin::Stale,
            // Whether SS is null: it says that an event came from CPL 3, and no more.
            (Object::Interrupted, Part::Field("ss")) => Origin::Published,
            // The host has put its RSP there, or zero.
            (Object::Interrupted, Part::Field("host_rsp")) => Origin::HostStack,
            (Object::Host, Part::Field("gs_base")) => Origin::MixedMemory,
            (Object::Host, Part::Field("rsp") | Part::Register(Gpr::Rsp)) => Origin::HostStack,
            // What is no known field of a struct may hold such an address.
            (Object::TssExtra, Part::At(_)) => Origin::MixedMemory,
            (of, _) => match of {
                Object::Guest | Object::Frame | Object::Pvcs | Object::FsBase | Object::Pkru => {
                    Origin::Guest
                }
                Object::PvcsAddress => Origin::GuestMemory,
                // An error code says what the guest has done.
                Object::Event => Origin::Guest,
                Object::Interrupted => Origin::Interrupted,
                // Stacks have had guests' registers, and host code may leave what it likes.
                Object::Sp0Stack
                | Object::IstStack
                | Object::InterruptedStack
                | Object::Untraining
                | Object::Hook
                | Object::HookStack => Origin::Stale,
                // The TSS has all stacks, and what is nobody's: Linux has had one of the host's in
                // TSS.sp1. Nor does anybody say that a word of the kernel's own is not one.
                Object::Sp0 | Object::Ist | Object::Tss | Object::HostData(_) => {
                    Origin::MixedMemory
                }
                Object::Host
                | Object::GuestRoot
                | Object::OrigAx
                | Object::TssExtra
                | Object::HostStack
                | Object::Cr4
                | Object::Efer
                | Object::SpecCtrl => Origin::Host,
            },
        }
    }
}

/// The fields of [`TssExtra`] that the ABI hands to the guest (spec/abi.md, "The per-CPU block"):
/// it has chosen them itself, by the MSRs of the guest interface.
const PUBLISHED: [&str; 6] =
    ["retu_rip", "smod_entry", "smod_gsbase", "smod_pkru", "smod_rsp", "pku_on"];

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { of, part, at_entry } = self;
        if *at_entry {
            f.write_str("entry.")?;
        }
        let of = of.name();
        match part {
            Part::Whole => f.write_str(of),
            Part::Register(register) => write!(f, "{of}.{}", register.name()),
            Part::Field(field) | Part::Scratch(field) | Part::GsBase(field) => {
                write!(f, "{of}.{field}")
            }
            Part::At(at) if *at < 0 => write!(f, "{of}-{:#x}", at.unsigned_abs()),
            Part::At(at) => write!(f, "{of}+{at:#x}"),
        }
    }
}

/// Whether a routine may leave anything in this field, so that the next one finds it there: RSP
/// passes through these fields. They are what is not compared at an end, and their values have an
/// origin that no guest may learn.
pub(crate) fn is_scratch(of: Object, field: &str, revision: Revision) -> bool {
    match (of, field) {
        (Object::Tss, "sp2") => true,
        // In V2024, it is the stack that the guest has chosen for its kernel.
        (Object::TssExtra, "smod_rsp") => revision == Revision::V2026,
        _ => false,
    }
}
