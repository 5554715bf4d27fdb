::core::compile_error! {
    "the fields of `NoRepr` have no guaranteed offsets: add `#[repr(C)]`"
}
#[automatically_derived]
#[allow(dead_code, non_upper_case_globals)]
impl NoRepr {
    /// Its constant stays, for the sake of its users.
    pub const field: ::switcher_gen::layout::Offset<NoRepr, u64> = unsafe {
        ::switcher_gen::layout::Offset::__derived(
            ::switcher_gen::__private::memoffset::offset_of!(NoRepr, field),
        )
    };
}
#[automatically_derived]
impl ::switcher_gen::layout::AsmLayout for NoRepr {
    const LAYOUT: &'static ::switcher_gen::layout::Layout = &::switcher_gen::layout::Layout {
        name: "NoRepr",
        size: ::core::mem::size_of::<Self>(),
        align: ::core::mem::align_of::<Self>(),
        fields: &[],
    };
}
