//! One instruction: decoded by iced-x86, its operands named by what the emitter said of them.

use iced_x86::{
    Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, Mnemonic, OpKind, Register,
};

use super::ListingError;
use super::names;
use super::record::Notes;
use switcher_gen::Image;
use switcher_gen::layout::{AsmLayout, Operand, PerCpu};

/// What is known of an instruction from its bytes and its notes.
pub(super) struct Decoded {
    pub(super) mnemonic: String,
    pub(super) operands: Vec<String>,
    pub(super) encoded: Vec<String>,
}

pub(super) struct Decode<'a> {
    image: &'a Image,
    formatter: IntelFormatter,
}

impl<'a> Decode<'a> {
    pub(super) fn new(image: &'a Image) -> Self {
        let mut formatter = IntelFormatter::new();
        let options = formatter.options_mut();
        options.set_hex_prefix("0x");
        options.set_hex_suffix("");
        options.set_uppercase_hex(false);
        options.set_space_after_operand_separator(true);
        options.set_branch_leading_zeros(false);
        options.set_rip_relative_addresses(true);
        Self { image, formatter }
    }

    /// Decodes the `bytes` at offset `at`, which `notes` are about.
    pub(super) fn instruction(
        &mut self,
        at: u32,
        bytes: &[u8],
        notes: &Notes,
    ) -> Result<Decoded, ListingError> {
        let instruction = Decoder::with_ip(64, bytes, at.into(), DecoderOptions::NONE).decode();
        if instruction.is_invalid() || instruction.len() != bytes.len() {
            return Err(ListingError::NotOneInstruction { at, emitted: bytes.len() as u32 });
        }
        let mut mnemonic = String::new();
        self.formatter.format_mnemonic(&instruction, &mut mnemonic);
        let mut decoded = Decoded { mnemonic, operands: Vec::new(), encoded: Vec::new() };
        let mut memory = notes.operands.iter();
        let mut immediates = notes.immediates.iter();
        for i in 0..self.formatter.operand_count(&instruction) {
            let mut raw = String::new();
            // Fails for operands that do not exist only, and `i` counts those that do.
            let _ = self.formatter.format_operand(&instruction, &mut raw, i);
            let operand = match self.formatter.get_instruction_operand(&instruction, i) {
                Ok(Some(operand)) => operand,
                // An operand that only the syntax has, such as the `1` of a shift.
                _ => {
                    decoded.operands.push(raw);
                    continue;
                }
            };
            let kind = instruction.op_kind(operand);
            let named = match kind {
                // An address in the code: nothing was said of it but its label.
                OpKind::Memory if instruction.mnemonic() == Mnemonic::Lea => {
                    let label = self.label(instruction.memory_displacement64());
                    label.map(|label| Ok(Named { name: format!("[{}]", label.name), ..label }))
                }
                OpKind::Memory => {
                    memory.next().map(|note| memory_operand(at, &instruction, *note, &raw))
                }
                OpKind::NearBranch64 => {
                    let hook = self.hook(at, &instruction);
                    hook.or_else(|| self.label(instruction.near_branch64())).map(Ok)
                }
                _ if is_immediate(kind) => {
                    immediates.next().map(|text| Ok(immediate_operand(&instruction, text, &raw)))
                }
                _ => None,
            };
            let Named { name, encoded } = match named {
                Some(named) => named?,
                None => Named { name: raw, encoded: None },
            };
            decoded.operands.push(name);
            decoded.encoded.extend(encoded);
        }
        if memory.next().is_some() || immediates.next().is_some() {
            return Err(ListingError::NoSuchOperand { at });
        }
        Ok(decoded)
    }

    /// What of the host's a call leads to.
    fn hook(&self, at: u32, instruction: &Instruction) -> Option<Named> {
        let field = at + instruction.len() as u32 - size_of::<i32>() as u32;
        let relocation = self.image.relocations().iter().find(|r| r.at == field)?;
        Some(Named { name: relocation.symbol.0.into(), encoded: None })
    }

    fn label(&self, offset: u64) -> Option<Named> {
        let label = self.image.label_at(offset.try_into().ok()?)?;
        Some(Named { name: label.name().into(), encoded: None })
    }
}

/// An operand's name, and the number it stands for if the name does not tell.
struct Named {
    name: String,
    encoded: Option<String>,
}

/// `raw` with the field in the place of what stands between its brackets.
fn memory_operand(
    at: u32,
    instruction: &Instruction,
    note: Operand,
    raw: &str,
) -> Result<Named, ListingError> {
    let layout = note.layout;
    let size = instruction.memory_size().size();
    let mut displacement = instruction.memory_displacement64().cast_signed();
    if instruction.is_ip_rel_memory_operand() {
        // An offset into the image, in front of which the per-CPU block lies.
        displacement = displacement.wrapping_add_unsigned(PerCpu::BEFORE_CODE);
    }
    let name = usize::try_from(displacement + i64::from(note.anchor))
        .ok()
        .and_then(|offset| names::field(layout, offset, size))
        .map(|name| {
            let is_named = layout != PerCpu::LAYOUT || instruction.segment_prefix() == Register::GS;
            if is_named { name } else { format!("per_cpu.{name}") }
        })
        .ok_or(ListingError::NoField { at, layout: layout.name, size })?;
    let (size_and_segment, _) = raw.split_once('[').unwrap_or((raw, ""));
    let encoded = raw.rsplit_once(" ptr ").map_or(raw, |(_, address)| address);
    Ok(Named { name: format!("{size_and_segment}[{name}]"), encoded: Some(encoded.to_owned()) })
}

fn immediate_operand(instruction: &Instruction, text: &str, raw: &str) -> Named {
    let name = names::immediate(text);
    let is_count = matches!(
        instruction.mnemonic(),
        Mnemonic::Shl | Mnemonic::Shr | Mnemonic::Sar | Mnemonic::Rol | Mnemonic::Ror
    );
    let value = if is_count { instruction.immediate8().to_string() } else { raw.to_owned() };
    if names::is_constant(name) {
        Named { name: name.to_owned(), encoded: Some(value) }
    } else {
        Named { name: format!("{name} = {value}"), encoded: None }
    }
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}
