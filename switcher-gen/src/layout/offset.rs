//! Typed offsets: the only way a displacement gets into emitted code.
//!
//! An [`Offset<S, F>`] says "so many bytes into an `S` there is an `F`". The derive
//! ([`AsmLayout`](switcher_macros::AsmLayout)) makes one per field, [`Offset::then`] (or `+`)
//! composes them through nested structs, and [`disp32`]/[`disp8`] turn one into an instruction's
//! displacement, **if** the operand is as wide as the field. Nothing else yields a displacement.

use core::fmt;
use core::marker::PhantomData;
use core::ops::Add;

/// Where in a struct `S` a field of type `F` lies, in bytes from the start of `S`.
pub struct Offset<S, F> {
    bytes: u32,
    /// Where in `S` the base register points: see [`Offset::below_end`].
    anchor: u32,
    types: PhantomData<fn(&S) -> &F>,
}

impl<S, F> Clone for Offset<S, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, F> Copy for Offset<S, F> {}

impl<S, F> fmt::Debug for Offset<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Offset({:#x})", self.bytes)
    }
}

impl<S, F> Offset<S, F> {
    /// For the derive alone: `bytes` must come from `offset_of!(S, field: F)`.
    #[doc(hidden)]
    #[must_use]
    pub const fn __derived(bytes: usize) -> Self {
        assert!(bytes <= i32::MAX as usize, "a struct larger than a displacement can reach");
        Self { bytes: bytes as u32, anchor: 0, types: PhantomData }
    }

    /// The distance in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.bytes as usize
    }

    /// The offset of a field `G` inside the nested struct `F`, seen from `S`.
    #[must_use]
    pub const fn then<G>(self, inner: Offset<F, G>) -> Offset<S, G> {
        Offset::__derived(self.bytes() + inner.bytes())
    }

    /// This field, seen from a base register that points not to the start of an `S` but to its end,
    /// as a stack pointer does before the `S` is pushed: the displacement is negative.
    #[must_use]
    pub const fn below_end(self) -> Self {
        Self { anchor: size_of::<S>() as u32, ..self }
    }

    /// The lowest byte of a field: x86 is little-endian, so it lies at the field's own offset.
    ///
    /// This, [`low_word`](Self::low_word) and [`low_dword`](Self::low_dword) are the sanctioned
    /// narrowings; everything else must match the field's width.
    #[must_use]
    pub const fn low_byte(self) -> Offset<S, u8> {
        Offset { bytes: self.bytes, anchor: self.anchor, types: PhantomData }
    }

    /// The low half of a 64-bit field, where an instruction needs no more: see
    /// [`low_byte`](Self::low_byte).
    #[must_use]
    pub const fn low_dword(self) -> Offset<S, u32>
    where
        F: Scalar<8>,
    {
        Offset { bytes: self.bytes, anchor: self.anchor, types: PhantomData }
    }

    /// The lowest 16 bits of a 64-bit field that holds a selector: see [`low_byte`](Self::low_byte).
    #[must_use]
    pub const fn low_word(self) -> Offset<S, u16>
    where
        F: Scalar<8>,
    {
        Offset { bytes: self.bytes, anchor: self.anchor, types: PhantomData }
    }

    /// This field and the one right behind it, as one operand of twice the width.
    ///
    /// # Panics
    /// At compile time (offsets are constants) if `next` does not follow without a gap.
    #[must_use]
    pub const fn pair(self, next: Self) -> Offset<S, [F; 2]> {
        assert!(
            next.bytes() == self.bytes() + size_of::<F>(),
            "the second field of a pair must directly follow the first"
        );
        Offset::__derived(self.bytes())
    }
}

impl<S, F, G> Add<Offset<F, G>> for Offset<S, F> {
    type Output = Offset<S, G>;

    fn add(self, inner: Offset<F, G>) -> Offset<S, G> {
        self.then(inner)
    }
}

/// A field type that an instruction can access as one operand of `BYTES` bytes.
#[diagnostic::on_unimplemented(
    message = "a field of type `{Self}` is not an operand of {BYTES} bytes",
    label = "the operand's size hint and the field's width differ",
    note = "BYTE is 1, WORD is 2, DWORD is 4 and QWORD is 8 bytes"
)]
pub trait Scalar<const BYTES: usize> {}

impl Scalar<1> for u8 {}
impl Scalar<2> for u16 {}
impl Scalar<4> for u32 {}
impl Scalar<4> for [u16; 2] {}
impl Scalar<8> for u64 {}

/// The 32-bit displacement of a `BYTES`-wide access to `offset`.
#[must_use]
pub const fn disp32<const BYTES: usize, S, F: Scalar<BYTES>>(offset: Offset<S, F>) -> i32 {
    const { assert!(size_of::<F>() == BYTES, "Scalar is implemented for a type of another size") };
    offset.bytes.cast_signed() - offset.anchor.cast_signed()
}

/// As [`disp32`], for the shorter encoding with an 8-bit displacement.
///
/// # Panics
/// At compile time (offsets are constants) if the field lies outside -128 to 127 bytes.
#[must_use]
pub const fn disp8<const BYTES: usize, S, F: Scalar<BYTES>>(offset: Offset<S, F>) -> i8 {
    let disp = disp32::<BYTES, S, F>(offset);
    let fits = i8::MIN as i32 <= disp && disp <= i8::MAX as i32;
    assert!(fits, "this field is too far for `[BYTE ..]`: drop the inner BYTE");
    disp as i8
}

/// One field of a [`Layout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The field's name in Rust.
    pub name: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
    /// The field's type as written.
    pub ty: &'static str,
    /// The first sentence of the field's documentation.
    pub doc: &'static str,
    /// The field's own layout if it is marked `#[asm(nested)]`.
    pub nested: Option<&'static Layout>,
}

/// What listings and exports need to know of a struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The struct's name in Rust.
    pub name: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
    /// The fields in order of declaration, which `repr(C)` makes the order of offsets.
    pub fields: &'static [Field],
}

/// A `repr(C)` struct whose fields emitted code may name. Implemented by the derive.
pub trait AsmLayout: Sized {
    /// The struct's fields, for listings and exports.
    const LAYOUT: &'static Layout;
}

/// What a memory operand is about: how `asm!` tells [`Sink::operand`](crate::asm::Sink::operand).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// The struct the base register points into.
    pub layout: &'static Layout,
    /// Where in it, in bytes.
    pub anchor: u32,
}

/// The struct an offset starts from and where its base register points.
#[must_use]
pub const fn layout_of<S: AsmLayout, F>(offset: Offset<S, F>) -> Operand {
    Operand { layout: S::LAYOUT, anchor: offset.anchor }
}
