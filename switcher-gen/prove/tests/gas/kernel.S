/*
 * A switcher by hand in the shape of a kernel's build: its data is in a per-CPU variable of another
 * file, the IRETQ to a guest and the thunk for returns are another file's, the flags and selectors
 * of the frame are the caller's business, and event entries clear registers before they jump to
 * the exit. For the PVCS of 2024.
 *
 * With --defsym BROKEN=n it has one fault of those that were found in public switchers.
 */

	.ifndef	BROKEN
	.set	BROKEN, 0
	.endif
/* RDI of the guest reaches code of the host. */
	.set	KEEPS_RDI, 1
/* SYSRETQ is chosen without a look at the frame's selectors. */
	.set	NO_SELECTORS, 2
/* user_cs and user_ss are not stored. */
	.set	NOT_STORED, 3
/* The exit looks at the wrong slot for its reason, so that a register of the guest decides. */
	.set	WRONG_SLOT, 4
/* The GS base of umod is not made canonical. */
	.set	WILD_GS, 5
/* A read above the top of the entry stack. */
	.set	ABOVE_TOP, 6
/* An IRETQ that nobody knows of. */
	.set	BARE_IRETQ, 7

/* Fields of the TSS and of what follows it, from the variable on. */
	.set	SP0, 0x04
	.set	SP2, 0x14
	.ifndef	EXTRA
	.set	EXTRA, 0x80
	.endif
	.set	HOST_CR3, EXTRA + 0x00
	.set	HOST_RSP, EXTRA + 0x08
	.set	ENTER_CR3, EXTRA + 0x10
	.set	FLAGS, EXTRA + 0x40
	.set	SMOD_CR3, EXTRA + 0x48
	.set	UMOD_CR3, EXTRA + 0x50
	.set	SHARED, EXTRA + 0x58
	.set	RETU_RIP, EXTRA + 0x60
	.set	SMOD_ENTRY, EXTRA + 0x68
	.set	SMOD_GSBASE, EXTRA + 0x70
	.set	SMOD_RSP, EXTRA + 0x78

/* The PVCS. */
	.set	U_CS, 0x40
	.set	U_SS, 0x42
	.set	U_GSBASE, 0x50
	.set	U_EFLAGS, 0x58
	.set	U_RIP, 0x60
	.set	U_RSP, 0x68
	.set	U_RCX, 0x70
	.set	U_R11, 0x78

	.set	USER_DS, 0x2B
	.set	USER_CS, 0x33
	.set	ALLOWED, 0x254FD7
	.set	FIXED, 0x202
	.set	RF_TF, 0x10100


/* An operand of the variable; `as` has no macros for operands, so each instruction has one. */
	.macro	v op, field, other
	\op	%gs:cpu_tss_rw + \field(%rip), \other
	.endm
	.macro	to_v op, other, field
	\op	\other, %gs:cpu_tss_rw + \field(%rip)
	.endm

	.macro	extend_rcx
661:	shl	$16, %rcx
	sar	$16, %rcx
662:
	.ifdef	ALTERNATIVES
/* What LA57 puts there: feature 16 of word 16. */
	.pushsection .altinstructions, "a"
	.long	661b - .
	.long	663f - .
	.4byte	16 * 32 + 16
	.byte	662b - 661b
	.byte	664f - 663f
	.popsection
	.pushsection .altinstr_replacement, "ax"
663:	shl	$7, %rcx
	sar	$7, %rcx
664:
	.popsection
	.endif
	.endm

	.macro	return
	.ifdef	THUNKS
771:	jmp	__x86_return_thunk
	.pushsection .return_sites, "a"
	.long	771b - .
	.popsection
	.else
	ret
	int3
	.endif
	.endm

/* What a kernel's build says of its stacks, for unwinding. */
	.macro	orc
	.ifdef	ORC
551:	.pushsection .orc_unwind_ip, "a"
	.long	551b - .
	.popsection
	.pushsection .orc_unwind, "a"
	.short	0, 0, 0
	.popsection
	.endif
	.endm

	.section .entry.text, "ax"

	.p2align 4, 0x90
	.globl	switcher_enter_guest
	.type	switcher_enter_guest, @function
switcher_enter_guest:
	orc
	push	%rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	to_v	mov, %rsp, HOST_RSP
	v	mov, SP0, %rsp
	sub	$168, %rsp
	v	mov, ENTER_CR3, %rax
	mov	%rax, %cr3
	orc
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbp
	pop	%rbx
	pop	%r11
	pop	%r10
	pop	%r9
	pop	%r8
	pop	%rax
	pop	%rcx
	pop	%rdx
	pop	%rsi
	pop	%rdi
	add	$8, %rsp
	swapgs
	.if	BROKEN != NO_SELECTORS
	cmpw	$USER_CS, 8(%rsp)
	jne	native_irq_return_iret
	cmpw	$USER_DS, 32(%rsp)
	jne	native_irq_return_iret
	.endif

/* The frame is complete, and everything else is the guest's. */
.Lto_guest:
	testq	$RF_TF, 16(%rsp)
	jnz	native_irq_return_iret
	cmp	%r11, 16(%rsp)
	jne	native_irq_return_iret
	cmp	%rcx, (%rsp)
	jne	native_irq_return_iret
	extend_rcx
	cmp	%rcx, (%rsp)
	je	.Lsysretq
	mov	(%rsp), %rcx
	.if	BROKEN == BARE_IRETQ
	iretq
	int3
	.else
	jmp	native_irq_return_iret
	.endif

.Lsysretq:
	mov	24(%rsp), %rsp
	.globl	entry_SYSRETQ_switcher_unsafe_stack
entry_SYSRETQ_switcher_unsafe_stack:
	sysretq
	int3

	.globl	switcher_return_from_guest
switcher_return_from_guest:
	orc
	.if	BROKEN == WRONG_SLOT
	cmpl	$1024, 4(%rsp)
	jne	1f
	.endif
	v	mov, HOST_CR3, %rax
	mov	%rax, %cr3
1:	mov	%rsp, %rax
	.if	BROKEN == ABOVE_TOP
	v	mov, SP0, %rcx
	mov	8(%rcx), %rcx
	xor	%ecx, %ecx
	.endif
	v	mov, HOST_RSP, %rsp
	to_v	movq, $0, HOST_RSP
	orc
	.if	BROKEN != KEEPS_RDI
	xor	%edi, %edi
	.endif
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
	return
	.size	switcher_enter_guest, . - switcher_enter_guest

	.p2align 4, 0x90
	.globl	entry_SYSCALL_64_switcher
	.type	entry_SYSCALL_64_switcher, @function
entry_SYSCALL_64_switcher:
	swapgs
	to_v	mov, %rsp, SP2
	v	mov, SP0, %rsp
	.globl	entry_SYSCALL_64_switcher_safe_stack
entry_SYSCALL_64_switcher_safe_stack:
	push	$USER_DS
	push	%gs:cpu_tss_rw + SP2(%rip)
	push	%r11
	push	$USER_CS
	push	%rcx
	push	%rdi
	to_v	testq, $~2, FLAGS
	jnz	.Lmaybe_to_umod

	v	mov, SHARED, %rdi
	mov	%r11d, U_EFLAGS(%rdi)
	mov	%rcx, U_RIP(%rdi)
	mov	%rcx, U_RCX(%rdi)
	mov	%r11, U_R11(%rdi)
	.if	BROKEN != NOT_STORED
	movl	$USER_DS << 16 | USER_CS, U_CS(%rdi)
	.endif
	mov	32(%rsp), %rcx
	mov	%rcx, U_RSP(%rdi)
	to_v	xorb, $3, FLAGS
	v	mov, SMOD_CR3, %rcx
	mov	%rcx, %cr3
	v	mov, SMOD_RSP, %rcx
	mov	%rcx, 32(%rsp)
	v	mov, SMOD_ENTRY, %rcx
	mov	%rcx, 8(%rsp)
	v	mov, SMOD_GSBASE, %r11
	swapgs
	rdgsbase %rcx
	mov	%rcx, U_GSBASE(%rdi)
	wrgsbase %r11
	pop	%rdi
	mov	$FIXED, %r11
	mov	(%rsp), %rcx
	jmp	.Lsysretq

.Lmaybe_to_umod:
	to_v	testq, $~1, FLAGS
	jnz	.Lto_host
	v	cmp, RETU_RIP, %rcx
	jne	.Lto_host
	v	mov, SHARED, %rdi
	cmpl	$USER_DS << 16 | USER_CS, U_CS(%rdi)
	jne	.Lto_host
	mov	32(%rsp), %rcx
	to_v	mov, %rcx, SMOD_RSP
	to_v	xorb, $3, FLAGS
	v	mov, UMOD_CR3, %rcx
	mov	%rcx, %cr3
	swapgs
	mov	U_GSBASE(%rdi), %rcx
	.if	BROKEN != WILD_GS
	extend_rcx
	.endif
	wrgsbase %rcx
	mov	U_RSP(%rdi), %rcx
	mov	%rcx, 32(%rsp)
	mov	U_EFLAGS(%rdi), %ecx
	and	$ALLOWED, %rcx
	or	$FIXED, %rcx
	mov	%rcx, 24(%rsp)
	mov	U_RIP(%rdi), %rcx
	mov	%rcx, 8(%rsp)
	mov	U_RCX(%rdi), %rcx
	mov	U_R11(%rdi), %r11
	pop	%rdi
	jmp	.Lto_guest

.Lto_host:
	pop	%rdi
	push	$0
	movl	$1024, 4(%rsp)
	push	%rdi
	push	%rsi
	push	%rdx
	push	%rcx
	push	%rax
	push	%r8
	push	%r9
	push	%r10
	push	%r11
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	xor	%esi, %esi
	xor	%edx, %edx
	xor	%ecx, %ecx
	xor	%r8d, %r8d
	xor	%r9d, %r9d
	xor	%r10d, %r10d
	xor	%r11d, %r11d
	jmp	switcher_return_from_guest
	.size	entry_SYSCALL_64_switcher, . - entry_SYSCALL_64_switcher

	.p2align 4, 0x90
	.globl	entry_SYSCALL_compat_switcher
	.type	entry_SYSCALL_compat_switcher, @function
entry_SYSCALL_compat_switcher:
	mov	$-38, %eax
	sysretl
	int3
	.size	entry_SYSCALL_compat_switcher, . - entry_SYSCALL_compat_switcher

	.section .note.GNU-stack, "", @progbits
