//! What the derive says of real structs, compared with what rustc says.

#![allow(dead_code, reason = "the structs are there for their layouts")]

use std::mem::{align_of, offset_of, size_of};

use switcher_gen::layout::{AsmLayout as _, Field, Offset};
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
