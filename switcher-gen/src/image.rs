//! A finished switcher: position-independent bytes, the places in them, and, once it is linked, the
//! address they run at.

use alloc::vec::Vec;
use core::fmt;

use sha2::{Digest, Sha256};

use crate::arch::{CanonicalAddr, NonCanonical, Selectors, vector};
use crate::asm::{AsmError, Code, CodeBuffer, HostSymbol, Label, Relocation, Window, WindowRange};
use crate::emit;
use crate::variant::Variant;

/// A switcher as emitted: bytes that run at any address once their relocations are filled.
#[derive(Clone, Debug)]
pub struct Image {
    variant: Variant,
    code: Code,
}

/// SHA-256 of an image's variant, bytes, entry points and windows.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The 32 bytes of the hash.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// What distinguishes an entry of the IDT from the others. All of them are 64-bit interrupt gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The offset of the handler, in bytes from the start of the image.
    pub offset: u32,
    /// The stack on which the handler starts: 1 to 7 for one of the IST; 0 for sp0, or for the
    /// interrupted stack in ring 0.
    pub ist: u8,
    /// The highest CPL from which INT n may go through the gate: 0 or 3.
    pub dpl: u8,
}

impl Gate {
    /// The stacks of the IST that have an [`IstTop`](crate::layout::IstTop) above them, by index:
    /// no two of them may overlap. A host may use the others as it likes.
    pub const STACKS: [u8; 4] = [1, 2, 3, 4];

    /// The entry for `vector` with its handler at `offset`.
    #[must_use]
    pub const fn of(offset: u32, vector: u8) -> Self {
        Self { offset, ist: Self::ist(vector), dpl: Self::dpl(vector) }
    }

    /// The stack for `vector`. Vectors that cannot occur share that of #DF.
    const fn ist(vector: u8) -> u8 {
        match vector {
            vector::DF | vector::SEGMENT_OVERRUN => 1,
            vector::NMI => 2,
            vector::DB => 3,
            vector::MC => 4,
            _ => 0,
        }
    }

    /// Guests may use INT for three vectors only (spec/hazards.md, row 32).
    const fn dpl(vector: u8) -> u8 {
        match vector {
            vector::BP | vector::OF | vector::SYSTEM_CALL => 3,
            _ => 0,
        }
    }

    /// The descriptor for a handler at `address` (Intel SDM vol. 3, 7.14.1).
    fn descriptor(self, address: u64, selectors: Selectors) -> GateDescriptor {
        /// A 64-bit interrupt gate.
        const INTERRUPT: u64 = 0xE << 40;
        const PRESENT: u64 = 1 << 47;
        let low = address & 0xFFFF
            | u64::from(selectors.kernel_cs()) << 16
            | u64::from(self.ist) << 32
            | INTERRUPT
            | u64::from(self.dpl) << 45
            | PRESENT
            | (address >> 16 & 0xFFFF) << 48;
        GateDescriptor { low, high: address >> 32 }
    }
}

/// An entry of the IDT in the format of the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct GateDescriptor {
    /// Bytes 0 to 7.
    pub low: u64,
    /// Bytes 8 to 15.
    pub high: u64,
}

const _: () = assert!(size_of::<GateDescriptor>() == 16, "the CPU finds entries 16 bytes apart");

impl Image {
    /// Emits and assembles `variant`. Equal variants give equal images.
    ///
    /// # Errors
    /// Only if an emitter is wrong; the tests assemble every variant.
    pub fn new(variant: &Variant) -> Result<Self, AsmError> {
        let mut buffer = CodeBuffer::new();
        emit::switcher(&mut buffer, variant);
        Self::from_code(*variant, buffer)
    }

    #[doc(hidden)]
    pub fn from_code(variant: Variant, buffer: CodeBuffer) -> Result<Self, AsmError> {
        let code = buffer.finish()?;
        // These are the conditions that the accessors below rely on.
        let stubs = |label: Label| code.labels[label as usize].unwrap_or_default() as usize;
        let len = stubs(Label::EventStubsEnd).wrapping_sub(stubs(Label::EventStubs));
        if len != 256 * emit::stride(&variant) {
            return Err(AsmError::Stride { len });
        }
        // These are the conditions that hosts rely on. Local labels are only for code that jumps
        // there, and not every variant has all of them.
        for label in Label::ALL {
            if label.is_exported() && code.labels[label as usize].is_none() {
                return Err(AsmError::Undefined(label));
            }
        }
        Ok(Self { variant, code })
    }

    /// The variant that the image was emitted for.
    #[must_use]
    pub const fn variant(&self) -> &Variant {
        &self.variant
    }

    /// The instructions, with relocations unfilled.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.code.bytes
    }

    /// The offset of `label`, in bytes from the start.
    ///
    /// # Panics
    /// If the variant does not have the label, which is then a local one. See [`find`](Self::find).
    #[must_use]
    pub fn offset(&self, label: Label) -> u32 {
        // `from_code` refuses an image that lacks an exported label.
        self.find(label).expect("a label that this variant has")
    }

    /// The offset of `label`, if the variant has it: every variant has all labels that are
    /// exported.
    #[must_use]
    pub fn find(&self, label: Label) -> Option<u32> {
        self.code.labels[label as usize]
    }

    /// The label at `offset`, if there is one.
    #[must_use]
    pub fn label_at(&self, offset: u32) -> Option<Label> {
        Label::ALL.into_iter().find(|label| self.code.labels[*label as usize] == Some(offset))
    }

    /// The exported entry points and labels, by offset.
    #[must_use]
    pub fn symbols(&self) -> Vec<(Label, u32)> {
        let exported = Label::ALL.into_iter().filter(|label| label.is_exported());
        let mut symbols: Vec<_> = exported.map(|label| (label, self.offset(label))).collect();
        // The sort is in place, because a stable sort takes 4 KiB of the stack.
        symbols.sort_unstable_by_key(|(label, offset)| (*offset, *label));
        symbols
    }

    /// The ranges in which the host's own NMI and #MC code must be careful.
    #[must_use]
    pub fn windows(&self) -> &[WindowRange] {
        &self.code.windows
    }

    /// Whether `window` applies at `offset`.
    #[must_use]
    pub fn is_in(&self, window: Window, offset: u32) -> bool {
        self.windows()
            .iter()
            .any(|range| range.window == window && (range.start..range.end).contains(&offset))
    }

    /// The entry of the IDT for `vector`.
    #[must_use]
    pub fn gate(&self, vector: u8) -> Gate {
        let stride = emit::stride(&self.variant) as u32;
        let offset = self.offset(Label::EventStubs) + stride * u32::from(vector);
        Gate::of(offset, vector)
    }

    /// The references to the host: calls of its hooks, [`HostSymbol::HOOKS`], and of
    /// [`HostSymbol::RETURNS`].
    #[must_use]
    pub fn relocations(&self) -> &[Relocation] {
        &self.code.relocations
    }

    /// The identity of the image: it differs whenever anything differs that a host could notice.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        hash.update(alloc::format!("{}\0", self.variant).as_bytes());
        hash.update((self.bytes().len() as u64).to_le_bytes());
        hash.update(self.bytes());
        for (label, offset) in self.symbols() {
            hash.update(label.name().as_bytes());
            hash.update([0]);
            hash.update(offset.to_le_bytes());
        }
        for range in self.windows() {
            hash.update([range.window as u8]);
            hash.update(range.start.to_le_bytes());
            hash.update(range.end.to_le_bytes());
        }
        for relocation in self.relocations() {
            hash.update(relocation.symbol.0.as_bytes());
            hash.update([0]);
            hash.update(relocation.at.to_le_bytes());
            hash.update(relocation.addend.to_le_bytes());
        }
        Fingerprint(hash.finalize().into())
    }

    /// The bytes as they must lie at `base`, with every relocation filled through `resolve`.
    ///
    /// # Errors
    /// If `base` is not an address of the variant's paging mode or not a multiple of
    /// [`ALIGNMENT`](Self::ALIGNMENT), or if a symbol is unknown or beyond the reach of rel32.
    pub fn link(
        &self,
        base: u64,
        resolve: impl Fn(HostSymbol) -> Option<u64>,
    ) -> Result<LinkedImage, LinkError> {
        let mode = self.variant.paging();
        let base = mode.address(base)?;
        // The last byte must be canonical, too: an image may not straddle the end of the canonical
        // half.
        let last = base.get().checked_add(self.bytes().len() as u64 - 1);
        mode.address(last.ok_or(LinkError::WrapsAround { base: base.get() })?)?;
        if !base.get().is_multiple_of(Self::ALIGNMENT) {
            return Err(LinkError::Misaligned { base: base.get() });
        }
        let mut bytes = self.bytes().to_vec();
        for &Relocation { at, symbol, addend } in self.relocations() {
            let target = resolve(symbol).ok_or(LinkError::Unresolved { symbol })?;
            let field = base.get().wrapping_add(u64::from(at));
            let value = rel32(field, target.wrapping_add_signed(i64::from(addend)), target)?;
            let at = at as usize;
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        Ok(LinkedImage { image: self.clone(), base, bytes })
    }

    /// Links the image for a host that has event entries of its own and no hooks. A hook that is
    /// called all the same stops at a UD2. Such a host has no return thunks either: a RET takes
    /// their place.
    ///
    /// # Errors
    /// As for [`link`](Self::link), except that no symbol is unknown.
    pub fn link_without_hooks(&self, base: u64) -> Result<LinkedImage, LinkError> {
        self.link(base, |symbol| {
            let instead = match symbol {
                HostSymbol::EXCEPTION => Label::Unhandled,
                _ if HostSymbol::HOOKS.contains(&symbol) => Label::NoHook,
                _ => Label::NoThunk,
            };
            Some(base.wrapping_add(self.find(instead)?.into()))
        })
    }

    /// The alignment of an image's address: a cache line. What the branches of mitigations and all
    /// RETs do depends on their places in their lines.
    pub const ALIGNMENT: u64 = crate::asm::LINE as u64;
}

/// An image with the address at which it runs.
#[derive(Clone, Debug)]
pub struct LinkedImage {
    image: Image,
    base: CanonicalAddr,
    bytes: Vec<u8>,
}

impl LinkedImage {
    /// The image that was linked.
    #[must_use]
    pub const fn image(&self) -> &Image {
        &self.image
    }

    /// The variant that it was emitted for.
    #[must_use]
    pub const fn variant(&self) -> &Variant {
        &self.image.variant
    }

    /// The bytes, to be placed at [`base`](Self::base).
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The address of the first byte.
    #[must_use]
    pub const fn base(&self) -> CanonicalAddr {
        self.base
    }

    /// The address of `label`.
    #[must_use]
    pub fn address(&self, label: Label) -> u64 {
        self.base.get() + u64::from(self.image.offset(label))
    }

    /// The IDT to load while a guest runs, and for a host that has no event entries of its own.
    #[must_use]
    pub fn idt(&self) -> [GateDescriptor; 256] {
        core::array::from_fn(|vector| self.gate(vector as u8))
    }

    /// One entry of the IDT: for hosts that build the table where it stays.
    #[must_use]
    pub fn gate(&self, vector: u8) -> GateDescriptor {
        let gate = self.image.gate(vector);
        let address = self.base.get() + u64::from(gate.offset);
        gate.descriptor(address, self.variant().selectors())
    }

    /// Whether `window` applies at address `rip`: for the host's NMI and #MC handlers.
    #[must_use]
    pub fn is_in(&self, window: Window, rip: u64) -> bool {
        u32::try_from(rip.wrapping_sub(self.base.get()))
            .is_ok_and(|offset| self.image.is_in(window, offset))
    }

    /// The displacement with which a host's own `call rel32` or `jmp rel32` reaches `label`, for
    /// hosts that patch their stubs. `next` is the address after the patched instruction.
    ///
    /// # Errors
    /// If the distance does not fit into 32 bits: map the image closer, or go through a pointer.
    pub fn rel32_to(&self, label: Label, next: u64) -> Result<i32, LinkError> {
        let target = self.address(label);
        rel32(next, target, target)
    }
}

/// The displacement `to - from`; an error names `target`.
fn rel32(from: u64, to: u64, target: u64) -> Result<i32, LinkError> {
    i32::try_from(to.wrapping_sub(from).cast_signed())
        .map_err(|_| LinkError::Unreachable { from, target })
}

/// Why an image cannot run at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The address is not canonical: SYSCALL would load a RIP that is not.
    #[error("the switcher cannot be mapped there: {0}")]
    NonCanonical(#[from] NonCanonical),
    /// The image would reach beyond the last address.
    #[error("the switcher cannot be mapped at {base:#x}: it would reach beyond the last address")]
    WrapsAround {
        /// The address that was asked for.
        base: u64,
    },
    /// The address is not aligned, and entry points would lose their alignment.
    #[error("the switcher cannot be mapped at {base:#x}: not a multiple of {}", Image::ALIGNMENT)]
    Misaligned {
        /// The address that was asked for.
        base: u64,
    },
    /// The host does not know a symbol that the image refers to.
    #[error("the switcher refers to `{}`, which the host does not define", symbol.0)]
    Unresolved {
        /// The unknown symbol.
        symbol: HostSymbol,
    },
    /// A target is more than 2 GiB away.
    #[error(
        "{target:#x} is out of reach of a rel32 at {from:#x}: map the switcher within 2 GiB of it"
    )]
    Unreachable {
        /// The address from which the displacement counts.
        from: u64,
        /// The address that it should reach.
        target: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::string::ToString;
    use switcher_asm::Sink as _;

    const NOTHING: fn(HostSymbol) -> Option<u64> = |_| None;

    #[test]
    fn every_variant_assembles_and_equal_variants_give_equal_images() {
        let mut fingerprints = BTreeSet::new();
        for variant in Variant::all() {
            let image = Image::new(&variant).unwrap();
            let again = Image::new(&variant).unwrap();
            assert_eq!(image.bytes(), again.bytes());
            assert_eq!(image.fingerprint(), again.fingerprint());
            let hooks: BTreeSet<_> = image.relocations().iter().map(|r| r.symbol).collect();
            let mut expected: BTreeSet<_> = HostSymbol::HOOKS.into();
            if variant.mitigations().untrain {
                expected.extend(HostSymbol::RETURNS);
            }
            assert_eq!(hooks, expected, "{variant}");
            assert!(fingerprints.insert(image.fingerprint().to_string()), "{variant}");
        }
    }

    #[test]
    fn a_non_canonical_or_misaligned_address_is_refused() {
        let image = Image::new(&Variant::REFERENCE).unwrap();
        let refused = image.link_without_hooks(1 << 47).unwrap_err();
        assert!(matches!(refused, LinkError::NonCanonical(_)), "{refused}");
        let refused = image.link_without_hooks((1 << 47) - 16).unwrap_err();
        assert!(matches!(refused, LinkError::NonCanonical(_)), "{refused}");
        assert_eq!(
            image.link_without_hooks(0x1008).unwrap_err(),
            LinkError::Misaligned { base: 0x1008 }
        );
        let base = u64::MAX - 15;
        assert_eq!(image.link_without_hooks(base).unwrap_err(), LinkError::WrapsAround { base });
        let la57: Variant = "intel-la57".parse().unwrap();
        assert!(Image::new(&la57).unwrap().link_without_hooks(1 << 47).is_ok());
    }

    #[test]
    fn only_three_gates_are_for_guests_and_four_stacks_are_apart() {
        for variant in Variant::all() {
            let linked = Image::new(&variant).unwrap().link_without_hooks(0xFFFF_FE80_0000_0000);
            let linked = linked.unwrap();
            let idt = linked.idt();
            let stride = if variant.ibt() { 16 } else { 8 };
            for (vector, gate) in (0_u64..).zip(idt) {
                let dpl = gate.low >> 45 & 3;
                assert_eq!(dpl, if [3, 4, 0x80].contains(&vector) { 3 } else { 0 }, "{vector}");
                let ist = gate.low >> 32 & 7;
                let expected = match vector {
                    8 | 9 => 1,
                    2 => 2,
                    1 => 3,
                    18 => 4,
                    _ => 0,
                };
                assert_eq!(ist, expected, "{vector}");
                // The gate is present, and an interrupt gate: IF is cleared.
                assert_eq!(gate.low >> 40 & 0x9F, 0x8E, "{vector}");
                assert_eq!(gate.low >> 16 & 0xFFFF, 0x10, "{vector}");
                let address = gate.low & 0xFFFF | gate.low >> 48 << 16 | gate.high << 32;
                let stubs = linked.address(Label::EventStubs);
                assert_eq!(address, stubs + stride * vector, "{vector}");
            }
            assert_eq!(linked.address(Label::EventStubsEnd) % stride, 0);
        }
    }

    /// This is checked instruction by instruction, whichever of them is executed (hazards.md, rows
    /// 45 and 46).
    #[test]
    fn after_each_return_is_a_trap_and_each_ret_is_in_the_upper_half_of_its_line() {
        use iced_x86::{Decoder, DecoderOptions, FlowControl, Mnemonic};
        let mut counted = [0; 2];
        for variant in Variant::all() {
            let image = Image::new(&variant).unwrap();
            let base = 64 * Image::ALIGNMENT;
            let code: Vec<_> =
                Decoder::with_ip(64, image.bytes(), base, DecoderOptions::NONE).iter().collect();
            for pair in code.windows(2) {
                let [one, next] = pair else { unreachable!("two") };
                let is_iretq = one.mnemonic() == Mnemonic::Iretq;
                let is_branch = matches!(
                    one.flow_control(),
                    FlowControl::Return | FlowControl::IndirectBranch | FlowControl::IndirectCall
                );
                if !is_branch && !is_iretq {
                    continue;
                }
                assert_eq!(next.mnemonic(), Mnemonic::Int3, "{variant}: {:#x}", one.ip());
                counted[0] += 1;
                // A far return is not predicted, so it may lie anywhere.
                let is_predicted = !matches!(
                    one.mnemonic(),
                    Mnemonic::Iretq | Mnemonic::Sysretq | Mnemonic::Sysret | Mnemonic::Retf
                );
                if is_predicted {
                    let half = (next.ip() - 1) & 32;
                    assert_eq!(half, 32, "{variant}: {:#x}", one.ip());
                    counted[1] += 1;
                }
            }
        }
        assert!(counted[0] > counted[1] && counted[1] >= Variant::all().count(), "{counted:?}");
    }

    #[test]
    fn a_hook_that_the_host_does_not_have_is_a_trap() {
        let image = Image::new(&Variant::REFERENCE).unwrap();
        let linked = image.link_without_hooks(0x10_0000).unwrap();
        for relocation in image.relocations() {
            let at = relocation.at as usize;
            let field = linked.bytes()[at..at + 4].try_into().unwrap();
            let target = at.wrapping_add_signed(i32::from_le_bytes(field) as isize + 4);
            if relocation.symbol == HostSymbol::EXCEPTION {
                // What nobody handles is fatal.
                assert_eq!(target, image.offset(Label::Unhandled) as usize);
                continue;
            }
            assert_eq!(linked.bytes()[target..target + 2], [0x0F, 0x0B]);
        }
    }

    #[test]
    fn windows_are_found_by_address() {
        let image = Image::new(&Variant::REFERENCE).unwrap();
        let linked = image.link_without_hooks(0xffff_fe80_0000_0000).unwrap();
        let at = |label| linked.address(label);
        let unsafe_stack = |rip| linked.is_in(Window::UnsafeStack, rip);
        assert!(unsafe_stack(at(Label::Syscall64)));
        assert!(unsafe_stack(at(Label::Syscall64SafeStack) - 1));
        assert!(!unsafe_stack(at(Label::Syscall64SafeStack)));
        assert!(unsafe_stack(at(Label::SysretqUnsafeStack)));
        assert!(!unsafe_stack(at(Label::SysretqUnsafeStack) - 1));
        assert!(linked.is_in(Window::GuestRoot, at(Label::Iretq)));
        assert!(linked.is_in(Window::GuestRoot, at(Label::ReturnFromGuest)));
        assert!(!linked.is_in(Window::GuestRoot, at(Label::EnterGuest)));
        assert!(!linked.is_in(Window::GuestRoot, linked.base().get() - 1));
        assert!(!linked.is_in(Window::GuestRoot, u64::MAX));
    }

    #[test]
    fn relocations_are_filled_or_refused_by_name() {
        let mut buffer = CodeBuffer::new();
        emit::switcher(&mut buffer, &Variant::REFERENCE);
        let call = buffer.offset();
        crate::__private::dynasm!(buffer ; .arch x64 ; call extern HostSymbol("host_nmi"));
        buffer.align(16, 0xCC);
        let image = Image::from_code(Variant::REFERENCE, buffer).unwrap();
        let symbol = HostSymbol("host_nmi");
        let base = 0x10_0000;

        let first = LinkError::Unresolved { symbol: HostSymbol::EXCEPTION };
        assert_eq!(image.link(base, NOTHING).unwrap_err(), first);
        let others = |asked| (asked != symbol).then_some(base);
        assert_eq!(image.link(base, others).unwrap_err(), LinkError::Unresolved { symbol });
        let linked = image.link(base, |_| Some(base + u64::from(call) + 5 + 0x1234)).unwrap();
        let field = call as usize + 1;
        assert_eq!(linked.bytes()[field..field + 4], 0x1234_i32.to_le_bytes());
        let far = base + (1 << 40);
        let refused = image.link(base, |_| Some(far)).unwrap_err();
        assert!(matches!(refused, LinkError::Unreachable { target, .. } if target == far));
    }

    #[test]
    fn a_hosts_own_jump_reaches_the_exit_or_is_told_that_it_does_not() {
        let image = Image::new(&Variant::REFERENCE).unwrap();
        let linked = image.link_without_hooks(0x40_0000).unwrap();
        let target = linked.address(Label::ReturnFromGuest);
        assert_eq!(linked.rel32_to(Label::ReturnFromGuest, target - 0x100), Ok(0x100));
        let from = target + (1 << 31) + 1;
        let unreachable = LinkError::Unreachable { from, target };
        assert_eq!(linked.rel32_to(Label::ReturnFromGuest, from), Err(unreachable));
    }
}
