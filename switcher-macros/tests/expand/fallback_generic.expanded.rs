::core::compile_error! {
    "AsmLayout takes no generic structs, for each instance has a layout of its own: make `Generic` concrete"
}
#[automatically_derived]
#[allow(dead_code, non_upper_case_globals)]
impl<'a, T: Copy, const N: usize> Generic<'a, T, N>
where
    T: Send,
{
    /// Where `items` lies in a [`Generic`].
    const items: ::switcher_gen::layout::Offset<Generic<'a, T, N>, &'a [T; N]> = unsafe {
        ::switcher_gen::layout::Offset::__derived(
            ::switcher_gen::__private::memoffset::offset_of!(Generic < 'a, T, N >, items),
        )
    };
}
#[automatically_derived]
impl<'a, T: Copy, const N: usize> ::switcher_gen::layout::AsmLayout for Generic<'a, T, N>
where
    T: Send,
{
    const LAYOUT: &'static ::switcher_gen::layout::Layout = &::switcher_gen::layout::Layout {
        name: "Generic",
        size: ::core::mem::size_of::<Self>(),
        align: ::core::mem::align_of::<Self>(),
        fields: &[],
    };
}
