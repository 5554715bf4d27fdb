//! Every emitted byte is decoded by an independent disassembler, and comes out as exactly the
//! instructions the emitters meant: as many, with the same boundaries, and each what its source
//! line says.
//!
//! The assembler is trusted with none of this. dynasm 5.1, for one, encodes `mov ss, ax` as
//! `mov eax, ss`: that assembles, and even runs for a while.

use std::collections::BTreeMap;
use std::path::Path;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};
use switcher_asm::Sink;
use switcher_gen::asm::Switcher;
use switcher_gen::asm::{CodeBuffer, External, Label, Window};
use switcher_gen::layout::{Operand, Placement};
use switcher_gen::{Image, Variant, emit};

/// Where instructions start and filler lies, as the emitters say. Knows nothing of the listing's
/// own recorder, on purpose.
#[derive(Default)]
struct Boundaries {
    code: CodeBuffer,
    /// By start: how many notes of each kind the instruction got.
    instructions: BTreeMap<u32, Notes>,
    /// Start and end of each stretch.
    filler: Vec<(u32, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Notes {
    source: (&'static str, u32),
    operands: usize,
    immediates: usize,
}

impl Boundaries {
    fn of(variant: &Variant) -> Self {
        let mut boundaries = Self::default();
        emit::switcher(&mut boundaries, variant);
        boundaries
    }

    fn last(&mut self) -> &mut Notes {
        let last = self.instructions.last_entry().expect("a source note comes first");
        assert_eq!(*last.key(), self.code.offset(), "notes come in front of the bytes");
        last.into_mut()
    }
}

impl Sink for Boundaries {
    type Names = Switcher;

    fn push(&mut self, byte: u8) {
        self.code.push(byte);
    }
    fn extend(&mut self, bytes: &[u8]) {
        self.code.extend(bytes);
    }
    fn dynamic_label(&mut self, label: Label) {
        self.code.dynamic_label(label);
    }
    fn dynamic_reloc(&mut self, label: Label, target: isize, field: u8, reference: u8, kind: u8) {
        self.code.dynamic_reloc(label, target, field, reference, kind);
    }
    fn value_reloc(&mut self, to: impl Into<External>, field: u8, reference: u8, kind: u8) {
        self.code.value_reloc(to, field, reference, kind);
    }

    fn place(&mut self, placement: Placement) {
        self.code.place(placement);
    }

    fn placement(&self) -> Placement {
        self.code.placement()
    }
    fn align(&mut self, alignment: usize, byte: u8) {
        let start = self.code.offset();
        self.code.align(alignment, byte);
        self.filler.push((start, self.code.offset()));
    }
    fn upper_half(&mut self, distance: usize, byte: u8) {
        let start = self.code.offset();
        self.code.upper_half(distance, byte);
        self.filler.push((start, self.code.offset()));
    }
    fn open(&mut self, window: Window) {
        self.code.open(window);
    }
    fn close(&mut self, window: Window) {
        self.code.close(window);
    }
    fn source(&mut self, file: &'static str, line: u32) {
        let start = self.code.offset();
        let notes = Notes { source: (file, line), operands: 0, immediates: 0 };
        let earlier = self.instructions.insert(start, notes);
        assert!(earlier.is_none(), "two source notes at {start:#x}: {file}:{line}");
    }
    fn operand(&mut self, _: Operand) {
        self.last().operands += 1;
    }
    fn immediate(&mut self, _: &'static str) {
        self.last().immediates += 1;
    }
}

/// The image's instructions, decoded from start to end with nothing but the filler skipped.
fn decode(image: &Image, filler: &[(u32, u32)]) -> Vec<Instruction> {
    let mut decoder = Decoder::with_ip(64, image.bytes(), 0, DecoderOptions::NONE);
    let mut instructions = Vec::new();
    while decoder.can_decode() {
        let at = decoder.position() as u32;
        match filler.iter().find(|(start, end)| *start == at && start != end) {
            Some((_, end)) => {
                decoder.set_position(*end as usize).unwrap();
                decoder.set_ip((*end).into());
            }
            None => instructions.push(decoder.decode()),
        }
    }
    instructions
}

#[test]
fn every_byte_of_every_variant_is_part_of_exactly_one_instruction_that_was_meant() {
    for variant in Variant::representative() {
        let meant = Boundaries::of(&variant);
        let image = Image::new(&variant).unwrap();
        let decoded = decode(&image, &meant.filler);

        assert!(decoded.iter().all(|i| i.code() != Code::INVALID), "{variant}");
        let starts: Vec<u32> = decoded.iter().map(|i| i.ip() as u32).collect();
        let meant_starts: Vec<u32> = meant.instructions.keys().copied().collect();
        assert_eq!(starts, meant_starts, "{variant}");

        let lengths: usize = decoded.iter().map(Instruction::len).sum();
        let filler: usize = meant.filler.iter().map(|(start, end)| (end - start) as usize).sum();
        assert_eq!(lengths + filler, image.bytes().len(), "{variant}");
    }
}

#[test]
fn notes_about_operands_fit_the_operands_there_are() {
    for variant in Variant::representative() {
        let meant = Boundaries::of(&variant);
        let image = Image::new(&variant).unwrap();
        for i in decode(&image, &meant.filler) {
            let notes = meant.instructions[&(i.ip() as u32)];
            let kinds = || (0..i.op_count()).map(|op| i.op_kind(op));
            // The address of a label, which says all there is to say.
            let is_lea = i.mnemonic() == Mnemonic::Lea;
            let memory = kinds().filter(|_| !is_lea).filter(|kind| *kind == OpKind::Memory).count();
            assert_eq!(memory, notes.operands, "{variant}: {i:?}");
            let numbers = kinds().filter(|kind| *kind >= OpKind::Immediate8).count();
            assert!(notes.immediates <= numbers, "{variant}: {i:?}");
        }
    }
}

#[test]
fn filler_traps_and_nothing_runs_into_it() {
    for variant in Variant::representative() {
        let meant = Boundaries::of(&variant);
        let image = Image::new(&variant).unwrap();
        let decoded = decode(&image, &meant.filler);
        for &(start, end) in &meant.filler {
            let filler = &image.bytes()[start as usize..end as usize];
            assert!(filler.iter().all(|byte| *byte == 0xCC), "{variant}");
            // There may be more of it in front.
            if meant.filler.iter().any(|(other, end)| other != end && *end == start) {
                continue;
            }
            let before = decoded.iter().find(|i| i.next_ip() == u64::from(start)).unwrap();
            // Behind a return is a trap.
            let ends = [FlowControl::UnconditionalBranch, FlowControl::Exception];
            let is_trap = before.mnemonic() == Mnemonic::Int3;
            assert!(is_trap || ends.contains(&before.flow_control()), "{variant}: {before:?}");
        }
        let last = decoded.last().unwrap();
        assert_eq!(last.mnemonic(), Mnemonic::Int3, "{variant}: {last:?}");
    }
}

#[test]
fn every_jump_lands_on_an_instruction() {
    for variant in Variant::representative() {
        let meant = Boundaries::of(&variant);
        let image = Image::new(&variant).unwrap();
        for i in decode(&image, &meant.filler) {
            let is_branch = i.op_count() > 0 && i.op0_kind() == OpKind::NearBranch64;
            // To the host: it is not known yet how far that is.
            let field = (i.next_ip() as u32).wrapping_sub(4);
            if is_branch && !image.relocations().iter().any(|relocation| relocation.at == field) {
                let target = u32::try_from(i.near_branch_target()).unwrap();
                assert!(meant.instructions.contains_key(&target), "{variant}: {i:?}");
            }
        }
    }
}

#[test]
fn a_guest_is_entered_by_few_sysretqs_and_one_iretq_only() {
    for variant in Variant::representative() {
        let meant = Boundaries::of(&variant);
        let image = Image::new(&variant).unwrap();
        let decoded = decode(&image, &meant.filler);
        let count = |mnemonic| decoded.iter().filter(|i| i.mnemonic() == mnemonic).count();
        assert!((2..=3).contains(&count(Mnemonic::Sysretq)), "{variant}");
        // The others are of events, which go on in ring 0.
        let events = u64::from(image.offset(Label::Event));
        let iretq = |i: &&Instruction| i.mnemonic() == Mnemonic::Iretq && i.ip() < events;
        assert_eq!(decoded.iter().filter(iretq).count(), 1, "{variant}");
    }
}

#[test]
fn every_instruction_is_what_its_source_line_says() {
    let (mut sources, mut traps) = (BTreeMap::new(), 0);
    for variant in Variant::representative() {
        let meant = Boundaries::of(&variant);
        for i in decode(&Image::new(&variant).unwrap(), &meant.filler) {
            let (file, line) = meant.instructions[&(i.ip() as u32)].source;
            let text = sources.entry(file).or_insert_with(|| {
                let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
                std::fs::read_to_string(workspace.join(file)).unwrap()
            });
            let written = Written::parse(text.lines().nth(line as usize - 1).unwrap());
            // `asm!` writes a trap after what leads elsewhere.
            let is_trapped =
                ["ret", "retf", "iretq", "sysretq", "sysret"].contains(&&*written.mnemonic);
            if is_trapped && i.mnemonic() == Mnemonic::Int3 {
                traps += 1;
                continue;
            }
            let place = format!("{variant}, {file}:{line}: {i}");
            assert_eq!(written.mnemonic, mnemonic(&i), "{place}");
            assert_eq!(written.operands.len(), i.op_count() as usize, "{place}");
            for (op, written) in (0..).zip(&written.operands) {
                assert!(is_what_is_written(&i, op, written), "`{written}` in {place}");
            }
        }
    }
    assert!(traps > 100, "{traps}");
}

/// A line of an emitter, such as `; gs mov rsp, QWORD [PerCpu::tss + Tss::sp0]`.
struct Written {
    mnemonic: String,
    operands: Vec<String>,
}

impl Written {
    fn parse(line: &str) -> Self {
        let (_, statement) = line.split_once(';').expect("instructions follow a semicolon");
        // A whole `asm!` in one line ends with `);`.
        let statement = statement.trim();
        let end = [");", "),"].into_iter().find_map(|end| statement.strip_suffix(end));
        let statement = end.unwrap_or(statement).trim();
        let prefix = ["gs ", "percpu "].into_iter().find(|prefix| statement.starts_with(prefix));
        let statement = &statement[prefix.map_or(0, str::len)..];
        let (mnemonic, operands) = statement.split_once(' ').unwrap_or((statement, ""));
        let mnemonic = match mnemonic {
            "jz" => "je",
            "jnz" => "jne",
            "sysretl" => "sysret",
            "retfq" => "retf",
            other => other,
        };
        let mut depth = 0;
        let is_separator = |c: char| {
            match c {
                '(' | '[' => depth += 1,
                ')' | ']' => depth -= 1,
                _ => {}
            }
            c == ',' && depth == 0
        };
        let operands = operands.split(is_separator).map(|operand| operand.trim().to_owned());
        Self {
            mnemonic: mnemonic.to_owned(),
            operands: operands.filter(|operand| !operand.is_empty()).collect(),
        }
    }
}

fn mnemonic(i: &Instruction) -> String {
    format!("{:?}", i.mnemonic()).to_lowercase()
}

/// Whether operand `op` is of the kind that is written, and the register if one is.
fn is_what_is_written(i: &Instruction, op: u32, written: &str) -> bool {
    let name = |register: iced_x86::Register| format!("{register:?}").to_lowercase();
    match i.op_kind(op) {
        OpKind::Register => {
            let register = i.op_register(op);
            // Moves to and from segment registers leave the other register's width open.
            let is_widthless = (0..i.op_count()).any(|op| i.op_register(op).is_segment_register());
            written == name(register)
                || is_widthless && name(register.full_register()).strip_prefix('r') == Some(written)
        }
        OpKind::Memory if written.starts_with("[=>") => {
            i.mnemonic() == Mnemonic::Lea && i.is_ip_rel_memory_operand()
        }
        OpKind::Memory => {
            let Some((size, address)) = written.split_once('[') else { return false };
            let bytes = match size.trim() {
                "BYTE" => 1,
                "WORD" => 2,
                "DWORD" => 4,
                "QWORD" => 8,
                _ => return false,
            };
            let address = address.trim_start_matches("BYTE ");
            let first = address.split([' ', ']']).next().unwrap_or_default();
            let base = name(i.memory_base());
            let is_field = matches!(&*base, "none" | "rip");
            let base_is_written = if is_field { first.contains("::") } else { first == base };
            i.memory_size().size() == bytes && base_is_written
        }
        OpKind::NearBranch64 => written.contains("=>") || written.starts_with("extern "),
        kind => kind >= OpKind::Immediate8 && !written.contains('['),
    }
}
