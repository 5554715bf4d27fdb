fn notes(a: &mut impl Sink) {
    {
        #[allow(unused_imports)]
        use ::switcher_gen::__private::Sink as _;
        ::switcher_gen::__private::dynasm! {
            a
            ; .arch x64
            ;; a.source(::core::file!(), 3u32)
            ; .bytes & [0xf3, 0x0f, 0x1e, 0xfa]
            ;; a.comment("Before the semicolon,")
            ;; a.comment("or behind it.")
            ;; a.source(::core::file!(), 6u32)
            ; swapgs
            ;; a.comment("Labels have comments, but come from no line.")
            ; =>Label::Start
            ;; a.source(::core::file!(), 9u32)
            ;; a.immediate("!Flags::RF.bits()")
            ; and eax, !Flags::RF.bits()
            ;; a.source(::core::file!(), 10u32)
            ;; let (operand, displacement) = const { let offset: ::switcher_gen::layout::Offset < _, _, ::switcher_gen::layout::Start > =TssExtra::flags.low_byte(); (::switcher_gen::layout::layout_of(offset), ::switcher_gen::layout::disp32::<1usize, _, _, _>(offset)) }
            ;; a.operand(operand)
            ;; a.immediate("FLAGS as i8")
            ; gs test BYTE[displacement], BYTE FLAGS as i8
            ;; a.source(::core::file!(), 11u32)
            ; add rsp, BYTE 8
            ;; a.source(::core::file!(), 12u32)
            ; mov r11d, -1
            ;; a.source(::core::file!(), 13u32)
            ; jnz => Label::Exit
            ;; a.source(::core::file!(), 14u32)
            ; jmp extern HOST
            ; .bytes & [0x90]
            ;; let shift = count
            ;; a.source(::core::file!(), 17u32)
            ;; a.immediate("shift")
            ; shl rax, shift
            ;; a.source(::core::file!(), 18u32)
            ; shl Rq(register), 4
            ;; a.source(::core::file!(), 19u32)
            ; lock inc QWORD[rdi]
            ;; a.source(::core::file!(), 20u32)
            ; .bytes & [0x0f, 0x07]
            ;; a.source(::core::file!(), 20u32)
            ; int3
            ;; a.source(::core::file!(), 21u32)
            ; .bytes & [0x48, 0x0f, 0x07]
            ;; a.source(::core::file!(), 21u32)
            ; int3
        }
    }
}
