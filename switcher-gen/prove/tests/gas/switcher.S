/*
 * A switcher written by hand for GNU as: what the prover must be able to judge besides the images
 * of this crate. For Intel, four-level paging, the PVCS of 2024 and per-CPU data relative to GS.
 *
 * Where the per-CPU block lies can be set with --defsym GS_TSS=... and --defsym GS_TSS_EXTRA=...
 */

	.ifndef	GS_TSS
	.set	GS_TSS, 0
	.endif
	.ifndef	GS_TSS_EXTRA
	.set	GS_TSS_EXTRA, 0x80
	.endif

/* The TSS. sp2 belongs to nobody and holds the guest's RSP for a moment. */
	.set	TSS_SP0, GS_TSS + 0x04
	.set	TSS_SP1, GS_TSS + 0x0C
	.set	TSS_SP2, GS_TSS + 0x14
	.set	TSS_IST1, GS_TSS + 0x24

/* TssExtra. */
	.set	HOST_CR3, GS_TSS_EXTRA + 0x00
	.set	HOST_RSP, GS_TSS_EXTRA + 0x08
	.set	ENTER_CR3, GS_TSS_EXTRA + 0x10
	.set	HOST_SPEC_CTRL, GS_TSS_EXTRA + 0x38
	.set	GUEST_SPEC_CTRL, GS_TSS_EXTRA + 0x3C
	.set	SWITCH_FLAGS, GS_TSS_EXTRA + 0x40
	.set	SMOD_CR3, GS_TSS_EXTRA + 0x48
	.set	UMOD_CR3, GS_TSS_EXTRA + 0x50
	.set	PVCS, GS_TSS_EXTRA + 0x58
	.set	RETU_RIP, GS_TSS_EXTRA + 0x60
	.set	SMOD_ENTRY, GS_TSS_EXTRA + 0x68
	.set	SMOD_GSBASE, GS_TSS_EXTRA + 0x70
	.set	SMOD_RSP, GS_TSS_EXTRA + 0x78

/* switch_flags: all bits but the mode's own forbid a direct switch out of that mode. */
	.set	MODE_SMOD, 1 << 0
	.set	MODE_UMOD, 1 << 1
	.set	MODE_BOTH, MODE_SMOD | MODE_UMOD
	.set	NO_DS_TO_SMOD, ~MODE_UMOD
	.set	NO_DS_TO_UMOD, ~MODE_SMOD

/* The PVCS. Guests write to it at any time: read a field once and trust nothing in it. */
	.set	PVCS_USER_CS_SS, 0x40
	.set	PVCS_USER_GSBASE, 0x50
	.set	PVCS_EFLAGS, 0x58
	.set	PVCS_RIP, 0x60
	.set	PVCS_RSP, 0x68
	.set	PVCS_RCX, 0x70
	.set	PVCS_R11, 0x78

/* What IRETQ pops: the end of a PtRegs. */
	.set	IRET_RIP, 0x00
	.set	IRET_CS, 0x08
	.set	IRET_FLAGS, 0x10
	.set	IRET_RSP, 0x18
	.set	IRET_SS, 0x20
	.set	PT_REGS_SIZE, 0xA8

	.set	USER_DS, 0x2B
	.set	USER_CS, 0x33
	.set	USER_CS_SS, USER_DS << 16 | USER_CS

/* RFLAGS. */
	.set	FLAGS_TF, 1 << 8
	.set	FLAGS_RF, 1 << 16
	.set	FLAGS_ALLOWED, 0x254FD7
	.set	FLAGS_FORCED, 0x202
	.set	FLAGS_HOST, 0x2

	.set	REASON_SYSCALL, 1024
	.set	ENOSYS, 38

/* Bits of an address that count: 48. */
	.set	SIGN_BIT, 47

	.macro	push_all regs:vararg
	.irp	reg, \regs
	pushq	%\reg
	.endr
	.endm

	.macro	pop_all regs:vararg
	.irp	reg, \regs
	popq	%\reg
	.endr
	.endm

	.macro	clear_all regs:vararg
	.irp	reg, \regs
	xorl	%\reg, %\reg
	.endr
	.endm

	.macro	routine name
	.p2align 4, 0xCC
	.globl	\name
	.type	\name, @function
\name:
	.endm

	.macro	end_routine name
	.size	\name, . - \name
	.endm

	.text

/*
 * struct pt_regs *switcher_enter_guest(void)
 *
 * Called on the host's root and stack, GS the host's, interrupts off. The guest's registers are the
 * PtRegs below sp0; they are popped where they are. Returns through switcher_return_from_guest.
 */
routine switcher_enter_guest
	push_all r15, r14, r13, r12, rbp, rbx
	movq	%rsp, %gs:HOST_RSP

	movq	%gs:TSS_SP0, %rsp
	subq	$PT_REGS_SIZE, %rsp
	pop_all	r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi

	/* RDI is the last register that can be spared. */
	movq	%gs:ENTER_CR3, %rdi
	movq	%rdi, %cr3
	popq	%rdi
	/* orig_ax says nothing here. */
	leaq	8(%rsp), %rsp

	andq	$FLAGS_ALLOWED, IRET_FLAGS(%rsp)
	orq	$FLAGS_FORCED, IRET_FLAGS(%rsp)
	swapgs

	/* SYSRETQ can load these selectors and no others. */
	cmpl	$USER_CS, IRET_CS(%rsp)
	jne	entry_IRETQ_switcher
	cmpl	$USER_DS, IRET_SS(%rsp)
	jne	entry_IRETQ_switcher

/*
 * To the guest. RSP points to a complete IRET frame with sanitised flags on the host's stack; all
 * else, GS too, is the guest's already.
 *
 * SYSRETQ makes RIP of RCX and RFLAGS of R11, so these must be what is wanted there. It does not
 * set RF, traps too late for TF, and with an RCX that is not canonical it faults in ring 0 with the
 * guest's RSP.
 */
.Lreturn_to_guest:
	cmpq	%r11, IRET_FLAGS(%rsp)
	jne	entry_IRETQ_switcher
	cmpq	%rcx, IRET_RIP(%rsp)
	jne	entry_IRETQ_switcher
	testl	$FLAGS_RF | FLAGS_TF, %r11d
	jnz	entry_IRETQ_switcher

	/* R11 can be had again from the frame. Of an address, bit 47 and all above it are equal. */
	movq	%rcx, %r11
	sarq	$SIGN_BIT, %r11
	incq	%r11
	cmpq	$1, %r11
	movq	IRET_FLAGS(%rsp), %r11
	ja	entry_IRETQ_switcher

	movq	IRET_RSP(%rsp), %rsp
	sysretq
	/* Neither the CPU nor its speculation goes on behind a return. */
	ud2

	/* A fault here is reported as the guest's; the host knows it by this address. */
	.globl	entry_IRETQ_switcher
entry_IRETQ_switcher:
	iretq
	ud2
end_routine switcher_enter_guest

/*
 * LSTAR. RCX = RIP, R11 = RFLAGS; RSP, GS and root are the guest's, and so is every register.
 * Only 64-bit code gets here, so CS and SS are known.
 */
routine entry_SYSCALL_64_switcher
	swapgs
	movq	%rsp, %gs:TSS_SP2
	movq	%gs:TSS_SP0, %rsp

	testq	$NO_DS_TO_SMOD, %gs:SWITCH_FLAGS
	jnz	.Lnot_to_smod

	/* umod -> smod. What RSP is to become is what is popped last. */
	pushq	%gs:SMOD_RSP
	pushq	%rdx
	pushq	%rax
	movq	%gs:PVCS, %rdx
	movl	$USER_CS_SS, PVCS_USER_CS_SS(%rdx)
	movl	%r11d, PVCS_EFLAGS(%rdx)
	movq	%r11, PVCS_R11(%rdx)
	movq	%rcx, PVCS_RIP(%rdx)
	movq	%rcx, PVCS_RCX(%rdx)
	movq	%gs:TSS_SP2, %rax
	movq	%rax, PVCS_RSP(%rdx)

	/* The mode and its root belong together. */
	movq	%gs:SMOD_CR3, %rax
	xorl	$MODE_BOTH, %gs:SWITCH_FLAGS
	movq	%rax, %cr3

	movq	%gs:SMOD_ENTRY, %rcx
	movq	%gs:SMOD_GSBASE, %r11
	swapgs
	rdgsbase %rax
	wrgsbase %r11
	movq	%rax, PVCS_USER_GSBASE(%rdx)

	movl	$FLAGS_FORCED, %r11d
	popq	%rax
	popq	%rdx
	popq	%rsp
	sysretq
	ud2

.Lnot_to_smod:
	/* Whatever it is, it needs an IRET frame. */
	pushq	$USER_DS
	pushq	%gs:TSS_SP2
	pushq	%r11
	pushq	$USER_CS
	pushq	%rcx

	testq	$NO_DS_TO_UMOD, %gs:SWITCH_FLAGS
	jnz	.Lexit
	cmpq	%gs:RETU_RIP, %rcx
	jne	.Lexit
	pushq	%rdx
	movq	%gs:PVCS, %rdx
	cmpl	$USER_CS_SS, PVCS_USER_CS_SS(%rdx)
	jne	.Lexit_restore_rdx

	/* smod -> umod: ERETU. No way back from here, so RCX and R11 are free. */
	movq	%gs:TSS_SP2, %rcx
	movq	%rcx, %gs:SMOD_RSP
	movq	%gs:UMOD_CR3, %rcx
	xorl	$MODE_BOTH, %gs:SWITCH_FLAGS
	movq	%rcx, %cr3

	/* What the guest wants goes into the frame, 8 bytes up. Only the frame is looked at later. */
	movl	PVCS_EFLAGS(%rdx), %ecx
	andl	$FLAGS_ALLOWED, %ecx
	orl	$FLAGS_FORCED, %ecx
	movq	%rcx, 8 + IRET_FLAGS(%rsp)
	movq	PVCS_RIP(%rdx), %r11
	movq	%r11, 8 + IRET_RIP(%rsp)
	movq	PVCS_RSP(%rdx), %r11
	movq	%r11, 8 + IRET_RSP(%rsp)

	/* WRGSBASE would fault on what is no address. */
	swapgs
	movq	PVCS_USER_GSBASE(%rdx), %rcx
	shlq	$63 - SIGN_BIT, %rcx
	sarq	$63 - SIGN_BIT, %rcx
	wrgsbase %rcx

	movq	PVCS_R11(%rdx), %r11
	movq	PVCS_RCX(%rdx), %rcx
	popq	%rdx
	jmp	.Lreturn_to_guest

.Lexit_restore_rdx:
	popq	%rdx
.Lexit:
	/* The rest of a PtRegs. The reason is in the upper half of orig_ax; no error code. */
	pushq	$0
	movl	$REASON_SYSCALL, 4(%rsp)
	push_all rdi, rsi, rdx, rcx, rax, r8, r9, r10, r11, rbx, rbp, r12, r13, r14, r15
	jmp	switcher_return_from_guest
end_routine entry_SYSCALL_64_switcher

/*
 * The way out for every exit. RSP points to the PtRegs, GS is the host's, the root is a guest's.
 * Returns to the caller of switcher_enter_guest.
 */
routine switcher_return_from_guest
	movq	%rsp, %rax
	movq	%gs:HOST_CR3, %rcx
	movq	%rcx, %cr3
	movq	%gs:HOST_RSP, %rsp

	/* Nothing of the guest in registers that host code could be made to speculate with. */
	clear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d
	/* The guest is not running any more. */
	movq	%rcx, %gs:HOST_RSP
	/* DF and AC may be the guest's. */
	pushq	$FLAGS_HOST
	popfq
	pop_all	rbx, rbp, r12, r13, r14, r15
	ret
	ud2
end_routine switcher_return_from_guest

/* CSTAR. There is no 32-bit SYSCALL, and an open CSTAR would be a way in past all checks. */
routine entry_SYSCALL_compat_switcher
	movl	$-ENOSYS, %eax
	sysretl
	ud2
end_routine entry_SYSCALL_compat_switcher

	.section .note.GNU-stack, "", @progbits
