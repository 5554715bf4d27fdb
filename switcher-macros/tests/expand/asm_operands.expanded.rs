fn operands(a: &mut impl Sink) {
    {
        #[allow(unused_imports)]
        use ::switcher_gen::__private::Sink as _;
        ::switcher_gen::__private::dynasm! {
            a
            ; .arch x64
            ;; a.source(::core::file!(), 3u32)
            ; mov rax, QWORD[rsp]
            ;; a.source(::core::file!(), 4u32)
            ;; let (operand, displacement) = const { let offset: ::switcher_gen::layout::Offset < _, _, _ > =Frame::rip; (::switcher_gen::layout::layout_of(offset), ::switcher_gen::layout::disp32::<8usize, _, _, _>(offset)) }
            ;; a.operand(operand)
            ; mov QWORD[rsp + displacement], rcx
            ;; a.source(::core::file!(), 5u32)
            ;; let (operand, displacement) = const { let offset: ::switcher_gen::layout::Offset < _, _, _ > =Frame::rip; (::switcher_gen::layout::layout_of(offset), ::switcher_gen::layout::disp8::<8usize, _, _, _>(offset)) }
            ;; a.operand(operand)
            ; mov QWORD[BYTE rsp + displacement], rcx
            ;; a.source(::core::file!(), 6u32)
            ;; let (operand, displacement) = const { let offset: ::switcher_gen::layout::Offset < _, _, ::switcher_gen::layout::Start > =PerCpu::tss.then(Tss::sp0); (::switcher_gen::layout::layout_of(offset), ::switcher_gen::layout::disp32::<8usize, _, _, _>(offset)) }
            ;; a.operand(operand)
            ; gs mov rsp, QWORD[displacement]
            ;; a.source(::core::file!(), 7u32)
            ;; let (operand, displacement) = const { let offset: ::switcher_gen::layout::Offset < _, _, _ > =PerCpu::tss.then(Tss::ist).then(Ist::first); (::switcher_gen::layout::layout_of(offset), ::switcher_gen::layout::disp32::<8usize, _, _, _>(offset)) }
            ;; a.operand(operand)
            ; mov rax, QWORD[rdi + displacement]
            ;; a.source(::core::file!(), 8u32)
            ;; let (operand, displacement) = const { let offset: ::switcher_gen::layout::Offset < _, _, _ > =Pvcs::user_cs.pair(Pvcs::user_ss); (::switcher_gen::layout::layout_of(offset), ::switcher_gen::layout::disp8::<4usize, _, _, _>(offset)) }
            ;; a.operand(operand)
            ;; a.immediate("selectors.user_pair()")
            ; cmp DWORD[BYTE rdi + displacement], selectors.user_pair()
            ;; a.source(::core::file!(), 9u32)
            ;; let (operand, displacement) = const { let offset: ::switcher_gen::layout::Offset < _, _, _ > =Frame::rip; (::switcher_gen::layout::layout_of(offset), ::switcher_gen::layout::disp32::<8usize, _, _, _>(offset)) }
            ;; a.operand(operand)
            ; lea rax, [rsp + displacement]
            ;; a.source(::core::file!(), 10u32)
            ;; let (operand, displacement) = const { let offset: ::switcher_gen::layout::Offset < _, _, ::switcher_gen::layout::Start > =::switcher_gen::layout::in_block(PerCpu::tss.then(Tss::sp0)); (::switcher_gen::layout::layout_of(offset), ::switcher_gen::layout::disp32::<8usize, _, _, _>(offset)) }
            ;; a.operand(operand)
            ;; match a.placement() { ::switcher_gen::layout::Placement::Gs => { ::switcher_gen::__private::dynasm!(a; .arch x64; gs mov rsp, QWORD[displacement]) }::switcher_gen::layout::Placement::PerCpu => { ::switcher_gen::__private::dynasm!(a; .arch x64; mov rsp, QWORD[extern::switcher_gen::asm::External::PerCpu(displacement)]) } }
            ;; a.source(::core::file!(), 11u32)
            ;; let (operand, displacement) = const { let offset: ::switcher_gen::layout::Offset < _, _, ::switcher_gen::layout::Start > =::switcher_gen::layout::in_block(PerCpu::tss_extra.then(TssExtra::smod_entry)); (::switcher_gen::layout::layout_of(offset), ::switcher_gen::layout::disp32::<8usize, _, _, _>(offset)) }
            ;; a.operand(operand)
            ;; match a.placement() { ::switcher_gen::layout::Placement::Gs => { ::switcher_gen::__private::dynasm!(a; .arch x64; gs jmp QWORD[displacement]) }::switcher_gen::layout::Placement::PerCpu => { ::switcher_gen::__private::dynasm!(a; .arch x64; jmp QWORD[extern::switcher_gen::asm::External::PerCpu(displacement)]) } }
            ;; a.source(::core::file!(), 11u32)
            ; int3
            ;; a.source(::core::file!(), 12u32)
            ; jmp QWORD[=>Label::Target]
            ;; a.source(::core::file!(), 12u32)
            ; int3
            ;; a.source(::core::file!(), 13u32)
            ;; let (operand, displacement) = const { let offset: ::switcher_gen::layout::Offset < _, _, _ > =::switcher_gen::layout::after_pop(Iret::rip.below_end()); (::switcher_gen::layout::layout_of(offset), ::switcher_gen::layout::disp8::<8usize, _, _, _>(offset)) }
            ;; a.operand(operand)
            ; pop QWORD[BYTE rsp + displacement]
        }
    }
}
