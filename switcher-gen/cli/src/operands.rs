//! Instructions as text, with names for the fields of the per-CPU block and for addresses.

use std::collections::BTreeMap;
use std::ops::Range;

use iced_x86::{Formatter, Instruction, IntelFormatter, Register, SymbolResolver, SymbolResult};
use switcher_gen::layout::{AsmLayout, PerCpu, Placement, Tss, TssExtra};
use switcher_listing::names::field;
use switcher_prove::{ExtraField, KnownField, Setting, Target};

/// The instruction at `at`, with these names of addresses. Of a jump to one of the `reached`
/// instructions that has no name, how many instructions away it is.
pub(crate) fn text(
    target: &Target,
    at: u64,
    names: &BTreeMap<u64, String>,
    reached: &[u64],
) -> String {
    let instruction = target.program.instruction(at);
    let resolver = Names {
        names: names.clone(),
        reached: reached.to_vec(),
        block: Block::of(target),
        code: target.program.base()..target.program.end(),
    };
    let mut formatter = IntelFormatter::with_options(Some(Box::new(resolver)), None);
    let options = formatter.options_mut();
    options.set_first_operand_char_index(8);
    options.set_space_after_operand_separator(true);
    options.set_uppercase_hex(false);
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_small_hex_numbers_in_decimal(false);
    // How wide a displacement is does not matter.
    options.set_show_branch_size(false);
    options.set_rip_relative_addresses(false);
    let mut text = String::new();
    formatter.format(&instruction, &mut text);
    text
}

/// Where the data of the per-CPU block is.
#[derive(Clone, Copy)]
struct Block {
    placement: Placement,
    /// What instructions count from: GS base, or the block's address.
    base: u64,
    setting: Setting,
}

impl Block {
    fn of(target: &Target) -> Self {
        let placement = target.setting.variant.placement();
        let base = match placement {
            Placement::Gs => 0,
            Placement::PerCpu => target.program.base().wrapping_sub(PerCpu::BEFORE_CODE),
        };
        let setting = target.setting;
        Self { placement, base, setting }
    }

    /// The name of so many bytes at an operand's address.
    fn field(&self, instruction: &Instruction, address: u64, size: usize) -> Option<String> {
        let is_alone = instruction.memory_index() == Register::None
            && match self.placement {
                Placement::Gs => {
                    instruction.memory_base() == Register::None
                        && instruction.memory_segment() == Register::GS
                }
                Placement::PerCpu => instruction.is_ip_rel_memory_operand(),
            };
        if !is_alone {
            return None;
        }
        let offset = address.wrapping_sub(self.base).cast_signed();
        let inner = |start: i64| usize::try_from(offset.checked_sub(start)?).ok();
        let tss = inner(self.setting.block.tss).filter(|inner| *inner < size_of::<Tss>());
        tss.and_then(|inner| field(Tss::LAYOUT, inner, size)).or_else(|| self.extra(offset, size))
    }

    /// The name of so many bytes of the switcher's data.
    fn extra(&self, offset: i64, size: usize) -> Option<String> {
        let start = self.setting.block.tss_extra;
        if self.setting.has_our_extra() {
            let inner = usize::try_from(offset.checked_sub(start)?).ok()?;
            return (inner < size_of::<TssExtra>())
                .then(|| field(TssExtra::LAYOUT, inner, size))
                .flatten();
        }
        let is_there = |known: &&ExtraField| {
            self.setting.extra_at(**known) == Some(offset) && size <= known.size()
        };
        ExtraField::ALL.iter().find(is_there).map(|known| format!("tss_extra.{}", known.name()))
    }
}

/// Names for addresses.
struct Names {
    names: BTreeMap<u64, String>,
    reached: Vec<u64>,
    block: Block,
    /// Where the code lies.
    code: Range<u64>,
}

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _operand: u32,
        instruction_operand: Option<u32>,
        address: u64,
        _address_size: u32,
    ) -> Option<SymbolResult<'_>> {
        use iced_x86::OpKind;
        let text = match instruction.op_kind(instruction_operand?) {
            OpKind::Memory => {
                let size = instruction.memory_size().size();
                let field = self.block.field(instruction, address, size);
                let is_code = instruction.is_ip_rel_memory_operand();
                field.or_else(|| self.after(address).filter(|_| is_code))?
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                match self.names.get(&address) {
                    Some(name) => name.clone(),
                    None => {
                        let distance = self.distance(instruction.ip(), address);
                        distance.or_else(|| self.after(address))?
                    }
                }
            }
            _ => return None,
        };
        Some(SymbolResult::with_string(address, text))
    }
}

impl Names {
    /// How far after a name an address of the code is: that does not depend on where the code lies.
    fn after(&self, address: u64) -> Option<String> {
        let name = |(at, name): (&u64, &String)| match address - at {
            0 => name.clone(),
            by => format!("{name}+{by:#x}"),
        };
        let is_code = self.code.contains(&address);
        is_code.then(|| self.names.range(..=address).next_back().map(name)).flatten()
    }

    /// How many instructions of the routine lie between a jump and where it leads.
    fn distance(&self, from: u64, to: u64) -> Option<String> {
        let place = |at: u64| self.reached.binary_search(&at).ok();
        let (from, to) = (place(from)?, place(to)?);
        Some(match to > from {
            true => format!("{} ahead", to - from),
            false => format!("{} back", from - to),
        })
    }
}
