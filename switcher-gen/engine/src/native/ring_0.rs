//! What an instruction that faults at CPL 3 does in ring 0: a step of the model
//! ([`switcher_model`]), from the registers that a signal interrupted.
//!
//! None of these instructions accesses memory, so the state has no memory. All decoding is done
//! beforehand: a signal handler only looks it up.

use super::registers::Regs;
use crate::scenario::{Failure, may_load, may_sysret};
use switcher_gen::Image;
use switcher_gen::arch::PagingMode;
use switcher_gen::layout::TssExtra;
use switcher_model::program::Operation;
use switcher_model::{
    Concrete, CpuModel, EFER, Effect, Flags, Gpr, Memory, Msrs, Observer, Program, State, Step,
    Stuck, cr4,
};

/// The semantics' CPU, and the code.
pub(super) struct Ring0 {
    pub(super) d: Concrete,
    model: CpuModel,
    program: Program,
    /// The state after the last step.
    pub(super) state: State<Concrete>,
}

/// Whether CPL 3 is refused this, whatever the operand: SWAPGS, MOV CR3, WRMSR, SYSRETQ.
const fn always_faults(kind: Operation) -> bool {
    matches!(
        kind,
        Operation::SwapGs | Operation::WriteCr3 | Operation::WriteMsr | Operation::Sysretq
    )
}

impl Ring0 {
    /// The state for `image`, which is linked as `code` and loaded at `base`.
    pub(super) fn new(image: &Image, base: u64, code: &[u8]) -> Self {
        let d = Concrete::default();
        let selectors = image.variant().selectors();
        let program = Program::new(base, code.to_vec());
        let state = State {
            gpr: [0; 16],
            rip: 0,
            flags: Flags::new(&d, 0),
            cs: 0,
            ss: 0,
            cpl: 0,
            gs_base: 0,
            inactive_gs_base: 0,
            fs_base: 0,
            cr3: 0,
            cr4: cr4(image.variant()),
            pkru: 0,
            nmi_blocked: false,
            // SYSRETQ uses STAR, and mitigations write SPEC_CTRL. The other MSRs are not used.
            msrs: Msrs {
                star: selectors.star().bits(),
                lstar: 0,
                cstar: 0,
                sfmask: 0,
                spec_ctrl: 0,
                efer: EFER,
            },
            memory: Memory { regions: Vec::new(), racing: false },
        };
        let ring_0 = Self { d, model: CpuModel::from(image.variant()), program, state };
        ring_0.decode();
        ring_0
    }

    fn decode(&self) {
        for address in self.program.base()..self.program.end() {
            let _ = self.program.at(address);
        }
    }

    /// Breaks the code.
    #[cfg(test)]
    pub(super) fn patch(&mut self, address: u64, bytes: &[u8]) {
        self.program.patch(address, bytes);
        self.decode();
    }

    /// What stands at `rip`, if it is among the instructions that are emulated: the others do the
    /// same at CPL 3, or do not occur in a switcher.
    pub(super) fn emulated(&self, rip: u64) -> Option<Operation> {
        let kind = self.program.at(rip)?.ok()?.kind;
        let is_it =
            always_faults(kind) || matches!(kind, Operation::WriteSs | Operation::WriteGsBase);
        is_it.then_some(kind)
    }

    /// Whether what stands at `rip` is emulated, and need not be tried first.
    pub(super) fn always_faults_in_ring_3(&self, rip: u64) -> bool {
        self.program.at(rip).is_some_and(|op| op.is_ok_and(|op| always_faults(op.kind)))
    }

    /// Executes what stands at RIP in ring 0, with these GS bases (the active one first).
    pub(super) fn step(
        &mut self,
        regs: &Regs<'_>,
        [active, inactive]: [u64; 2],
        cr3: u64,
        ss: u16,
        checks: &mut Checks,
    ) -> Result<Step<u64>, Stuck<u64>> {
        let state = &mut self.state;
        state.gpr = regs.by_number();
        state.rip = regs.rip();
        state.flags = Flags::new(&self.d, regs.eflags());
        state.cs = self.model.selectors.kernel_cs().into();
        state.ss = ss.into();
        state.cpl = 0;
        (state.gs_base, state.inactive_gs_base) = (active, inactive);
        state.cr3 = cr3;
        state.step(&self.d, &self.model, &self.program, checks)
    }
}

/// What must not be done in the step that is observed.
pub(super) struct Checks {
    pub(super) extra: TssExtra,
    pub(super) pcid: bool,
    pub(super) paging: PagingMode,
    /// SYSRETQ would give a guest the null SS that there is.
    pub(super) null_ss: bool,
    pub(super) failure: Option<Failure>,
}

impl Observer<Concrete> for Checks {
    fn observe(&mut self, _: &Concrete, state: &State<Concrete>, event: Effect<u64>) {
        self.failure = match event {
            Effect::LoadCr3(value) if !may_load(value, &self.extra, self.pcid) => {
                Some(Failure::Cr3 { value })
            }
            Effect::Sysretq => {
                let (rcx, r11) = (state.get(Gpr::Rcx), state.get(Gpr::R11));
                if !self.paging.is_canonical(rcx) {
                    Some(Failure::SysretNonCanonical { rcx })
                } else if self.null_ss {
                    Some(Failure::NullSs)
                } else {
                    (!may_sysret(r11)).then_some(Failure::SysretFlags { r11 })
                }
            }
            _ => return,
        }
    }
}
