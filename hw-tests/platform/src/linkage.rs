//! The functions that the precompiled `core` and `alloc` expect of other libraries.
//!
//! * Memory copy, move, set, compare: for a Linux target libc has them, and this kernel has no
//!   libc. String instructions are fast enough here, need no vector state, and have no loop that
//!   the compiler could recognise and turn into a call of the very function that it is in.
//! * The two functions of the unwinder: `alloc` was compiled with landing pads. A panic here does
//!   not unwind (`panic = "abort"`), so neither is ever called, and both trap.
//!
//! All are weak symbols: a binary that links this library along with a libc gets the libc's.

core::arch::global_asm!(
    r#"
    .section .text.mem, "ax", @progbits
    .macro hw_platform_function name
    .weak   \name
    .type   \name, @function
\name:
    .endm

    // rdi = to, rsi = from, rdx = bytes -> rax = to
    hw_platform_function memmove
    mov     rax, rdi
    mov     rcx, rdi
    sub     rcx, rsi
    cmp     rcx, rdx                    // unsigned: to in [from, from + bytes) copies backwards
    jae     memcpy
    mov     rcx, rdx
    lea     rdi, [rdi + rdx - 1]
    lea     rsi, [rsi + rdx - 1]
    std
    rep movsb
    cld
    ret

    hw_platform_function memcpy
    mov     rax, rdi
    mov     rcx, rdx
    rep movsb
    ret

    // rdi = to, sil = byte, rdx = bytes -> rax = to
    hw_platform_function memset
    mov     r8, rdi
    mov     eax, esi
    mov     rcx, rdx
    rep stosb
    mov     rax, r8
    ret

    // rdi, rsi = what to compare, rdx = bytes -> eax = <0, 0, >0
    hw_platform_function memcmp
    hw_platform_function bcmp
    mov     rcx, rdx
    xor     eax, eax
    cmp     eax, eax                    // ZF set, for no bytes at all
    repe cmpsb
    je      1f
    movzx   eax, byte ptr [rdi - 1]
    movzx   ecx, byte ptr [rsi - 1]
    sub     eax, ecx
1:  ret

    hw_platform_function _Unwind_Resume
    hw_platform_function rust_eh_personality
    ud2

    // rdi = string -> rax = its length
    hw_platform_function strlen
    mov     rcx, -1
    xor     eax, eax
    repne scasb
    not     rcx
    lea     rax, [rcx - 1]
    ret
    .text
"#
);
