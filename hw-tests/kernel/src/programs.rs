//! The programs that guests run here, and instructions that are looked for in the switcher.

pub(crate) use hw_cases::{PROBE, SYSCALL};
use switcher_gen::program;

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
