//! Typed offsets: the only way a displacement gets into emitted code.
//!
//! An [`Offset<S, F, A>`] says "so many bytes from the anchor `A` of an `S` there is an `F`". The
//! derive ([`AsmLayout`](switcher_macros::AsmLayout)) makes one per field, [`Offset::then`] (or
//! `+`) composes them through nested structs, and [`disp32`]/[`disp8`] turn one into an
//! instruction's displacement, **if** the operand is as wide as the field. Nothing else yields a
//! displacement, and without `unsafe` nothing else makes an offset.
//!
//! Where the base register points is part of the type, because a sum of bytes that are counted from
//! different places means nothing. Two offsets can be combined like this:
//!
//! | | |
//! |---|---|
//! | `S::f + F::g` | the field of a field, from the start of the `S` |
//! | `S::f.below_end() + F::g`, `(S::f + F::g).below_end()` | the same field, from the end of the `S` |
//! | `S::f + F::g.below_end()` | nothing: the register would have to point to two places |
//! | `S::f.below_end().below_end()` | nothing: it points to the end already |
//! | `S::f.pair(S::g)` | both, if they are small integers of one type and anchor, and `g` is right after `f` in the same struct |
//! | `(S::f + F::g).pair(S::f + F::h)`, `S::f + F::g.pair(F::h)` | the same of a nested struct |
//! | `S::f.element(i)` | one element, if `f` is an array of more than `i` |
//! | `S::f.element(i).pair(S::f.element(i + 1))` | two elements of one array |
//! | `(S::f + F::g).pair(S::h)` | nothing: two structs only happen to be neighbours |
//! | `S::f.pair(S::g.low_word())` | nothing: half of a field is no field |
//!
//! `asm!` takes all of these in its memory operands. In other constants, a sum is written
//! `S::f.then(F::g)`, because in constants Rust has operators for its own types only.

use core::fmt;
use core::marker::PhantomData;
use core::ops::Add;

/// The anchor of an offset: the base register points to the start of the struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {}

/// The anchor of an offset: the base register points to the first byte after the struct. See
/// [`Offset::below_end`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {}

pub(super) mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Start {}
    impl Sealed for super::End {}

    /// See [`Narrow`](super::Narrow). The trait is sealed, because arithmetic alone decides which
    /// integers have lower parts.
    pub trait Narrows<T> {}
    impl Narrows<u8> for u16 {}
    impl Narrows<u8> for u32 {}
    impl Narrows<u8> for u64 {}
    impl Narrows<u16> for u32 {}
    impl Narrows<u16> for u64 {}
    impl Narrows<u32> for u64 {}

    /// See [`Half`](super::Half).
    pub trait Halves {}
    impl Halves for u8 {}
    impl Halves for u16 {}
    impl Halves for u32 {}
}

/// Where in a struct the base register points: [`Start`] or [`End`], and nowhere else.
pub trait Anchor: sealed::Sealed {
    #[doc(hidden)]
    const IS_END: bool;
}

impl Anchor for Start {
    const IS_END: bool = false;
}

impl Anchor for End {
    const IS_END: bool = true;
}

/// Where RSP points while POP computes an address from it: to the end of a struct, for it has grown
/// already. With a field counted from the start, one would be taken that lies 8 bytes further on
/// than it is written.
#[diagnostic::on_unimplemented(
    message = "POP adds 8 to RSP before it computes this address",
    label = "counted from the start of a struct, as if RSP had not moved",
    note = "count from where RSP points after the POP, which is the end of a struct: \
            `Struct::field.below_end()`"
)]
pub trait Popped: Anchor {}

impl Popped for End {}

/// The offset as it is: `asm!` asks by it, of what POP writes to by RSP, whether it is counted from
/// where RSP points then.
#[must_use]
pub const fn after_pop<S, F, A: Popped>(offset: Offset<S, F, A>) -> Offset<S, F, A> {
    offset
}

/// The field, for code that is emitted for variants alone that have it. For a struct without the
/// field, this is the byte after the struct, where there is no field: a listing and a proof of such
/// code would both say so.
#[must_use]
pub const fn needed<S, F>(offset: Option<Offset<S, F>>) -> Offset<S, F> {
    match offset {
        Some(offset) => offset,
        None => Offset::at(size_of::<S>(), Container { start: 0, depth: 1, whole: false }),
    }
}

/// The types that an [`Offset`] is about without owning a value of them.
type Types<S, F, A> = (fn(&S) -> &F, A);

/// The struct that declares an offset's field, or the array that it is an element of. Its depth in
/// the outermost struct and its start tell it from every other container that has a field of any
/// size, because containers that lie side by side start at different places.
#[derive(Clone, Copy)]
struct Container {
    /// How many bytes it is from the start of the outermost struct.
    start: u32,
    /// How deep it is nested: 1 for the outermost struct itself.
    depth: u32,
    /// Whether the offset is that of a whole field or element, and not of its lower part or of two.
    whole: bool,
}

impl Container {
    const fn is(self, other: Self) -> bool {
        self.start == other.start && self.depth == other.depth
    }
}

/// Where in a struct `S` a field of type `F` lies, seen from the anchor `A` of the `S`.
pub struct Offset<S, F, A = Start> {
    /// The number of bytes from the start of the `S`, wherever the anchor is.
    bytes: u32,
    container: Container,
    types: PhantomData<Types<S, F, A>>,
}

impl<S, F, A> Clone for Offset<S, F, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S, F, A> Copy for Offset<S, F, A> {}

impl<S, F, A: Anchor> fmt::Debug for Offset<S, F, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.displacement(), A::IS_END) {
            (bytes, false) => write!(f, "Offset({bytes:#x})"),
            (bytes, true) => write!(f, "Offset(-{:#x})", bytes.unsigned_abs()),
        }
    }
}

impl<S, F> Offset<S, F> {
    /// Makes an offset. Only the derive calls this.
    ///
    /// # Safety
    /// `bytes` must come from `offset_of!(S, field)`, and `F` be the field's type: ring 0 takes
    /// whatever it reads or writes there to be an `F`.
    ///
    /// # Panics
    /// If the `S` has no room for the field. In a constant, as the derive has it, that does not
    /// compile.
    #[doc(hidden)]
    #[must_use]
    #[expect(unsafe_code, reason = "a wrong offset is ring 0 code that is wrong")]
    pub const unsafe fn __derived(bytes: usize) -> Self {
        assert!(
            bytes <= size_of::<S>() && size_of::<F>() <= size_of::<S>() - bytes,
            "the struct has no room for such a field"
        );
        Self::at(bytes, Container { start: 0, depth: 1, whole: true })
    }

    /// The distance in bytes from the start of the struct. Only this distance can be added to a
    /// pointer to the struct.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.bytes as usize
    }

    /// This field, seen from a base register that points not to the start of an `S` but to its end,
    /// as a stack pointer does before the `S` is pushed: the displacement is negative.
    #[must_use]
    pub const fn below_end(self) -> Offset<S, F, End> {
        const { assert!(size_of::<S>() <= i32::MAX as usize, "out of a displacement's reach") };
        Offset::at(self.bytes(), self.container)
    }
}

impl<S, F, A> Offset<S, F, A> {
    const fn at(bytes: usize, container: Container) -> Self {
        assert!(bytes <= i32::MAX as usize, "a struct larger than a displacement can reach");
        Self { bytes: bytes as u32, container, types: PhantomData }
    }

    /// The same bytes of the same struct with another type, which need not be a field's.
    const fn reinterpreted<G>(self) -> Offset<S, G, A> {
        let container = Container { whole: false, ..self.container };
        Offset { bytes: self.bytes, container, types: PhantomData }
    }

    /// The offset of a field `G` inside the nested struct `F`, seen from the anchor of this offset.
    /// `inner` is counted from the start of the `F`, because this offset leads there.
    #[must_use]
    pub const fn then<G>(self, inner: Offset<F, G>) -> Offset<S, G, A> {
        let Container { start, depth, whole } = inner.container;
        let (start, depth) = (self.bytes + start, self.container.depth + depth);
        Offset::at(self.bytes as usize + inner.bytes(), Container { start, depth, whole })
    }

    /// The lowest byte of a field: x86 is little-endian, so it lies at the field's own offset.
    ///
    /// This, [`low_word`](Self::low_word) and [`low_dword`](Self::low_dword) are the only
    /// narrowings; every other access must be as wide as the field.
    #[must_use]
    pub const fn low_byte(self) -> Offset<S, u8, A>
    where
        F: Narrow<u8>,
    {
        const { assert!(size_of::<F>() > 1, "Narrow is implemented for a type of another size") };
        self.reinterpreted()
    }

    /// The lowest 16 bits of a wider field, such as one that holds a selector: see
    /// [`low_byte`](Self::low_byte).
    #[must_use]
    pub const fn low_word(self) -> Offset<S, u16, A>
    where
        F: Narrow<u16>,
    {
        const { assert!(size_of::<F>() > 2, "Narrow is implemented for a type of another size") };
        self.reinterpreted()
    }

    /// The low half of a 64-bit field, where an instruction needs no more: see
    /// [`low_byte`](Self::low_byte).
    #[must_use]
    pub const fn low_dword(self) -> Offset<S, u32, A>
    where
        F: Narrow<u32>,
    {
        const { assert!(size_of::<F>() > 4, "Narrow is implemented for a type of another size") };
        self.reinterpreted()
    }

    /// This field and the one right after it, as one operand of twice the width. Both are fields
    /// of the same struct, at whatever depth that is nested, or elements of the same array: what is
    /// an operand together is declared together.
    ///
    /// # Panics
    /// If they are not, or `next` does not follow without a gap. In a constant, as the operands of
    /// `asm!` are, that does not compile; elsewhere it is a panic at run time.
    #[must_use]
    pub const fn pair(self, next: Self) -> Offset<S, [F; 2], A>
    where
        F: Half,
    {
        assert!(
            self.container.whole && next.container.whole,
            "a pair is of two whole fields, not of a field's lower part"
        );
        assert!(
            self.container.is(next.container),
            "the fields of a pair must be of one struct, or elements of one array"
        );
        assert!(
            next.bytes as usize == self.bytes as usize + size_of::<F>(),
            "the second field of a pair must directly follow the first"
        );
        self.reinterpreted()
    }

    const fn displacement(self) -> i32
    where
        A: Anchor,
    {
        let anchor = if A::IS_END { size_of::<S>() as u32 } else { 0 };
        self.bytes.cast_signed() - anchor.cast_signed()
    }
}

impl<S, T, const N: usize, A> Offset<S, [T; N], A> {
    /// One element of an array.
    ///
    /// # Panics
    /// If the array has no such element. In a constant, as the operands of `asm!` are, that does
    /// not compile; elsewhere it is a panic at run time.
    #[must_use]
    pub const fn element(self, index: usize) -> Offset<S, T, A> {
        assert!(index < N, "the array has no such element");
        let container =
            Container { start: self.bytes, depth: self.container.depth + 1, whole: true };
        Offset::at(self.bytes as usize + index * size_of::<T>(), container)
    }
}

impl<S, F, G, A> Add<Offset<F, G>> for Offset<S, F, A> {
    type Output = Offset<S, G, A>;

    fn add(self, inner: Offset<F, G>) -> Offset<S, G, A> {
        self.then(inner)
    }
}

/// A field type that an instruction can access as one operand of `BYTES` bytes. A struct that is a
/// single number, such as a set of flags, may implement it too, if it is as wide.
#[diagnostic::on_unimplemented(
    message = "a field of type `{Self}` is not an operand of {BYTES} bytes",
    label = "the operand's size hint and the field's width differ",
    note = "BYTE is 1, WORD is 2, DWORD is 4 and QWORD is 8 bytes"
)]
pub trait Scalar<const BYTES: usize> {}

impl Scalar<1> for u8 {}
impl Scalar<2> for u16 {}
impl Scalar<4> for u32 {}
impl Scalar<8> for u64 {}
impl Scalar<2> for [u8; 2] {}
impl Scalar<4> for [u16; 2] {}
impl Scalar<8> for [u32; 2] {}

/// An integer whose lowest bytes are an integer of the narrower type `T`. A struct or an array has
/// no lowest byte, only a first field or element, which has an offset of its own.
#[diagnostic::on_unimplemented(
    message = "a field of type `{Self}` has no lower part of type `{T}`",
    label = "only the lower part of a wider integer can be named",
    note = "of a struct name a field, of an array an `element`"
)]
pub trait Narrow<T>: sealed::Narrows<T> {}

impl Narrow<u8> for u16 {}
impl Narrow<u8> for u32 {}
impl Narrow<u8> for u64 {}
impl Narrow<u16> for u32 {}
impl Narrow<u16> for u64 {}
impl Narrow<u32> for u64 {}

/// An integer type two of which make one operand.
#[diagnostic::on_unimplemented(
    message = "two fields of type `{Self}` are not one operand",
    label = "only integers of 1, 2 or 4 bytes make a pair"
)]
pub trait Half: sealed::Halves {}

impl Half for u8 {}
impl Half for u16 {}
impl Half for u32 {}

/// The 32-bit displacement of a `BYTES`-wide access to `offset`.
#[must_use]
pub const fn disp32<const BYTES: usize, S, F: Scalar<BYTES>, A: Anchor>(
    offset: Offset<S, F, A>,
) -> i32 {
    const { assert!(size_of::<F>() == BYTES, "Scalar is implemented for a type of another size") };
    offset.displacement()
}

/// The 8-bit displacement of a `BYTES`-wide access to `offset`, for the shorter encoding.
///
/// # Panics
/// If the field lies outside -128 to 127 bytes. In a constant, as the displacements of `asm!` are,
/// that does not compile; elsewhere it is a panic at run time.
#[must_use]
pub const fn disp8<const BYTES: usize, S, F: Scalar<BYTES>, A: Anchor>(
    offset: Offset<S, F, A>,
) -> i8 {
    let disp = disp32::<BYTES, S, F, A>(offset);
    let fits = i8::MIN as i32 <= disp && disp <= i8::MAX as i32;
    assert!(fits, "this field is too far for `[BYTE ..]`: drop the inner BYTE");
    disp as i8
}

/// One field of a [`Layout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The field's name in Rust.
    pub name: &'static str,
    /// The distance in bytes from the start of the struct.
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

/// A `repr(C)` struct whose fields emitted code may name. The derive implements this trait.
pub trait AsmLayout: Sized {
    /// The struct's fields, for listings and exports.
    const LAYOUT: &'static Layout;
}

/// What a memory operand is about: `asm!` passes this to `Sink::operand` of `switcher-asm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// The struct the base register points into.
    pub layout: &'static Layout,
    /// Where the base register points in it, in bytes from its start.
    pub anchor: u32,
}

/// The struct from which an offset starts, and where its base register points.
#[must_use]
pub const fn layout_of<S: AsmLayout, F, A: Anchor>(_: Offset<S, F, A>) -> Operand {
    Operand { layout: S::LAYOUT, anchor: if A::IS_END { size_of::<S>() as u32 } else { 0 } }
}
