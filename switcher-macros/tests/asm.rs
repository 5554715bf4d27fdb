//! What `asm!` tells its sink: the bytes that dynasm makes, and the notes in front of them.

use switcher_asm::Sink;
use switcher_gen::asm::Switcher;
use switcher_gen::asm::{External, HostSymbol, Label, Window};
use switcher_gen::layout;
use switcher_gen::layout::{Offset, Operand, Placement};
use switcher_macros::{AsmLayout, asm};

#[repr(C)]
#[derive(AsmLayout)]
struct Selectors {
    cs: u16,
    ss: u16,
}

#[repr(C)]
#[derive(AsmLayout)]
struct Frame {
    rip: u64,
    flags: u32,
    #[asm(nested)]
    selectors: Selectors,
}

const TF: i32 = 1 << 8;

/// A call of a [`Sink`] method.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    Bytes(Vec<u8>),
    Label(Label),
    Jump(Label),
    Host(&'static str),
    PerCpu(i32),
    Comment(&'static str),
    /// The line of the source, relative to that of [`Recorder::new`].
    Source(u32),
    Operand(&'static str),
    Immediate(&'static str),
}

use Call::{Bytes, Comment, Host, Immediate, Jump, Operand as Memory, PerCpu, Source};

/// A sink that records the calls of its methods.
struct Recorder {
    calls: Vec<Call>,
    line: u32,
    placement: Placement,
}

impl Recorder {
    /// `line` is the line from which lines are counted.
    fn new(line: u32) -> Self {
        Self { calls: Vec::new(), line, placement: Placement::Gs }
    }
}

impl Sink for Recorder {
    type Names = Switcher;

    fn push(&mut self, byte: u8) {
        self.extend(&[byte]);
    }

    /// Bytes of one instruction may come in several portions.
    fn extend(&mut self, bytes: &[u8]) {
        match self.calls.last_mut() {
            Some(Bytes(all)) => all.extend_from_slice(bytes),
            _ => self.calls.push(Bytes(bytes.to_vec())),
        }
    }

    fn dynamic_label(&mut self, label: Label) {
        self.calls.push(Call::Label(label));
    }

    fn dynamic_reloc(&mut self, label: Label, _: isize, _: u8, _: u8, _: u8) {
        self.calls.push(Jump(label));
    }

    fn value_reloc(&mut self, target: impl Into<External>, _: u8, _: u8, _: u8) {
        self.calls.push(match target.into() {
            External::Host(symbol) => Host(symbol.0),
            External::PerCpu(offset) => PerCpu(offset),
        });
    }

    fn place(&mut self, placement: Placement) {
        self.placement = placement;
    }

    fn placement(&self) -> Placement {
        self.placement
    }

    fn align(&mut self, _: usize, _: u8) {
        unreachable!("no test aligns");
    }

    fn upper_half(&mut self, _: usize, _: u8) {
        unreachable!("no test aligns");
    }

    fn open(&mut self, _: Window) {
        unreachable!("asm! knows no windows");
    }

    fn close(&mut self, _: Window) {
        unreachable!("asm! knows no windows");
    }

    fn comment(&mut self, text: &'static str) {
        self.calls.push(Comment(text));
    }

    fn source(&mut self, file: &'static str, line: u32) {
        assert_eq!(file, file!());
        self.calls.push(Source(line - self.line));
    }

    fn operand(&mut self, operand: Operand) {
        self.calls.push(Memory(operand.layout.name));
    }

    fn immediate(&mut self, text: &'static str) {
        self.calls.push(Immediate(text));
    }
}

/// The bytes of code without its notes.
fn bytes(recorder: Recorder) -> Vec<u8> {
    let portions = recorder.calls.into_iter().filter_map(|call| match call {
        Bytes(bytes) => Some(bytes),
        _ => None,
    });
    portions.flatten().collect()
}

#[test]
fn notes_precede_their_instruction() {
    let mut a = Recorder::new(line!());
    asm!(a
        /// Is the guest
        /// single-stepping?
        ; test DWORD [BYTE rsp + Frame::flags], TF
        ; jnz =>Label::Iretq

        ; /// A comment may stand here, too.
          swapgs
        /// Where SYSCALL arrives.
        ; =>Label::Syscall64
        ; jmp extern HostSymbol("host")
    );
    assert_eq!(
        a.calls,
        [
            Comment("Is the guest"),
            Comment("single-stepping?"),
            Source(4),
            Memory("Frame"),
            Immediate("TF"),
            Bytes(vec![0xf7, 0x44, 0x24, 8, 0, 1, 0, 0]),
            Source(5),
            Bytes(vec![0x0f, 0x85, 0, 0, 0, 0]),
            Jump(Label::Iretq),
            Comment("A comment may stand here, too."),
            Source(8),
            Bytes(vec![0x0f, 0x01, 0xf8]),
            Comment("Where SYSCALL arrives."),
            Call::Label(Label::Syscall64),
            Source(11),
            Bytes(vec![0xe9, 0, 0, 0, 0]),
            Host("host"),
        ]
    );
}

#[test]
fn only_expressions_are_immediates() {
    let mut a = Recorder::new(line!());
    let shift = |by: i8| by + 1;
    asm!(a
        ; mov cr3, rcx
        ; mov ss, ax
        ; xor r10d, r10d
        ; shl rbx, 4
        ; and rsp, BYTE -16
        ; shl rcx, shift( 3 )
    );
    let immediates: Vec<_> =
        a.calls.into_iter().filter(|call| matches!(call, Immediate(_))).collect();
    assert_eq!(immediates, [Immediate("shift(3)")]);
}

#[test]
fn displacements_are_offsets() {
    let mut a = Recorder::new(line!());
    asm!(a
        ; mov rax, QWORD [rsp]
        ; mov WORD [BYTE rdi + Frame::selectors + Selectors::ss], ax
        ; mov eax, DWORD [rdi + Frame::flags]
        ; gs mov eax, DWORD [Frame::flags]
        ; cmp DWORD [BYTE rdi + Frame::selectors + Selectors::cs.pair(Selectors::ss)], TF
        ; test BYTE [BYTE rdi + Frame::flags.low_byte()], BYTE 1
    );
    let expected: [&[u8]; 6] = [
        &[0x48, 0x8b, 0x04, 0x24],
        &[0x66, 0x89, 0x47, 14],
        &[0x8b, 0x87, 8, 0, 0, 0],
        &[0x65, 0x8b, 0x04, 0x25, 8, 0, 0, 0],
        &[0x81, 0x7f, 12, 0, 1, 0, 0],
        &[0xf6, 0x47, 8, 1],
    ];
    assert_eq!(bytes(a), expected.concat());
}

#[test]
fn percpu_is_what_the_sinks_placement_makes_of_it() {
    const AT: usize = layout::PerCpu::tss_extra.then(FIELD).bytes();
    const FIELD: Offset<layout::TssExtra, u32> = layout::TssExtra::host_spec_ctrl;
    let mut a = Recorder::new(line!());
    for placement in [Placement::Gs, Placement::PerCpu] {
        a.place(placement);
        asm!(a ; percpu cmp DWORD [layout::PerCpu::tss_extra + FIELD], TF);
    }
    assert_eq!(
        a.calls,
        [
            Source(3),
            Memory("PerCpu"),
            Immediate("TF"),
            Bytes(vec![0x65, 0x81, 0x3c, 0x25, AT as u8, 0, 0, 0, 0, 1, 0, 0]),
            Source(3),
            Memory("PerCpu"),
            Immediate("TF"),
            Bytes(vec![0x81, 0x3d, 0, 0, 0, 0, 0, 1, 0, 0]),
            PerCpu(AT as i32),
        ]
    );
}

#[test]
fn sizes_are_checked_even_where_dynasm_wants_none() {
    let mut a = Recorder::new(line!());
    asm!(a
        ; lea rax, QWORD [BYTE rsp + Frame::rip]
        ; invlpg BYTE [rax]
        ; verw WORD [BYTE rdi + Frame::selectors + Selectors::ss]
    );
    let expected: [&[u8]; 3] =
        [&[0x48, 0x8d, 0x44, 0x24, 0], &[0x0f, 0x01, 0x38], &[0x0f, 0x00, 0x6f, 14]];
    assert_eq!(bytes(a), expected.concat());
}

/// This holds by whatever name dynasm has for the instruction.
#[test]
fn nothing_is_executed_after_what_leads_elsewhere() {
    let mut a = Recorder::new(line!());
    asm!(a ; ret ; retn ; retf ; iretd ; iretq ; sysretl ; sysretq ; jmp rax ; jmp QWORD [rax]);
    let expected: [&[u8]; 9] = [
        &[0xC3],
        &[0xC3],
        &[0xCB],
        &[0xCF],
        &[0x48, 0xCF],
        &[0x0F, 0x07],
        &[0x48, 0x0F, 0x07],
        &[0xFF, 0xE0],
        &[0xFF, 0x20],
    ];
    assert_eq!(bytes(a), expected.map(|code| [code, &[0xCC]].concat()).concat());
    // A direct jump's target is known, and a call returns.
    let mut a = Recorder::new(line!());
    asm!(a ; call rax ; nop);
    assert_eq!(bytes(a), [0xFF, 0xD0, 0x90]);
    let mut a = Recorder::new(line!());
    asm!(a ; jmp =>Label::Iretq ; jmp extern HostSymbol("host") ; jmp BYTE =>Label::Iretq ; ud2);
    assert_eq!(bytes(a), [0xE9, 0, 0, 0, 0, 0xE9, 0, 0, 0, 0, 0xEB, 0, 0x0F, 0x0B]);
}

/// Whatever the target is, and whichever way the instruction takes out of the macro.
#[test]
#[expect(clippy::useless_conversion, reason = "dynasm's, of a register's number")]
fn no_way_out_of_the_macro_is_without_the_trap() {
    use layout::{PerCpu as Block, TssExtra};
    const AT: u8 = Block::tss_extra.then(TssExtra::smod_entry).bytes() as u8;
    type Emit = fn(&mut Recorder);
    let ways: [(Emit, &[u8]); 11] = [
        (|a| asm!(a ; jmp r9), &[0x41, 0xFF, 0xE1]),
        (|a| asm!(a ; jmp Rq(1)), &[0x40, 0xFF, 0xE1]),
        (|a| asm!(a ; jmp QWORD [rdi + Frame::rip]), &[0xFF, 0xA7, 0, 0, 0, 0]),
        (|a| asm!(a ; jmp QWORD [BYTE rdi + Frame::rip]), &[0xFF, 0x67, 0]),
        (|a| asm!(a ; jmp QWORD [=>Label::Iretq]), &[0xFF, 0x25, 0, 0, 0, 0]),
        (|a| asm!(a ; gs jmp QWORD [Frame::rip]), &[0x65, 0xFF, 0x24, 0x25, 0, 0, 0, 0]),
        (|a| asm!(a ; fs jmp QWORD [Frame::rip]), &[0x64, 0xFF, 0x24, 0x25, 0, 0, 0, 0]),
        (
            |a| {
                a.place(Placement::Gs);
                asm!(a ; percpu jmp QWORD [Block::tss_extra + TssExtra::smod_entry]);
            },
            &[0x65, 0xFF, 0x24, 0x25, AT, 0, 0, 0],
        ),
        (
            |a| {
                a.place(Placement::PerCpu);
                asm!(a ; percpu jmp QWORD [Block::tss_extra + TssExtra::smod_entry]);
            },
            &[0xFF, 0x25, 0, 0, 0, 0],
        ),
        (|a| asm!(a ; ret 8), &[0xC2, 8, 0]),
        (|a| asm!(a ; retf 8), &[0xCA, 8, 0]),
    ];
    for (emit, code) in ways {
        let mut a = Recorder::new(0);
        emit(&mut a);
        // The trap has the line of its instruction.
        assert!(matches!(a.calls.as_slice(), [Source(here), .., Source(there), Bytes(trap)]
            if here == there && *trap == [0xCC]));
        assert_eq!(bytes(a), [code, &[0xCC]].concat());
    }
}

#[test]
fn the_per_cpu_block_is_reached_without_a_size_where_dynasm_wants_none() {
    let mut a = Recorder::new(line!());
    for placement in [Placement::Gs, Placement::PerCpu] {
        a.place(placement);
        asm!(a ; percpu verw WORD [layout::PerCpu::tss_extra + WORD]);
    }
    const WORD: Offset<layout::TssExtra, u16> = layout::TssExtra::smod_entry.low_word();
    const AT: u8 = layout::PerCpu::tss_extra.then(WORD).bytes() as u8;
    let expected: [&[u8]; 2] =
        [&[0x65, 0x0F, 0x00, 0x2C, 0x25, AT, 0, 0, 0], &[0x0F, 0x00, 0x2D, 0, 0, 0, 0]];
    assert_eq!(bytes(a), expected.concat());
}

/// POP has added 8 to RSP by then, so a field below the end is below where RSP points afterwards.
#[test]
fn what_is_popped_to_the_stack_is_counted_from_where_it_ends_then() {
    let mut a = Recorder::new(line!());
    asm!(a ; pop QWORD [BYTE rsp + Frame::rip.below_end()] ; pop QWORD [rdi + Frame::rip]);
    assert_eq!(bytes(a), [0x8F, 0x44, 0x24, 0xF0, 0x8F, 0x87, 0, 0, 0, 0]);
}

/// Without REX.W, a far return would pop 32-bit halves.
#[test]
fn a_far_return_pops_whole_words() {
    let mut a = Recorder::new(line!());
    asm!(a ; retfq ; retfq 128);
    // After each of them is a trap.
    assert_eq!(bytes(a), [0x48, 0xcb, 0xcc, 0x48, 0xca, 128, 0, 0xcc]);
}

#[test]
fn mnemonics_that_dynasm_lacks() {
    let mut a = Recorder::new(line!());
    asm!(a ; endbr64 ; sysretq ; sysretl);
    assert_eq!(
        a.calls,
        [
            Source(1),
            Bytes(vec![0xf3, 0x0f, 0x1e, 0xfa]),
            Source(1),
            Bytes(vec![0x48, 0x0f, 0x07]),
            Source(1),
            Bytes(vec![0xcc]),
            Source(1),
            Bytes(vec![0x0f, 0x07]),
            Source(1),
            Bytes(vec![0xcc]),
        ]
    );
}

#[test]
fn segment_registers_are_loaded_although_dynasm_stores_them() {
    let mut recorder = Recorder::new(line!());
    let a = &mut recorder;
    asm!(a ; mov ss, cx ; mov ds, ax);
    let bytes: Vec<_> =
        recorder.calls.into_iter().filter(|call| matches!(call, Bytes(_))).collect();
    assert_eq!(bytes, [Bytes(vec![0x8E, 0xD1]), Bytes(vec![0x8E, 0xD8])]);
}

#[test]
fn rust_statements_and_directives_pass_through() {
    let mut a = Recorder::new(line!());
    asm!(a
        ;; let nops = [0x90; 3]
        /// Padding.
        ; .bytes &nops
        ;; assert_eq!(nops.len(), 3)
        ;
    );
    assert_eq!(a.calls, [Comment("Padding."), Bytes(vec![0x90; 3])]);
}
