//! What must hold before each instruction of ring 0, whatever it is.

use crate::goal::Goals;
use crate::layouts::ExtraField;
use crate::obligation;
use crate::run::watch::Watch;
use switcher_gen::arch::RFlags;
use switcher_gen::asm::Window;
use switcher_model::{Domain, Gpr, RegionName, State as Machine};

impl<'a, D: Domain> Watch<'a, D> {
    /// What must hold before the instruction at `at`, which is executed next.
    pub(crate) fn execute(&mut self, d: &D, goals: &mut Goals<D>, state: &Machine<D>, at: u64) {
        self.pass(d, state, at);
        self.trace.push(at);
        goals.execute(at);
        self.speculation(d, goals, state, at);
        let clear = |flag| d.not(state.flags.other(d, flag));
        // Under the host's own IDT, interrupts may come where its handler has let them.
        let is_off = d.either(d.bit(self.has_hosts_code_run), clear(RFlags::IF));
        goals.add(obligation::RING_0_FLAGS, d.both(is_off, clear(RFlags::TF)), "RFLAGS");
        self.blocking.boundary(d, self.entry, goals, state, at);
        self.running(d, goals, state);
        let windows = &self.entry.target.windows;
        // Of what the host is not told, nothing is asked.
        let is_outside = |window| {
            let ranges = windows.get(&window);
            ranges.is_some_and(|ranges| !ranges.iter().any(|range| range.contains(&at)))
        };
        if is_outside(Window::GuestRoot) {
            let on_own = d.eq(state.cr3, self.start.block.host_cr3);
            goals.add(obligation::WINDOW_ROOT, on_own, "CR3");
        }
        if is_outside(Window::UnsafeStack) {
            let on_own = is_on_a_stack(d, state);
            goals.add(obligation::WINDOW_STACK, on_own, "RSP");
        }
    }

    /// What an NMI or a machine check relies on if it comes now: if host_rsp says that no guest is
    /// run, CR3 is the host's, or the root that an event has interrupted.
    fn running(&self, d: &D, goals: &mut Goals<D>, state: &Machine<D>) {
        let extra = state.memory.region(RegionName::TssExtra).expect("every world has all regions");
        let at = self.entry.target.setting.own_extra_at(ExtraField::HostRsp);
        let running = d.any(extra.read(d, at, 8), u64::MAX);
        let mut holds = d.either(d.eq(state.cr3, self.start.block.host_cr3), running);
        if let Some(root) =
            self.start.interrupted_root.filter(|_| self.entry.theorem.is_in_ring_0())
        {
            holds = d.either(holds, d.eq(state.cr3, root));
        }
        goals.add_last(obligation::HOST_RSP_SET, holds, "host_rsp");
    }
}

/// Whether RSP points into a stack of the host's, or to its top.
pub(crate) fn is_on_a_stack<D: Domain>(d: &D, state: &Machine<D>) -> D::Bit {
    let rsp = state.get(Gpr::Rsp);
    let stacks = state.memory.regions.iter().filter(|region| region.name.is_stack());
    stacks.fold(d.bit(false), |holds, region| {
        let end = region.offset(region.cells.len());
        let is_within = match d.distance(rsp, region.base) {
            Some(at) => d.bit((region.start..=end).contains(&at)),
            None => {
                let from_start = d.sub(rsp, d.plus(region.base, region.start));
                d.lt(from_start, d.word((end - region.start).cast_unsigned() + 1))
            }
        };
        d.either(holds, is_within)
    })
}
