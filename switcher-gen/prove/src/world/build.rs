//! The state in which a routine starts: memory, registers, and the same for the specification.

use crate::contract::Clauses;
use crate::host_data::{DataAccess, DataAt, HostData};
use crate::layouts::{ExtraField, KnownField, Places, PvcsField};
use crate::target::Target;
use crate::theorem::Start;
use crate::world::fields::{
    FRAME, FRAME_REST, FieldAt, in_frame, read_extra, read_pvcs, registers,
};
use crate::world::name::{Name, Object, Part, Source, is_scratch};
use crate::world::{CodePlace, Saved, Untraining, World};
use switcher_gen::arch::{PagingMode, RFlags};
use switcher_gen::layout;
use switcher_gen::layout::AsmLayout;
use switcher_gen::layout::{Layout, Placement, Revision, Tss};
use switcher_model::cr4;
use switcher_model::{
    Domain, EFER, Flags, Gpr, Memory, Msrs, Region, RegionName, Sharing, State as Machine,
};
use switcher_spec as spec;
use switcher_spec::{Caller, Guest};

/// How many bytes below the stack that it is called on the host's untraining may change.
const UNTRAINING: i64 = 512;

/// Builds a world.
struct Builder<'a, D: Domain, S> {
    d: &'a D,
    source: &'a mut S,
    /// A cell to fill arrays with, whatever is in it.
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
        let fields = layout
            .fields
            .iter()
            .filter(|field| matches!(field.size, 1 | 2 | 4 | 8) && !field.name.starts_with('_'));
        let fields = fields.map(|field| (field.name, field.offset as i64, field.size));
        self.struct_of(name, layout.size as i64, fields)
    }

    /// The same of somebody's struct: what is no known field of it is bytes of which nothing is
    /// known.
    fn places<F: KnownField>(&mut self, name: Object, places: &Places<F>) -> Vec<D::Cell> {
        let fields = F::ALL.iter();
        let fields =
            fields.filter_map(|field| Some((field.name(), places.at(*field)?, field.size())));
        let mut fields: Vec<FieldAt> = fields.collect();
        fields.sort_by_key(|(_, at, _)| *at);
        self.struct_of(name, places.size(), fields.into_iter())
    }

    fn struct_of(
        &mut self,
        of: Object,
        size: i64,
        fields: impl Iterator<Item = FieldAt>,
    ) -> Vec<D::Cell> {
        let mut cells = Vec::with_capacity(size as usize);
        for (field, at, size) in fields {
            self.gap(of, &mut cells, at);
            let part = match is_scratch(of, field, self.revision) {
                true => Part::Scratch(field),
                false => Part::Field(field),
            };
            let value = self.value(Name { of, part, at_entry: false }, 8 * size as u32);
            self.append(&mut cells, size, value);
        }
        self.gap(of, &mut cells, size);
        cells
    }

    fn gap(&mut self, name: Object, cells: &mut Vec<D::Cell>, end: i64) {
        self.bytes(name, cells, cells.len() as i64, end);
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

    /// The host's data that the code uses.
    fn data(&mut self, all: &[HostData], base: u64, host_gs: D::Word) -> Vec<Region<D>> {
        let mut regions = Vec::with_capacity(all.len());
        for (number, data) in (0..).zip(all) {
            let HostData { at, size, value, access, .. } = data;
            let mut cells = Vec::with_capacity((*size).into());
            match value {
                Some(value) => self.append(&mut cells, (*size).into(), self.d.word(*value)),
                None => self.bytes(Object::HostData(number), &mut cells, 0, (*size).into()),
            }
            let name = match access {
                DataAccess::Read => RegionName::HostData,
                DataAccess::ReadMapped => RegionName::MappedData,
                DataAccess::Write => RegionName::HostWord,
            };
            let (base, start) = match at {
                DataAt::PerCpu(at) => (host_gs, *at),
                DataAt::Fixed(at) => (self.d.code(base), at.wrapping_sub(base).cast_signed()),
            };
            let mut region = Region::new(name, base, start, cells);
            if *access == DataAccess::Write {
                region.sharing = Sharing::Ring0;
            }
            regions.push(region);
        }
        regions
    }

    fn append(&self, cells: &mut Vec<D::Cell>, size: usize, value: D::Word) {
        let mut bytes = [self.zero; 8];
        self.d.store(&mut bytes[..size], value);
        cells.extend_from_slice(&bytes[..size]);
    }
}

impl<D: Domain> World<D> {
    /// The state at `start`, of values from `source`. `saved` is what the entry has left on the
    /// host's stack; there is nothing yet at [`Start::Call`].
    pub(crate) fn new(
        d: &D,
        source: &mut impl Source<D>,
        target: &Target,
        start: Start,
        saved: Option<&Saved<D>>,
    ) -> Self {
        let Target { setting, program: code, .. } = target;
        let model = setting.model();
        let selectors = model.selectors;
        let revision = setting.revision();
        let b = &mut Builder { d, source, zero: d.cells(&[0])[0], revision };

        // Each of these addresses is the base of a region of its own.
        let host_gs = b.field(Object::Host, "gs_base", 64);
        let block = match setting.variant.placement() {
            Placement::Gs => host_gs,
            // The code refers to the block by the distance between them.
            Placement::PerCpu => d.code(code.base().wrapping_sub(layout::PerCpu::BEFORE_CODE)),
        };
        let sp0 = b.whole(Object::Sp0, 64);
        let pvcs_at = b.whole(Object::PvcsAddress, 64);
        let host_rsp = b.field(Object::Host, "rsp", 64);
        let ist = b.whole(Object::Ist, 64);

        // The regions of memory.
        let cells = b.fields(Object::Tss, Tss::LAYOUT);
        let mut tss = Region::new(RegionName::Tss, block, setting.block.tss, cells);
        tss.write(d, setting.block.tss + Tss::sp0.bytes() as i64, 8, sp0);
        let at = setting.block.tss_extra;
        let cells = b.places(Object::TssExtra, &setting.extra);
        let mut extra = Region::new(RegionName::TssExtra, block, at, cells);
        extra.write(d, setting.own_extra_at(ExtraField::Pvcs), 8, pvcs_at);
        let cells = match setting.pvcs == Places::<PvcsField>::ours(revision) {
            true => b.fields(Object::Pvcs, revision.layout()),
            false => b.places(Object::Pvcs, &setting.pvcs),
        };
        let mut pvcs = Region::new(RegionName::Pvcs, pvcs_at, 0, cells);
        pvcs.sharing = Sharing::Guest;
        // The host promises no more than this: room for a frame, and at sp0 what its contract says.
        let entry_stack = setting.contract.entry_stack.bytes();
        let least = |name| if name == RegionName::Sp0Stack { entry_stack } else { FRAME };
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
        let [rip, mut rflags] = ["rip", "rflags"].map(|name| b.field(Object::Frame, name, 64));
        if start == Start::Call && setting.promises(Clauses::FRAME_FLAGS) {
            let allowed = d.mask(rflags, RFlags::GUEST_ALLOWED.bits());
            rflags = d.or(allowed, d.word(RFlags::GUEST_FIXED.bits()));
        }
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
        let caller_stack = setting.contract.caller_stack.bytes();
        let cells = match saved {
            Some(saved) => saved.stack.clone(),
            None => {
                let mut cells = Vec::new();
                b.bytes(Object::HostStack, &mut cells, -caller_stack, 8);
                cells
            }
        };
        let mut host_stack = Region::new(RegionName::HostStack, host_rsp, -caller_stack, cells);
        match saved {
            Some(saved) => {
                extra.write(d, setting.own_extra_at(ExtraField::HostRsp), 8, saved.host_rsp);
            }
            None => host_stack.write(d, 0, 8, return_address),
        }
        // Of others' code, only what their entry points reach is known.
        let code_regions = code.pieces().map(|(start, bytes)| {
            let offset = start.wrapping_sub(code.base()).cast_signed();
            let code = Region::new(RegionName::Code, d.code(code.base()), offset, d.cells(bytes));
            Region { is_code: true, ..code }
        });

        // The registers of the machine.
        let mut gpr = match start {
            Start::Call => caller_gpr,
            Start::Guest | Start::Guest32 | Start::Handler { .. } => b.registers(Object::Guest),
        };
        let guest_rflags = d.or(
            d.mask(b.field(Object::Guest, "rflags", 64), RFlags::GUEST_ALLOWED.bits()),
            d.word(RFlags::GUEST_FIXED.bits()),
        );
        let guest_rip = match start {
            // 32-bit code has addresses of 32 bits.
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
                let entry = match setting.promises(Clauses::ENTRY_FLAGS) {
                    true => RFlags::DF | RFlags::AC,
                    false => RFlags::empty(),
                };
                (d.mask(guest_rflags, !(gate | entry).bits()), selectors.kernel_cs(), 0, 0)
            }
        };
        let frame_at = match start {
            Start::Handler { ist: true } => d.plus(ist, -FRAME),
            _ => d.plus(sp0, -FRAME),
        };
        match start {
            Start::Call => gpr[Gpr::Rsp as usize] = host_rsp,
            Start::Handler { .. } => {
                if setting.promises(Clauses::ENTRY_REGISTERS) {
                    let kept = [Gpr::Rax, Gpr::Rdi];
                    let cleared = Gpr::ALL.iter().filter(|register| !kept.contains(register));
                    cleared.for_each(|register| gpr[*register as usize] = d.word(0));
                }
                gpr[Gpr::Rsp as usize] = frame_at;
            }
            Start::Guest | Start::Guest32 => {}
        }
        let (gs_base, inactive_gs_base) = match start {
            Start::Guest | Start::Guest32 => (guest_gs, host_gs),
            Start::Call | Start::Handler { .. } => (host_gs, guest_gs),
        };
        let host_cr3 = extra.read(d, setting.own_extra_at(ExtraField::HostCr3), 8);
        let spec_extra = read_extra(d, &extra, setting);
        let spec_pvcs = read_pvcs(d, &pvcs, setting);
        let mut regions = vec![tss, extra, pvcs, sp0_stack, host_stack, ist_stack];
        regions.extend(b.data(&target.data, code.base(), host_gs));
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
            // The host enters no guest from an NMI's handler, nor does it exit there, before an
            // IRET has ended it.
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
            b.bytes(Object::Untraining, &mut below, -UNTRAINING, 0);
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
            let code_at = CodePlace { first: d.code(code.base()), length };
            let mut assumptions =
                Self::assume(d, setting, &frame, &spec, [host_rsp, host_gs], &code_at, start);
            assumptions.push((
                "the caller's return address is canonical",
                model.is_canonical(d, return_address),
            ));
            if start == Start::Call {
                assumptions.extend(Self::promised(d, setting, &frame));
            }
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
            handing_on: None,
            before: memory,
        }
    }
}

/// What a CPU can hold as a base: its addresses have 57 bits at most, and those that have so many
/// take them for a base under four-level paging, too (Intel SDM vol. 1, 3.3.7.1).
pub(crate) fn held_base<D: Domain>(d: &D, word: D::Word) -> D::Word {
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
