//! The code that theorems are about, ours or anybody's.

pub(crate) mod around;
pub(crate) mod looks;
pub(crate) mod overlap;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use iced_x86::{Mnemonic, OpKind};

use crate::elf::{Foreign, Linkage, ReadError};
use crate::gate::TargetGate;
use crate::host_data::{HostData, WrongData};
use crate::setting::Setting;
use crate::target::overlap::Overlap;
use switcher_gen::asm::{HostSymbol, LINE, Label, Window};
use switcher_gen::{Gate, Image};
use switcher_model::{CpuModel, Program};

/// Bytes at an address, their entry points, and what they are meant for: made by
/// [`image`](Self::image) or [`foreign`](Self::foreign).
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct Target {
    /// The code.
    pub program: Program,
    /// `switcher_enter_guest`.
    pub enter_guest: u64,
    /// `switcher_return_from_guest`.
    pub return_from_guest: u64,
    /// `entry_SYSCALL_64_switcher`.
    pub syscall_64: u64,
    /// `entry_SYSCALL_compat_switcher`, if there is one.
    pub syscall_compat: Option<u64>,
    /// `switcher_hand_on` and `switcher_hand_on_stack`, if there are such.
    pub hand_on: [Option<u64>; 2],
    /// `entry_IRETQ_switcher`; code without an IRETQ needs none.
    pub iretq: Option<u64>,
    /// The ranges of each window that the host is told of.
    pub windows: BTreeMap<Window, Vec<Range<u64>>>,
    /// The entries of the IDT, if the code has some.
    pub gates: Option<Vec<TargetGate>>,
    /// All that the code takes of memory, if that is known: of our own images. What is executed of
    /// others' code is known, and not what lies between.
    pub extent: Option<Range<u64>>,
    /// The code in which NMIs are never blocked, to which a #DB or a #MC in ring 0 may return by
    /// IRETQ. Without it, none may.
    pub routines: Option<Range<u64>>,
    /// The addresses of the host's hooks, in the order of [`HostSymbol::HOOKS`]; 0 if there is
    /// none.
    pub hooks: [u64; HostSymbol::HOOKS.len()],
    /// The addresses of the host's untraining and of its return thunk, in the order of
    /// [`HostSymbol::RETURNS`].
    pub returns: [u64; HostSymbol::RETURNS.len()],
    /// Data of the host's that it uses besides its own.
    pub data: Vec<HostData>,
    /// What it is meant for.
    pub setting: Setting,
    /// How many instructions a path may have before it is taken to have no end.
    pub limit: usize,
    /// What a verdict assumes of this code in particular, beside all that spec/proofs.md lists.
    pub assumed: Vec<String>,
    /// What names the code and was found not to change it.
    pub harmless: Vec<String>,
}

/// Why there is nothing to be judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The file's code is not complete, or not what will run.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Regions of its data share bytes with the code, or with each other.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// There is more of the host's data than can be.
    #[error(transparent)]
    Data(#[from] WrongData),
    /// No CPU of this kind executes code there.
    #[error(
        "the code lies at {address:#x}, which is no address with this paging mode: link it to \
         another address, or name a variant with five levels"
    )]
    NotCanonical {
        /// The address.
        address: u64,
    },
}

impl Target {
    /// Where an image is taken to lie. It is position-independent, so one address stands for all.
    pub const BASE: u64 = 0xFFFF_FE80_0000_0000;
    /// More instructions than any path of a switcher has, unless it overwrites much; a loop whose
    /// bound is a number may have more. What is never left is told from what takes long by nothing
    /// else.
    pub const LIMIT: usize = 10_000;

    /// The address that is assumed for a symbol of the host's which one of our own images calls. It
    /// is within reach of the code and overlaps nothing. Of an object,
    /// [`Foreign::hosts`] says it.
    #[must_use]
    pub fn place_of_host(name: &str) -> Option<u64> {
        let mut known = HostSymbol::HOOKS.iter().chain(&HostSymbol::RETURNS);
        let index = known.position(|symbol| symbol.0 == name)?;
        Some(Self::BASE - (1 << 24) + 0x100 * index as u64)
    }

    /// One of our own images.
    #[must_use]
    pub fn image(image: &Image) -> Self {
        let at = |label| Self::BASE + u64::from(image.offset(label));
        let place = |symbol: HostSymbol| Self::place_of_host(symbol.0);
        // All that an image refers to is known, and within reach.
        let linked = image.link(Self::BASE, place).expect("an image refers to nothing else");
        let gate = |vector| {
            let Gate { offset, ist, dpl } = image.gate(vector);
            TargetGate { vector, address: Self::BASE + u64::from(offset), ist, dpl }
        };
        let mut windows = BTreeMap::from(Window::ALL.map(|window| (window, Vec::new())));
        for range in image.windows() {
            let (start, end) = (u64::from(range.start), u64::from(range.end));
            windows.entry(range.window).or_default().push(Self::BASE + start..Self::BASE + end);
        }
        Self {
            program: Program::new(Self::BASE, linked.bytes().to_vec()),
            enter_guest: at(Label::EnterGuest),
            return_from_guest: at(Label::ReturnFromGuest),
            syscall_64: at(Label::Syscall64),
            syscall_compat: Some(at(Label::SyscallCompat)),
            hand_on: [Label::HandOn, Label::HandOnStack].map(|label| Some(at(label))),
            iretq: Some(at(Label::Iretq)),
            windows,
            gates: Some((0..=u8::MAX).map(gate).collect()),
            extent: Some(Self::BASE..at(Label::End)),
            routines: Some(at(Label::Routines)..at(Label::RoutinesEnd)),
            hooks: HostSymbol::HOOKS.map(|symbol| place(symbol).unwrap_or_default()),
            returns: HostSymbol::RETURNS.map(|symbol| place(symbol).unwrap_or_default()),
            data: Vec::new(),
            setting: Setting::from(image.variant()),
            limit: Self::LIMIT,
            assumed: Vec::new(),
            harmless: Vec::new(),
        }
    }

    /// Foreign code. Three symbols must be there; without the others nothing is said about them.
    ///
    /// # Errors
    /// Names the symbol that is missing, or what lies where the code does, or the section of an
    /// object that may come to lie elsewhere in its cache lines, if the variant's mitigations
    /// depend on that.
    pub fn foreign(foreign: &Foreign, setting: Setting) -> Result<Self, TargetError> {
        let has_lines = setting.variant.mitigations().bhb.is_on();
        let mut sections = foreign.sections.iter().filter(|_| has_lines);
        if let Some(section) = sections.find(|section| section.alignment < LINE as u64) {
            let (section, alignment) = (section.name.clone(), section.alignment);
            return Err(ReadError::Line { section, alignment }.into());
        }
        if let Some((section, at)) = foreign.unknown.first().cloned() {
            return Err(ReadError::MaybePatched { section, at }.into());
        }
        let required = |label: Label| foreign.symbol(label.name());
        let optional = |label: Label| foreign.symbols.get(label.name()).copied();
        let stubs = optional(Label::EventStubs).zip(optional(Label::EventStubsEnd));
        let stubs = stubs.and_then(|(start, end)| Some((start, end.checked_sub(start)? / 256)));
        let gate = |vector| {
            let said = foreign.gates.iter().find(|gate| gate.vector == vector);
            let of_stub = |(start, stride)| {
                let Gate { ist, dpl, .. } = Gate::of(0, vector);
                let address = start + stride * u64::from(vector);
                TargetGate { vector, address, ist, dpl }
            };
            said.copied().or_else(|| stubs.map(of_stub))
        };
        // Theorems of events are about all vectors.
        let gates = (0..=u8::MAX).map(gate).collect();
        let routines = optional(Label::Routines).zip(optional(Label::RoutinesEnd));
        let of_host = |symbol: HostSymbol| {
            let own = foreign.symbols.get(symbol.0).copied();
            // What a linked file calls has an address already, by whatever name.
            let taken = foreign.hosts.get(symbol.0).copied();
            own.or(taken).unwrap_or_default()
        };
        let mut program = Program::of_pieces(foreign.base, foreign.pieces.clone())
            .with_changed(foreign.changed.clone());
        if foreign.absolute.is_some() {
            program = program.fixed();
        }
        // What is loaded anywhere finds no per-CPU data by where it is linked.
        if foreign.linkage != Linkage::Movable {
            program = program.with_linked_gs();
        }
        let target = Self {
            program,
            enter_guest: required(Label::EnterGuest)?,
            return_from_guest: required(Label::ReturnFromGuest)?,
            syscall_64: required(Label::Syscall64)?,
            syscall_compat: optional(Label::SyscallCompat),
            hand_on: [Label::HandOn, Label::HandOnStack].map(optional),
            iretq: optional(Label::Iretq),
            windows: BTreeMap::new(),
            gates,
            extent: None,
            routines: routines.map(|(start, end)| start..end),
            hooks: HostSymbol::HOOKS.map(of_host),
            returns: HostSymbol::RETURNS.map(of_host),
            data: Vec::new(),
            setting,
            limit: Self::LIMIT,
            assumed: foreign.assumed().into_iter().chain(setting.contract.assumed()).collect(),
            harmless: foreign.harmless.clone(),
        };
        target.is_possible()?;
        Ok(target)
    }

    /// The same code, which uses this data of the host's besides its own.
    ///
    /// # Errors
    /// If there is too much of it, or if it shares bytes with the code or with other data.
    pub fn with_data(mut self, data: Vec<HostData>) -> Result<Self, TargetError> {
        if data.len() > HostData::MOST {
            return Err(WrongData::TooMany { count: data.len() }.into());
        }
        let paging = self.setting.variant.paging();
        data.iter().try_for_each(|data| data.is_possible(paging))?;
        self.assumed.extend(data.iter().map(ToString::to_string));
        self.data = data;
        self.is_possible()?;
        Ok(self)
    }

    /// The same code, meant for another host.
    #[must_use]
    pub fn with_setting(self, setting: Setting) -> Self {
        Self { setting, ..self }
    }

    /// The same code, of which a path may have as many instructions.
    #[must_use]
    pub fn with_limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// The same code, of which the host is told that these are all ranges of a window.
    #[must_use]
    pub fn with_window(mut self, window: Window, ranges: Vec<Range<u64>>) -> Self {
        let places: Vec<_> =
            ranges.iter().map(|range| format!("{:#x}..{:#x}", range.start, range.end)).collect();
        let what = match window {
            Window::UnsafeStack => "RSP for the guest's",
            Window::GuestRoot => "the root for a guest's",
        };
        self.assumed.push(format!(
            "the host's handlers of NMIs and machine checks take {what} at {}, and nowhere else",
            places.join(", ")
        ));
        self.windows.insert(window, ranges);
        self
    }

    /// Whether the code and its data can lie where they are said to.
    fn is_possible(&self) -> Result<(), TargetError> {
        let paging = self.setting.variant.paging();
        let ends = self.program.pieces().flat_map(|(start, bytes)| {
            [start, start.wrapping_add((bytes.len() as u64).saturating_sub(1))]
        });
        let mut ends = std::iter::once(self.program.base()).chain(ends);
        if let Some(address) = ends.find(|address| !paging.is_canonical(*address)) {
            return Err(TargetError::NotCanonical { address });
        }
        Ok(overlap::check(self)?)
    }

    /// Whether all that the code takes of memory ends at `address`.
    pub(crate) fn ends_at(&self, address: u64) -> bool {
        self.extent.as_ref().is_some_and(|extent| extent.end == address)
    }

    /// Which of the host's hooks is at `address`.
    pub(crate) fn hook(&self, address: u64) -> Option<HostSymbol> {
        symbol_at(&HostSymbol::HOOKS, &self.hooks, address)
    }

    /// Which of the host's symbols is at `address`: first the hooks, then the others.
    pub(crate) fn of_host(&self, address: u64) -> Option<HostSymbol> {
        self.hook(address).or_else(|| symbol_at(&HostSymbol::RETURNS, &self.returns, address))
    }

    /// The addresses that are entered from outside.
    pub(crate) fn entry_points(&self) -> impl Iterator<Item = u64> {
        let required = [self.enter_guest, self.return_from_guest, self.syscall_64];
        required.into_iter().chain(self.syscall_compat).chain(self.hand_on.into_iter().flatten())
    }

    /// The addresses of all instructions that are executed from `entry` on, if no RET and no jump
    /// through a register or memory leads back into the code; and maybe of some that are not. What
    /// is no instruction ends a path.
    pub(crate) fn reached_from(&self, entry: u64) -> BTreeSet<u64> {
        use iced_x86::FlowControl;
        let (mut reached, mut ahead) = (BTreeSet::new(), vec![entry]);
        while let Some(at) = ahead.pop() {
            let is_code = matches!(self.program.at(at), Some(Ok(_)));
            if !is_code || !reached.insert(at) {
                continue;
            }
            let instruction = self.program.instruction(at);
            let (next, to) = (instruction.next_ip(), instruction.near_branch_target());
            match instruction.flow_control() {
                FlowControl::Next => ahead.push(next),
                FlowControl::ConditionalBranch | FlowControl::Call => ahead.extend([next, to]),
                FlowControl::UnconditionalBranch => ahead.push(to),
                // It goes on after a call.
                FlowControl::IndirectCall => ahead.push(next),
                _ => {}
            }
        }
        reached
    }

    /// Where the instructions end that follow each other from `entry` on, up to the first one that
    /// leads elsewhere.
    pub(crate) fn straight_end(&self, entry: u64) -> u64 {
        use iced_x86::FlowControl;
        let mut at = entry;
        while let Some(Ok(op)) = self.program.at(at) {
            let i = self.program.instruction(at);
            at = i.next_ip();
            // iced-x86 does not count these as ends.
            let is_return = op.is_iretq()
                || matches!(i.mnemonic(), Mnemonic::Sysretq | Mnemonic::Sysret | Mnemonic::Hlt);
            if is_return || i.flow_control() != FlowControl::Next {
                break;
            }
        }
        at
    }

    /// Whether `address` is one of the code's, or where a range of it ends.
    pub(crate) fn has_label(&self, address: u64) -> bool {
        self.program.contains(address) || self.program.contains(address.wrapping_sub(1))
    }

    /// The places in the code whose address the instruction at `at` makes a value: by LEA, or as a
    /// number where the code is linked for one address.
    pub(crate) fn named_at(&self, at: u64) -> impl Iterator<Item = u64> {
        let instruction = self.program.instruction(at);
        let is_lea = instruction.mnemonic() == Mnemonic::Lea;
        let is_fixed = self.program.is_fixed();
        let of_lea = is_lea.then(|| match instruction.is_ip_rel_memory_operand() {
            true => Some(instruction.ip_rel_memory_address()),
            // An address, or one that an index is added to.
            false => is_fixed.then(|| instruction.memory_displacement64()),
        });
        let operands = 0..if is_fixed { instruction.op_count() } else { 0 };
        let numbers = operands.filter_map(move |operand| match instruction.op_kind(operand) {
            OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64 => {
                Some(instruction.immediate(operand))
            }
            _ => None,
        });
        let all = of_lea.flatten().into_iter().chain(numbers);
        all.filter(|to| matches!(self.program.at(*to), Some(Ok(_))))
    }

    /// All places whose address the code makes a value that is executed from `entries` on, or from
    /// one of those places on, wherever a RET or a jump leads there.
    pub(crate) fn named_from(&self, entries: impl Iterator<Item = u64>) -> BTreeSet<u64> {
        let (mut named, mut reached) = (BTreeSet::new(), BTreeSet::new());
        let mut ahead: Vec<u64> = entries.collect();
        while let Some(entry) = ahead.pop() {
            for at in self.reached_from(entry) {
                if reached.insert(at) {
                    ahead.extend(self.named_at(at).filter(|to| named.insert(*to)));
                }
            }
        }
        named
    }

    pub(crate) fn model(&self) -> CpuModel {
        self.setting.model()
    }

    /// Whether the instruction at `at` itself names the address that it leads to, which is
    /// elsewhere: a jump, or the end of the code. Where a RET or a jump through a register leads, a
    /// value says.
    pub(crate) fn leaves(&self, at: u64) -> bool {
        use iced_x86::FlowControl;
        !matches!(
            self.program.instruction(at).flow_control(),
            FlowControl::Return | FlowControl::IndirectBranch | FlowControl::IndirectCall
        )
    }

    /// Whether a trap right after the instruction at `at` catches speculation that goes on there.
    pub(crate) fn is_trap_after(&self, at: u64) -> bool {
        use iced_x86::Mnemonic;
        let next = self.program.instruction(at).next_ip();
        // Both decoders say that it is an instruction.
        matches!(self.program.at(next), Some(Ok(_)))
            && matches!(self.program.instruction(next).mnemonic(), Mnemonic::Int3 | Mnemonic::Ud2)
    }

    /// Where code goes on after the trap at `start`, if one is there. Speculation that returns
    /// there must find an end: INT3 or UD2, or a loop of PAUSEs and an LFENCE, as kernels have it.
    pub(crate) fn after_trap(&self, start: u64) -> Option<u64> {
        use iced_x86::Mnemonic;
        let (mut next, mut is_fenced) = (start, false);
        // Kernels have fewer.
        for _ in 0..4 {
            matches!(self.program.at(next), Some(Ok(_))).then_some(())?;
            let instruction = self.program.instruction(next);
            let is_first = next == start;
            next = instruction.next_ip();
            match instruction.mnemonic() {
                Mnemonic::Int3 | Mnemonic::Ud2 => return is_first.then_some(next),
                Mnemonic::Pause => {}
                Mnemonic::Lfence => is_fenced = true,
                Mnemonic::Jmp => {
                    let is_loop = is_fenced && instruction.near_branch_target() == start;
                    return is_loop.then_some(next);
                }
                _ => return None,
            }
        }
        None
    }

    /// Whether `at` is in code in which NMIs are never blocked.
    pub(crate) fn is_routine(&self, at: u64) -> bool {
        self.routines.as_ref().is_some_and(|routines| routines.contains(&at))
    }

    /// Whether there is an ENDBR64 at `at`.
    pub(crate) fn is_endbr(&self, at: u64) -> bool {
        matches!(self.program.at(at), Some(Ok(_)))
            && self.program.instruction(at).mnemonic() == iced_x86::Mnemonic::Endbr64
    }

    /// Whether the instruction at `at` jumps to what a register or memory says. RET does not count:
    /// IBT does not look at it.
    pub(crate) fn is_indirect(&self, at: u64) -> bool {
        use iced_x86::FlowControl;
        self.program.contains(at)
            && matches!(
                self.program.instruction(at).flow_control(),
                FlowControl::IndirectBranch | FlowControl::IndirectCall
            )
    }
}

/// The first of `symbols` that has this address; 0 is none.
fn symbol_at(symbols: &[HostSymbol], addresses: &[u64], address: u64) -> Option<HostSymbol> {
    let mut all = symbols.iter().zip(addresses).filter(|_| address != 0);
    all.find(|(_, at)| **at == address).map(|(symbol, _)| *symbol)
}
