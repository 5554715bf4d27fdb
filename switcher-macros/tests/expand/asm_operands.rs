fn operands(a: &mut impl Sink) {
    asm!(a
        ; mov rax, QWORD [rsp]
        ; mov QWORD [rsp + Frame::rip], rcx
        ; mov QWORD [BYTE rsp + Frame::rip], rcx
        ; gs mov rsp, QWORD [PerCpu::tss + Tss::sp0]
        ; mov rax, QWORD [rdi + (PerCpu::tss + (Tss::ist + Ist::first))]
        ; cmp DWORD [BYTE rdi + Pvcs::user_cs.pair(Pvcs::user_ss)], selectors.user_pair()
        ; lea rax, QWORD [rsp + Frame::rip]
        ; percpu mov rsp, QWORD [PerCpu::tss + Tss::sp0]
        ; percpu jmp QWORD [PerCpu::tss_extra + TssExtra::smod_entry]
        ; jmp QWORD [=>Label::Target]
        ; pop QWORD [BYTE rsp + Iret::rip.below_end()]
    );
}
