//! One instruction in the syntax of GNU as, written so that it is encoded as it was emitted.
//!
//! What is proved are bytes, and of several encodings an assembler takes the shortest. Prefixes
//! such as `{disp32}` say which one it should be. Where there is no such prefix, the instruction is
//! written as bytes, with the instruction itself as a comment.

use iced_x86::{
    ConstantOffsets, Formatter as _, GasFormatter, Instruction, OpKind, SymbolResolver,
    SymbolResult,
};

/// What an instruction refers to by a name.
pub(super) enum Refers {
    Nothing,
    /// The target of a jump or a call.
    Branch(String),
    /// A displacement: the name, and the number of bytes after it.
    Variable(&'static str, i32),
}

/// An instruction, decoded.
pub(super) struct Gas<'a> {
    pub(super) i: &'a Instruction,
    pub(super) fields: &'a ConstantOffsets,
    pub(super) bytes: &'a [u8],
    pub(super) refers: Refers,
}

/// Gives an operand its name.
struct Name {
    text: String,
    kind: OpKind,
}

impl SymbolResolver for Name {
    fn symbol(
        &mut self,
        i: &Instruction,
        _: u32,
        operand: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        let is_it = operand.is_some_and(|operand| i.op_kind(operand) == self.kind);
        is_it.then(|| SymbolResult::with_str(address, &self.text))
    }
}

impl Gas<'_> {
    /// The statement: a line, or several.
    pub(super) fn statement(&self) -> String {
        let text = self.text();
        if self.has_long_immediate() {
            return self.as_bytes(&text);
        }
        format!("\t{}{text}", self.encoding())
    }

    /// The instruction in AT&T's syntax.
    fn text(&self) -> String {
        let name = match &self.refers {
            Refers::Nothing => None,
            Refers::Branch(name) => Some(Name { text: name.clone(), kind: OpKind::NearBranch64 }),
            Refers::Variable(name, offset) => {
                Some(Name { text: format!("{name}+{offset:#x}"), kind: OpKind::Memory })
            }
        };
        let resolver = name.map(|name| -> Box<dyn SymbolResolver> { Box::new(name) });
        let mut formatter = GasFormatter::with_options(resolver, None);
        let options = formatter.options_mut();
        options.set_gas_show_mnemonic_size_suffix(true);
        options.set_uppercase_hex(false);
        options.set_space_after_operand_separator(true);
        options.set_first_operand_char_index(8);
        let mut text = String::new();
        formatter.format(self.i, &mut text);
        text
    }

    /// Which encoding it is, where the assembler would take another one.
    fn encoding(&self) -> &'static str {
        let Self { i, fields, .. } = self;
        let fits = |value: i64| i8::try_from(value).is_ok();
        if let Refers::Branch(_) = self.refers {
            let distance = i.near_branch_target().wrapping_sub(i.next_ip()).cast_signed();
            // A call has the long form alone.
            let is_long = fields.immediate_size() == 4 && i.op0_kind() == OpKind::NearBranch64;
            let is_call = i.is_call_near();
            return if is_long && !is_call && fits(distance) { "{disp32} " } else { "" };
        }
        let displacement = i.memory_displacement64().cast_signed();
        match (fields.displacement_size(), &self.refers) {
            (4, Refers::Nothing) if fits(displacement) => return "{disp32} ",
            (1, _) if displacement == 0 => return "{disp8} ",
            _ => {}
        }
        if self.is_load_of_registers() { "{load} " } else { "" }
    }

    /// Of two registers, the assembler encodes the destination as the operand that may be memory.
    fn is_load_of_registers(&self) -> bool {
        let is_register = |n| self.i.op_kind(n) == OpKind::Register;
        let opcode = self.opcode();
        // ADD, OR, ADC, SBB, AND, SUB, XOR, CMP and MOV of a register from a register or memory.
        let is_arithmetic = opcode < 0x40 && matches!(opcode & 7, 2 | 3);
        let is_load = is_arithmetic || matches!(opcode, 0x8A | 0x8B);
        self.i.op_count() == 2 && is_register(0) && is_register(1) && is_load
    }

    /// The first byte after the prefixes.
    fn opcode(&self) -> u8 {
        let is_prefix = |byte: &&u8| matches!(**byte, 0x26 | 0x2E | 0x36 | 0x3E | 0x40..=0x4F | 0x64..=0x67 | 0xF0 | 0xF2 | 0xF3);
        let after = self.bytes.iter().find(|byte| !is_prefix(byte));
        after.copied().unwrap_or_default()
    }

    /// Whether the immediate has 32 bits although 8 would do: no prefix asks for that.
    fn has_long_immediate(&self) -> bool {
        let is_short = match self.i.op_kind(self.i.op_count().saturating_sub(1)) {
            OpKind::Immediate32to64 => i8::try_from(self.i.immediate32to64()).is_ok(),
            OpKind::Immediate32 => i8::try_from(self.i.immediate32().cast_signed()).is_ok(),
            _ => false,
        };
        is_short && self.fields.immediate_size() == 4 && matches!(self.opcode(), 0x68 | 0x69 | 0x81)
    }

    /// The instruction as bytes.
    fn as_bytes(&self, text: &str) -> String {
        let mut bytes = self.bytes.to_vec();
        let mut statement = String::new();
        if let Refers::Variable(name, offset) = self.refers {
            let at = self.fields.displacement_offset();
            bytes[at..at + 4].fill(0);
            statement = format!("\t.reloc\t. + {at}, R_X86_64_32S, {name} + {offset:#x}\n");
        }
        let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:#04x}")).collect();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        statement + &format!("\t.byte\t{}\t/* {text} */", bytes.join(", "))
    }
}
