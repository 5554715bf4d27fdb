//! From the boot loader to Rust: the multiboot header, the switch to long mode, and the one from
//! there to five-level paging.
//!
//! A multiboot (version 1) loader leaves this state: 32-bit protected mode, paging off, interrupts
//! off, EAX = [`LOADER_MAGIC`], EBX = the physical address of the information structure. Every
//! other register is undefined, the stack pointer too. The BSS is zero.
//!
//! The header carries addresses (the "a.out kludge", flag 16), because QEMU's `-kernel` refuses a
//! 64-bit ELF file without them. GRUB accepts them as well.
//!
//! Rust code runs only once SSE is on: the precompiled `core` uses it.

use core::arch::{asm, global_asm};

use switcher_gen::arch::Msr;
use x86_64::registers::control::Cr4;

/// The value that a multiboot loader leaves in EAX.
pub const LOADER_MAGIC: u32 = 0x2BAD_B002;

/// How many CPUs are used at most; further ones are left asleep.
pub const MAX_CPUS: usize = 4;

/// The selector of the code segment that [`switch_to_la57`] passes through: 32 bits, CPL 0. Its
/// descriptor is the first entry of the boot GDT and of the one in [`crate::segments`].
pub(crate) const BOOT_CS32: u16 = 0x08;

global_asm!(
    r#"
    .set MAGIC, 0x1BADB002
    .set FLAGS, 0x00010003              // page-aligned modules, memory map, addresses follow

    .section .multiboot, "ax", @progbits
    .balign 8
hw_platform_multiboot:
    .long MAGIC, FLAGS, -(MAGIC + FLAGS)
    .long hw_platform_multiboot           // header_addr
    .long __image_start                 // load_addr
    .long __load_end                    // load_end_addr
    .long __image_end                   // bss_end_addr
    .long hw_platform_start               // entry_addr

    .section .text.boot, "ax", @progbits
    .code32
    .global hw_platform_start
hw_platform_start:
    cli
    cld
    mov     esp, offset hw_platform_boot_stack_top
    mov     ebp, eax                    // the loader's magic
    mov     edi, ebx                    // its information structure

    // Does the CPU have long mode? Everything that a loader boots today has CPUID.
    mov     eax, 0x80000000
    cpuid
    cmp     eax, 0x80000001
    jb      2f
    mov     eax, 0x80000001
    cpuid
    bt      edx, 29
    jnc     2f

    // The first GiB is identity-mapped in pages of 2 MiB. memory/ replaces this.
    mov     dword ptr [hw_platform_boot_pml4], offset hw_platform_boot_pdpt + 3
    mov     dword ptr [hw_platform_boot_pdpt], offset hw_platform_boot_pd + 3
    xor     ecx, ecx
    mov     eax, 0x83                   // present, writable, 2 MiB
1:  mov     dword ptr [hw_platform_boot_pd + ecx*8], eax
    add     eax, 0x200000
    inc     ecx
    cmp     ecx, 512
    jne     1b

    mov     eax, 0x620                  // CR4: PAE, OSFXSR, OSXMMEXCPT
    mov     cr4, eax
    mov     eax, offset hw_platform_boot_pml4
    mov     cr3, eax
    mov     ecx, {efer}
    rdmsr
    or      eax, 0x100                  // LME
    wrmsr
    mov     eax, 0x80010033             // CR0: PG, WP, NE, ET, MP, PE
    mov     cr0, eax
    lgdt    [hw_platform_boot_gdtr]
    push    0x10
    mov     eax, offset hw_platform_start64
    push    eax
    retf

2:  // No long mode: say so on COM1 as far as it is set up, and stop.
    mov     esi, offset hw_platform_no_long_mode
    mov     edx, 0x3F8
3:  outsb
    cmp     byte ptr [esi], 0
    jne     3b
4:  hlt
    jmp     4b
hw_platform_no_long_mode:
    .asciz  "\nfatal: this CPU has no long mode\n"

    .code64
hw_platform_start64:
    mov     eax, 0x18
    mov     ss, eax
    mov     ds, eax
    mov     es, eax
    xor     eax, eax
    mov     fs, eax
    mov     gs, eax
    mov     esp, offset hw_platform_boot_stack_top
    mov     esi, edi                    // 2nd argument: information structure
    mov     edi, ebp                    // 1st argument: magic
    xor     ebp, ebp
    call    hw_platform_main
    ud2

    // extern "C" fn(cr3: u32): see switch_to_la57.
    .global hw_platform_switch_to_la57
hw_platform_switch_to_la57:
    push    rbx                         // The upper halves of registers are undefined after a
    push    rbp                         // visit to 32-bit mode (SDM vol. 1, 3.4.1.1).
    push    r12
    push    r13
    push    r14
    push    r15
    push    {cs32}
    lea     rax, [rip + hw_platform_la57_32]
    push    rax
    retfq
    .code32
hw_platform_la57_32:
    mov     eax, cr0
    and     eax, 0x7FFFFFFF             // PG off: EFER.LMA clears
    mov     cr0, eax
    mov     ecx, cr4
    or      ecx, 0x1000                 // LA57
    mov     cr4, ecx
    mov     cr3, edi
    or      eax, 0x80000000             // PG on: LMA sets again
    mov     cr0, eax
    push    0x10
    mov     eax, offset hw_platform_la57_64
    push    eax
    retf
    .code64
hw_platform_la57_64:
    mov     esp, esp
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    ret

    // A CPU that another one starts (smp.rs), in three steps. The first, up to the far jump, is
    // copied to a page below 1 MiB and executed there, in real mode: CS = page >> 4, IP = 0. It is
    // written in bytes, as the assembler's syntax for 16 bits has no far jump to 32.
    .global hw_platform_start_cpu
hw_platform_start_cpu:
    .byte   0xFA                        // cli
    .byte   0xFC                        // cld
    .byte   0x8C, 0xC8                  // mov ax, cs
    .byte   0x8E, 0xD8                  // mov ds, ax
    .byte   0x0F, 0x01, 0x16            // lgdt [...]: 24 bits of the base, which is below 16 MiB
    .word   9f - hw_platform_start_cpu
    .byte   0x0F, 0x20, 0xC0            // mov eax, cr0
    .byte   0x0C, 0x01                  // or al, 1: PE
    .byte   0x0F, 0x22, 0xC0            // mov cr0, eax
    .byte   0x66, 0xEA                  // jmp 0x08:hw_platform_start_cpu32
    .long   hw_platform_start_cpu32
    .word   0x08
9:  .word   hw_platform_boot_gdtr - hw_platform_boot_gdt - 1
    .long   hw_platform_boot_gdt
    .global hw_platform_start_cpu_end
hw_platform_start_cpu_end:

    .code32
hw_platform_start_cpu32:
    mov     eax, 0x18
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    mov     eax, [hw_platform_started_cr4]
    mov     cr4, eax
    mov     eax, [hw_platform_started_cr3]
    mov     cr3, eax
    mov     ecx, {efer}
    rdmsr
    or      eax, 0x900                  // LME, NXE
    wrmsr
    mov     eax, 0x80010033             // CR0: PG, WP, NE, ET, MP, PE
    mov     cr0, eax
    mov     esp, [hw_platform_started_stack]
    push    0x10
    mov     eax, offset hw_platform_start_cpu64
    push    eax
    retf
    .code64
hw_platform_start_cpu64:
    mov     eax, 0x18
    mov     ss, eax
    mov     ds, eax
    mov     es, eax
    xor     eax, eax
    mov     fs, eax
    mov     gs, eax
    mov     esp, esp
    xor     ebp, ebp
    call    qword ptr [rip + hw_platform_started_entry]
    ud2

    .section .rodata.boot, "a", @progbits
    .balign 8
hw_platform_boot_gdt:
    .quad 0
    .quad 0x00CF9B000000FFFF            // 0x08: 32-bit code
    .quad 0x00AF9B000000FFFF            // 0x10: 64-bit code
    .quad 0x00CF93000000FFFF            // 0x18: data
hw_platform_boot_gdtr:
    .word . - hw_platform_boot_gdt - 1
    .long hw_platform_boot_gdt

    .section .bss.boot, "aw", @nobits
    .balign 4096
hw_platform_boot_pml4:    .skip 4096
hw_platform_boot_pdpt:    .skip 4096
hw_platform_boot_pd:      .skip 4096
    // A CPU that is being started loads these. One is started at a time.
    .global hw_platform_started_cr3, hw_platform_started_cr4
    .global hw_platform_started_stack, hw_platform_started_entry
hw_platform_started_cr3:   .skip 8
hw_platform_started_cr4:   .skip 8
hw_platform_started_stack: .skip 8
hw_platform_started_entry: .skip 8
    .balign 4096
    .global hw_platform_started_stacks
hw_platform_started_stacks: .skip {stack} * ({cpus} - 1)
    // The lowest page of the stack becomes a guard page: memory/ unmaps it.
    .global hw_platform_boot_stack
hw_platform_boot_stack:   .skip {stack}
hw_platform_boot_stack_top:
    .text
"#,
    cs32 = const BOOT_CS32,
    stack = const BOOT_STACK_SIZE,
    cpus = const MAX_CPUS,
    efer = const Msr::Efer.address(),
);

/// The size in bytes of the stack on which the host's own code runs, its guard page included.
pub const BOOT_STACK_SIZE: usize = 256 * 1024;

unsafe extern "C" {
    fn hw_platform_switch_to_la57(cr3: u32);
    static hw_platform_boot_stack: u8;
    static hw_platform_started_stacks: u8;
    static hw_platform_start_cpu: u8;
    static hw_platform_start_cpu_end: u8;
    static mut hw_platform_started_cr3: u64;
    static mut hw_platform_started_cr4: u64;
    static mut hw_platform_started_stack: u64;
    static mut hw_platform_started_entry: u64;
}

/// The address of the lowest page of a started CPU's stack, which is its guard page.
fn started_stack_guard(cpu: usize) -> u64 {
    (&raw const hw_platform_started_stacks).addr() as u64 + ((cpu - 1) * BOOT_STACK_SIZE) as u64
}

/// The guard pages of the stacks of all started CPUs.
pub(crate) fn started_stack_guards() -> impl Iterator<Item = u64> {
    (1..MAX_CPUS).map(started_stack_guard)
}

/// The code that a CPU to be started executes first, in real mode, in a page of its own.
pub(crate) fn start_code() -> &'static [u8] {
    let start = &raw const hw_platform_start_cpu;
    let end = &raw const hw_platform_start_cpu_end;
    // SAFETY: the two symbols delimit constant bytes of this image.
    unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// Stores what the next CPU to be started loads: the host's root, and this CPU's paging mode. That
/// CPU then calls `entry`.
///
/// # Safety
/// No other CPU is being started.
pub(crate) unsafe fn prepare_start(cpu: usize, cr3: u32, entry: extern "C" fn() -> !) {
    /// The bits PAE, OSFXSR, OSXMMEXCPT and LA57.
    const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 12;
    let cr4 = Cr4::read_raw() & CR4;
    let stack = started_stack_guard(cpu) + BOOT_STACK_SIZE as u64;
    for (place, value) in [
        (&raw mut hw_platform_started_cr3, u64::from(cr3)),
        (&raw mut hw_platform_started_cr4, cr4),
        (&raw mut hw_platform_started_stack, stack),
        (&raw mut hw_platform_started_entry, entry as usize as u64),
    ] {
        // SAFETY: the words are statics that only a CPU being started reads, and no CPU is being
        // started. The write is volatile, as the compiler does not see that CPU's reads.
        unsafe { place.write_volatile(value) }
    }
}

/// The address after the boot stack's last byte.
#[must_use]
pub fn stack_top() -> u64 {
    stack_guard() + BOOT_STACK_SIZE as u64
}

/// The address of the boot stack's lowest page, which is its guard page.
pub(crate) fn stack_guard() -> u64 {
    (&raw const hw_platform_boot_stack).addr() as u64
}

/// Turns five-level paging on, which takes turning paging off in between, and loads `cr3`.
///
/// # Safety
/// `cr3` is the root of five-level tables that identity-map the whole image, as the current tables
/// do. CR4.PCIDE is clear, interrupts are off, and the segment at 0x08 of the loaded GDT is
/// [`BOOT_CS32`]. The CPU has LA57.
pub(crate) unsafe fn switch_to_la57(cr3: u32) {
    // SAFETY: the caller's promises are what the routine needs: the code, the stack (both below 4
    // GiB and identity-mapped) and the descriptors stay where they are under either tables and with
    // paging off; the routine preserves the registers that the C ABI wants preserved.
    unsafe { hw_platform_switch_to_la57(cr3) }
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off, HLT stops the CPU; the loop repeats it after an NMI.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}
