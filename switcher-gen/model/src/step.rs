//! The semantics of each operation: one step of the CPU.

use super::domain::{Domain, low_bytes};
use super::exists::{self, Address, Condition as Needed, MsrRule, Value, msr_number};
use super::flags::even_parity;
use super::memory::{Place, Region, Sharing};
use super::operation::{
    Fault, Fence, Gpr, MemoryOperand, Op, Operand, Operation, Segment, SegmentRegister,
};
use super::program::{Program, ProgramError};
use super::state::{CpuModel, State};
use switcher_gen::arch::{RFlags, Vendor};

/// What one step came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step<W> {
    /// The instruction was executed, and the next one is within the program.
    Next,
    /// SYSRETQ or IRETQ has led to CPL 3.
    Guest {
        /// Whether it was SYSRETQ rather than IRETQ.
        by_sysretq: bool,
    },
    /// RIP is an address outside of the program.
    Left,
    /// The instruction was not executed, because of an exception.
    Fault(Fault<W>),
    /// HLT.
    Halted,
}

/// Why the model cannot say what a CPU would do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Stuck<W: core::fmt::Debug> {
    /// Not modelled.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// An access to memory of which nothing is assumed.
    #[error("{at:#x}: an access to memory that is not the switcher's")]
    Wild {
        /// The instruction.
        at: u64,
        /// The address.
        address: W,
        /// How many bytes.
        size: usize,
        /// Whether it is a store.
        store: bool,
    },
    /// A store to code.
    #[error("{at:#x}: the code writes to itself")]
    SelfModifying {
        /// The instruction.
        at: u64,
    },
    /// An access to an MSR that the model does not have.
    #[error("{at:#x}: an access to an MSR that is not modelled")]
    Msr {
        /// The instruction.
        at: u64,
        /// RCX.
        number: W,
    },
    /// The code goes on at one of its own addresses, and it is not known at which.
    #[error("{at:#x}: a jump to one of several addresses")]
    Several {
        /// The instruction.
        at: u64,
    },
    /// A REP, and how often it repeats is not known.
    #[error("{at:#x}: a REP that repeats as often as the state says")]
    Count {
        /// The instruction.
        at: u64,
    },
    /// No instruction is fetched from where RIP points.
    #[error("no code at RIP")]
    NoCode {
        /// RIP.
        rip: W,
    },
}

/// One access to memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Access<W> {
    /// The accessed bytes.
    pub place: Place,
    /// The value read or written.
    pub value: W,
    /// Whether it is a store.
    pub store: bool,
    /// Whether the address was relative to GS.
    pub gs: bool,
}

/// An access to memory that no assumption is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Elsewhere<W> {
    /// The address.
    pub address: W,
    /// How many bytes.
    pub size: usize,
    /// Whether the address is relative to GS.
    pub gs: bool,
}

/// What an instruction is about to do. An [`Observer`] is told of it before it happens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Effect<W> {
    /// The instruction at this address is about to be executed.
    Execute(u64),
    /// Memory is accessed.
    Access(Access<W>),
    /// The effect of a conditional jump, or of another instruction, depends on this word.
    Depends(W),
    /// A conditional jump has gone one way because of this word, and might have gone the other way.
    Decided(W),
    /// CR3 is to be loaded.
    LoadCr3(W),
    /// GS base is to be loaded.
    WriteGsBase(W),
    /// An MSR is to be read; its number, if that is known.
    ReadMsr(Option<u64>),
    /// An MSR is to be written; its number, if that is known.
    WriteMsr {
        /// The number of the MSR, if it is known.
        number: Option<u64>,
        /// The value that is written.
        value: W,
    },
    /// A descriptor is about to be read from the GDT or the LDT. Of an IRETQ's, its frame tells.
    Descriptor {
        /// Which one.
        selector: W,
        /// Whether a far RET reads it, as the last thing that it does.
        by_return: bool,
    },
    /// VERW of memory.
    Verw,
    /// A jump that is taken; RIP is where it leads.
    Branch(Branch),
    /// SWAPGS.
    SwapGs,
    /// SYSRETQ.
    Sysretq,
    /// IRETQ is about to load this frame.
    Iretq([W; 5]),
    /// An instruction that others wait for. MOV to CR3, IRETQ and WRMSR are reported as what they
    /// are besides.
    Fence(Fence),
    /// An instruction, or a value, needs something of the CPU.
    Needs {
        /// The condition.
        condition: Needed,
        /// Whether the condition is met. If it is not, the instruction faults.
        met: bool,
    },
}

/// Where a CPU can hold values besides those that the table of `exists` allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// In CR3.
    Root,
    /// In MSR SPEC_CTRL.
    SpecCtrl,
    /// As a base of FS or GS.
    Base,
}

/// The kind of a jump, as a branch predictor sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "instructions are what they are called")]
pub enum Branch {
    Jump,
    /// LOOP and its like, of which no vendor says that they are in a history as a Jcc is.
    Counted,
    Call,
    Return,
}

/// Watches an execution.
pub trait Observer<D: Domain> {
    /// `effect` is about to happen in `state`.
    fn observe(&mut self, d: &D, state: &State<D>, effect: Effect<D::Word>);

    /// Values that this CPU is known to accept, because it has held them or because its host
    /// vouches for them. Bits that the table calls reserved may be defined on this CPU.
    fn held(&self, _what: Held) -> &[D::Word] {
        &[]
    }

    // Who watches an execution that does not take place has an answer where a CPU's would depend on
    // what nobody knows. As a rule there is none.

    /// What a load finds where no assumption is made of memory, if it is gone on with.
    fn found(&mut self, _d: &D, _state: &State<D>, _at: Elsewhere<D::Word>) -> Option<D::Word> {
        None
    }

    /// Whether it is gone on after a store of `value` there, which may have changed any memory.
    fn left(
        &mut self,
        _d: &D,
        _state: &mut State<D>,
        _at: Elsewhere<D::Word>,
        _value: D::Word,
    ) -> bool {
        false
    }

    /// What a load finds where `value` is said to lie.
    fn loaded(&mut self, _d: &D, _state: &State<D>, _place: Place, value: D::Word) -> D::Word {
        value
    }

    /// Whether it matters what an instruction needs, and what makes it fault.
    fn asks(&self) -> bool {
        true
    }
}

/// Nobody watches.
#[derive(Clone, Copy, Debug)]
pub struct Unobserved;

impl<D: Domain> Observer<D> for Unobserved {
    #[inline]
    fn observe(&mut self, _d: &D, _state: &State<D>, _effect: Effect<D::Word>) {}
}

/// An instruction that did not come to its end.
enum Stop<W: core::fmt::Debug> {
    Fault(Fault<W>),
    Stuck(Stuck<W>),
}

impl<W: core::fmt::Debug> From<Fault<W>> for Stop<W> {
    fn from(fault: Fault<W>) -> Self {
        Self::Fault(fault)
    }
}

/// One instruction being executed.
struct Cpu<'a, D: Domain, O> {
    d: &'a D,
    model: &'a CpuModel,
    state: &'a mut State<D>,
    observer: &'a mut O,
    at: u64,
}

impl<D: Domain> State<D> {
    /// Executes the instruction at RIP.
    ///
    /// # Errors
    /// If the model cannot say what a CPU would do.
    #[inline]
    pub fn step<O: Observer<D>>(
        &mut self,
        d: &D,
        model: &CpuModel,
        program: &Program,
        observer: &mut O,
    ) -> Result<Step<D::Word>, Stuck<D::Word>> {
        let no_code = Stuck::NoCode { rip: self.rip };
        let at = d.code_at(self.rip).ok_or(no_code.clone())?;
        let op = program.at(at).ok_or(no_code)?.map_err(Clone::clone)?;
        observer.observe(d, self, Effect::Execute(at));
        let next = d.code(op.next);
        let rip = core::mem::replace(&mut self.rip, next);
        let mut cpu = Cpu { d, model, state: self, observer, at };
        match cpu.execute(op) {
            Ok(Step::Next) if op.is_computed() => {
                let step = cpu.jumped(program)?;
                let to = d.code_at(cpu.state.rip).filter(|_| matches!(step, Step::Next));
                to.map_or(Ok(()), |to| program.check_entered(to))?;
                Ok(step)
            }
            Ok(Step::Next) if cpu.state.rip != next => cpu.jumped(program),
            // An instruction that is not a jump may still be the last one.
            Ok(Step::Next) if !program.contains(op.next) => Ok(Step::Left),
            Ok(step) => Ok(step),
            Err(Stop::Fault(fault)) => {
                self.rip = rip;
                Ok(Step::Fault(fault))
            }
            Err(Stop::Stuck(stuck)) => {
                self.rip = rip;
                Err(match stuck {
                    // What is read to be written is asked for as what is written.
                    Stuck::Wild { at, address, size, store } => {
                        Stuck::Wild { at, address, size, store: store || op.changes_memory() }
                    }
                    stuck => stuck,
                })
            }
        }
    }
}

impl<D: Domain> State<D> {
    /// Where `op` leads, if a register or memory says it and the value there is known.
    pub fn leads_to(&self, d: &D, op: &Op) -> Option<D::Word> {
        let address = match (op.kind, op.first) {
            (Operation::Return(_), _) => self.get(Gpr::Rsp),
            (Operation::Jump | Operation::Call, Operand::Gpr { index, .. }) => {
                return Some(self.gpr[index]);
            }
            (Operation::Jump | Operation::Call, Operand::Memory(memory)) => self.address(d, memory),
            _ => return None,
        };
        let place = self.memory.locate(d, address, 8, self.cr3)?;
        Some(self.memory.load(d, place))
    }

    /// Whether a jump with a condition is taken, if `kind` is one.
    pub fn jumps_if(&self, d: &D, kind: Operation) -> Option<D::Bit> {
        let rcx = self.get(Gpr::Rcx);
        Some(match kind {
            Operation::JumpIf(condition) => self.flags.holds(d, condition),
            Operation::Loop(condition) => {
                let goes_on = d.any(d.plus(rcx, -1), u64::MAX);
                condition.map_or(goes_on, |also| d.both(goes_on, self.flags.holds(d, also)))
            }
            Operation::JumpIfZero => d.is(rcx, 0),
            _ => return None,
        })
    }

    /// What a jump with a condition does besides: LOOP counts, and changes no flag.
    pub fn count_down(&mut self, d: &D, kind: Operation) {
        if matches!(kind, Operation::Loop(_)) {
            self.set(Gpr::Rcx, d.plus(self.get(Gpr::Rcx), -1));
        }
    }

    fn address(&self, d: &D, memory: MemoryOperand) -> D::Word {
        let offset = self.offset(d, memory);
        match memory.segment {
            Segment::Flat => offset,
            Segment::Fs => d.add(self.fs_base, offset),
            Segment::Gs => d.add(self.gs_base, offset),
        }
    }

    fn offset(&self, d: &D, memory: MemoryOperand) -> D::Word {
        let displacement = memory.displacement;
        let mut address = if memory.is_code { d.code(displacement) } else { d.word(displacement) };
        if let Some(base) = memory.base {
            address = d.add(self.gpr[base], address);
        }
        if let Some((index, shift)) = memory.index {
            address = d.add(address, d.shl(self.gpr[index], shift));
        }
        address
    }
}

impl<D: Domain, O: Observer<D>> Cpu<'_, D, O> {
    fn jumped(&mut self, program: &Program) -> Result<Step<D::Word>, Stuck<D::Word>> {
        let d = self.d;
        let target = self.state.rip;
        if d.code_at(target).is_none() {
            match d.known(target) {
                // If the code lies at one fixed address, the target is a number.
                Some(number) if program.is_fixed() => self.state.rip = d.code(number),
                Some(_) => {}
                None if d.is_of_code(target) => {
                    self.tell(Effect::Depends(target));
                    // The decision depends on what is added to the address of the code.
                    self.tell(Effect::Decided(d.sub(target, d.code(0))));
                    self.state.rip = d.settle(target);
                    let is_open = d.code_at(self.state.rip).is_none();
                    if is_open && d.is_of_code(self.state.rip) {
                        return Err(Stuck::Several { at: self.at });
                    }
                }
                None => {}
            }
        }
        match d.code_at(self.state.rip) {
            Some(target) if program.contains(target) => Ok(Step::Next),
            // The target may be the return address of a caller, which is outside of the program.
            Some(_) | None => Ok(Step::Left),
        }
    }

    #[expect(clippy::too_many_lines, reason = "one line or two for each operation")]
    #[inline]
    fn execute(&mut self, op: &Op) -> Result<Step<D::Word>, Stop<D::Word>> {
        let d = self.d;
        let size = op.size;
        for condition in exists::of_instruction(op.kind) {
            if !self.observer.asks() {
                break;
            }
            let met = self.state.meets(d, self.model, condition);
            self.needs(*condition, met, Fault::UNDEFINED)?;
        }
        match op.kind {
            Operation::Mov => {
                let value = self.read(op.second)?;
                self.write(op.first, value)?;
            }
            Operation::MovZeroExtended => {
                let value = self.read(op.second)?;
                self.write(op.first, value)?;
            }
            Operation::MovSignExtended => {
                let from = width(op.second);
                let value = d.sign_extend(self.read(op.second)?, from);
                self.write(op.first, d.truncate(value, size))?;
            }
            Operation::Lea => {
                let Operand::Memory(memory) = op.second else { unreachable!("LEA has an address") };
                let address = self.offset(memory);
                self.write(op.first, d.truncate(address, size))?;
            }
            Operation::Xchg => {
                let (a, b) = (self.read(op.first)?, self.read(op.second)?);
                self.write(op.first, b)?;
                self.write(op.second, a)?;
            }
            Operation::ExchangeAdd => {
                let (a, b) = (self.read(op.first)?, self.read(op.second)?);
                let result = d.truncate(d.add(a, b), size);
                // What may fault comes first, and where both are one register, it has the sum.
                if matches!(op.first, Operand::Memory(_)) {
                    self.write(op.first, result)?;
                    self.write(op.second, a)?;
                } else {
                    self.write(op.second, a)?;
                    self.write(op.first, result)?;
                }
                self.state.flags.add(size, a, b, result);
            }
            Operation::CompareExchange => {
                let rax = Operand::Gpr { index: Gpr::Rax as usize, size };
                let (a, b) = (self.read(op.first)?, self.read(op.second)?);
                let expected = self.read(rax)?;
                let is_there = d.eq(expected, a);
                if let Operand::Gpr { index, .. } = op.first {
                    // Not touched otherwise: of 32 bits, not even extended.
                    let before = self.state.gpr[index];
                    self.write(op.first, b)?;
                    let after = self.state.gpr[index];
                    self.state.gpr[index] = d.select(is_there, after, before);
                } else {
                    // Stored in any case: what was there, if that is not what was expected.
                    self.write(op.first, d.select(is_there, b, a))?;
                }
                let kept = self.state.get(Gpr::Rax);
                self.write(rax, a)?;
                let found = self.state.get(Gpr::Rax);
                self.state.set(Gpr::Rax, d.select(is_there, kept, found));
                self.state.flags.sub(size, expected, a, d.truncate(d.sub(expected, a), size));
            }
            Operation::StoreString { repeats } | Operation::CopyString { repeats } => {
                self.string(op, repeats)?;
            }
            Operation::Add => {
                let [a, b] = self.operands(op)?;
                let result = d.truncate(d.add(a, b), size);
                self.write(op.first, result)?;
                self.state.flags.add(size, a, b, result);
            }
            Operation::Sub => {
                let [a, b] = self.operands(op)?;
                let result = d.truncate(d.sub(a, b), size);
                self.write(op.first, result)?;
                self.state.flags.sub(size, a, b, result);
            }
            Operation::Cmp => {
                let [a, b] = self.operands(op)?;
                self.state.flags.sub(size, a, b, d.truncate(d.sub(a, b), size));
            }
            Operation::And => self.logic(op, D::and)?,
            Operation::Or => self.logic(op, D::or)?,
            Operation::Xor => self.logic(op, D::xor)?,
            Operation::Test => {
                let [a, b] = self.operands(op)?;
                self.state.flags.logic(size, a, b, d.and(a, b));
            }
            Operation::Not => {
                let a = self.read(op.first)?;
                self.write(op.first, d.xor(a, d.word(low_bytes(size))))?;
            }
            Operation::Neg => {
                let a = self.read(op.first)?;
                let zero = d.word(0);
                let result = d.truncate(d.sub(zero, a), size);
                self.write(op.first, result)?;
                self.state.flags.sub(size, zero, a, result);
            }
            Operation::Inc | Operation::Dec => {
                // INC and DEC leave the carry as it is.
                let carry = self.state.flags.carry(d);
                let (a, one) = (self.read(op.first)?, d.word(1));
                let is_inc = op.kind == Operation::Inc;
                let result = if is_inc { d.add(a, one) } else { d.sub(a, one) };
                let result = d.truncate(result, size);
                self.write(op.first, result)?;
                if is_inc {
                    self.state.flags.add(size, a, one, result);
                } else {
                    self.state.flags.sub(size, a, one, result);
                }
                self.state.flags.set(d, RFlags::CF, carry);
            }
            Operation::Shl | Operation::Shr | Operation::Sar => self.shift(op)?,
            Operation::Bt | Operation::Bts | Operation::Btr => {
                let Operand::Immediate(index) = op.second else { unreachable!("decoded so") };
                let index = index as u32 & (8 * size as u32 - 1);
                let a = self.read(op.first)?;
                let carry = d.test(a, index);
                let was = self.state.flags.value(d);
                match op.kind {
                    Operation::Bts => self.write(op.first, d.or(a, d.word(1 << index)))?,
                    Operation::Btr => self.write(op.first, d.mask(a, !(1 << index)))?,
                    _ => {}
                }
                // ZF stays; the others are undefined.
                for (flag, name) in
                    [(RFlags::OF, "OF"), (RFlags::SF, "SF"), (RFlags::AF, "AF"), (RFlags::PF, "PF")]
                {
                    self.state.flags.set(d, flag, d.undefined(name, &[a, was]));
                }
                self.state.flags.set(d, RFlags::CF, carry);
            }
            Operation::Set(condition) => {
                let value = d.number(self.state.flags.holds(d, condition));
                self.write(op.first, value)?;
            }
            Operation::MovIf(condition) => {
                let condition = self.state.flags.holds(d, condition);
                // Read in any case; a 32-bit destination is zero-extended in any case.
                let (a, b) = (self.read(op.first)?, self.read(op.second)?);
                self.write(op.first, d.select(condition, b, a))?;
            }
            Operation::Push => {
                let value = self.read(op.first)?;
                self.push(value)?;
            }
            Operation::Pop => {
                let value = self.pop()?;
                self.write(op.first, value)?;
            }
            Operation::PushFlags => {
                // VM and RF are pushed as zero.
                let flags = d.mask(self.state.rflags(d), !(RFlags::VM | RFlags::RF).bits());
                self.push(flags)?;
            }
            Operation::PopFlags => self.pop_flags()?,
            Operation::Jump => {
                self.state.rip = self.target(op)?;
                self.tell(Effect::Branch(Branch::Jump));
            }
            Operation::JumpIf(_) | Operation::Loop(_) | Operation::JumpIfZero => {
                self.jump_if(op)?
            }
            Operation::Call => {
                let target = self.target(op)?;
                self.push(d.code(op.next))?;
                self.state.rip = target;
                self.tell(Effect::Branch(Branch::Call));
            }
            Operation::Return(release) => {
                self.state.rip = self.pop()?;
                self.tell(Effect::Branch(Branch::Return));
                let rsp = self.state.get(Gpr::Rsp);
                self.state.set(Gpr::Rsp, d.plus(rsp, release.into()));
            }
            Operation::ReturnFar(release) => self.return_far(release)?,
            Operation::Nothing => {}
            Operation::Fence(fence) => self.tell(Effect::Fence(fence)),
            Operation::Verw => {
                let selector = d.truncate(self.read(op.first)?, 2);
                self.tell(Effect::Descriptor { selector, by_return: false });
                // With a register it says whether the segment may be written, and clears nothing
                // (Intel, "Microarchitectural Data Sampling").
                if matches!(op.first, Operand::Memory(_)) {
                    self.tell(Effect::Verw);
                }
                // It says whether that segment may be written, which is for the GDT to know.
                let was = self.state.flags.value(d);
                let writable = d.undefined("ZF", &[selector, was]);
                self.state.flags.set(d, RFlags::ZF, writable);
            }
            Operation::ReadSegment(SegmentRegister::Cs) => self.write(op.first, self.state.cs)?,
            Operation::ReadSegment(SegmentRegister::Ss) => self.write(op.first, self.state.ss)?,
            Operation::ReadGsBase => {
                self.write(op.first, self.state.gs_base)?;
            }
            Operation::ReadFsBase => {
                self.write(op.first, self.state.fs_base)?;
            }
            Operation::WriteGsBase => {
                let base = self.read(op.first)?;
                self.tell(Effect::WriteGsBase(base));
                self.canonical(Address::GsBase, base)?;
                self.state.gs_base = base;
            }
            Operation::WriteFsBase => {
                let base = self.read(op.first)?;
                self.canonical(Address::FsBase, base)?;
                self.state.fs_base = base;
            }
            Operation::ReadPkru => {
                self.zero(exists::PKRU_ECX, Gpr::Rcx)?;
                self.state.set(Gpr::Rax, self.state.pkru);
                self.state.set(Gpr::Rdx, d.word(0));
            }
            Operation::WritePkru => {
                self.zero(exists::PKRU_ECX, Gpr::Rcx)?;
                self.zero(exists::PKRU_EDX, Gpr::Rdx)?;
                self.state.pkru = d.truncate(self.state.get(Gpr::Rax), 4);
            }
            Operation::Syscall => {
                if self.state.cpl != 3 {
                    // Of ring 0, nothing returns here.
                    return Err(Fault::UNDEFINED.into());
                }
                let entry = super::state::SyscallKind::Long;
                self.state.syscall(d, self.model, entry)?;
            }
            Operation::Ud2 => return Err(Fault::UNDEFINED.into()),
            Operation::Int3 => return Err(Fault::BREAKPOINT.into()),
            // A gate of DPL 0 is named by the error code; bit 1 says that it is the IDT's. Ring 0
            // may use any.
            Operation::Int(vector) => {
                return Err(match vector {
                    _ if self.state.cpl == 0 => Fault { vector, error_code: None },
                    3 | 4 | 0x80 => Fault { vector, error_code: None },
                    _ => Fault::protection(d.word(u64::from(vector) << 3 | 2)),
                }
                .into());
            }
            // Intel: the host has set SYSENTER_CS to 0. AMD: it does not exist in long mode.
            Operation::Sysenter => {
                return Err(match self.model.vendor {
                    Vendor::Intel => Fault::protection(d.word(0)),
                    Vendor::Amd => Fault::UNDEFINED,
                }
                .into());
            }
            Operation::ClearDirection => self.state.flags.set(d, RFlags::DF, d.bit(false)),
            Operation::SetDirection => self.state.flags.set(d, RFlags::DF, d.bit(true)),
            Operation::WriteSs => {
                let selector = d.truncate(self.read(op.second)?, 2);
                self.tell(Effect::Descriptor { selector, by_return: false });
                let s = self.model.selectors;
                let fits = match self.state.cpl {
                    // A null SS is fine at CPL 0 in 64-bit mode.
                    0 => d.either(d.is(selector, s.kernel_ds().into()), d.is(selector, 0)),
                    _ => d.is(selector, s.user_ds().into()),
                };
                if self.observer.asks() && !d.decide(fits) {
                    return Err(Fault::protection(d.mask(selector, 0xFFFC)).into());
                }
                self.state.ss = selector;
            }
            Operation::SwapGs
            | Operation::ReadCr3
            | Operation::ReadCr4
            | Operation::WriteCr3
            | Operation::ReadMsr
            | Operation::WriteMsr
            | Operation::Sysretq
            | Operation::Sysretl
            | Operation::Iretq
            | Operation::ClearAc
            | Operation::SetAc
            | Operation::ClearInterrupt
            | Operation::SetInterrupt
            | Operation::In
            | Operation::Halt => return self.privileged(op),
        }
        Ok(Step::Next)
    }

    /// Instructions that fault at CPL 3.
    fn privileged(&mut self, op: &Op) -> Result<Step<D::Word>, Stop<D::Word>> {
        let d = self.d;
        if op.kind == Operation::Iretq {
            return self.iretq();
        }
        if self.state.cpl != 0 {
            return Err(match op.kind {
                Operation::ClearAc | Operation::SetAc => Fault::UNDEFINED,
                _ => Fault::protection(d.word(0)),
            }
            .into());
        }
        match op.kind {
            Operation::SwapGs => {
                self.tell(Effect::SwapGs);
                let state = &mut *self.state;
                core::mem::swap(&mut state.gs_base, &mut state.inactive_gs_base);
            }
            Operation::ReadCr4 => self.write(op.first, self.state.cr4)?,
            // A CPU does not keep NOFLUSH.
            Operation::ReadCr3 => self.write(op.first, d.mask(self.state.cr3, !(1 << 63)))?,
            Operation::WriteCr3 => {
                let value = self.read(op.second)?;
                let value = self.same_root(value);
                self.tell(Effect::LoadCr3(value));
                self.root(value)?;
                self.tell(Effect::Fence(Fence::LoadCr3));
                self.state.cr3 = value;
            }
            Operation::ReadMsr => self.read_msr()?,
            Operation::WriteMsr => self.write_msr()?,
            Operation::Sysretq => {
                self.tell(Effect::Sysretq);
                self.state.sysretq(d, self.model)?;
                return Ok(Step::Guest { by_sysretq: true });
            }
            Operation::Sysretl => {
                self.state.sysretl(d);
                return Ok(Step::Guest { by_sysretq: true });
            }
            Operation::ClearAc => self.state.flags.set(d, RFlags::AC, d.bit(false)),
            Operation::SetAc => self.state.flags.set(d, RFlags::AC, d.bit(true)),
            Operation::ClearInterrupt => self.state.flags.set(d, RFlags::IF, d.bit(false)),
            Operation::SetInterrupt => self.state.flags.set(d, RFlags::IF, d.bit(true)),
            // At CPL 3 a port is a fault: IOPL is 0, and there is no I/O bitmap. At CPL 0 it is a
            // device.
            Operation::In => {
                let error = ProgramError::NotModelled { at: self.at, text: "in".into() };
                return Err(Stop::Stuck(error.into()));
            }
            _ => return Ok(Step::Halted),
        }
        Ok(Step::Next)
    }

    fn iretq(&mut self) -> Result<Step<D::Word>, Stop<D::Word>> {
        let d = self.d;
        let rsp = self.state.get(Gpr::Rsp);
        let mut frame = [rsp; 5];
        for (slot, word) in frame.iter_mut().enumerate() {
            *word = self.load(d.plus(rsp, 8 * slot as i64), 8, false)?;
        }
        self.tell(Effect::Iretq(frame));
        let before = self.state.cpl;
        self.state.iretq(d, self.model, frame)?;
        self.tell(Effect::Fence(Fence::Iretq));
        let is_within_ring = self.state.cpl == before;
        Ok(if is_within_ring { Step::Next } else { Step::Guest { by_sysretq: false } })
    }

    /// RET to what RIP and CS on the stack say (Intel SDM vol. 2, RET): within ring 0 alone. CPUs
    /// do not predict it, but an observer may want to know of it.
    fn return_far(&mut self, release: u16) -> Result<(), Stop<D::Word>> {
        let d = self.d;
        let rsp = self.state.get(Gpr::Rsp);
        let rip = self.load(rsp, 8, false)?;
        let cs = d.truncate(self.load(d.plus(rsp, 8), 8, false)?, 2);
        self.tell(Effect::Descriptor { selector: cs, by_return: true });
        let is_kernels = d.is(cs, self.model.selectors.kernel_cs().into());
        if self.state.cpl != 0 || !d.decide(is_kernels) {
            // No guest is entered by a far RET.
            return Err(Fault::protection(d.mask(cs, 0xFFFC)).into());
        }
        self.canonical(Address::Rip, rip)?;
        self.state.rip = rip;
        self.state.cs = cs;
        self.tell(Effect::Branch(Branch::Return));
        self.state.set(Gpr::Rsp, d.plus(rsp, 16 + i64::from(release)));
        Ok(())
    }

    fn jump_if(&mut self, op: &Op) -> Result<(), Stop<D::Word>> {
        let d = self.d;
        let holds = self.state.jumps_if(d, op.kind).unwrap_or(d.bit(true));
        self.tell(Effect::Depends(d.number(holds)));
        self.state.count_down(d, op.kind);
        let taken = d.decide(holds);
        if d.was_open() {
            self.tell(Effect::Decided(d.number(holds)));
        }
        if taken {
            self.state.rip = self.target(op)?;
            let is_plain = matches!(op.kind, Operation::JumpIf(_));
            self.tell(Effect::Branch(if is_plain { Branch::Jump } else { Branch::Counted }));
        }
        Ok(())
    }

    /// STOS and MOVS: once, or one round of as many as RCX says. An event may come in front of each
    /// round, and finds RIP where it is (Intel SDM vol. 2, REP): so each is a step of its own.
    fn string(&mut self, op: &Op, repeats: bool) -> Result<(), Stop<D::Word>> {
        let d = self.d;
        let count = match repeats {
            true => {
                let count = d.known(self.state.get(Gpr::Rcx));
                count.ok_or(Stop::Stuck(Stuck::Count { at: self.at }))?
            }
            false => 1,
        };
        if count == 0 {
            return Ok(());
        }
        let is_down = self.state.flags.other(d, RFlags::DF);
        self.tell(Effect::Depends(d.number(is_down)));
        let goes_down = d.decide(is_down);
        if d.was_open() {
            self.tell(Effect::Decided(d.number(is_down)));
        }
        let value = self.read(op.second)?;
        self.write(op.first, value)?;
        let by = if goes_down { -(op.size as i64) } else { op.size as i64 };
        let is_copy = matches!(op.kind, Operation::CopyString { .. });
        for pointer in [Some(Gpr::Rdi), is_copy.then_some(Gpr::Rsi)].into_iter().flatten() {
            self.state.set(pointer, d.plus(self.state.get(pointer), by));
        }
        if repeats {
            self.state.set(Gpr::Rcx, d.word(count - 1));
            if count != 1 {
                self.state.rip = d.code(self.at);
            }
        }
        Ok(())
    }

    fn logic(
        &mut self,
        op: &Op,
        operation: fn(&D, D::Word, D::Word) -> D::Word,
    ) -> Result<(), Stop<D::Word>> {
        let [a, b] = self.operands(op)?;
        let result = operation(self.d, a, b);
        self.write(op.first, result)?;
        self.state.flags.logic(op.size, a, b, result);
        Ok(())
    }

    fn shift(&mut self, op: &Op) -> Result<(), Stop<D::Word>> {
        let d = self.d;
        let bits = 8 * op.size as u32;
        let Operand::Immediate(count) = op.second else { unreachable!("decoded so") };
        let by = count as u32 & if op.size == 8 { 63 } else { 31 };
        let a = self.read(op.first)?;
        if by == 0 {
            // Not even the flags change, but a 32-bit register is zero-extended.
            return self.write(op.first, a);
        }
        let was = self.state.flags.value(d);
        let signed = d.sign_extend(a, op.size);
        let (result, last_out) = match op.kind {
            // CF is undefined if all bits are shifted out.
            Operation::Shl if by < bits => (d.shl(a, by), d.test(a, bits - by)),
            Operation::Shr if by < bits => (d.shr(a, by), d.test(a, by - 1)),
            Operation::Sar => (d.sar(signed, by), d.test(signed, by - 1)),
            // The count is as large as the operand, or larger: all bits are shifted out.
            _ => (d.word(0), d.undefined("CF", &[a, was])),
        };
        let result = d.truncate(result, op.size);
        self.write(op.first, result)?;
        let top = |word| d.test(word, bits - 1);
        let overflow = match op.kind {
            _ if by != 1 => d.undefined("OF", &[a, was]),
            Operation::Shl => d.differ(top(result), last_out),
            Operation::Shr => top(a),
            _ => d.bit(false),
        };
        let flags = &mut self.state.flags;
        flags.logic(op.size, a, was, result);
        let parity = even_parity(d, result);
        flags.set(d, RFlags::PF, parity);
        flags.set(d, RFlags::CF, last_out);
        flags.set(d, RFlags::OF, overflow);
        Ok(())
    }

    fn pop_flags(&mut self) -> Result<(), Stop<D::Word>> {
        let d = self.d;
        let popped = self.pop()?;
        let mut kept = (RFlags::VM | RFlags::VIF | RFlags::VIP).bits();
        if self.state.cpl != 0 {
            // IOPL is 0 here, and IF is the host's.
            kept |= (RFlags::IOPL | RFlags::IF).bits();
        }
        let flags = d.or(d.mask(popped, !kept), d.mask(self.state.rflags(d), kept));
        // POPF clears RF, whatever was popped.
        self.state.load_flags(d, d.mask(flags, !RFlags::RF.bits()));
        Ok(())
    }

    fn read_msr(&mut self) -> Result<(), Stop<D::Word>> {
        let d = self.d;
        self.tell(Effect::ReadMsr(self.msr_number()));
        let rule = self.msr_exists()?;
        let general = Fault::protection(d.word(0));
        self.needs(Needed::Readable { of: rule.name }, rule.is_readable, general)?;
        let value = *self.msr()?;
        self.state.set(Gpr::Rax, d.truncate(value, 4));
        self.state.set(Gpr::Rdx, d.shr(value, 32));
        Ok(())
    }

    fn write_msr(&mut self) -> Result<(), Stop<D::Word>> {
        let d = self.d;
        let low = d.truncate(self.state.get(Gpr::Rax), 4);
        let value = d.or(d.shl(self.state.get(Gpr::Rdx), 32), low);
        self.tell(Effect::Fence(Fence::WriteMsr));
        let number = self.msr_number();
        self.tell(Effect::WriteMsr { number, value });
        let rule = self.msr_exists()?;
        if let Some(msr_number::GS_BASE | msr_number::KERNEL_GS_BASE) = number {
            self.tell(Effect::WriteGsBase(value));
        }
        match rule.value {
            Value::Any => {}
            Value::Canonical(of) => self.canonical(of, value)?,
            Value::Bits(bits) => {
                let has = |feature: &exists::Features| {
                    feature.is_empty() || self.model.features.intersects(*feature)
                };
                let allowed = bits.iter().filter(|(_, feature)| has(feature));
                let allowed = allowed.fold(0, |all, (bits, _)| all | bits);
                let by = bits.iter().fold(exists::Features::empty(), |all, (_, one)| all | *one);
                let held = (number == Some(msr_number::SPEC_CTRL)).then_some(Held::SpecCtrl);
                self.bits(Needed::Bits { of: rule.name, allowed, by }, held, value)?;
            }
        }
        match number {
            // It changes nothing that is modelled.
            Some(msr_number::PRED_CMD) => return Ok(()),
            // The features that EFER switches are not modelled.
            Some(number @ msr_number::EFER) => {
                let number = d.word(number);
                return Err(Stop::Stuck(Stuck::Msr { at: self.at, number }));
            }
            _ => {}
        }
        *self.msr()? = value;
        Ok(())
    }

    /// The rule for the MSR that ECX names, which exists.
    fn msr_exists(&mut self) -> Result<MsrRule, Stop<D::Word>> {
        let d = self.d;
        let number = d.truncate(self.state.get(Gpr::Rcx), 4);
        let rule = d.known(number).and_then(exists::msr);
        let rule = rule.ok_or(Stop::Stuck(Stuck::Msr { at: self.at, number }))?;
        if let Some(condition) = rule.exists.filter(|_| self.observer.asks()) {
            let met = self.state.meets(d, self.model, &condition);
            self.needs(condition, met, Fault::protection(d.word(0)))?;
        }
        Ok(rule)
    }

    /// What ECX holds, if that is known.
    fn msr_number(&self) -> Option<u64> {
        self.d.known(self.d.truncate(self.state.get(Gpr::Rcx), 4))
    }

    /// The MSR that ECX names.
    fn msr(&mut self) -> Result<&mut D::Word, Stop<D::Word>> {
        let number = self.d.truncate(self.state.get(Gpr::Rcx), 4);
        let state = &mut *self.state;
        Ok(match self.d.known(number) {
            Some(msr_number::SPEC_CTRL) => &mut state.msrs.spec_ctrl,
            Some(msr_number::EFER) => &mut state.msrs.efer,
            Some(msr_number::STAR) => &mut state.msrs.star,
            Some(msr_number::LSTAR) => &mut state.msrs.lstar,
            Some(msr_number::CSTAR) => &mut state.msrs.cstar,
            Some(msr_number::SFMASK) => &mut state.msrs.sfmask,
            Some(msr_number::FS_BASE) => &mut state.fs_base,
            Some(msr_number::GS_BASE) => &mut state.gs_base,
            Some(msr_number::KERNEL_GS_BASE) => &mut state.inactive_gs_base,
            _ => return Err(Stop::Stuck(Stuck::Msr { at: self.at, number })),
        })
    }

    /// `fault` unless a condition is met.
    fn needs(
        &mut self,
        condition: Needed,
        met: bool,
        fault: Fault<D::Word>,
    ) -> Result<(), Stop<D::Word>> {
        if !self.observer.asks() {
            return Ok(());
        }
        self.tell(Effect::Needs { condition, met });
        if met { Ok(()) } else { Err(fault.into()) }
    }

    /// #GP unless the lower half of a register is zero.
    fn zero(&mut self, condition: Needed, register: Gpr) -> Result<(), Stop<D::Word>> {
        if !self.observer.asks() {
            return Ok(());
        }
        let d = self.d;
        let met = d.decide(d.is(d.truncate(self.state.get(register), 4), 0));
        self.needs(condition, met, Fault::protection(d.word(0)))
    }

    /// #GP unless `address` is canonical. If a CPU has wider addresses than its paging mode, a base
    /// may be as wide as those. A base that the CPU has held already is accepted again.
    fn canonical(&mut self, of: Address, address: D::Word) -> Result<(), Stop<D::Word>> {
        let d = self.d;
        if !self.observer.asks() || self.observer.held(Held::Base).contains(&address) {
            return Ok(());
        }
        // An address of memory that exists is canonical.
        let regions = &self.state.memory.regions;
        let is_there = |region: &Region<D>| {
            let at = d.distance(address, region.base);
            let end = region.offset(region.cells.len());
            at.is_some_and(|at| (region.start..end).contains(&at))
        };
        let is_known = d.known(address).is_none() && regions.iter().any(is_there);
        let met = is_known || d.decide(self.model.is_canonical(d, address));
        self.needs(Needed::Canonical(of), met, Fault::protection(d.word(0)))
    }

    /// #GP if `value` has bits that are neither allowed nor part of a value that the CPU is known
    /// to accept.
    fn bits(
        &mut self,
        condition: Needed,
        held: Option<Held>,
        value: D::Word,
    ) -> Result<(), Stop<D::Word>> {
        if !self.observer.asks() {
            return Ok(());
        }
        let d = self.d;
        let Needed::Bits { allowed, .. } = condition else {
            unreachable!("that is what it is about")
        };
        let outside = d.mask(value, !allowed);
        let fits = |outside| d.not(d.any(outside, u64::MAX));
        let mut met = fits(outside);
        for one in held.map(|held| self.observer.held(held)).unwrap_or_default() {
            if *one == value {
                return Ok(());
            }
            // A value with the same unknown bits, or with fewer, is legal there.
            let others = d.xor(*one, d.word(u64::MAX));
            met = d.either(met, d.either(d.eq(*one, value), fits(d.and(outside, others))));
        }
        // The path on which the value faults comes first. On the path where the CPU happens to
        // accept it, any other mistake says less.
        let met = !d.decide(d.not(met));
        self.needs(condition, met, Fault::protection(d.word(0)))
    }

    /// A root as it was known before, if `value` is what MOV from CR3 makes of it: that is the same
    /// root, whatever NOFLUSH was, which CR3 does not keep. To load it with NOFLUSH clear is always
    /// allowed.
    fn same_root(&self, value: D::Word) -> D::Word {
        let held = self.observer.held(Held::Root);
        let is_read = |root: &&D::Word| {
            **root != value && self.d.mask(**root, !(1 << exists::CR3_NOFLUSH)) == value
        };
        match held.contains(&value) {
            true => value,
            false => held.iter().find(is_read).copied().unwrap_or(value),
        }
    }

    /// #GP unless `value` can be a root.
    fn root(&mut self, value: D::Word) -> Result<(), Stop<D::Word>> {
        let d = self.d;
        if !self.observer.asks() || self.observer.held(Held::Root).contains(&value) {
            return Ok(());
        }
        let noflush = d.test(value, exists::CR3_NOFLUSH);
        if d.decide(noflush) {
            let met = self.state.meets(d, self.model, &exists::CR4_PCIDE);
            self.needs(exists::CR4_PCIDE, met, Fault::protection(d.word(0)))?;
        }
        let rest = d.mask(value, !(1 << exists::CR3_NOFLUSH));
        self.bits(exists::CR3, Some(Held::Root), rest)
    }

    // Operands.

    /// Both operands, truncated to the operand size.
    fn operands(&mut self, op: &Op) -> Result<[D::Word; 2], Stop<D::Word>> {
        let a = self.read(op.first)?;
        let b = self.read(op.second)?;
        Ok([a, self.d.truncate(b, op.size)])
    }

    /// Where a jump or call leads: a distance that is part of the code, or an operand.
    fn target(&mut self, op: &Op) -> Result<D::Word, Stop<D::Word>> {
        match op.first {
            Operand::Immediate(target) => Ok(self.d.code(target)),
            other => self.read(other),
        }
    }

    /// An operand, zero-extended; an immediate is sign-extended.
    #[inline]
    fn read(&mut self, operand: Operand) -> Result<D::Word, Stop<D::Word>> {
        let d = self.d;
        Ok(match operand {
            Operand::None => d.word(0),
            Operand::Gpr { index, size: 8 } => self.state.gpr[index],
            Operand::Gpr { index, size } => d.truncate(self.state.gpr[index], size),
            Operand::High { index } => d.mask(d.shr(self.state.gpr[index], 8), 0xFF),
            Operand::Immediate(value) => d.word(value),
            Operand::Memory(memory) => {
                let (address, gs) = self.address(memory);
                self.load(address, memory.size, gs)?
            }
        })
    }

    #[inline]
    fn write(&mut self, operand: Operand, value: D::Word) -> Result<(), Stop<D::Word>> {
        let d = self.d;
        match operand {
            Operand::None | Operand::Immediate(_) => {}
            Operand::Gpr { index, size: 8 } => self.state.gpr[index] = value,
            // A 32-bit result is zero-extended.
            Operand::Gpr { index, size: 4 } => self.state.gpr[index] = d.truncate(value, 4),
            Operand::Gpr { index, size } => {
                let kept = d.mask(self.state.gpr[index], !low_bytes(size));
                self.state.gpr[index] = d.or(kept, d.truncate(value, size));
            }
            Operand::High { index } => {
                let kept = d.mask(self.state.gpr[index], !0xFF00);
                self.state.gpr[index] = d.or(kept, d.shl(d.mask(value, 0xFF), 8));
            }
            Operand::Memory(memory) => {
                let (address, gs) = self.address(memory);
                self.store(address, memory.size, value, gs)?;
            }
        }
        Ok(())
    }

    /// The linear address, and whether it is relative to GS.
    fn address(&self, memory: MemoryOperand) -> (D::Word, bool) {
        (self.state.address(self.d, memory), memory.segment == Segment::Gs)
    }

    fn offset(&self, memory: MemoryOperand) -> D::Word {
        self.state.offset(self.d, memory)
    }

    fn push(&mut self, value: D::Word) -> Result<(), Stop<D::Word>> {
        let rsp = self.d.plus(self.state.get(Gpr::Rsp), -8);
        self.store(rsp, 8, value, false)?;
        self.state.set(Gpr::Rsp, rsp);
        Ok(())
    }

    fn pop(&mut self) -> Result<D::Word, Stop<D::Word>> {
        let rsp = self.state.get(Gpr::Rsp);
        let value = self.load(rsp, 8, false)?;
        self.state.set(Gpr::Rsp, self.d.plus(rsp, 8));
        Ok(value)
    }

    fn load(&mut self, address: D::Word, size: usize, gs: bool) -> Result<D::Word, Stop<D::Word>> {
        let place = match self.place(address, size, false) {
            Ok(place) => place,
            Err(stop) => {
                let at = Elsewhere { address, size, gs };
                let found = self.observer.found(self.d, self.state, at);
                return found.ok_or(stop);
            }
        };
        self.state.memory.look(self.d, place);
        let value = self.state.memory.load(self.d, place);
        let value = self.observer.loaded(self.d, self.state, place, value);
        self.tell(Effect::Access(Access { place, value, store: false, gs }));
        Ok(value)
    }

    fn store(
        &mut self,
        address: D::Word,
        size: usize,
        value: D::Word,
        gs: bool,
    ) -> Result<(), Stop<D::Word>> {
        let place = match self.place(address, size, true) {
            Ok(place) => place,
            Err(stop) => {
                let at = Elsewhere { address, size, gs };
                let is_left = self.observer.left(self.d, self.state, at, value);
                return if is_left { Ok(()) } else { Err(stop) };
            }
        };
        if self.state.memory.regions[place.region].is_code {
            return Err(Stop::Stuck(Stuck::SelfModifying { at: self.at }));
        }
        self.tell(Effect::Access(Access { place, value, store: true, gs }));
        self.state.memory.store(self.d, place, value);
        Ok(())
    }

    fn place(&self, address: D::Word, size: usize, store: bool) -> Result<Place, Stop<D::Word>> {
        let memory = &self.state.memory;
        memory.locate(self.d, address, size, self.state.cr3).ok_or(Stop::Stuck(Stuck::Wild {
            at: self.at,
            address,
            size,
            store,
        }))
    }

    fn tell(&mut self, effect: Effect<D::Word>) {
        self.observer.observe(self.d, self.state, effect);
    }
}

/// How many bytes an operand has.
const fn width(operand: Operand) -> usize {
    match operand {
        Operand::Gpr { size, .. } => size,
        Operand::High { .. } => 1,
        Operand::Memory(memory) => memory.size,
        Operand::None | Operand::Immediate(_) => 8,
    }
}

impl Sharing {
    /// Whether the guest writes to this region, too.
    #[must_use]
    pub const fn is_guests(self) -> bool {
        matches!(self, Self::Guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CR4, CR4_PKE, Concrete, EFER, Flags, Memory, Msrs};
    use switcher_gen::Variant;

    /// Ring 0 with RAX, RCX and RDX, after its next instruction.
    fn stepped(code: &[u8], cr3: u64, [rax, rcx, rdx]: [u64; 3]) -> (State<Concrete>, Step<u64>) {
        let d = Concrete::default();
        let program = Program::new(0, code.to_vec());
        let mut state = State {
            gpr: [0; 16],
            rip: 0,
            flags: Flags::new(&d, RFlags::FIXED.bits()),
            cs: 0x10,
            ss: 0x18,
            cpl: 0,
            gs_base: 0,
            inactive_gs_base: 0,
            fs_base: 0,
            cr3,
            cr4: CR4,
            pkru: 0,
            nmi_blocked: false,
            msrs: Msrs { star: 0, lstar: 0, cstar: 0, sfmask: 0, spec_ctrl: 0, efer: EFER },
            memory: Memory { regions: Vec::new(), racing: false },
        };
        for (register, value) in [(Gpr::Rax, rax), (Gpr::Rcx, rcx), (Gpr::Rdx, rdx)] {
            state.set(register, value);
        }
        let model = CpuModel::from(&Variant::REFERENCE);
        let step = state.step(&d, &model, &program, &mut Unobserved).unwrap();
        (state, step)
    }

    /// `state`, about to execute the code at address 0.
    fn at_0(state: &State<Concrete>) -> State<Concrete> {
        let mut state = state.clone();
        state.rip = 0;
        state
    }

    const WRMSR: [u8; 2] = [0x0F, 0x30];
    const MOV_RAX_CR3: [u8; 3] = [0x0F, 0x20, 0xD8];

    #[test]
    fn an_msr_for_an_address_takes_no_other_number() {
        for msr in [
            msr_number::LSTAR,
            msr_number::CSTAR,
            msr_number::FS_BASE,
            msr_number::GS_BASE,
            msr_number::KERNEL_GS_BASE,
        ] {
            let (_, step) = stepped(&WRMSR, 0, [0, msr, 0x8000]);
            assert_eq!(step, Step::Fault(Fault::protection(0)), "{msr:#x}");
            let (_, step) = stepped(&WRMSR, 0, [0, msr, 0x7FFF]);
            assert_eq!(step, Step::Left, "{msr:#x}");
        }
        // STAR is not an address.
        assert_eq!(stepped(&WRMSR, 0, [0, msr_number::STAR, 0x8000]).1, Step::Left);
    }

    #[test]
    fn without_fsgsbase_pke_and_sce_their_instructions_are_undefined() {
        let d = Concrete::default();
        let undefined = Step::Fault(Fault::UNDEFINED);
        // RDGSBASE RAX, WRFSBASE RAX, SYSRETQ, RDPKRU, WRPKRU.
        let instructions: [&[u8]; 5] = [
            &[0xF3, 0x48, 0x0F, 0xAE, 0xC8],
            &[0xF3, 0x48, 0x0F, 0xAE, 0xD0],
            &[0x48, 0x0F, 0x07],
            &[0x0F, 0x01, 0xEE],
            &[0x0F, 0x01, 0xEF],
        ];
        for code in instructions {
            let program = Program::new(0, code.to_vec());
            let model = CpuModel::from(&Variant::REFERENCE);
            let (mut state, _) = stepped(&[0x90], 0, [0; 3]);
            state.cr4 |= CR4_PKE;
            assert_ne!(at_0(&state).step(&d, &model, &program, &mut Unobserved), Ok(undefined));
            (state.cr4, state.msrs.efer) = (0, 0);
            assert_eq!(at_0(&state).step(&d, &model, &program, &mut Unobserved), Ok(undefined));
        }
        // RDMSR of EFER, and MOV RAX, CR4.
        let (state, _) = stepped(&[0x0F, 0x32], 0, [0, msr_number::EFER, 0]);
        assert_eq!(state.get(Gpr::Rax), EFER);
        assert_eq!(stepped(&[0x0F, 0x20, 0xE0], 0, [0; 3]).0.get(Gpr::Rax), CR4);
    }

    /// Ring 0 with NMIs blocked and these words on its stack, after its next instruction.
    fn returned(code: &[u8], words: &[u64]) -> (State<Concrete>, Step<u64>) {
        const STACK: u64 = 0x7000_0000;
        let d = Concrete::default();
        let program = Program::new(0, code.to_vec());
        let (mut state, _) = stepped(&[0x90], 0, [0; 3]);
        state.nmi_blocked = true;
        state.set(Gpr::Rsp, STACK);
        let cells = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        state.memory.regions.push(crate::Region::new(crate::RegionName::Stack, STACK, 0, cells));
        let mut state = at_0(&state);
        let model = CpuModel::from(&Variant::REFERENCE);
        let step = state.step(&d, &model, &program, &mut Unobserved).unwrap();
        state.set(Gpr::Rsp, state.get(Gpr::Rsp).wrapping_sub(STACK));
        (state, step)
    }

    const IRETQ: [u8; 2] = [0x48, 0xCF];
    const RETFQ: [u8; 2] = [0x48, 0xCB];
    const RETFQ_128: [u8; 4] = [0x48, 0xCA, 128, 0];
    const KERNEL_RIP: u64 = 0xFFFF_FFFF_8100_0000;

    #[test]
    fn an_iret_ends_the_blocking_of_nmis_whatever_comes_of_it() {
        let (state, step) = returned(&IRETQ, &[KERNEL_RIP, 0x10, 2, 0x1234, 0x18]);
        assert_eq!((step, state.rip, state.nmi_blocked), (Step::Left, KERNEL_RIP, false));
        // CS is nothing.
        let (state, step) = returned(&IRETQ, &[KERNEL_RIP, 0x50, 2, 0x1234, 0x18]);
        assert_eq!((step, state.nmi_blocked), (Step::Fault(Fault::protection(0x50)), false));
    }

    #[test]
    fn a_far_return_within_ring_0_leaves_nmis_blocked() {
        for (code, released) in [(&RETFQ[..], 16), (&RETFQ_128, 16 + 128)] {
            let (state, step) = returned(code, &[KERNEL_RIP, 0x10]);
            assert_eq!((step, state.rip, state.nmi_blocked), (Step::Left, KERNEL_RIP, true));
            assert_eq!((state.get(Gpr::Rsp), state.cs, state.ss), (released, 0x10, 0x18));
            // To CPL 3, and to a number that is not canonical.
            let (_, step) = returned(code, &[KERNEL_RIP, 0x33]);
            assert_eq!(step, Step::Fault(Fault::protection(0x30)));
            let (state, step) = returned(code, &[1 << 47, 0x10]);
            assert_eq!((step, state.rip), (Step::Fault(Fault::protection(0)), 0));
        }
    }

    #[test]
    fn what_a_cpu_lacks_faults() {
        let d = Concrete::default();
        let run = |code: &[u8], features, cr4, [rax, rcx, rdx]: [u64; 3]| {
            let program = Program::new(0, code.to_vec());
            let model = CpuModel { features, ..CpuModel::from(&Variant::REFERENCE) };
            let (mut state, _) = stepped(&[0x90], 0, [rax, rcx, rdx]);
            state.cr4 = cr4;
            at_0(&state).step(&d, &model, &program, &mut Unobserved).unwrap()
        };
        let (undefined, general) =
            (Step::Fault(Fault::UNDEFINED), Step::Fault(Fault::protection(0)));
        let none = exists::Features::empty();
        // CLAC, STAC.
        for code in [[0x0F, 0x01, 0xCA], [0x0F, 0x01, 0xCB]] {
            assert_eq!(run(&code, none, CR4, [0; 3]), undefined);
            assert_eq!(run(&code, exists::Features::SMAP, CR4, [0; 3]), Step::Left);
        }
        // A feature, an MSR, a value that it allows, and one that it does not.
        type F = exists::Features;
        let msrs = [
            (F::IBPB, msr_number::PRED_CMD, [1, 0], [0x81, 0]),
            (F::SBPB, msr_number::PRED_CMD, [0x80, 0], [0x81, 0]),
            (F::IBRS, msr_number::SPEC_CTRL, [1, 0], [2, 0]),
            (F::IBRS | F::STIBP, msr_number::SPEC_CTRL, [3, 0], [4, 0]),
            (F::IBRS | F::BHI_CTRL, msr_number::SPEC_CTRL, [0x401, 0], [0x200, 0]),
            (F::IBRS, msr_number::SPEC_CTRL, [0, 0], [1, 1]),
            (none, msr_number::SFMASK, [0x4_7700, 0], [0, 1]),
        ];
        for (features, msr, [low, high], [other, other_high]) in msrs {
            assert_eq!(run(&WRMSR, features, CR4, [low, msr, high]), Step::Left, "{msr:#x}");
            let reserved = run(&WRMSR, features, CR4, [other, msr, other_high]);
            assert_eq!(reserved, general, "{msr:#x}");
            if !features.is_empty() {
                assert_eq!(run(&WRMSR, none, CR4, [low, msr, high]), general, "{msr:#x}");
            }
        }
        // RDMSR of PRED_CMD, and of SPEC_CTRL where it is not.
        assert_eq!(run(&[0x0F, 0x32], F::IBPB, CR4, [0, msr_number::PRED_CMD, 0]), general);
        assert_eq!(run(&[0x0F, 0x32], none, CR4, [0, msr_number::SPEC_CTRL, 0]), general);
        assert_eq!(run(&[0x0F, 0x32], F::SSBD, CR4, [0, msr_number::SPEC_CTRL, 0]), Step::Left);
        // MOV CR3, RAX: NOFLUSH without PCIDs, and beyond any physical address.
        let mov = [0x0F, 0x22, 0xD8];
        assert_eq!(run(&mov, none, CR4, [1 << 63, 0, 0]), general);
        assert_eq!(run(&mov, none, CR4 | crate::CR4_PCIDE, [1 << 63, 0, 0]), Step::Left);
        for bit in [52, 61, 62] {
            let cr4 = CR4 | crate::CR4_PCIDE;
            assert_eq!(run(&mov, none, cr4, [1 << bit, 0, 0]), general, "{bit}");
        }
        assert_eq!(run(&mov, none, CR4, [(1 << 52) - 1, 0, 0]), Step::Left);
    }

    #[test]
    fn cr3_does_not_keep_noflush() {
        let (state, _) = stepped(&MOV_RAX_CR3, 1 << 63 | 0x1003, [0; 3]);
        assert_eq!(state.get(Gpr::Rax), 0x1003);
    }
}
