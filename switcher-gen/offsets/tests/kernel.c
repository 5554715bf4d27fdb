/* Structs in the shape of those of the kernels that have a switcher. The test chooses the parts by
 * macros, and compares what is read with what the compiler says of offsetof. */
#include <stddef.h>
#include <stdint.h>

struct x86_hw_tss {
	uint32_t reserved1;
	uint64_t sp0;
	uint64_t sp1;
	uint64_t sp2;
	uint64_t reserved2;
	uint64_t ist[7];
	uint32_t reserved3;
	uint32_t reserved4;
	uint16_t reserved5;
	uint16_t io_bitmap_base;
} __attribute__((packed));

typedef uint64_t root_t;

struct pgtbl {
	root_t guest_cr3;
	const root_t smod_cr3;
	volatile root_t umod_cr3;
};

enum kind { KIND_A, KIND_B };

struct tss_extra {
	root_t host_cr3;
	uint64_t host_rsp;
#ifdef WITH_HOST_GS
	uint64_t host_gs_base;
#endif
	root_t enter_cr3;
	union {
		uint64_t switch_flags;
		struct {
			uint32_t switch_low;
			uint32_t switch_high;
		};
	};
	root_t smod_cr3;
	root_t umod_cr3;
	void *pvcs;
	uint64_t retu_rip;
	uint64_t smod_entry;
	uint64_t smod_gsbase;
	uint64_t smod_rsp;
	uint32_t pku_on;
	uint32_t smod_pkru;
	struct pgtbl pgtbl[4];
	uint16_t matrix[2][3];
	enum kind kind;
	unsigned int is_first : 1;
	unsigned int : 3;
	unsigned int number : 5;
	char name[16];
	int (*callback)(struct undefined_here *);
} __attribute__((aligned(64)));

struct io_bitmap {
	unsigned long bitmap[1025];
	unsigned long all[1025];
};

struct tss_struct {
	struct x86_hw_tss x86_tss;
	struct tss_extra tss_ex;
	struct io_bitmap io_bitmap;
} __attribute__((aligned(4096)));

struct pvm_vcpu_struct {
	uint64_t event_flags;
	uint32_t event_errcode;
	uint32_t event_vector;
	uint64_t cr2;
	uint64_t reserved0[5];
	uint16_t user_cs, user_ss;
	uint32_t reserved1[3];
	uint64_t user_gsbase;
	uint32_t eflags;
	uint32_t pkru;
	uint64_t rip;
	uint64_t rsp;
	uint64_t rcx;
	uint64_t r11;
	uint8_t rest[];
};

struct tss_struct cpu_tss_rw;
struct pvm_vcpu_struct *current_pvcs;

/* What stands in a function is not what is looked for. */
int local(void)
{
	struct pvm_vcpu_struct { int other; } here = { 1 };
	return here.other;
}

#ifdef AS_HEADER
/* As the kernel's build does it: offsets that are left in the assembler's text. */
#define OFFSET(name, type, member) \
	asm volatile("\n.ascii \"->" #name " %c0 offset\"" : : "i" (offsetof(struct type, member)))
void offsets(void)
{
	OFFSET(TSS_sp0, tss_struct, x86_tss.sp0);
	OFFSET(TSS_sp1, tss_struct, x86_tss.sp1);
	OFFSET(TSS_sp2, tss_struct, x86_tss.sp2);
	OFFSET(TSS_ist, tss_struct, x86_tss.ist);
	OFFSET(TSS_EX_host_cr3, tss_struct, tss_ex.host_cr3);
	OFFSET(TSS_EX_host_rsp, tss_struct, tss_ex.host_rsp);
	OFFSET(TSS_EX_enter_cr3, tss_struct, tss_ex.enter_cr3);
	OFFSET(TSS_EX_switch_flags, tss_struct, tss_ex.switch_flags);
	OFFSET(TSS_EX_switch_high, tss_struct, tss_ex.switch_high);
	OFFSET(TSS_EX_smod_cr3, tss_struct, tss_ex.smod_cr3);
	OFFSET(TSS_EX_umod_cr3, tss_struct, tss_ex.umod_cr3);
	OFFSET(TSS_EX_pvcs, tss_struct, tss_ex.pvcs);
	OFFSET(TSS_EX_retu_rip, tss_struct, tss_ex.retu_rip);
	OFFSET(TSS_EX_smod_rsp, tss_struct, tss_ex.smod_rsp);
	OFFSET(TSS_EX_smod_pkru, tss_struct, tss_ex.smod_pkru);
	OFFSET(TSS_EX_pgtbl, tss_struct, tss_ex.pgtbl);
	OFFSET(TSS_EX_matrix, tss_struct, tss_ex.matrix);
	OFFSET(TSS_EX_kind, tss_struct, tss_ex.kind);
	OFFSET(TSS_EX_name, tss_struct, tss_ex.name);
	OFFSET(TSS_EX_callback, tss_struct, tss_ex.callback);
	OFFSET(PVCS_event_flags, pvm_vcpu_struct, event_flags);
	OFFSET(PVCS_event_errcode, pvm_vcpu_struct, event_errcode);
	OFFSET(PVCS_user_cs, pvm_vcpu_struct, user_cs);
	OFFSET(PVCS_user_ss, pvm_vcpu_struct, user_ss);
	OFFSET(PVCS_user_gsbase, pvm_vcpu_struct, user_gsbase);
	OFFSET(PVCS_rip, pvm_vcpu_struct, rip);
	OFFSET(PVCS_rsp, pvm_vcpu_struct, rsp);
	OFFSET(PVCS_r11, pvm_vcpu_struct, r11);
	OFFSET(PVCS_rest, pvm_vcpu_struct, rest);
}
#endif
