//! What the kernel's C code needs, and what its build does.

use switcher_gen::asm::Label;

use super::DropIn;

impl DropIn {
    /// A header of C: prototypes, offsets, and assertions that the kernel's structs are those that
    /// the code is for.
    #[must_use]
    pub fn header(&self) -> String {
        let name = |label: Label| self.name(label.name());
        let mut text = format!(
            "/* {variant}, for {block}. Written by `switcher emit`. */\n\
             #ifndef SWITCHER_DROP_IN_H\n#define SWITCHER_DROP_IN_H\n\n\
             #ifdef __KERNEL__\n#include <linux/build_bug.h>\n#include <linux/stddef.h>\n\
             #include <asm/processor.h>\n\
             #else\n#include <assert.h>\n#include <stddef.h>\n#endif\n\n\
             /* The kernel's names: its per-CPU variable `{variable}`, and the switcher's data in it. */\n\
             #ifndef SWITCHER_TSS\n#define SWITCHER_TSS struct tss_struct\n#endif\n\
             #ifndef SWITCHER_TSS_EXTRA\n#define SWITCHER_TSS_EXTRA struct tss_extra\n#endif\n\
             #ifndef SWITCHER_TSS_MEMBER\n#define SWITCHER_TSS_MEMBER tss_ex\n#endif\n\n\
             /* Enters a guest on the frame below sp0; returns the frame of its exit. Interrupts are off. */\n\
             struct pt_regs;\nstruct pt_regs *{enter}(void);\n\
             /* Entries, and places in the code: no functions of C. */\n",
            variant = self.variant,
            block = self.block.name,
            variable = self.variable,
            enter = name(Label::EnterGuest),
        );
        let others = self.symbols().into_iter().filter(|it| it.label != Label::EnterGuest);
        others.for_each(|symbol| text += &format!("extern const char {}[];\n", symbol.name));
        let wanted = self.wanted();
        if !wanted.is_empty() {
            text += "\n/* What the kernel has to define. */\n";
            for symbol in wanted {
                text += &format!("extern const char {}[];\n", self.name(symbol.0));
            }
        }
        text += "\n/* Bits of switch_flags and of the PVCS, and the reasons of exits. */\n";
        for (constant, value) in crate::offsets::named_constants() {
            text += &format!("#define {constant} {value:#x}ULL\n");
        }
        let fields = self.extra.fields.iter().filter(|field| !field.name.starts_with('_'));
        let fields: Vec<_> = fields.collect();
        text += "\n/* Where the switcher's data lies, and where its fields lie in it. */\n";
        text += &format!("#define SWITCHER_EXTRA_AT {:#x}\n", self.extra_at);
        for field in &fields {
            let constant = field.name.to_uppercase();
            text += &format!("#define SWITCHER_EXTRA_{constant} {:#x}\n", field.offset);
        }
        text += "\n";
        text += &assertion(
            "offsetof(SWITCHER_TSS, SWITCHER_TSS_MEMBER) == SWITCHER_EXTRA_AT",
            "the data of the switcher lies elsewhere",
        );
        for field in &fields {
            let (name, constant) = (field.name, field.name.to_uppercase());
            text += &assertion(
                &format!("offsetof(SWITCHER_TSS_EXTRA, {name}) == SWITCHER_EXTRA_{constant}"),
                &format!("{name} lies elsewhere"),
            );
            text += &assertion(
                &format!("sizeof(((SWITCHER_TSS_EXTRA *)0)->{name}) == {}", field.size),
                &format!("{name} has another size"),
            );
        }
        text + "\n#endif\n"
    }

    /// A file of C that is compiled for the header's assertions.
    #[must_use]
    pub fn layout_check() -> &'static str {
        "/* Does not compile if the switcher is for other structs. */\n#include \"switcher.h\"\n"
    }

    /// The fragment of a Makefile.
    #[must_use]
    pub fn kbuild() -> &'static str {
        "# Written by `switcher emit`. `switcher.o` beside this file is what was proved; a build of \
         the\n# kernel makes its own from switcher.S, of the same bytes.\n\
         obj-y += switcher.o switcher_layout.o\n"
    }
}

fn assertion(condition: &str, message: &str) -> String {
    format!("_Static_assert({condition},\n\t\"{message}\");\n")
}
