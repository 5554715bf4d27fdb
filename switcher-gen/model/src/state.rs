//! The CPU's state, and the transitions between rings that the CPU makes by itself.
//!
//! Sources: Intel SDM vol. 2 (SYSCALL, SYSRET, IRET, SWAPGS, WRGSBASE) and vol. 3, 6.14; AMD APM
//! vol. 3. Where the vendors differ, [`CpuModel::vendor`] decides.

use super::domain::Domain;
use super::exists::{self, Condition, Features};
use super::flags::Flags;
use super::memory::Memory;
use super::operation::{Fault, Gpr, Operation};
use switcher_gen::Variant;
use switcher_gen::arch::{PagingMode, RFlags, Selectors, Vendor};

/// What does not change while a switcher runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuModel {
    /// The vendor, whose SYSRET and SYSCALL the CPU has.
    pub vendor: Vendor,
    /// The paging mode, which says how wide a canonical address is.
    pub paging: PagingMode,
    /// The GDT has these five descriptors; a selector of anything else is refused.
    pub selectors: Selectors,
    /// Further descriptors, if the GDT has them, with the content of USER_CS and USER_DS: only
    /// IRETQ loads them.
    pub aliases: Option<(u16, u16)>,
    /// What the CPU has.
    pub features: Features,
}

impl From<&Variant> for CpuModel {
    fn from(variant: &Variant) -> Self {
        let config = variant.config();
        let selectors = variant.selectors();
        let features = Features::of(variant);
        Self { vendor: config.vendor, paging: config.paging, selectors, aliases: None, features }
    }
}

impl CpuModel {
    /// Whether `address` is canonical.
    pub fn is_canonical<D: Domain>(&self, d: &D, address: D::Word) -> D::Bit {
        let by = self.paging.sign_bits().into();
        d.eq(d.sar(d.shl(address, by), by), address)
    }
}

/// The model-specific registers that have an effect in the model.
#[derive(Debug)]
#[expect(missing_docs, reason = "registers are what they are called")]
pub struct Msrs<D: Domain> {
    pub star: D::Word,
    pub lstar: D::Word,
    pub cstar: D::Word,
    pub sfmask: D::Word,
    pub spec_ctrl: D::Word,
    pub efer: D::Word,
}

/// A CPU and its memory.
#[derive(Debug)]
pub struct State<D: Domain> {
    /// The general registers, by [`Gpr`].
    pub gpr: [D::Word; 16],
    /// The address of the next instruction.
    pub rip: D::Word,
    /// RFLAGS.
    pub flags: Flags<D>,
    /// The code selector, zero-extended.
    pub cs: D::Word,
    /// The stack selector, zero-extended.
    pub ss: D::Word,
    /// The current privilege level: 0 or 3.
    pub cpl: u8,
    /// The active GS base.
    pub gs_base: D::Word,
    /// MSR KERNEL_GS_BASE: what SWAPGS swaps in.
    pub inactive_gs_base: D::Word,
    /// FS base.
    pub fs_base: D::Word,
    /// The root, with PCID and NOFLUSH as written.
    pub cr3: D::Word,
    /// CR4, which says what is switched on: see [`CR4`].
    pub cr4: D::Word,
    /// Protection keys of user pages.
    pub pkru: D::Word,
    /// Whether an NMI waits until an IRET has been executed (Intel SDM vol. 3, 6.7.1): from the
    /// delivery of one up to the next IRET, whatever that returns from, and even if it faults
    /// (vol. 3, 28.2.3, "NMI unblocking due to IRET").
    pub nmi_blocked: D::Bit,
    /// The model-specific registers.
    pub msrs: Msrs<D>,
    /// Memory.
    pub memory: Memory<D>,
}

// Not derived: words are `Copy`, a domain need not be `Clone`.
impl<D: Domain> Clone for State<D> {
    fn clone(&self) -> Self {
        Self { memory: self.memory.clone(), msrs: Msrs { ..self.msrs }, ..*self }
    }
}

/// Which way SYSCALL was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyscallKind {
    /// In 64-bit code: to LSTAR.
    Long,
    /// In 32-bit code: to CSTAR on AMD, #UD on Intel.
    Compatibility,
}

/// CR4 of a host that has on what switchers need: FSGSBASE (Intel SDM vol. 3, 2.5).
pub const CR4: u64 = 1 << 16;
/// CR4.PKE: protection keys for user pages.
pub const CR4_PKE: u64 = 1 << 22;
/// CR4.PCIDE: CR3 has PCIDs and NOFLUSH.
pub const CR4_PCIDE: u64 = 1 << exists::PCIDE;
/// CR4 of a host that `variant` is for.
pub const fn cr4(variant: &Variant) -> u64 {
    let config = variant.config();
    let pke = if config.pku { CR4_PKE } else { 0 };
    let pcide = if config.pcid { CR4_PCIDE } else { 0 };
    CR4 | pke | pcide
}

/// EFER of a 64-bit host with SYSCALL: SCE, LME, LMA (Intel SDM vol. 3, 2.2.1).
pub const EFER: u64 = 1 | 1 << 8 | 1 << 10;

/// What RFLAGS can hold besides bit 1, which is always set (Intel SDM vol. 1, 3.4.3).
pub const WRITABLE: u64 = 0x3F_7FD5;

impl<D: Domain> State<D> {
    /// A general register.
    #[inline]
    pub fn get(&self, register: Gpr) -> D::Word {
        self.gpr[register as usize]
    }

    /// Changes a general register.
    #[inline]
    pub fn set(&mut self, register: Gpr, value: D::Word) {
        self.gpr[register as usize] = value;
    }

    /// RFLAGS as one word.
    pub fn rflags(&self, d: &D) -> D::Word {
        self.flags.value(d)
    }

    /// SYSCALL at CPL 3; RIP is the address after it.
    ///
    /// # Errors
    /// #UD where the CPU has no such SYSCALL.
    pub fn syscall(
        &mut self,
        d: &D,
        model: &CpuModel,
        entry: SyscallKind,
    ) -> Result<(), Fault<D::Word>> {
        let exists = exists::of_instruction(Operation::Syscall);
        if !exists.iter().all(|condition| self.meets(d, model, condition)) {
            return Err(Fault::UNDEFINED);
        }
        let target = match (entry, model.vendor) {
            (SyscallKind::Long, _) => self.msrs.lstar,
            (SyscallKind::Compatibility, Vendor::Amd) => self.msrs.cstar,
            (SyscallKind::Compatibility, Vendor::Intel) => return Err(Fault::UNDEFINED),
        };
        self.set(Gpr::Rcx, self.rip);
        // RF applied to the SYSCALL and is not saved.
        let flags = d.mask(self.rflags(d), !RFlags::RF.bits());
        self.set(Gpr::R11, flags);
        let kept = d.xor(self.msrs.sfmask, d.word(u64::MAX));
        self.flags = Flags::new(d, d.or(d.and(flags, kept), d.word(RFlags::FIXED.bits())));
        self.cs = d.mask(d.shr(self.msrs.star, 32), 0xFFFC);
        self.ss = d.plus(self.cs, 8);
        self.cpl = 0;
        self.rip = target;
        Ok(())
    }

    /// Whether a condition about the CPU holds. A condition about a value is for the caller to
    /// judge.
    pub(super) fn meets(&self, d: &D, model: &CpuModel, condition: &Condition) -> bool {
        match condition {
            Condition::Cpu(features) => model.features.intersects(*features),
            Condition::Cr4 { bit, .. } => d.decide(d.any(self.cr4, 1 << bit)),
            Condition::Efer { bit, .. } => d.decide(d.any(self.msrs.efer, 1 << bit)),
            Condition::Bits { .. }
            | Condition::Canonical(_)
            | Condition::Zero { .. }
            | Condition::Readable { .. } => false,
        }
    }

    /// SYSRETQ at CPL 0.
    ///
    /// # Errors
    /// On Intel, #GP **at CPL 0** if RCX is not canonical. AMD faults at CPL 3, at the fetch.
    pub(super) fn sysretq(&mut self, d: &D, model: &CpuModel) -> Result<(), Fault<D::Word>> {
        let rip = self.get(Gpr::Rcx);
        if model.vendor == Vendor::Intel && d.decide(d.not(model.is_canonical(d, rip))) {
            return Err(Fault::protection(d.word(0)));
        }
        self.sysret(d, 16, rip);
        Ok(())
    }

    /// SYSRET to 32-bit code, at CPL 0. Every 32-bit address is canonical.
    pub(super) fn sysretl(&mut self, d: &D) {
        self.sysret(d, 0, d.truncate(self.get(Gpr::Rcx), 4));
    }

    /// The part that both SYSRETs have in common.
    fn sysret(&mut self, d: &D, to_cs: i64, rip: D::Word) {
        self.load_flags(d, self.get(Gpr::R11));
        // RF is not restored, and VM does not exist in long mode.
        self.flags.replace(d, (RFlags::RF | RFlags::VM).bits(), d.word(0));
        let base = d.mask(d.shr(self.msrs.star, 48), 0xFFFF);
        self.cs = d.or(d.plus(base, to_cs), d.word(3));
        self.ss = d.or(d.plus(base, 8), d.word(3));
        self.cpl = 3;
        self.rip = rip;
    }

    /// IRETQ of a frame that has been read: RIP, CS, RFLAGS, RSP, SS. To CPL 3, or from CPL 0 to
    /// the host's own code.
    ///
    /// # Errors
    /// #GP as the frame deserves; nothing has changed then but that NMIs are no longer blocked.
    pub(super) fn iretq(
        &mut self,
        d: &D,
        model: &CpuModel,
        [rip, cs, flags, rsp, ss]: [D::Word; 5],
    ) -> Result<(), Fault<D::Word>> {
        // NMIs are no longer blocked, whether the IRETQ completes or not.
        self.nmi_blocked = d.bit(false);
        if d.decide(self.flags.other(d, RFlags::NT)) {
            return Err(Fault::protection(d.word(0)));
        }
        let selector = |word| d.mask(word, 0xFFFF);
        let (cs, ss) = (selector(cs), selector(ss));
        let s = model.selectors;
        if self.cpl == 0 && d.decide(d.is(cs, s.kernel_cs().into())) {
            // A null SS is fine at CPL 0 in 64-bit mode: an event from CPL 3 leaves one.
            if !d.decide(d.either(d.is(ss, s.kernel_ds().into()), d.is(ss, 0))) {
                return Err(Fault::protection(d.mask(ss, 0xFFFC)));
            }
            if d.decide(d.not(model.is_canonical(d, rip))) {
                return Err(Fault::protection(d.word(0)));
            }
            self.load_frame(d, [rip, cs, flags, rsp, ss]);
            return Ok(());
        }
        let is = |word, usual: u16, alias: Option<u16>| {
            let usual = d.is(word, usual.into());
            alias.map_or(usual, |alias| d.either(usual, d.is(word, alias.into())))
        };
        let is_long = is(cs, s.user_cs(), model.aliases.map(|(cs, _)| cs));
        let is_code = d.either(is_long, d.is(cs, s.user32_cs().into()));
        if !d.decide(is_code) {
            return Err(Fault::protection(d.mask(cs, 0xFFFC)));
        }
        if !d.decide(is(ss, s.user_ds(), model.aliases.map(|(_, ss)| ss))) {
            return Err(Fault::protection(d.mask(ss, 0xFFFC)));
        }
        // In 32-bit code, the upper half of RIP is ignored.
        if d.decide(d.both(is_long, d.not(model.is_canonical(d, rip)))) {
            return Err(Fault::protection(d.word(0)));
        }
        let flags = if self.cpl == 0 {
            flags
        } else {
            // Neither IOPL nor, therefore, IF can be changed.
            let kept = (RFlags::IOPL | RFlags::IF | RFlags::VM | RFlags::VIF | RFlags::VIP).bits();
            d.or(d.mask(flags, !kept), d.mask(self.rflags(d), kept))
        };
        self.arrive(d, [rip, cs, flags, rsp, ss]);
        Ok(())
    }

    /// The end of an IRETQ to CPL 3, once the frame has been checked.
    pub fn arrive(&mut self, d: &D, frame: [D::Word; 5]) {
        self.load_frame(d, frame);
        self.nmi_blocked = d.bit(false);
        self.cpl = 3;
    }

    fn load_frame(&mut self, d: &D, [rip, cs, flags, rsp, ss]: [D::Word; 5]) {
        self.load_flags(d, flags);
        self.flags.replace(d, RFlags::VM.bits(), d.word(0));
        let selector = |word| d.mask(word, 0xFFFF);
        (self.cs, self.ss, self.rip) = (selector(cs), selector(ss), rip);
        self.set(Gpr::Rsp, rsp);
    }

    /// RFLAGS from a word, at CPL 0.
    pub(super) fn load_flags(&mut self, d: &D, word: D::Word) {
        let word = d.or(d.mask(word, WRITABLE), d.word(RFlags::FIXED.bits()));
        self.flags = Flags::new(d, word);
    }
}
