#[automatically_derived]
#[allow(dead_code, non_upper_case_globals)]
impl Stacks {
    /// Which stack is in use.
    ///
    /// Only the first line reaches listings.
    pub const current: ::switcher_gen::layout::Offset<Stacks, u32> = unsafe {
        ::switcher_gen::layout::Offset::__derived(
            ::switcher_gen::__private::memoffset::offset_of!(Stacks, current),
        )
    };
    /// Where `sp0` lies in a [`Stacks`].
    pub(crate) const sp0: ::switcher_gen::layout::Offset<Stacks, Split64> = unsafe {
        ::switcher_gen::layout::Offset::__derived(
            ::switcher_gen::__private::memoffset::offset_of!(Stacks, sp0),
        )
    };
    /// Where `type` lies in a [`Stacks`].
    const r#type: ::switcher_gen::layout::Offset<
        Stacks,
        Option<core::num::NonZero<u64>>,
    > = unsafe {
        ::switcher_gen::layout::Offset::__derived(
            ::switcher_gen::__private::memoffset::offset_of!(Stacks, r#type),
        )
    };
}
#[automatically_derived]
impl ::switcher_gen::layout::AsmLayout for Stacks {
    const LAYOUT: &'static ::switcher_gen::layout::Layout = &::switcher_gen::layout::Layout {
        name: "Stacks",
        size: ::core::mem::size_of::<Self>(),
        align: ::core::mem::align_of::<Self>(),
        fields: &[
            ::switcher_gen::layout::Field {
                name: "current",
                offset: ::switcher_gen::__private::memoffset::offset_of!(
                    Stacks, current
                ),
                size: ::core::mem::size_of::<u32>(),
                ty: "u32",
                doc: "Which stack is in use.",
                nested: ::core::option::Option::None,
            },
            ::switcher_gen::layout::Field {
                name: "_reserved",
                offset: ::switcher_gen::__private::memoffset::offset_of!(
                    Stacks, _reserved
                ),
                size: ::core::mem::size_of::<[u16; 2]>(),
                ty: "[u16; 2]",
                doc: "",
                nested: ::core::option::Option::None,
            },
            ::switcher_gen::layout::Field {
                name: "sp0",
                offset: ::switcher_gen::__private::memoffset::offset_of!(Stacks, sp0),
                size: ::core::mem::size_of::<Split64>(),
                ty: "Split64",
                doc: "",
                nested: ::core::option::Option::None,
            },
            ::switcher_gen::layout::Field {
                name: "type",
                offset: ::switcher_gen::__private::memoffset::offset_of!(Stacks, r#type),
                size: ::core::mem::size_of::<Option<core::num::NonZero<u64>>>(),
                ty: "Option<core::num::NonZero<u64>>",
                doc: "",
                nested: ::core::option::Option::None,
            },
        ],
    };
}
