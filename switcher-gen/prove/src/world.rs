//! The states that theorems are about: the machine's and the specification's, of the same unknowns.
//!
//! Everything **assumed** is in this file: see [`World::assume`] and the list in CAVEATS.md. A state
//! is built from a [`Source`] of values: variables for a proof, numbers for a fuzzer or for the
//! replay of a counterexample.

use super::boundary;
use super::events::EventContext;
use switcher_gen::Variant;
use switcher_gen::arch::{PagingMode, RFlags};
use switcher_gen::layout;
use switcher_gen::layout::{
    AsmLayout, IretFrame, Layout, Placement, PtRegs, PvcsLayout, Revision, Sp0, Tss, TssExtra,
};
use switcher_model::{
    Domain, EFER, Features, Flags, Gpr, Memory, Model, Msrs, Origin, Program, Region, RegionName,
    Sharing, State as Machine, cr4,
};
use switcher_spec as spec;
use switcher_spec::{Caller, Guest, Host, Registers};

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
    /// Which part.
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
    /// The same of the IST stack.
    IstStack,
    /// The same of the caller's stack.
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
    /// And below its stack.
    HookStack,
}

impl Object {
    /// In reports.
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
        }
    }
}

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
    pub(super) const fn whole(of: Object) -> Self {
        Self { of, part: Part::Whole, at_entry: false }
    }

    pub(super) const fn field(of: Object, field: &'static str) -> Self {
        Self { of, part: Part::Field(field), at_entry: false }
    }

    pub(super) const fn register(of: Object, register: Gpr) -> Self {
        Self { of, part: Part::Register(register), at_entry: false }
    }

    /// Where the value comes from, and so who may learn it (spec/hazards.md, rows 34 and 35). What is
    /// not said to be the guest's, or to be handed to it, is the host's.
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
            // Nobody compares what is left there: it may be anything of the host's.
            (_, Part::Scratch(_)) => Origin::Stale,
            // Which mode it is in, a guest chooses.
            (Object::TssExtra, Part::Field("switch_flags")) => Origin::Stale,
            // What the host has put there, or zero.
            (Object::Interrupted, Part::Field("host_rsp")) => Origin::Host,
            (of, _) => match of {
                Object::Guest | Object::Frame | Object::Pvcs | Object::FsBase | Object::Pkru => {
                    Origin::Guest
                }
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
                Object::Host
                | Object::GuestRoot
                | Object::OrigAx
                | Object::Sp0
                | Object::Ist
                | Object::PvcsAddress
                | Object::Tss
                | Object::TssExtra
                | Object::HostStack
                | Object::Cr4
                | Object::Efer
                | Object::SpecCtrl => Origin::Host,
            },
        }
    }
}

/// The fields of [`TssExtra`] that the ABI hands to the guest (spec/abi.md, "The per-CPU block"): it
/// has chosen them itself, by the MSRs of the guest interface.
const PUBLISHED: [&str; 5] = ["retu_rip", "smod_entry", "smod_gsbase", "smod_pkru", "smod_rsp"];

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

/// Whether a routine may leave anything in this field, so that the next one finds it there: where RSP
/// passes through. What is not compared at an end is this, and has an origin that no guest may learn.
pub(super) fn is_scratch(of: Object, field: &str, revision: Revision) -> bool {
    match (of, field) {
        (Object::Tss, "sp2") => true,
        // With the other revision, the stack that the guest has chosen for its kernel.
        (Object::TssExtra, "smod_rsp") => revision == Revision::V2026,
        _ => false,
    }
}

/// Where in the per-CPU block the data lies: relative to the block's address, which is the host's GS
/// base or a number, by the variant's placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockOffsets {
    /// The TSS.
    pub tss: i64,
    /// What follows it for the switcher.
    pub tss_extra: i64,
}

impl Default for BlockOffsets {
    /// [`layout::PerCpu`].
    fn default() -> Self {
        let at = |bytes: usize| bytes as i64;
        let (tss, extra) = (layout::PerCpu::tss, layout::PerCpu::tss_extra);
        Self { tss: at(tss.bytes()), tss_extra: at(extra.bytes()) }
    }
}

/// What a switcher is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Setting {
    /// The CPU, the paging mode and the selectors.
    pub variant: Variant,
    /// Where the per-CPU data is.
    pub block: BlockOffsets,
    /// The flags that SYSCALL clears: what the host has in SFMASK.
    pub sfmask: RFlags,
    /// What its CPUs have besides what the variant implies.
    pub features: Features,
}

impl From<&Variant> for Setting {
    /// As our own images have it.
    fn from(variant: &Variant) -> Self {
        let (block, sfmask) = (BlockOffsets::default(), RFlags::SYSCALL_CLEARS);
        Self { variant: *variant, block, sfmask, features: Features::empty() }
    }
}

impl Setting {
    /// What the PVCS looks like.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.variant.revision()
    }

    /// The CPU.
    #[must_use]
    pub fn model(&self) -> Model {
        let model = Model::from(&self.variant);
        Model { features: model.features | self.features, ..model }
    }

    pub(super) fn host(&self) -> Host {
        Host {
            paging: self.variant.paging(),
            selectors: self.variant.selectors(),
            revision: self.revision(),
            ibrs: self.variant.mitigations().ibrs,
            pku: self.variant.pku(),
        }
    }
}

pub(super) const FRAME: i64 = size_of::<PtRegs>() as i64;
/// How much of the caller's stack `switcher_enter_guest` may use: what it saves, and as many return
/// addresses at once as fill a return stack buffer.
const CALLER_STACK: i64 = 512;

/// A field's place: name, offset, size.
pub(super) type FieldAt = (&'static str, i64, usize);

/// The host's stack as an entry leaves it, for the exits that need it: what the switcher saves there
/// is its own business, but it must find it again.
#[derive(Debug)]
pub struct Saved<D: Domain> {
    pub(super) stack: Vec<D::Cell>,
    pub(super) host_rsp: D::Word,
}

impl<D: Domain> Clone for Saved<D> {
    fn clone(&self) -> Self {
        Self { stack: self.stack.clone(), host_rsp: self.host_rsp }
    }
}

/// One state, twice.
pub(super) struct World<D: Domain> {
    /// As the CPU has it.
    pub machine: Machine<D>,
    /// As the specification has it.
    pub spec: spec::State<D>,
    /// Who called, or will be returned to.
    pub caller: Caller<D::Word>,
    /// The frame the guest is entered with, or that a handler has written.
    pub frame: Guest<D::Word>,
    /// And where an exit's frame is.
    pub frame_at: D::Word,
    /// What is assumed of the values, in words.
    pub assumptions: Vec<(&'static str, D::Bit)>,
    /// What the CPU is.
    pub model: Model,
    pub(super) setting: Setting,
    /// The host's GS base.
    pub(super) host_gs: D::Word,
    /// What the host's untraining of returns leaves, if the host has one.
    pub(super) untraining: Option<Untraining<D>>,
    /// FS base as it was.
    pub(super) fs_base: D::Word,
    /// The event, if there is one.
    pub(super) event: Option<EventContext<D>>,
    /// The initial memory, to tell what has changed.
    pub(super) before: Memory<D>,
}

/// What [`HostSymbol::UNTRAIN`](switcher_gen::asm::HostSymbol::UNTRAIN) may leave.
pub(super) struct Untraining<D: Domain> {
    /// RAX, RCX, RDX.
    pub(super) registers: [D::Word; 3],
    /// The arithmetic flags, among others.
    pub(super) flags: D::Word,
    /// The stack below its return address and that itself, from the top.
    pub(super) below: Vec<D::Cell>,
}

/// The moment a theorem starts at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// The host has called `switcher_enter_guest`.
    Call,
    /// A guest, in 64-bit code, is about to execute SYSCALL; RIP is behind it.
    Guest,
    /// The same in 32-bit code.
    Guest32,
    /// A handler of the host jumps to the exit; the frame is on the sp0 stack, or on one of the IST.
    Handler {
        /// Whether it is on the IST's.
        ist: bool,
    },
}

pub(super) const EXTRA_FIELDS: [FieldAt; 14] = [
    ("host_cr3", TssExtra::host_cr3.bytes() as i64, 8),
    ("host_rsp", TssExtra::host_rsp.bytes() as i64, 8),
    ("enter_cr3", TssExtra::enter_cr3.bytes() as i64, 8),
    ("switch_flags", TssExtra::switch_flags.bytes() as i64, 8),
    ("smod_cr3", TssExtra::smod_cr3.bytes() as i64, 8),
    ("umod_cr3", TssExtra::umod_cr3.bytes() as i64, 8),
    ("pvcs", TssExtra::pvcs.bytes() as i64, 8),
    ("retu_rip", TssExtra::retu_rip.bytes() as i64, 8),
    ("smod_entry", TssExtra::smod_entry.bytes() as i64, 8),
    ("smod_gsbase", TssExtra::smod_gsbase.bytes() as i64, 8),
    ("smod_rsp", TssExtra::smod_rsp.bytes() as i64, 8),
    ("host_spec_ctrl", TssExtra::host_spec_ctrl.bytes() as i64, 4),
    ("guest_spec_ctrl", TssExtra::guest_spec_ctrl.bytes() as i64, 4),
    ("smod_pkru", TssExtra::smod_pkru.bytes() as i64, 4),
];

/// The fields of the PVCS that the specification knows; the current revision has no RSP.
pub(super) fn pvcs_fields(revision: Revision) -> [Option<FieldAt>; 9] {
    fn of<P: PvcsLayout>() -> [Option<FieldAt>; 9] {
        let at = |name, bytes: usize, size| Some((name, bytes as i64, size));
        [
            at("user_cs", P::USER_CS.bytes(), 2),
            at("user_ss", P::USER_SS.bytes(), 2),
            at("user_gsbase", P::USER_GSBASE.bytes(), 8),
            at("eflags", P::EFLAGS.bytes(), 4),
            at("pkru", P::PKRU.bytes(), 4),
            at("rip", P::RIP.bytes(), 8),
            P::RSP.and_then(|rsp| at("rsp", rsp.bytes(), 8)),
            at("rcx", P::RCX.bytes(), 8),
            at("r11", P::R11.bytes(), 8),
        ]
    }
    match revision {
        Revision::V2024 => of::<layout::Pvcs>(),
        Revision::V2026 => of::<layout::PvcsV2026>(),
    }
}

/// Where a general register is in a [`PtRegs`].
pub(super) fn in_frame(register: Gpr) -> i64 {
    let offset = match register {
        Gpr::Rax => PtRegs::rax.bytes(),
        Gpr::Rcx => PtRegs::rcx.bytes(),
        Gpr::Rdx => PtRegs::rdx.bytes(),
        Gpr::Rbx => PtRegs::rbx.bytes(),
        Gpr::Rsp => PtRegs::rsp.bytes(),
        Gpr::Rbp => PtRegs::rbp.bytes(),
        Gpr::Rsi => PtRegs::rsi.bytes(),
        Gpr::Rdi => PtRegs::rdi.bytes(),
        Gpr::R8 => PtRegs::r8.bytes(),
        Gpr::R9 => PtRegs::r9.bytes(),
        Gpr::R10 => PtRegs::r10.bytes(),
        Gpr::R11 => PtRegs::r11.bytes(),
        Gpr::R12 => PtRegs::r12.bytes(),
        Gpr::R13 => PtRegs::r13.bytes(),
        Gpr::R14 => PtRegs::r14.bytes(),
        Gpr::R15 => PtRegs::r15.bytes(),
    };
    offset as i64
}

/// The rest of a [`PtRegs`].
pub(super) const FRAME_REST: [FieldAt; 5] = [
    ("orig_ax", PtRegs::orig_ax.bytes() as i64, 8),
    ("rip", PtRegs::rip.bytes() as i64, 8),
    ("cs", PtRegs::cs.bytes() as i64, 8),
    ("rflags", PtRegs::eflags.bytes() as i64, 8),
    ("ss", PtRegs::ss.bytes() as i64, 8),
];

/// Builds a world.
struct Builder<'a, D: Domain, S> {
    d: &'a D,
    source: &'a mut S,
    /// A cell, whatever is in it.
    zero: D::Cell,
    revision: Revision,
}

impl<D: Domain, S: Source<D>> Builder<'_, D, S> {
    fn value(&mut self, name: Name, bits: u32) -> D::Word {
        self.source.value(self.d, name, bits)
    }

    fn whole(&mut self, of: Object, bits: u32) -> D::Word {
        self.value(Name::whole(of), bits)
    }

    fn field(&mut self, of: Object, field: &'static str, bits: u32) -> D::Word {
        self.value(Name::field(of, field), bits)
    }

    fn registers(&mut self, of: Object) -> [D::Word; 16] {
        Gpr::ALL.map(|register| self.value(Name::register(of, register), 64))
    }

    /// Cells with a value of their own for each field of `layout` and for each byte between them.
    fn fields(&mut self, name: Object, layout: &Layout) -> Vec<D::Cell> {
        let mut cells = Vec::with_capacity(layout.size);
        for field in layout.fields {
            self.gap(name, &mut cells, field.offset);
            if matches!(field.size, 1 | 2 | 4 | 8) && !field.name.starts_with('_') {
                let part = match is_scratch(name, field.name, self.revision) {
                    true => Part::Scratch(field.name),
                    false => Part::Field(field.name),
                };
                let name = Name { of: name, part, at_entry: false };
                let value = self.value(name, 8 * field.size as u32);
                self.append(&mut cells, field.size, value);
            }
        }
        self.gap(name, &mut cells, layout.size);
        cells
    }

    fn gap(&mut self, name: Object, cells: &mut Vec<D::Cell>, end: usize) {
        self.bytes(name, cells, cells.len() as i64, end as i64);
    }

    /// Cells from offset `start` to `end` with values of their own, eight at a time.
    fn bytes(&mut self, of: Object, cells: &mut Vec<D::Cell>, start: i64, end: i64) {
        let mut at = start;
        while at < end {
            let size = (end - at).min(8);
            let value =
                self.value(Name { of, part: Part::At(at), at_entry: false }, 8 * size as u32);
            self.append(cells, size as usize, value);
            at += size;
        }
    }

    fn append(&self, cells: &mut Vec<D::Cell>, size: usize, value: D::Word) {
        let mut bytes = [self.zero; 8];
        self.d.store(&mut bytes[..size], value);
        cells.extend_from_slice(&bytes[..size]);
    }
}

pub(super) fn registers<W: Copy>(gpr: &[W; 16]) -> Registers<W> {
    let get = |register: Gpr| gpr[register as usize];
    Registers {
        rax: get(Gpr::Rax),
        rcx: get(Gpr::Rcx),
        rdx: get(Gpr::Rdx),
        rbx: get(Gpr::Rbx),
        rsp: get(Gpr::Rsp),
        rbp: get(Gpr::Rbp),
        rsi: get(Gpr::Rsi),
        rdi: get(Gpr::Rdi),
        r8: get(Gpr::R8),
        r9: get(Gpr::R9),
        r10: get(Gpr::R10),
        r11: get(Gpr::R11),
        r12: get(Gpr::R12),
        r13: get(Gpr::R13),
        r14: get(Gpr::R14),
        r15: get(Gpr::R15),
    }
}

/// The same, by number.
pub(super) fn by_number<W: Copy>(r: &Registers<W>) -> [W; 16] {
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ]
}

impl<D: Domain> World<D> {
    /// The state at `start`, of values from `source`. `saved` is what the entry has left on the
    /// host's stack; there is nothing yet at [`Start::Call`].
    pub(super) fn new(
        d: &D,
        source: &mut impl Source<D>,
        setting: &Setting,
        start: Start,
        code: &Program,
        saved: Option<&Saved<D>>,
    ) -> Self {
        let model = setting.model();
        let selectors = model.selectors;
        let revision = setting.revision();
        let b = &mut Builder { d, source, zero: d.cells(&[0])[0], revision };

        // Addresses, each the base of a region of its own.
        let host_gs = b.field(Object::Host, "gs_base", 64);
        let block = match setting.variant.placement() {
            Placement::Gs => host_gs,
            // Code refers to the block by their distance.
            Placement::PerCpu => d.code(code.base().wrapping_sub(layout::PerCpu::BEFORE_CODE)),
        };
        let sp0 = b.whole(Object::Sp0, 64);
        let pvcs_at = b.whole(Object::PvcsAddress, 64);
        let host_rsp = b.field(Object::Host, "rsp", 64);
        let ist = b.whole(Object::Ist, 64);

        // Memory.
        let cells = b.fields(Object::Tss, Tss::LAYOUT);
        let mut tss = Region::new(RegionName::Tss, block, setting.block.tss, cells);
        tss.write(d, setting.block.tss + Tss::sp0.bytes() as i64, 8, sp0);
        let at = setting.block.tss_extra;
        let cells = b.fields(Object::TssExtra, TssExtra::LAYOUT);
        let mut extra = Region::new(RegionName::TssExtra, block, at, cells);
        extra.write(d, at + TssExtra::pvcs.bytes() as i64, 8, pvcs_at);
        let pvcs_layout = match setting.revision() {
            Revision::V2024 => layout::Pvcs::LAYOUT,
            Revision::V2026 => layout::PvcsV2026::LAYOUT,
        };
        let mut pvcs =
            Region::new(RegionName::Pvcs, pvcs_at, 0, b.fields(Object::Pvcs, pvcs_layout));
        pvcs.sharing = Sharing::Guest;
        // All that the host promises: room for a frame, and at sp0 for what returns below it.
        let least = |name| if name == RegionName::Sp0Stack { Sp0::LEAST as i64 } else { FRAME };
        let stack = |b: &mut Builder<'_, D, _>, (name, of), base, frame: &mut [(i64, D::Word)]| {
            let start = -least(name);
            let mut cells = Vec::with_capacity(start.unsigned_abs() as usize);
            b.bytes(of, &mut cells, start, 0);
            let mut stack = Region::new(name, base, start, cells);
            for (offset, value) in frame {
                stack.write(d, *offset - FRAME, 8, *value);
            }
            stack
        };

        // The frame a guest is entered with, or that a handler has written.
        let frame_gpr = b.registers(Object::Frame);
        let orig_ax = b.whole(Object::OrigAx, 64);
        let [rip, rflags] = ["rip", "rflags"].map(|name| b.field(Object::Frame, name, 64));
        let [cs, ss] = ["cs", "ss"].map(|name| b.field(Object::Frame, name, 16));
        let guest_gs = b.field(Object::Guest, "gs_base", 64);
        let frame_registers = registers(&frame_gpr);
        let frame = Guest { registers: frame_registers, rip, rflags, cs, ss, gs_base: guest_gs };
        let mut slots: Vec<_> =
            Gpr::ALL.iter().map(|r| (in_frame(*r), frame_gpr[*r as usize])).collect();
        let rest = [orig_ax, rip, cs, rflags, ss];
        slots.extend(FRAME_REST.iter().zip(rest).map(|((_, at, _), value)| (*at, value)));
        let (on_sp0, on_ist) = match start {
            Start::Call | Start::Handler { ist: false } => (slots, Vec::new()),
            Start::Handler { ist: true } => (Vec::new(), slots),
            Start::Guest | Start::Guest32 => (Vec::new(), Vec::new()),
        };
        let sp0_stack =
            stack(b, (RegionName::Sp0Stack, Object::Sp0Stack), sp0, &mut on_sp0.clone());
        let ist_stack =
            stack(b, (RegionName::IstStack, Object::IstStack), ist, &mut on_ist.clone());

        // The caller. RSP is as at the call, so that the return address lies right there.
        let caller_gpr = b.registers(Object::Host);
        let return_address = b.field(Object::Host, "rip", 64);
        let get = |register: Gpr| caller_gpr[register as usize];
        let caller = Caller {
            rbx: get(Gpr::Rbx),
            rbp: get(Gpr::Rbp),
            r12: get(Gpr::R12),
            r13: get(Gpr::R13),
            r14: get(Gpr::R14),
            r15: get(Gpr::R15),
            rsp: d.plus(host_rsp, 8),
            rip: return_address,
        };
        let cells = match saved {
            Some(saved) => saved.stack.clone(),
            None => {
                let mut cells = Vec::new();
                b.bytes(Object::HostStack, &mut cells, -CALLER_STACK, 8);
                cells
            }
        };
        let mut host_stack = Region::new(RegionName::HostStack, host_rsp, -CALLER_STACK, cells);
        match saved {
            Some(saved) => {
                extra.write(d, at + TssExtra::host_rsp.bytes() as i64, 8, saved.host_rsp);
            }
            None => host_stack.write(d, 0, 8, return_address),
        }
        // As far as it is known: of others' code, what their entry points reach.
        let code_regions = code.pieces().map(|(start, bytes)| {
            let offset = start.wrapping_sub(code.base()).cast_signed();
            let code = Region::new(RegionName::Code, d.code(code.base()), offset, d.cells(bytes));
            Region { is_code: true, ..code }
        });

        // Registers.
        let mut gpr = match start {
            Start::Call => caller_gpr,
            Start::Guest | Start::Guest32 | Start::Handler { .. } => b.registers(Object::Guest),
        };
        let guest_rflags = d.or(
            d.mask(b.field(Object::Guest, "rflags", 64), RFlags::GUEST_ALLOWED.bits()),
            d.word(RFlags::GUEST_FIXED.bits()),
        );
        let guest_rip = match start {
            // 32-bit code has 32-bit addresses.
            Start::Guest32 => b.field(Object::Guest, "eip", 32),
            _ => b.field(Object::Guest, "rip", 64),
        };
        let guest_root = b.whole(Object::GuestRoot, 64);
        let host_flags = d.or(
            d.mask(b.field(Object::Host, "rflags", 64), HOST_FLAGS),
            d.word(RFlags::FIXED.bits()),
        );
        // An interrupt gate clears these (Intel SDM vol. 3, 6.12.1.3); the others are the guest's.
        let gate = RFlags::TF | RFlags::NT | RFlags::RF | RFlags::VM | RFlags::IF;
        let word = |selector: u16| d.word(selector.into());
        let (flags, cs, ss, cpl) = match start {
            Start::Call => (host_flags, selectors.kernel_cs(), selectors.kernel_ds(), 0),
            Start::Guest => (guest_rflags, selectors.user_cs(), selectors.user_ds(), 3),
            Start::Guest32 => (guest_rflags, selectors.user32_cs(), selectors.user_ds(), 3),
            // An event from CPL 3 leaves a null SS (Intel SDM vol. 3, 6.14.3).
            Start::Handler { .. } => {
                (d.mask(guest_rflags, !gate.bits()), selectors.kernel_cs(), 0, 0)
            }
        };
        let frame_at = match start {
            Start::Handler { ist: true } => d.plus(ist, -FRAME),
            _ => d.plus(sp0, -FRAME),
        };
        match start {
            Start::Call => gpr[Gpr::Rsp as usize] = host_rsp,
            Start::Handler { .. } => gpr[Gpr::Rsp as usize] = frame_at,
            Start::Guest | Start::Guest32 => {}
        }
        let (gs_base, inactive_gs_base) = match start {
            Start::Guest | Start::Guest32 => (guest_gs, host_gs),
            Start::Call | Start::Handler { .. } => (host_gs, guest_gs),
        };
        let host_cr3 = extra.read(d, at + TssExtra::host_cr3.bytes() as i64, 8);
        let spec_extra = read_extra(d, &extra, setting);
        let spec_pvcs = read_pvcs(d, &pvcs, setting);
        let mut regions = vec![tss, extra, pvcs, sp0_stack, host_stack, ist_stack];
        regions.extend(code_regions);
        let memory = Memory { regions, racing: false };
        let rip = match start {
            Start::Call | Start::Handler { .. } => d.word(0),
            Start::Guest | Start::Guest32 => guest_rip,
        };
        let root = if start == Start::Call { host_cr3 } else { guest_root };
        let machine = Machine {
            gpr,
            rip,
            flags: Flags::new(d, flags),
            cs: word(cs),
            ss: word(ss),
            cpl,
            gs_base,
            inactive_gs_base,
            fs_base: held_base(d, b.whole(Object::FsBase, 64)),
            cr3: root,
            cr4: d.or(b.whole(Object::Cr4, 64), d.word(cr4(&setting.variant))),
            pkru: b.whole(Object::Pkru, 32),
            // The host enters no guest from an NMI's handler, nor does it exit there, before an IRET
            // has ended it.
            nmi_blocked: d.bit(false),
            msrs: Msrs {
                star: d.word(selectors.star().bits()),
                lstar: d.word(0),
                cstar: d.word(0),
                sfmask: d.word(setting.sfmask.bits()),
                spec_ctrl: b.whole(Object::SpecCtrl, 64),
                efer: d.or(b.whole(Object::Efer, 64), d.word(EFER)),
            },
            memory: memory.clone(),
        };
        let fs_base = machine.fs_base;
        let untrains = setting.variant.mitigations().untrain;
        let untraining = untrains.then(|| {
            let mut below = Vec::new();
            b.bytes(Object::Untraining, &mut below, -CALLER_STACK, 0);
            let field = |b: &mut Builder<'_, D, _>, name| b.field(Object::Untraining, name, 64);
            Untraining {
                registers: ["rax", "rcx", "rdx"].map(|name| field(b, name)),
                flags: field(b, "rflags"),
                below,
            }
        });
        let (spec_ctrl, pkru) = (machine.msrs.spec_ctrl, machine.pkru);
        let guest = Guest {
            registers: registers(&gpr),
            rip: guest_rip,
            rflags: guest_rflags,
            cs: word(selectors.user_cs()),
            ss: word(selectors.user_ds()),
            gs_base: guest_gs,
        };
        let (tss_extra, pvcs) = (spec_extra, spec_pvcs);
        let spec = spec::State { guest, root, spec_ctrl, pkru, tss_extra, pvcs };
        let assumptions = {
            let end =
                code.pieces().map(|(start, bytes)| start.wrapping_add(bytes.len() as u64)).max();
            let length = end.unwrap_or_default().wrapping_sub(code.base());
            let code_at = (d.code(code.base()), length);
            let mut assumptions =
                Self::assume(d, &model, &frame, &spec, [host_rsp, host_gs], code_at, start);
            assumptions.push((
                "the caller's return address is canonical",
                model.is_canonical(d, return_address),
            ));
            if code.is_fixed() {
                let lies_there = d.is(d.code(0), 0);
                assumptions.push(("the code lies where it is linked to", lies_there));
            }
            assumptions
        };
        Self {
            machine,
            spec,
            caller,
            frame,
            frame_at,
            assumptions,
            model,
            setting: *setting,
            host_gs,
            untraining,
            fs_base,
            event: None,
            before: memory,
        }
    }

    /// What the host guarantees, and the runtime checks where it can.
    fn assume(
        d: &D,
        model: &Model,
        frame: &Guest<D::Word>,
        spec: &spec::State<D>,
        [host_rsp, host_gs]: [D::Word; 2],
        code: (D::Word, u64),
        start: Start,
    ) -> Vec<(&'static str, D::Bit)> {
        let extra = &spec.tss_extra;
        let canonical = |address| model.is_canonical(d, address);
        let mut assumptions = vec![
            (boundary::ONE_MODE, boundary::has_one_mode(d, extra.switch_flags)),
            ("the host's GS base is canonical", canonical(host_gs)),
            ("smod_entry is canonical", canonical(extra.smod_entry)),
            ("smod_gsbase is canonical", canonical(extra.smod_gsbase)),
            ("the guest's GS base is canonical", canonical(spec.guest.gs_base)),
            (
                "the code lies in the upper half, and ends there",
                d.lt(d.sub(code.0, d.word(UPPER_HALF)), d.word(UPPER_HALF.wrapping_neg() - code.1)),
            ),
            (
                "the caller's stack does not lie at address 0",
                d.not(d.lt(host_rsp, d.word(CALLER_STACK.cast_unsigned() + 8))),
            ),
        ];
        if start == Start::Call {
            let rpl = |selector| d.is(d.mask(selector, 3), 3);
            assumptions.push(("the frame's CS has RPL 3", rpl(frame.cs)));
            assumptions.push(("the frame's SS has RPL 3", rpl(frame.ss)));
        }
        assumptions
    }
}

/// Where the kernel's half of addresses begins, in every paging mode.
const UPPER_HALF: u64 = 0xFFFF_8000_0000_0000;
/// What a CPU can hold as a base: its addresses have 57 bits at most, and those that have so many take
/// them for a base under four-level paging, too (Intel SDM vol. 1, 3.3.7.1).
pub(super) fn held_base<D: Domain>(d: &D, word: D::Word) -> D::Word {
    let by = PagingMode::FiveLevel.sign_bits().into();
    d.sar(d.shl(word, by), by)
}

/// What host code may have in RFLAGS when it calls: arithmetic and ID. DF is clear by the ABI, IF
/// because interrupts are off.
const HOST_FLAGS: u64 = RFlags::CF.bits()
    | RFlags::PF.bits()
    | RFlags::AF.bits()
    | RFlags::ZF.bits()
    | RFlags::SF.bits()
    | RFlags::OF.bits()
    | RFlags::ID.bits();

/// The per-CPU block's fields, as the specification names them.
pub(crate) fn read_extra<D: Domain>(
    d: &D,
    extra: &Region<D>,
    setting: &Setting,
) -> spec::TssExtra<D::Word> {
    let [
        host_cr3,
        host_rsp,
        enter_cr3,
        switch_flags,
        smod_cr3,
        umod_cr3,
        pvcs,
        retu_rip,
        smod_entry,
        smod_gsbase,
        smod_rsp,
        host_spec_ctrl,
        guest_spec_ctrl,
        smod_pkru,
    ] = EXTRA_FIELDS.map(|(_, at, size)| extra.read(d, setting.block.tss_extra + at, size));
    spec::TssExtra {
        host_cr3,
        host_rsp,
        enter_cr3,
        switch_flags,
        smod_cr3,
        umod_cr3,
        pvcs,
        retu_rip,
        smod_entry,
        smod_gsbase,
        smod_rsp,
        host_spec_ctrl,
        guest_spec_ctrl,
        smod_pkru,
    }
}

/// The PVCS's fields, as the specification names them.
pub(crate) fn read_pvcs<D: Domain>(
    d: &D,
    pvcs: &Region<D>,
    setting: &Setting,
) -> spec::Pvcs<D::Word> {
    let [user_cs, user_ss, user_gsbase, eflags, pkru, rip, rsp, rcx, r11] =
        pvcs_fields(setting.revision()).map(|field| match field {
            Some((_, at, size)) => pvcs.read(d, at, size),
            None => d.word(0),
        });
    spec::Pvcs { user_cs, user_ss, user_gsbase, eflags, pkru, rip, rsp, rcx, r11 }
}

// An IRET frame is the end of a PtRegs: a routine that returns to a guest may build it there.
const _: () = assert!(size_of::<IretFrame>() < size_of::<PtRegs>());
