//! CPL 3: what a CPU does around an instruction of the guest.

use super::watch::Alignment;
use super::{Error, Interpreter, PageKind};
use switcher_gen::arch::{RFlags, Vendor, vector};
use switcher_model::SyscallKind;
use switcher_model::program::{Op, Operand, Operation};
use switcher_model::{Concrete, Fault, Memory, Program, Region, RegionName, Step, Stuck};

/// Why an event came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The instruction at RIP could not be executed.
    Fault,
    /// The instruction before RIP is what it came after.
    Trap,
}

/// What one of the guest's roots maps.
#[derive(Debug)]
pub(super) struct Space {
    /// The memory of the mode. While the CPU is in this space, it is exchanged for ring 0's.
    pub(super) memory: Memory<Concrete>,
    /// The pages of code in that memory.
    code: Vec<Page>,
}

/// One or several pages of code.
#[derive(Debug)]
struct Page {
    program: Program,
    /// The index of the region in the memory.
    region: usize,
    /// Where something was loaded: offset and length. INT3 lies everywhere else.
    written: Vec<(usize, usize)>,
}

impl Default for Space {
    fn default() -> Self {
        Self { memory: Memory { regions: Vec::new(), racing: false }, code: Vec::new() }
    }
}

/// INT3: what pages of code hold where nothing was loaded.
const FILLER: u8 = 0xCC;

impl Space {
    pub(super) fn map(&mut self, start: u64, len: usize, kind: PageKind) {
        let is_code = kind == PageKind::Code;
        let filler = if is_code { FILLER } else { 0 };
        let region = self.memory.regions.len();
        let mut memory = Region::new(RegionName::Guest, start, 0, vec![filler; len]);
        memory.is_code = is_code;
        self.memory.regions.push(memory);
        if is_code {
            let program = Program::new(start, vec![FILLER; len]);
            self.code.push(Page { program, region, written: Vec::new() });
        }
    }

    pub(super) fn write_code(&mut self, address: u64, bytes: &[u8]) -> bool {
        let Some(page) = self.code.iter_mut().find(|page| page.program.contains(address)) else {
            return false;
        };
        let offset = (address - page.program.base()) as usize;
        if bytes.len() > page.program.from(address).len() {
            return false;
        }
        page.program.patch(address, bytes);
        self.memory.regions[page.region].cells[offset..offset + bytes.len()].copy_from_slice(bytes);
        page.written.push((offset, bytes.len()));
        true
    }

    pub(super) fn clear_code(&mut self) {
        for page in &mut self.code {
            for (offset, len) in page.written.drain(..) {
                let filler = vec![FILLER; len];
                page.program.patch(page.program.base() + offset as u64, &filler);
                self.memory.regions[page.region].cells[offset..offset + len].fill(FILLER);
            }
        }
    }

    fn page(&self, address: u64) -> Option<usize> {
        self.code.iter().position(|page| page.program.contains(address))
    }
}

/// DR6's B0: the breakpoint in DR0.
const DR6_B0: u64 = 1 << 0;
/// DR6's BS: a single step.
const DR6_BS: u64 = 1 << 14;

// Bits of a page fault's error code (Intel SDM vol. 3, 4.7).
const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const FETCH: u64 = 1 << 4;

/// The address bits that count in 32-bit code.
const LOW: u64 = u32::MAX as u64;

impl Interpreter {
    /// Executes the guest until the CPU is in ring 0 again, at an entry of the switcher.
    pub(super) fn guest(&mut self) -> Result<(), Error> {
        while self.state.cpl == 3 {
            self.tick()?;
            self.instruction()?;
        }
        Ok(())
    }

    /// One instruction, and the trap after it.
    fn instruction(&mut self) -> Result<(), Error> {
        let rip = self.state.rip;
        let is_resumed = self.state.flags.other(&self.d, RFlags::RF);
        if self.breakpoint == Some(rip) && !is_resumed {
            self.run.dr6 = Some(DR6_B0);
            return self.event(vector::DB, None, Cause::Fault);
        }
        let compatibility = self.state.cs == u64::from(self.model.selectors.user32_cs());
        if compatibility {
            self.state.rip = rip & LOW;
        }
        let space = &self.spaces[self.inside.unwrap_or_default()];
        let page = self.inside.and_then(|_| space.page(self.state.rip));
        let Some(page) = page else { return self.fetch_fault() };
        let program = &space.code[page].program;
        let op = match program.at(self.state.rip) {
            Some(Ok(op)) => *op,
            Some(Err(error)) => return Err(self.not_modelled(error)),
            None => return self.fetch_fault(),
        };
        if compatibility {
            return self.compatibility(&op);
        }
        let traced = self.state.flags.other(&self.d, RFlags::TF);
        let before = self.state.gpr;
        let mut alignment = Alignment::default();
        let step = self.state.step(&self.d, &self.model, program, &mut alignment);
        if alignment.violated {
            return Err(self.not_modelled("#AC"));
        }
        match step {
            Ok(Step::Next | Step::Left) => {
                if self.state.cpl == 0 {
                    return self.system_call(SyscallKind::Long);
                }
                if self.state.rip != op.next && !self.model.paging.is_canonical(self.state.rip) {
                    // Intel's CPUs fault at the branch, AMD's at its target.
                    return Err(self.not_modelled("a branch to what is no address"));
                }
                // IRETQ has just loaded RF, for the next instruction.
                if is_resumed && op.kind != Operation::Iretq {
                    self.state.flags.set(&self.d, RFlags::RF, false);
                }
                if traced {
                    self.run.dr6 = Some(DR6_BS);
                    return self.event(vector::DB, None, Cause::Trap);
                }
                Ok(())
            }
            Ok(Step::Fault(fault)) => {
                self.state.gpr = before;
                self.fault(fault, &op)
            }
            Ok(Step::Guest { .. } | Step::Halted) => Err(self.not_modelled(op_name(&op))),
            Err(stuck) => {
                self.state.gpr = before;
                self.access_fault(stuck, &op)
            }
        }
    }

    /// An exception of the instruction at RIP.
    fn fault(&mut self, fault: Fault<u64>, op: &Op) -> Result<(), Error> {
        // The exception of an INT or INT3 comes after the instruction.
        let is_trap = op.is_trap(&fault);
        if is_trap {
            self.state.rip = op.next;
            // RF applied to the instruction that has been executed. CPUs push it as zero.
            self.state.flags.set(&self.d, RFlags::RF, false);
        }
        let cause = if is_trap { Cause::Trap } else { Cause::Fault };
        self.event(fault.vector, fault.error_code.map(|code| code as u32), cause)
    }

    /// Nothing can be fetched from where RIP points.
    fn fetch_fault(&mut self) -> Result<(), Error> {
        let rip = self.state.rip;
        if !self.model.paging.is_canonical(rip) {
            return self.event(vector::GP, Some(0), Cause::Fault);
        }
        let present = if self.is_mapped(rip) { PRESENT } else { 0 };
        self.page_fault(rip, FETCH | USER | present)
    }

    fn page_fault(&mut self, address: u64, error_code: u64) -> Result<(), Error> {
        self.run.cr2 = Some(address);
        self.event(vector::PF, Some(error_code as u32), Cause::Fault)
    }

    /// Whether memory exists at the address, the guest's or the host's.
    fn is_mapped(&self, address: u64) -> bool {
        let is_in = |memory: &Memory<Concrete>| {
            // The root is the host's business: its stack is not mapped in a guest's.
            memory.locate(&self.d, address, 1, self.state.cr3).is_some()
        };
        self.switcher.contains(address)
            || is_in(&self.state.memory)
            || self.inside.is_some_and(|mode| is_in(&self.spaces[mode].memory))
    }

    /// The access of the instruction at RIP that could not be made.
    fn access_fault(&mut self, stuck: Stuck<u64>, op: &Op) -> Result<(), Error> {
        let (address, size, store) = match stuck {
            Stuck::Wild { address, size, store, .. } => (address, size, store),
            Stuck::SelfModifying { .. } => match self.address_of_store(op) {
                Some(address) => return self.page_fault(address, USER | WRITE | PRESENT),
                None => return Err(self.not_modelled("this store to code")),
            },
            other => return Err(self.not_modelled(other)),
        };
        let accessible = |byte: u64| {
            self.state
                .memory
                .locate(&self.d, byte, 1, self.state.cr3)
                .is_some_and(|place| !(store && self.state.memory.regions[place.region].is_code))
        };
        let bytes = (0..size as u64).map(|n| address.wrapping_add(n));
        if !bytes.clone().all(|byte| self.model.paging.is_canonical(byte)) {
            let vector = if op.is_on_stack() { vector::SS } else { vector::GP };
            return self.event(vector, Some(0), Cause::Fault);
        }
        let Some(first) = bytes.clone().find(|byte| !accessible(*byte)) else {
            return Err(self.not_modelled("an access across two pages"));
        };
        let write = if store || writes_what_it_reads(op) { WRITE } else { 0 };
        let present = if self.is_mapped(first) { PRESENT } else { 0 };
        self.page_fault(first, USER | write | present)
    }

    /// Where the instruction at RIP would store: found by executing it again without the code that
    /// it would overwrite.
    fn address_of_store(&mut self, op: &Op) -> Option<u64> {
        if matches!(op.kind, Operation::Call | Operation::Push) {
            // The instruction may read from the code, too.
            return None;
        }
        let mut state = self.state.clone();
        state.memory.regions.retain(|region| !region.is_code);
        let space = &self.spaces[self.inside?];
        let program = &space.code[space.page(state.rip)?].program;
        match state.step(&self.d, &self.model, program, &mut Alignment::default()) {
            Err(Stuck::Wild { address, .. }) => Some(address),
            _ => None,
        }
    }

    /// 32-bit code: the few instructions that are the same there.
    fn compatibility(&mut self, op: &Op) -> Result<(), Error> {
        if self.state.flags.other(&self.d, RFlags::TF) {
            return Err(self.not_modelled("32-bit code with TF"));
        }
        match (op.kind, self.model.vendor) {
            (Operation::Syscall, Vendor::Amd) => {
                self.state.rip = op.next & LOW;
                // AMD's CPUs have this SYSCALL, so it cannot fail.
                match self.state.syscall(&self.d, &self.model, SyscallKind::Compatibility) {
                    Ok(()) => self.system_call(SyscallKind::Compatibility),
                    Err(fault) => self.fault(fault, op),
                }
            }
            (Operation::Syscall | Operation::Ud2, _) => self.fault(Fault::UNDEFINED, op),
            (Operation::Int3, _) => self.fault(Fault::BREAKPOINT, op),
            _ => Err(self.not_modelled("32-bit code")),
        }
    }

    fn not_modelled(&self, what: impl ToString) -> Error {
        Error::NotModelled { rip: self.state.rip, what: what.to_string() }
    }
}

fn op_name(op: &Op) -> String {
    format!("{:?}", op.kind)
}

/// Whether the page of the first operand must be writable although it is read first.
fn writes_what_it_reads(op: &Op) -> bool {
    use Operation::{Add, And, Btr, Bts, Dec, Inc, Neg, Not, Or, Sar, Shl, Shr, Sub, Xchg, Xor};
    let to_memory = matches!(op.first, Operand::Memory(_));
    match op.kind {
        Add | Sub | And | Or | Xor | Not | Neg | Inc | Dec | Shl | Shr | Sar | Bts | Btr => {
            to_memory
        }
        Xchg => true,
        _ => false,
    }
}
