//! What may be stored to, by whom, and how: judged at each store, whatever is stored.
//!
//! An NMI, a machine check or another CPU may look between any two instructions, and the event
//! entries rely on what they find: the stacks in the TSS, the host's root, the pointer to the PVCS.
//! A field that is wrong for three instructions and right again at the end is wrong
//! (spec/hazards.md, rows 36 and 37). So these fields are not compared at the end alone: a store to
//! one of them is a failure by itself. What is left, a routine's own scratch and its results, is
//! compared at its end.

use crate::entry::Entry;
use crate::layouts::ExtraField;
use crate::setting::Setting;
use crate::theorem::Theorem;
use crate::world::fields::pvcs_fields;
use switcher_gen::arch::Msr;
use switcher_gen::layout::{SwitchFlags, Tss};
use switcher_model::RegionName;
use switcher_model::program::Op;

/// Where a store goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Store {
    /// The region.
    pub(crate) region: RegionName,
    /// The offset of the first byte from the region's base.
    pub(crate) at: i64,
    /// How many bytes.
    pub(crate) size: usize,
}

impl Store {
    /// Whether the code of a theorem may store there at all.
    pub(crate) fn is_allowed(self, entry: Entry<'_>) -> bool {
        let Entry { theorem, target, .. } = entry;
        let setting = &target.setting;
        let block = setting.block;
        let tss = |field: usize| block.tss + field as i64;
        let is_within = |start: i64, size: usize| {
            start <= self.at && self.at + self.size as i64 <= start + size as i64
        };
        // Interrupted ring 0 owns all of this; its event may use a stack of its own.
        let interrupts = theorem.is_in_ring_0();
        match self.region {
            // This field is scratch. The CPU reads all others when an event comes.
            RegionName::Tss => !theorem.is_of_events() && is_within(tss(Tss::sp2.bytes()), 8),
            RegionName::TssExtra => {
                let of_syscall = [ExtraField::SwitchFlags, ExtraField::SmodRsp];
                let is_host_rsp = self.is_to_host_rsp(setting) && self.size == 8;
                let mut of_syscall =
                    of_syscall.into_iter().filter_map(|field| setting.extra_at(field));
                is_host_rsp && !interrupts && theorem != Theorem::SyscallCompat
                    || theorem == Theorem::Syscall64 && of_syscall.any(|at| is_within(at, 8))
            }
            // Only fields may be stored to, judged byte by byte, for one store may go to two: the
            // rest of the page, and PKRU where the switcher does not switch it, is the guest's own.
            RegionName::Pvcs => {
                let has_keys = setting.variant.pku();
                let fields = || pvcs_fields(setting).into_iter().flatten();
                let own = |byte: i64| {
                    let mut own = fields().filter(|(name, ..)| has_keys || *name != "pkru");
                    own.any(|(_, at, size)| (at..at + size as i64).contains(&byte))
                };
                theorem == Theorem::Syscall64 && (self.at..self.at + self.size as i64).all(own)
            }
            // An event from which nothing goes on may use what it finds.
            RegionName::Sp0Stack => {
                (!interrupts || entry.is_fatal()) && theorem != Theorem::SyscallCompat
            }
            // The host's GS base lies above the stack.
            RegionName::IstStack => theorem.is_of_events() && self.at + self.size as i64 <= 0,
            // The return address above is the caller's.
            RegionName::HostStack => self.at + self.size as i64 <= 0,
            RegionName::HostData | RegionName::MappedData => false,
            // The program refuses all stores to code, and no world has the other regions.
            RegionName::HostWord
            | RegionName::InterruptedStack
            | RegionName::Code
            | RegionName::PerCpu
            | RegionName::Guest
            | RegionName::Stack => true,
        }
    }

    /// Whether it goes to host_rsp, by its first byte.
    pub(crate) fn is_to_host_rsp(self, setting: &Setting) -> bool {
        let at = setting.own_extra_at(ExtraField::HostRsp);
        self.region == RegionName::TssExtra && self.at == at
    }

    /// If it goes to switch_flags, the bits of what is stored that are a hook's to set: it may do
    /// so between any two instructions.
    pub(crate) fn hooks_bits(self, setting: &Setting) -> Option<u64> {
        let at = setting.own_extra_at(ExtraField::SwitchFlags);
        let is_there = self.region == RegionName::TssExtra && (at..at + 8).contains(&self.at);
        is_there.then(|| !SwitchFlags::MODE_TOGGLE.bits() >> (8 * (self.at - at)))
    }
}

/// Whether an instruction makes what is in memory out of what is there, so that no bit is lost that
/// was set there since it was last read.
pub(crate) fn is_one_update(op: Option<&Op>) -> bool {
    op.is_some_and(Op::updates_memory)
}

/// Whether a routine may write this MSR. The others say where events of the guest lead, and what
/// the CPU can do: nobody may change them, not even for one instruction.
pub(crate) fn may_write(number: Option<u64>) -> bool {
    const FS_BASE: u64 = 0xC000_0100;
    const GS_BASE: u64 = 0xC000_0101;
    const KERNEL_GS_BASE: u64 = 0xC000_0102;
    let [spec_ctrl, pred_cmd] = [Msr::SpecCtrl, Msr::PredCmd].map(|msr| u64::from(msr.address()));
    number.is_some_and(|number| {
        [spec_ctrl, pred_cmd, FS_BASE, GS_BASE, KERNEL_GS_BASE].contains(&number)
    })
}
