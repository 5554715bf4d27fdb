#[automatically_derived]
#[allow(dead_code, non_upper_case_globals)]
impl PerCpu {
    /// The hardware's.
    pub const tss: ::switcher_gen::layout::Offset<PerCpu, Tss> = unsafe {
        ::switcher_gen::layout::Offset::__derived(
            ::switcher_gen::__private::memoffset::offset_of!(PerCpu, tss),
        )
    };
}
#[automatically_derived]
impl ::switcher_gen::layout::AsmLayout for PerCpu {
    const LAYOUT: &'static ::switcher_gen::layout::Layout = &::switcher_gen::layout::Layout {
        name: "PerCpu",
        size: ::core::mem::size_of::<Self>(),
        align: ::core::mem::align_of::<Self>(),
        fields: &[
            ::switcher_gen::layout::Field {
                name: "tss",
                offset: ::switcher_gen::__private::memoffset::offset_of!(PerCpu, tss),
                size: ::core::mem::size_of::<Tss>(),
                ty: "Tss",
                doc: "The hardware's.",
                nested: ::core::option::Option::Some(
                    <Tss as ::switcher_gen::layout::AsmLayout>::LAYOUT,
                ),
            },
            ::switcher_gen::layout::Field {
                name: "_reserved",
                offset: ::switcher_gen::__private::memoffset::offset_of!(
                    PerCpu, _reserved
                ),
                size: ::core::mem::size_of::<u64>(),
                ty: "u64",
                doc: "",
                nested: ::core::option::Option::None,
            },
        ],
    };
}
const _: () = if ::switcher_gen::__private::memoffset::offset_of!(PerCpu, tss) != 0 {
    const MESSAGE: ::switcher_gen::layout::Message = ::switcher_gen::layout::Message::new(
        "`PerCpu.tss` is at ",
        ::switcher_gen::__private::memoffset::offset_of!(PerCpu, tss),
        10usize,
        ", not at 0, as #[asm(at = 0)] asserts",
    );
    ::core::panic!("{}", MESSAGE.as_str())
};
const _: () = if ::switcher_gen::__private::memoffset::offset_of!(PerCpu, _reserved)
    != 0x68
{
    const MESSAGE: ::switcher_gen::layout::Message = ::switcher_gen::layout::Message::new(
        "`PerCpu._reserved` is at ",
        ::switcher_gen::__private::memoffset::offset_of!(PerCpu, _reserved),
        16usize,
        ", not at 0x68, as #[asm(at = 0x68)] asserts",
    );
    ::core::panic!("{}", MESSAGE.as_str())
};
const _: () = if ::core::mem::size_of::<PerCpu>() != 0x80 {
    const MESSAGE: ::switcher_gen::layout::Message = ::switcher_gen::layout::Message::new(
        "`PerCpu` is ",
        ::core::mem::size_of::<PerCpu>(),
        16usize,
        " bytes in size, not 0x80, as #[asm(size = 0x80)] asserts",
    );
    ::core::panic!("{}", MESSAGE.as_str())
};
const _: () = if ::core::mem::align_of::<PerCpu>() != 64 {
    const MESSAGE: ::switcher_gen::layout::Message = ::switcher_gen::layout::Message::new(
        "`PerCpu` is aligned to ",
        ::core::mem::align_of::<PerCpu>(),
        10usize,
        ", not to 64, as #[asm(align = 64)] asserts",
    );
    ::core::panic!("{}", MESSAGE.as_str())
};
