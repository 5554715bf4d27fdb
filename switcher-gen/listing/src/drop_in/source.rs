//! The switcher for the kernel's assembler: the same bytes, which a build of the kernel assembles,
//! and which its objtool accepts.
//!
//! objtool looks at all code of a kernel, and takes it for functions of C unless it is told
//! otherwise. So each way in has a hint that the unwinder ends there, as the kernel's own entries
//! have. A RET is said to be one on purpose: what it needs, the variant says. What the macros are
//! made of differs between kernels, so they are the kernel's.

use iced_x86::Mnemonic;
use switcher_gen::asm::{LINE, Label};

use super::gas::{Gas, Refers};
use super::{DropIn, DropInError};
use crate::names;
use crate::record::{Item, Notes, What};

/// What is included, and what stands for it outside of a kernel.
const MACROS: &str = "\
#ifdef __KERNEL__
#include <linux/version.h>
#include <linux/linkage.h>
#include <linux/objtool.h>
#include <asm/nospec-branch.h>
#include <asm/unwind_hints.h>
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
#define SWITCHER_UNWIND_END UNWIND_HINT_END_OF_STACK
#else
#define SWITCHER_UNWIND_END UNWIND_HINT_EMPTY
#endif
#define SWITCHER_CALL ANNOTATE_INTRA_FUNCTION_CALL
#define SWITCHER_RET ANNOTATE_UNRET_SAFE
#else
#define SWITCHER_UNWIND_END
#define SWITCHER_CALL
#define SWITCHER_RET
#endif
";

impl DropIn {
    /// The code as source of GNU as, to be preprocessed as `.S` files are. It needs binutils 2.35
    /// or later.
    ///
    /// # Errors
    /// Only if an emitter is wrong, or `asm!` is.
    pub fn source(&self) -> Result<String, DropInError> {
        let mut text = format!(
            "/* {}, for {}. Written by `switcher emit`:\n * what is changed here is no longer \
             proved. */\n{MACROS}\n\t.section\t{}, \"ax\"\n\t.balign\t{}, 0xcc\n",
            self.variant,
            self.block.name,
            Self::SECTION,
            Self::ALIGNMENT
        );
        let symbols = self.symbols();
        let mut file = None;
        // Whether the next instruction is reached by a way that objtool does not see.
        let mut is_way_in = false;
        for (item, from) in self.items.iter().zip(crate::routines(&self.items)) {
            if let Some(routine) = from.filter(|from| file != Some(*from)) {
                file = Some(routine);
                text += &format!("\n\t/* {routine} */\n");
            }
            match &item.what {
                What::Comment(comment) => text += &format!("\t/* {comment} */\n"),
                What::Label(label) => match symbols.iter().find(|it| it.label == *label) {
                    Some(symbol) => {
                        let name = &symbol.name;
                        text += &format!("\n\t.globl\t{name}\n\t.type\t{name}, @notype\n{name}:\n");
                        is_way_in |= is_entry(*label);
                    }
                    None => text += &format!("{}:\n", label.name()),
                },
                What::Filler => {
                    let count = item.end - item.start;
                    if count > 0 {
                        let byte = self.bytes_of(item)[0];
                        text += &format!("\t.fill\t{count}, 1, {byte:#04x}\n");
                    }
                }
                What::Unexplained => {
                    let (at, emitted) = (item.start, self.bytes_of(item).len());
                    return Err(DropInError::NotOneInstruction { at, emitted });
                }
                What::Instruction(notes) => {
                    is_way_in = self.instruction(item, notes, is_way_in, &mut text)?;
                }
            }
        }
        for symbol in &symbols {
            text += &format!("\t.size\t{}, {}\n", symbol.name, symbol.size);
        }
        text += "\n\t.section\t.note.GNU-stack, \"\", @progbits\n";
        Ok(text)
    }

    /// Writes an instruction. Returns whether objtool sees no way to the next one.
    fn instruction(
        &self,
        item: &Item,
        notes: &Notes,
        is_way_in: bool,
        text: &mut String,
    ) -> Result<bool, DropInError> {
        let (i, fields) = self.decode(item)?;
        let is_trap = i.mnemonic() == Mnemonic::Int3;
        if is_way_in && !is_trap {
            *text += "\tSWITCHER_UNWIND_END\n";
        }
        let field = (item.start..item.end).map(|at| {
            self.displacements.iter().find(|displacement| displacement.at == at).copied()
        });
        let displacement = field.flatten().next();
        let host = self.code.relocations.iter().find(|it| (item.start..item.end).contains(&it.at));
        let label = |at: u64| {
            let at = u32::try_from(at).ok()?;
            let all = Label::ALL.into_iter();
            let mut found = all.filter(|label| self.code.labels[*label as usize] == Some(at));
            found.next().map(|label| self.name(label.name()).to_owned())
        };
        let refers = match (displacement, host) {
            (Some(displacement), _) => Refers::Variable(self.variable, displacement.offset),
            (None, Some(host)) => Refers::Branch(self.name(host.symbol.0).into()),
            (None, None) if is_jump(&i) => {
                label(i.near_branch_target()).map_or(Refers::Nothing, Refers::Branch)
            }
            (None, None) => Refers::Nothing,
        };
        let is_call = matches!(refers, Refers::Branch(_)) && i.is_call_near() && host.is_none();
        if is_call {
            *text += "\tSWITCHER_CALL\n";
        }
        if i.mnemonic() == Mnemonic::Ret {
            *text += "\tSWITCHER_RET\n";
        }
        let gas = Gas { i: &i, fields: &fields, bytes: self.bytes_of(item), refers };
        *text += &gas.statement();
        let about = self.about(&i, notes);
        if !about.is_empty() {
            *text += &format!("\t/* {} */", about.join(", "));
        }
        *text += "\n";
        Ok(is_call || is_way_in && is_trap)
    }

    /// What the numbers in an instruction are: fields and constants.
    fn about(&self, i: &iced_x86::Instruction, notes: &Notes) -> Vec<String> {
        let displacement = i.memory_displacement64().cast_signed();
        let fields = notes.operands.iter().filter_map(|operand| {
            let offset = usize::try_from(displacement + i64::from(operand.anchor)).ok()?;
            let name = names::field(operand.layout, offset, i.memory_size().size())?;
            let block = format!("{}.", names::snake_case(self.block.name));
            Some(name.strip_prefix(&block).unwrap_or(&name).to_owned())
        });
        let constants = notes.immediates.iter().map(|text| names::immediate(text));
        let constants = constants.filter(|text| names::is_constant(text)).map(str::to_owned);
        fields.chain(constants).collect()
    }
}

/// Whether the instruction is a direct jump or call.
fn is_jump(i: &iced_x86::Instruction) -> bool {
    i.op_count() > 0 && i.op0_kind() == iced_x86::OpKind::NearBranch64
}

/// Whether the kernel, or a guest, enters the code here.
fn is_entry(label: Label) -> bool {
    matches!(
        label,
        Label::EnterGuest | Label::Syscall64 | Label::ReturnFromGuest | Label::SyscallCompat
    )
}

const _: () = assert!(DropIn::ALIGNMENT == LINE as u64, "a RET has its place in its line");
