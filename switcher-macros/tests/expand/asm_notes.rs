fn notes(a: &mut impl Sink) {
    asm!(a
        ; endbr64
        /// Before the semicolon,
        ; /// or behind it.
          swapgs
        /// Labels have comments, but come from no line.
        ; =>Label::Start
        ; and eax, !Flags::RF.bits()
        ; gs test BYTE [TssExtra::flags.low_byte()], BYTE FLAGS as i8
        ; add rsp, BYTE 8
        ; mov r11d, -1
        ; jnz =>Label::Exit
        ; jmp extern HOST
        ; .bytes &[0x90]
        ;; let shift = count
        ; shl rax, shift
        ; shl Rq(register), 4
        ; lock inc QWORD [rdi]
        ; sysretl
        ; sysretq
        ;
    );
}
