::core::compile_error! {
    "AsmLayout describes structs with named fields: where a struct holds an enum, make the field an integer"
}
#[automatically_derived]
#[allow(dead_code, non_upper_case_globals)]
impl Enum {}
#[automatically_derived]
impl ::switcher_gen::layout::AsmLayout for Enum {
    const LAYOUT: &'static ::switcher_gen::layout::Layout = &::switcher_gen::layout::Layout {
        name: "Enum",
        size: ::core::mem::size_of::<Self>(),
        align: ::core::mem::align_of::<Self>(),
        fields: &[],
    };
}
