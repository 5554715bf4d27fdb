//! The bare-metal engine: runs the shared cases' guests through `runtime`, on page tables of their
//! own, at CPL 3.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::arch::global_asm;
use core::mem::offset_of;
use core::ops::Range;
use core::ptr::NonNull;

use hw_cases::{CaseHost, Entries, Failure, HostAfter, Observed, Platform, Refusal, Setup, place};
use hw_platform::gs;
use hw_platform::memory::{self, AddressSpace, Flags, Frame, MapError};
use hw_platform::percpu::{self, Scratch};
use hw_platform::{cpu, exit};
use switcher_runtime::switcher_gen::arch::{
    Cr3, Cr3Error, Msr as MsrName, PcidEnabled, RFlags, Vendor,
};
use switcher_runtime::switcher_gen::asm::Label;
use switcher_runtime::switcher_gen::layout::{PtRegs, Pvcs, PvcsV2026, Revision, SwitchFlags};
use switcher_runtime::{
    Access, Cpu, Domain, Guest, GuestDebug, GuestError, GuestPcid, GuestRoot, Mapping, MappingList,
    Mode, NotAGuests, PvcsPage, Rights,
};
use x86_64::registers::control::{Cr3 as Cr3Register, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;

global_asm!(
    r#"
    .text
    // unsafe extern "C" fn(entry: u64) -> *mut PtRegs
    // Calls entry with a known value in every callee-saved register, and stores what the call has
    // left in them, and in RSP, SS and RFLAGS. It stores relative to GS and relies on nothing else.
    .global hw_kernel_checked_call
hw_kernel_checked_call:
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    sub     rsp, 24
    stmxcsr [rsp]
    fnstcw  [rsp + 4]
    mov     gs:[{stack_before}], rsp
    movabs  rbx, 0xB0B0B0B0B0B0B0B0
    movabs  rbp, 0xB1B1B1B1B1B1B1B1
    movabs  r12, 0xBCBCBCBCBCBCBCBC
    movabs  r13, 0xBDBDBDBDBDBDBDBD
    movabs  r14, 0xBEBEBEBEBEBEBEBE
    movabs  r15, 0xBFBFBFBFBFBFBFBF
    call    {track}
    call    rdi
    pushfq
    or      rcx, rdx
    or      rcx, rsi
    or      rcx, rdi
    or      rcx, r8
    or      rcx, r9
    or      rcx, r10
    or      rcx, r11
    mov     gs:[{scratch_after}], rcx
    pop     rcx
    mov     gs:[{flags_after}], rcx
    mov     ecx, ss
    mov     gs:[{stack_segment_after}], rcx
    mov     gs:[{stack_after}], rsp
    mov     rsp, gs:[{stack_before}]
    movabs  rdx, 0xB0B0B0B0B0B0B0B0
    xor     rbx, rdx
    movabs  rdx, 0xB1B1B1B1B1B1B1B1
    xor     rbp, rdx
    or      rbx, rbp
    movabs  rdx, 0xBCBCBCBCBCBCBCBC
    xor     r12, rdx
    or      rbx, r12
    movabs  rdx, 0xBDBDBDBDBDBDBDBD
    xor     r13, rdx
    or      rbx, r13
    movabs  rdx, 0xBEBEBEBEBEBEBEBE
    xor     r14, rdx
    or      rbx, r14
    movabs  rdx, 0xBFBFBFBFBFBFBFBF
    xor     r15, rdx
    or      rbx, r15
    mov     gs:[{callee_saved_changed}], rbx
    mov     rbx, rax
    call    {untrack}
    mov     rax, rbx
    fninit
    fldcw   [rsp + 4]
    ldmxcsr [rsp]
    add     rsp, 24
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    ret
"#,
    stack_before = const Scratch::OFFSET + offset_of!(Scratch, stack_before),
    stack_after = const Scratch::OFFSET + offset_of!(Scratch, stack_after),
    scratch_after = const Scratch::OFFSET + offset_of!(Scratch, scratch_after),
    flags_after = const Scratch::OFFSET + offset_of!(Scratch, flags_after),
    stack_segment_after = const Scratch::OFFSET + offset_of!(Scratch, stack_segment_after),
    callee_saved_changed = const Scratch::OFFSET + offset_of!(Scratch, callee_saved_changed),
    track = sym cpu::track,
    untrack = sym cpu::untrack,
);

unsafe extern "C" {
    fn hw_kernel_checked_call(entry: u64) -> *mut PtRegs;
}

/// The call that [`Cpu::enter_with`] leaves to the host, with the checks around it.
///
/// # Safety
/// The contract of [`Cpu::enter_with`] must hold: `entry` is the switcher's.
pub(crate) unsafe fn checked_call(entry: u64) -> *mut PtRegs {
    // SAFETY: the assembly above calls `entry` once as the caller wants it, keeps all
    // callee-saved registers, MXCSR and the x87 state for its own caller, and clobbers no more than
    // an `extern "C"` function may.
    let frame = unsafe { hw_kernel_checked_call(entry) };
    percpu::note_block();
    frame
}

/// One mode's address space.
struct Space {
    root: AddressSpace,
    text: Page,
    last: Page,
    stack: Frame,
    // The frame is mapped, and owned here so that nobody else gets it.
    _stack32: Frame,
}

/// A page of code, with INT3 wherever a setup's code is not.
struct Page {
    frame: Frame,
    start: u64,
    written: Vec<(usize, usize)>,
}

const INT3: u8 = 0xCC;

impl Page {
    fn new(start: u64) -> Result<Self, MapError> {
        let mut frame = Frame::new()?;
        frame.write(0, &[INT3; place::PAGE as usize]);
        Ok(Self { frame, start, written: Vec::new() })
    }

    fn clear(&mut self) {
        for (offset, len) in self.written.drain(..) {
            for byte in offset..offset + len {
                self.frame.write(byte, &[INT3]);
            }
        }
    }

    /// Writes the part of `bytes` that is within this page, if they lie at `at`.
    fn place(&mut self, at: u64, bytes: &[u8]) {
        if let Some(offset) = at.checked_sub(self.start).filter(|offset| *offset < place::PAGE) {
            let offset = offset as usize;
            let len = bytes.len().min(place::PAGE as usize - offset);
            self.frame.write(offset, &bytes[..len]);
            self.written.push((offset, len));
        }
    }
}

impl Space {
    /// A space with the pages that the host needs on this CPU, with `pvcs`, and with the page of
    /// 32-bit code.
    fn new(
        platform: &Platform,
        list: MappingList,
        pvcs: Mapping,
        text32: &Page,
    ) -> Result<Self, MapError> {
        let mut root = AddressSpace::new(list.into_iter().chain([pvcs]))?;
        let text = Page::new(place::TEXT)?;
        let last = Page::new(place::last(platform.paging))?;
        let stack = Frame::new()?;
        for page in [&text, &last, text32] {
            root.map(page.start, page.frame.address(), Flags::USER | Flags::EXECUTE)?;
        }
        root.map(place::STACK, stack.address(), Flags::USER | Flags::WRITE)?;
        let stack32 = Frame::new()?;
        root.map(STACK32, stack32.address(), Flags::USER | Flags::WRITE)?;
        Ok(Self { root, text, last, stack, _stack32: stack32 })
    }
}

/// Why the guests' memory could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("guest memory: {0}")]
    Map(#[from] MapError),
    #[error(transparent)]
    Cr3(#[from] Cr3Error),
    #[error(transparent)]
    Pcid(#[from] NotAGuests),
}

/// A CPU with a switcher, and guests' memory.
pub(crate) struct BareMetal<'s> {
    cpu: Cpu<'s>,
    platform: Platform,
    smod: Space,
    umod: Space,
    text32: Page,
    roots: [GuestRoot; 2],
    pvcs: Frame,
    debug: GuestDebug,
    domain: Domain,
    pcid: Option<PcidEnabled>,
    /// Whether a guest may have a breakpoint on execution.
    breakpoints: bool,
}

/// A stack that 32-bit code reaches.
pub(crate) const STACK32: u64 = place::TEXT32 + place::PAGE;

/// The range in which guests can set breakpoints: text and stack, and nothing of the host.
pub(crate) const GUESTS: Range<u64> = place::TEXT..place::STACK_TOP;

impl<'s> BareMetal<'s> {
    pub(crate) fn new(
        cpu: Cpu<'s>,
        platform: Platform,
        pcid: Option<PcidEnabled>,
        breakpoints: bool,
    ) -> Result<Self, HostError> {
        let pvcs = Frame::new().map_err(MapError::from)?;
        let text32 = Page::new(place::TEXT32)?;
        let page = pvcs_page(&pvcs);
        let space = || Space::new(&platform, cpu.mappings(), page.mapping(), &text32);
        let (smod, umod) = (space()?, space()?);
        let roots = [
            guest_root(&smod.root, guest_pcid(&cpu, Mode::Smod, pcid)?)?,
            guest_root(&umod.root, guest_pcid(&cpu, Mode::Umod, pcid)?)?,
        ];

        // SAFETY: no root maps anything of the host within the guests' range.
        let debug = unsafe { GuestDebug::new(GUESTS) };
        let domain = Domain::new();
        Ok(Self {
            cpu,
            platform,
            smod,
            umod,
            text32,
            roots,
            pvcs,
            debug,
            breakpoints,
            domain,
            pcid,
        })
    }

    /// The CPU on which the guests run.
    pub(crate) const fn cpu(&self) -> &Cpu<'s> {
        &self.cpu
    }

    /// The CPU, for cases that enter guests themselves.
    pub(crate) const fn cpu_mut(&mut self) -> &mut Cpu<'s> {
        &mut self.cpu
    }

    /// Whether setups may have a breakpoint on execution.
    pub(crate) const fn has_breakpoints(&self) -> bool {
        self.breakpoints
    }

    /// Does something while the switcher is not active, as a host does between two runs.
    pub(crate) fn inactive<R>(self, between: impl FnOnce() -> R) -> Result<(Self, R), String> {
        let prepared = self.cpu.deactivate().map_err(|refused| format!("{refused}"))?;
        let result = between();
        // SAFETY: it was active before, and nothing has changed since.
        let cpu = unsafe { prepared.activate() }.map_err(|refused| format!("{refused}"))?;
        Ok((Self { cpu, ..self }, result))
    }

    /// Gives up the guests' memory, and returns the CPU.
    pub(crate) fn into_cpu(self) -> Cpu<'s> {
        self.cpu
    }

    /// The address spaces of both modes.
    pub(crate) const fn spaces(&self) -> [(Mode, &AddressSpace); 2] {
        [(Mode::Smod, &self.smod.root), (Mode::Umod, &self.umod.root)]
    }

    /// The address of the PVCS in the host's root.
    pub(crate) fn pvcs_address(&self) -> u64 {
        self.pvcs.address()
    }

    /// The guests' breakpoints. If a setup has one of its own, that replaces the first.
    pub(crate) const fn debug(&mut self) -> &mut GuestDebug {
        &mut self.debug
    }

    /// Unmaps umod's stack, or maps it again, without flushing, which the runtime has to do.
    pub(crate) fn set_stack_mapped(&mut self, mapped: bool) -> Result<(), MapError> {
        let Space { root, stack, .. } = &mut self.umod;
        if mapped {
            return root.map(place::STACK, stack.address(), Flags::USER | Flags::WRITE);
        }
        // SAFETY: only this root maps the page, and it is renewed before it is loaded again.
        unsafe { root.unmap_unflushed(place::STACK)? };
        self.roots[1] = self.roots[1].after_unmapping();
        Ok(())
    }

    /// Makes a new root on the page of umod's, with another stack that is full of a byte, without
    /// flushing: as if the former root's guest had gone, and a new one had got its page.
    pub(crate) fn recycle_umod(&mut self, byte: u8) -> Result<(), HostError> {
        let mut stack = Frame::new().map_err(MapError::from)?;
        stack.write(0, &[byte; place::PAGE as usize]);
        let Space { root, stack: old, .. } = &mut self.umod;
        // SAFETY: only this root maps the page, and a new root replaces it before it is loaded
        // again.
        unsafe { root.unmap_unflushed(place::STACK)? };
        root.map(place::STACK, stack.address(), Flags::USER | Flags::WRITE)?;
        *old = stack;
        let pcid = guest_pcid(&self.cpu, Mode::Umod, self.pcid)?;
        self.roots[1] = guest_root(&self.umod.root, pcid)?;
        Ok(())
    }

    /// The pages of the host that both roots must map.
    pub(crate) fn listed(&self) -> Vec<(u64, Rights)> {
        let list = self.cpu.mappings().into_iter().chain([pvcs_page(&self.pvcs).mapping()]);
        list.flat_map(|mapping| mapping.pages().map(move |page| (page, mapping.rights))).collect()
    }

    fn space(&mut self, mode: Mode) -> &mut Space {
        match mode {
            Mode::Smod => &mut self.smod,
            Mode::Umod => &mut self.umod,
        }
    }

    /// Makes a guest of `runtime` from the setup.
    fn guest(&self, setup: &Setup) -> Result<Guest, GuestError> {
        let mut guest = Guest::new(self.platform.paging);
        guest.set_domain(self.domain);
        guest.regs = setup.regs;
        guest.smod_rsp = setup.smod_rsp;
        (guest.pkru, guest.smod_pkru) = (setup.pkru, setup.smod_pkru);
        guest.retu_rip = setup.retu_rip;
        guest.set_mode(setup.mode);
        guest.set_gs_base(setup.gs_base)?;
        guest.set_smod_entry(setup.smod_entry, setup.smod_gsbase)?;
        guest.set_inhibitors(setup.inhibitors)?;
        let [smod, umod] = self.roots;
        for (mode, root) in [(Mode::Smod, smod), (Mode::Umod, umod)] {
            let prepared = mode == setup.mode || setup.other_root;
            guest.set_root(mode, prepared.then_some(root));
        }
        guest.set_pvcs(setup.pvcs_registered.then(|| pvcs_page(&self.pvcs)));
        Ok(guest)
    }
}

/// The PVCS in a frame.
fn pvcs_page(frame: &Frame) -> PvcsPage {
    let Some(pvcs) = NonNull::new(frame.as_ptr().cast::<Pvcs>()) else {
        exit::fatal(format_args!("a frame lies at address 0"))
    };
    // SAFETY: the frame lives as long as this host, only its guests have it, and every root of the
    // host maps it, writable and for the supervisor.
    unsafe { PvcsPage::new(pvcs) }
}

/// The PCID of a mode's root, on a host with PCIDs: the ends of the guests' range.
fn guest_pcid(
    cpu: &Cpu<'_>,
    mode: Mode,
    enabled: Option<PcidEnabled>,
) -> Result<Option<GuestPcid>, HostError> {
    let pcids = cpu.switcher().pcids();
    let number = match mode {
        Mode::Smod => pcids.first(),
        Mode::Umod => pcids.last(),
    };
    Ok(enabled.map(|enabled| pcids.pcid(number, enabled)).transpose()?)
}

/// A guest's root. With PCIDs, it has one of its own.
fn guest_root(space: &AddressSpace, pcid: Option<GuestPcid>) -> Result<GuestRoot, HostError> {
    // SAFETY: `Space::new` has mapped what the runtime lists for this CPU and the host's PVCS, for
    // the supervisor alone, as the host's root does. All that it maps for users are frames of the
    // guests' own. Only `set_stack_mapped` takes something out, and it renews the root.
    let root = unsafe { GuestRoot::new(Cr3::new(space.cr3())?) };
    Ok(match pcid {
        Some(pcid) => root.with_pcid(pcid),
        None => root,
    })
}

/// Writes a PVCS to its frame in the layout of `revision`; reserved fields are zero.
fn write_pvcs(frame: &mut Frame, pvcs: &Pvcs, revision: Revision) {
    let current = PvcsV2026::from_v2024(pvcs);
    let start: *const u8 = match revision {
        Revision::V2024 => (&raw const *pvcs).cast(),
        Revision::V2026 => (&raw const current).cast(),
    };
    // SAFETY: either struct is 128 bytes of integers without padding: reserved bytes are fields,
    // too.
    frame.write(0, unsafe { core::slice::from_raw_parts(start, size_of::<Pvcs>()) });
}

/// Reads the PVCS again. Fields that the revision lacks are taken from `before`.
fn read_pvcs(frame: &Frame, before: &Pvcs, revision: Revision) -> Result<Pvcs, Refusal> {
    let start = frame.as_ptr();
    // SAFETY: a frame is a page, and any bits are integers. The read is volatile, because a case
    // lets another CPU write to the page all the time.
    let rfc = unsafe { start.cast::<Pvcs>().read_volatile() };
    // SAFETY: as for the other revision, the frame is a page, and any bits are integers.
    let current = unsafe { start.cast::<PvcsV2026>().read_volatile() };
    match revision {
        Revision::V2024 => Ok(rfc),
        Revision::V2026 => {
            let pvcs = current.to_v2024(before);
            if PvcsV2026::from_v2024(&pvcs) != current {
                let why = format!("a reserved field of the PVCS was written to: {current:x?}");
                return Err(Refusal::Failure(Failure(why)));
            }
            Ok(pvcs)
        }
    }
}

impl CaseHost for BareMetal<'_> {
    fn platform(&self) -> Platform {
        self.platform
    }

    fn entries(&self) -> Result<Entries, Refusal> {
        // SAFETY: every CPU with SYSCALL has these MSRs, and reading them changes nothing.
        let read = |msr: MsrName| unsafe { Msr::new(msr.address()).read() };
        let switcher = self.cpu.switcher();
        Ok(Entries {
            star: read(MsrName::Star),
            sfmask: read(MsrName::Sfmask),
            sysenter_cs: read(MsrName::SysenterCs),
            lstar_is_the_entry: read(MsrName::Lstar) == switcher.address(Label::Syscall64),
            cstar_is_the_stub: read(MsrName::Cstar) == switcher.address(Label::SyscallCompat),
            enabled: Efer::read().contains(EferFlags::SYSTEM_CALL_EXTENSIONS)
                && Cr4::read().contains(Cr4Flags::FSGSBASE),
        })
    }

    fn run(&mut self, setup: &Setup) -> Result<Observed, Refusal> {
        if setup.breakpoint.is_some() && !self.breakpoints {
            return Err(Refusal::NotHere("a breakpoint on execution hangs this CPU".into()));
        }
        // SAFETY: `checked_call` does what `enter_with` asks.
        unsafe { self.run_by(setup, checked_call) }
    }
}

impl BareMetal<'_> {
    /// Maps a page of the host's, at the host's address of it, in both roots, or unmaps it.
    pub(crate) fn map_in_both(&mut self, page: u64, flags: Option<Flags>) -> Result<(), MapError> {
        let phys = memory::host_address(page).ok_or(MapError::NotMapped)?;
        for space in [&mut self.smod, &mut self.umod] {
            match flags {
                Some(flags) => space.root.map(page, phys, flags)?,
                None => drop(space.root.unmap(page)?),
            }
        }
        Ok(())
    }

    /// Writes what a setup's guest runs to memory, and makes the guest.
    pub(crate) fn prepare(&mut self, setup: &Setup) -> Guest {
        for space in [&mut self.smod, &mut self.umod] {
            space.text.clear();
            space.last.clear();
        }
        self.text32.clear();
        for code in &setup.code {
            let space = self.space(code.mode);
            space.text.place(code.at, &code.bytes);
            space.last.place(code.at, &code.bytes);
            self.text32.place(code.at, &code.bytes);
        }
        write_pvcs(&mut self.pvcs, &setup.pvcs, self.platform.revision);
        match self.guest(setup) {
            Ok(guest) => guest,
            Err(why) => exit::fatal(format_args!("a case's setup was refused: {why}")),
        }
    }

    /// Runs a guest with another call of the switcher.
    ///
    /// # Safety
    /// The contract of [`Cpu::enter_with`] must hold for `call`, and `call` uses `checked_call`,
    /// which stores what the outcome says about the host.
    pub(crate) unsafe fn run_by(
        &mut self,
        setup: &Setup,
        call: unsafe fn(u64) -> *mut PtRegs,
    ) -> Result<Observed, Refusal> {
        let mut guest = self.prepare(setup);

        let root = Cr3Register::read_raw();
        let gs = gs::base();
        let mut debug = self.debug.clone();
        if let Some(at) = setup.breakpoint
            && let Err(why) = debug.set(0, Some((at, Access::Execute)))
        {
            exit::fatal(format_args!("a case's breakpoint was refused: {why}"))
        }
        guest.debug = Some(debug);
        // SAFETY: the caller vouches for `call`.
        let by_context = |entry, call: &mut unsafe fn(u64) -> *mut PtRegs| unsafe { call(entry) };
        // SAFETY: the caller vouches for `call`, which gets the entry of the switcher.
        let exit = match unsafe { self.cpu.enter_with(&mut guest, by_context, &mut { call }) } {
            Ok(exit) => exit,
            Err(why) => exit::fatal(format_args!("a case's guest was refused: {why}")),
        };
        let after = percpu::scratch();
        if let Err(why) = self.cpu.unblock_nmis() {
            exit::fatal(format_args!("the host cannot end an NMI: {why}"));
        }

        let pvcs = read_pvcs(&self.pvcs, &setup.pvcs, self.platform.revision)?;
        let smod_rsp = match self.platform.revision {
            Revision::V2024 => guest.smod_rsp,
            // In this revision, RSP passes through, and nobody may rely on what the switcher leaves
            // there.
            Revision::V2026 => setup.smod_rsp,
        };
        Ok(Observed {
            exit,
            regs: guest.regs,
            gs_base: guest.gs_base(),
            pkru: guest.pkru,
            mode: guest.mode(),
            switch_flags: SwitchFlags::from_bits_retain(after.switch_flags),
            smod_rsp,
            pvcs,
            host: HostAfter {
                flags: RFlags::from_bits_retain(after.flags_after),
                callee_saved_kept: after.callee_saved_changed == 0,
                scratch_cleared: after.scratch_after == 0,
                stack_kept: after.stack_after == after.stack_before,
                stack_segment_loaded: self.platform.vendor == Vendor::Intel
                    || after.stack_segment_after == u64::from(self.platform.selectors.kernel_ds()),
                root_kept: Cr3Register::read_raw() == root,
                gs_kept: gs::base() == gs,
                host_rsp_cleared: after.host_rsp == 0,
            },
        })
    }
}
