//! What the derive says of real structs, compared with what rustc says.

#![allow(dead_code, reason = "the structs are there for their layouts")]

use std::mem::{align_of, offset_of, size_of};

use switcher_gen::layout::{AsmLayout as _, End, Field, Offset, disp8, disp32, layout_of};
use switcher_macros::AsmLayout;

/// What SYSCALL and the direct switch share with the guest.
#[repr(C)]
#[derive(AsmLayout)]
struct Pvcs {
    /// Where events go.
    ///
    /// Not part of the summary.
    event_entry: u64,
    #[asm(at = 8)]
    user_cs: u16,
    #[asm(at = 10)]
    user_ss: u16,
    _reserved: [u16; 2],
    r#type: u64,
}

/// What the switcher keeps per CPU.
#[repr(C, align(32))]
#[derive(AsmLayout)]
#[asm(size = 0x20, align = 32)]
struct TssExtra {
    flags: u32,
    _padding: u32,
    /// The guest's.
    #[asm(nested, at = 8)]
    pvcs: Pvcs,
}

/// Everything of one CPU.
#[repr(C)]
#[derive(AsmLayout)]
struct PerCpu {
    id: u8,
    #[asm(nested)]
    tss_extra: TssExtra,
}

/// Public in a private module, as most layouts are.
mod visibility {
    use super::AsmLayout;

    #[repr(C)]
    #[derive(AsmLayout)]
    pub(super) struct Mixed {
        private: u64,
        pub(super) visible: u64,
    }

    pub(super) const PRIVATE: usize = Mixed::private.bytes();
}

#[test]
fn offsets_are_those_of_rustc() {
    assert_eq!(Pvcs::event_entry.bytes(), offset_of!(Pvcs, event_entry));
    assert_eq!(Pvcs::user_ss.bytes(), offset_of!(Pvcs, user_ss));
    assert_eq!(Pvcs::r#type.bytes(), offset_of!(Pvcs, r#type));
    assert_eq!(PerCpu::tss_extra.bytes(), 32, "repr(align(32)) pads the field in front");
    assert_eq!(visibility::PRIVATE, 0);
    assert_eq!(visibility::Mixed::visible.bytes(), 8);
}

#[test]
fn constants_know_struct_and_field_type() {
    const USER_CS: Offset<Pvcs, u16> = Pvcs::user_cs;
    const NESTED: Offset<PerCpu, TssExtra> = PerCpu::tss_extra;
    assert_eq!((USER_CS.bytes(), NESTED.bytes()), (8, 32));
}

#[test]
fn offsets_compose_through_nested_structs() {
    let composed: Offset<PerCpu, u16> = PerCpu::tss_extra + TssExtra::pvcs + Pvcs::user_ss;
    assert_eq!(composed.bytes(), offset_of!(PerCpu, tss_extra.pvcs.user_ss));
    const IN_A_CONSTANT: Offset<PerCpu, Pvcs> = PerCpu::tss_extra.then(TssExtra::pvcs);
    assert_eq!(IN_A_CONSTANT.bytes(), offset_of!(PerCpu, tss_extra.pvcs));
}

/// This struct has 0x40 bytes.
#[repr(C)]
#[derive(AsmLayout)]
struct Outer {
    first: u64,
    #[asm(nested)]
    inner: Inner,
    last: u64,
    array: [u32; 6],
}

/// This struct has 0x18 bytes, and lies at 8 in an [`Outer`].
#[repr(C)]
#[derive(AsmLayout)]
struct Inner {
    wide: u64,
    narrow: u32,
    low: u16,
    high: u16,
    shorts: [u16; 4],
}

#[test]
fn an_offset_is_seen_from_the_end_of_its_outermost_struct_whenever_it_is_said() {
    const OUTER: i32 = size_of::<Outer>() as i32;
    const _: () = assert!(OUTER == 0x40);
    let fields = [
        (disp32::<8, _, _, _>(Outer::last), offset_of!(Outer, last)),
        (disp32::<8, _, _, _>(Outer::inner + Inner::wide), offset_of!(Outer, inner.wide)),
        (disp32::<2, _, _, _>(Outer::inner.then(Inner::high)), offset_of!(Outer, inner.high)),
    ];
    let from_end = [
        [Outer::last.below_end(), Outer::last.below_end()],
        [(Outer::inner + Inner::wide).below_end(), Outer::inner.below_end() + Inner::wide],
    ]
    .map(|both| both.map(disp32::<8, _, _, _>));
    let high = [
        disp32::<2, _, _, _>(Outer::inner.then(Inner::high).below_end()),
        disp32::<2, _, _, _>(Outer::inner.below_end().then(Inner::high)),
    ];
    for ((from_start, expected), from_end) in
        fields.into_iter().zip([from_end[0], from_end[1], high])
    {
        assert_eq!(from_start, expected as i32);
        assert_eq!(from_end, [expected as i32 - OUTER; 2]);
    }
    // These are the structs in which the mistake was found: the offset is -32, not 24.
    use switcher_gen::layout::{EventFrame, IretFrame};
    assert_eq!(disp32::<8, _, _, _>(EventFrame::iret.below_end() + IretFrame::cs), -32);
    assert_eq!(disp8::<8, _, _, _>((EventFrame::iret + IretFrame::cs).below_end()), -32);
}

#[test]
fn an_inner_struct_alone_is_seen_from_its_own_end() {
    assert_eq!(disp32::<8, _, _, _>(Inner::wide.below_end()), -0x18);
    assert_eq!(disp32::<8, _, _, _>((Outer::inner + Inner::wide).below_end()), 8 - 0x40);
}

#[test]
fn pairs_narrowings_and_elements_keep_the_anchor_in_every_order() {
    type At = Offset<Outer, Inner, End>;
    const INNER: At = Outer::inner.below_end();
    let pairs = [
        (Outer::inner + Inner::low.pair(Inner::high)).below_end(),
        (Outer::inner + Inner::low).pair(Outer::inner + Inner::high).below_end(),
        (INNER + Inner::low).pair(INNER + Inner::high),
        INNER + Inner::low.pair(Inner::high),
    ];
    let expected = offset_of!(Outer, inner.low) as i32 - size_of::<Outer>() as i32;
    assert_eq!(pairs.map(disp32::<4, _, _, _>), [expected; 4]);

    let bytes = [
        (Outer::inner + Inner::wide.low_byte()).below_end(),
        (Outer::inner + Inner::wide).low_byte().below_end(),
        (INNER + Inner::wide).low_byte(),
        INNER + Inner::wide.low_byte(),
        INNER + Inner::wide.low_dword().low_word().low_byte(),
    ];
    assert_eq!(bytes.map(disp32::<1, _, _, _>), [8 - size_of::<Outer>() as i32; 5]);

    let elements = [
        (Outer::inner + Inner::shorts.element(3)).below_end(),
        (Outer::inner + Inner::shorts).element(3).below_end(),
        (Outer::inner + Inner::shorts).below_end().element(3),
        INNER + Inner::shorts.element(3),
    ];
    let third = offset_of!(Outer, inner.shorts) as i32 + 6 - size_of::<Outer>() as i32;
    assert_eq!(elements.map(disp32::<2, _, _, _>), [third; 4]);
}

#[test]
fn neighbouring_elements_are_a_pair_of_twice_the_width() {
    let pair = Outer::array.element(4).pair(Outer::array.element(5));
    assert_eq!(disp32::<8, _, _, _>(pair), offset_of!(Outer, array) as i32 + 16);
    let shorts = Inner::shorts.element(1).pair(Inner::shorts.element(2));
    assert_eq!(disp32::<4, _, _, _>(shorts), offset_of!(Inner, shorts) as i32 + 2);
}

#[test]
fn an_operand_knows_where_its_register_points() {
    let operand = layout_of(Outer::inner.below_end() + Inner::wide);
    assert_eq!((operand.layout, operand.anchor), (Outer::LAYOUT, size_of::<Outer>() as u32));
    let operand = layout_of(Outer::inner + Inner::wide);
    assert_eq!((operand.layout, operand.anchor), (Outer::LAYOUT, 0));
    assert_eq!(format!("{:?}", Outer::last), "Offset(0x20)");
    assert_eq!(format!("{:?}", Outer::last.below_end()), "Offset(-0x20)");
}

#[test]
fn layout_lists_every_field_in_order() {
    let field = |name, offset, size, ty, doc| Field { name, offset, size, ty, doc, nested: None };
    assert_eq!(Pvcs::LAYOUT.name, "Pvcs");
    assert_eq!(
        Pvcs::LAYOUT.fields,
        [
            field("event_entry", 0, 8, "u64", "Where events go."),
            field("user_cs", 8, 2, "u16", ""),
            field("user_ss", 10, 2, "u16", ""),
            field("_reserved", 12, 4, "[u16; 2]", ""),
            field("type", 16, 8, "u64", ""),
        ]
    );
}

#[test]
fn layout_has_size_and_alignment() {
    for (layout, size, align) in [
        (Pvcs::LAYOUT, size_of::<Pvcs>(), align_of::<Pvcs>()),
        (TssExtra::LAYOUT, 0x20, 32),
        (PerCpu::LAYOUT, 0x40, 32),
    ] {
        assert_eq!((layout.size, layout.align), (size, align), "{}", layout.name);
    }
}

#[test]
fn layout_descends_into_nested_structs_only() {
    let nested: Vec<_> = PerCpu::LAYOUT.fields.iter().map(|field| field.nested).collect();
    assert_eq!(nested, [None, Some(TssExtra::LAYOUT)]);
    assert_eq!(TssExtra::LAYOUT.fields[2].nested, Some(Pvcs::LAYOUT));
}
