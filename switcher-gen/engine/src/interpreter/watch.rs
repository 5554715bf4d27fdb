//! What the switcher must never do, looked for at every instruction of it.

use super::bytes::word;
use super::{Region, region};
use crate::scenario::{Failure, Record, may_iret, may_load, may_sysret};
use switcher_gen::Image;
use switcher_gen::arch::{Cr3, PagingMode, Vendor};
use switcher_gen::asm::Window;
use switcher_gen::layout::{PerCpu, SwitchFlags, TssExtra};
use switcher_model::{Concrete, Effect, Gpr, Observer, State};

/// A range of addresses that RSP may be in: a stack, its end included.
type Stack = (u64, u64);

/// Watches the switcher.
#[derive(Debug)]
pub(super) struct Watch {
    base: u64,
    paging: PagingMode,
    pcid: bool,
    /// SYSRETQ hands SS's attributes on to the guest.
    sysret_keeps_ss: bool,
    /// By offset: whether RSP may be anything, and whether the root is a guest's.
    windows: Vec<(bool, bool)>,
    stacks: [Stack; 3],
    /// As the host has written it; the roots in it do not change.
    pub(super) extra: TssExtra,
    host_cr3: u64,
    /// How often the instruction at each offset was executed.
    pub(super) hits: Vec<u64>,
    /// Instructions since the switcher was last entered.
    pub(super) executed: u64,
    /// SYSRETQ was the last instruction, and not the one to 32-bit code.
    pub(super) by_sysretq: bool,
    pub(super) record: Record,
    pub(super) failure: Option<Failure>,
}

impl Watch {
    pub(super) fn new(image: &Image, base: u64, stacks: [Stack; 3]) -> Self {
        let config = image.variant().config();
        let windows = (0..image.bytes().len() as u32)
            .map(|at| (image.is_in(Window::UnsafeStack, at), image.is_in(Window::GuestRoot, at)));
        Self {
            base,
            paging: config.paging,
            pcid: config.pcid,
            sysret_keeps_ss: config.vendor == Vendor::Amd,
            windows: windows.collect(),
            stacks,
            extra: TssExtra::default(),
            host_cr3: Cr3::NONE.bits(),
            hits: vec![0; image.bytes().len()],
            executed: 0,
            by_sysretq: false,
            record: Record::new(),
            failure: None,
        }
    }

    pub(super) fn start(&mut self, extra: TssExtra) {
        self.extra = extra;
        self.host_cr3 = extra.host_cr3.bits();
        self.hits.fill(0);
        self.record = Record::new();
        self.failure = None;
    }

    /// The per-CPU data as it is now.
    pub(super) fn extra_now(&self, per_cpu: &Region<Concrete>) -> TssExtra {
        let at = |field: usize| word(&per_cpu.cells, PerCpu::tss_extra.bytes() + field);
        let mut extra = self.extra;
        extra.host_rsp = at(TssExtra::host_rsp.bytes());
        extra.smod_rsp = at(TssExtra::smod_rsp.bytes());
        let flags = at(TssExtra::switch_flags.bytes());
        extra.switch_flags = SwitchFlags::from_bits_retain(flags);
        extra
    }

    /// AMD alone: a guest would get the attributes of a null SS.
    pub(super) fn null_ss(&self, ss: u64) -> bool {
        self.sysret_keeps_ss && ss == 0
    }

    /// The windows must be right about the state in which the instruction at `at` will run.
    #[inline]
    fn check_windows(&mut self, at: u64, state: &State<Concrete>) {
        let offset = at.wrapping_sub(self.base);
        let Some(&(unsafe_stack, guest_root)) = self.windows.get(offset as usize) else { return };
        let rsp = state.get(Gpr::Rsp);
        // A guest's RSP may point to a stack of ours, so inside the window it says nothing.
        if !unsafe_stack {
            let on = |(start, len): &Stack| rsp.wrapping_sub(*start) <= *len;
            if !self.stacks.iter().any(on) {
                self.failure = Some(Failure::Window { window: Window::UnsafeStack, offset });
            }
        }
        if guest_root != (state.cr3 != self.host_cr3) {
            self.failure = Some(Failure::Window { window: Window::GuestRoot, offset });
        }
    }

    fn check_sysretq(&self, state: &State<Concrete>) -> Option<Failure> {
        let (rcx, r11) = (state.get(Gpr::Rcx), state.get(Gpr::R11));
        if !self.paging.is_canonical(rcx) {
            return Some(Failure::SysretNonCanonical { rcx });
        }
        if self.null_ss(state.ss) {
            return Some(Failure::NullSs);
        }
        (!may_sysret(r11)).then_some(Failure::SysretFlags { r11 })
    }
}

impl Observer<Concrete> for Watch {
    #[inline]
    fn observe(&mut self, _: &Concrete, state: &State<Concrete>, event: Effect<u64>) {
        match event {
            Effect::Execute(at) => {
                self.executed += 1;
                self.by_sysretq = false;
                if let Some(hits) = self.hits.get_mut(at.wrapping_sub(self.base) as usize) {
                    *hits += 1;
                }
                self.check_windows(at, state);
            }
            Effect::LoadCr3(value) => {
                if !may_load(value, &self.extra, self.pcid) {
                    self.failure = Some(Failure::Cr3 { value });
                }
                self.record.loaded_cr3(value);
            }
            Effect::Sysretq => {
                self.by_sysretq = true;
                self.failure = self.failure.take().or_else(|| self.check_sysretq(state));
            }
            Effect::Iretq([_, cs, eflags, ..]) if !may_iret(cs, eflags) => {
                self.failure = Some(Failure::IretFrame { cs, eflags });
            }
            _ => {}
        }
    }
}

/// Watches a guest: for an access that a CPU with CR0.AM would refuse, because AC is set.
#[derive(Debug, Default)]
pub(super) struct Alignment {
    pub(super) violated: bool,
}

impl Observer<Concrete> for Alignment {
    #[inline]
    fn observe(&mut self, d: &Concrete, state: &State<Concrete>, event: Effect<u64>) {
        if let Effect::Access(access) = event
            && state.flags.other(d, switcher_gen::arch::RFlags::AC)
        {
            let place = access.place;
            let region = &state.memory.regions[place.region];
            let address = region.base.wrapping_add_signed(region.offset(place.index));
            self.violated |= !address.is_multiple_of(place.size as u64);
        }
    }
}

/// The stacks of the memory that ring 0 reaches.
pub(super) fn stacks(regions: &[Region<Concrete>]) -> [Stack; 3] {
    [region::FRAME, region::HOST, region::IST].map(|index| {
        let stack = &regions[index];
        (stack.base.wrapping_add_signed(stack.start), stack.cells.len() as u64)
    })
}
