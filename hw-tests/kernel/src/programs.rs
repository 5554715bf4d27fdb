//! The programs that guests run here, and instructions that are looked for in the switcher.

pub(crate) use hw_cases::{PROBE, SYSCALL};
use switcher_gen::program;

/// As many SYSCALLs as RBX says, and UD2. Before each, RCX is counted down from 1 to 64, by RBX: so
/// the rounds differ in their number of instructions, and an emulator that runs a fixed number of
/// them between two looks for an NMI looks at every place of the loop and of the switcher. What RCX
/// has at first is counted down, too.
pub(crate) const UNEVEN_SYSCALLS: &[u8] = program!(
    ; again:
    ; loop <again
    ; syscall
    ; mov ecx, ebx
    ; and ecx, BYTE 63
    ; inc ecx
    ; dec rbx
    ; jnz BYTE <again
    ; ud2
);
/// MOV AL, [RDI].
pub(crate) const LOAD: &[u8] = program!(; mov al, BYTE [rdi]);
/// MOV [RDI], AL.
pub(crate) const STORE: &[u8] = program!(; mov BYTE [rdi], al);
/// A jump to the next instruction.
pub(crate) const JUMP: &[u8] = program!(; jmp BYTE >next ; next:);
/// MOV SS, [RDI], which `asm!` refuses: dynasm 5.1 takes it for a store.
pub(crate) const MOV_SS: &[u8] = program!(; .bytes &[0x8E, 0x17]);
/// SYSENTER, which dynasm has in 32-bit mode only.
pub(crate) const SYSENTER: &[u8] = program!(; .bytes &[0x0F, 0x34]);

/// ENDBR64.
pub(crate) const ENDBR64: &[u8] = program!(; endbr64);
/// SYSRETQ, with the trap that `asm!` puts after it.
pub(crate) const SYSRETQ: &[u8] = program!(; sysretq);
/// IRETQ, with the trap that `asm!` puts after it.
pub(crate) const IRETQ: &[u8] = program!(; iretq);
