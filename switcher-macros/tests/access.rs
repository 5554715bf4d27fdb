//! What `asm!` believes of mnemonics with memory operands, as a decoder has it: so many bytes are
//! accessed as the size in front says.

use std::collections::BTreeSet;

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, OpAccess, Register};
use switcher_gen::asm::CodeBuffer;
use switcher_macros::{AsmLayout, asm};

#[path = "../src/access.rs"]
#[expect(dead_code, reason = "only the table is compared")]
mod access;

use access::Access;

#[repr(C)]
#[derive(AsmLayout)]
struct Fields {
    q: u64,
    d: u32,
    w: u16,
    b: u8,
}

/// The mnemonics tried so far, and what is wrong of them.
#[derive(Default)]
struct Tried {
    mnemonics: BTreeSet<&'static str>,
    wrong: Vec<String>,
}

impl Tried {
    /// `code` is to access `bytes` bytes at RDI.
    fn access(&mut self, mnemonic: &'static str, bytes: usize, code: CodeBuffer) {
        let code = code.finish().unwrap().bytes;
        let instruction = Decoder::new(64, &code, DecoderOptions::NONE).decode();
        let mut info = InstructionInfoFactory::new();
        let accessed: Vec<_> = info
            .info(&instruction)
            .used_memory()
            .iter()
            .filter(|memory| memory.base() == Register::RDI)
            .filter(|memory| memory.access() != OpAccess::NoMemAccess)
            .map(|memory| memory.memory_size().size())
            .collect();
        // It is the instruction that was written, too. SAL is another name of SHL.
        let name = if mnemonic == "sal" { "shl" } else { mnemonic };
        let is_named = format!("{:?}", instruction.mnemonic()).eq_ignore_ascii_case(name);
        if accessed != [bytes] || !is_named {
            let name = instruction.mnemonic();
            self.wrong.push(format!("{mnemonic} of {bytes}: {name:?} of {accessed:?}"));
        }
        self.mnemonics.insert(mnemonic);
    }
}

macro_rules! accesses {
    ($tried:ident $(; $mnemonic:ident ($($before:tt)*) $size:ident $field:ident ($($after:tt)*))*) => {
        $({
            let mut code = CodeBuffer::new();
            asm!(code ; $mnemonic $($before)* $size [rdi + Fields::$field] $($after)*);
            let bytes = match stringify!($field) {
                "b" => 1,
                "w" => 2,
                "d" => 4,
                _ => 8,
            };
            $tried.access(stringify!($mnemonic), bytes, code);
        })*
    };
}

/// Of memory and nothing else.
macro_rules! alone {
    ($tried:ident $($mnemonic:ident)*) => {
        $(accesses!($tried
            ; $mnemonic () BYTE b ()
            ; $mnemonic () WORD w ()
            ; $mnemonic () DWORD d ()
            ; $mnemonic () QWORD q ()
        );)*
    };
}

/// Into memory.
macro_rules! stores {
    ($tried:ident $($mnemonic:ident)*) => {
        $(accesses!($tried
            ; $mnemonic () BYTE b (, al)
            ; $mnemonic () WORD w (, ax)
            ; $mnemonic () DWORD d (, eax)
            ; $mnemonic () QWORD q (, rax)
        );)*
    };
}

/// From memory, of all sizes but a byte.
macro_rules! loads {
    ($tried:ident $($mnemonic:ident)*) => {
        $(accesses!($tried
            ; $mnemonic (ax,) WORD w ()
            ; $mnemonic (eax,) DWORD d ()
            ; $mnemonic (rax,) QWORD q ()
        );)*
    };
}

/// By a number.
macro_rules! numbers {
    ($tried:ident $($mnemonic:ident)*) => {
        $(accesses!($tried
            ; $mnemonic () BYTE b (, 7)
            ; $mnemonic () WORD w (, BYTE 7)
            ; $mnemonic () DWORD d (, BYTE 7)
            ; $mnemonic () QWORD q (, BYTE 7)
        );)*
    };
}

/// By a number that is wider than a byte.
macro_rules! wide_numbers {
    ($tried:ident $($mnemonic:ident)*) => {
        $(accesses!($tried
            ; $mnemonic () WORD w (, WORD 0x1234)
            ; $mnemonic () DWORD d (, DWORD 0x1234_5678)
            ; $mnemonic () QWORD q (, DWORD 0x1234_5678)
        );)*
    };
}

/// Those of VEX, between registers of 32 or 64 bits.
macro_rules! between {
    ($tried:ident $($mnemonic:ident)*) => {
        $(accesses!($tried
            ; $mnemonic (eax, ecx,) DWORD d ()
            ; $mnemonic (rax, rcx,) QWORD q ()
        );)*
    };
}

macro_rules! counted {
    ($tried:ident $($mnemonic:ident)*) => {
        $(accesses!($tried
            ; $mnemonic (eax,) DWORD d (, ecx)
            ; $mnemonic (rax,) QWORD q (, rcx)
        );)*
    };
}

macro_rules! to_32_or_64 {
    ($tried:ident $($mnemonic:ident)*) => {
        $(accesses!($tried
            ; $mnemonic (eax,) DWORD d ()
            ; $mnemonic (rax,) QWORD q ()
        );)*
    };
}

#[test]
fn a_decoder_reads_as_many_bytes_as_the_size_says() {
    let mut tried = Tried::default();
    alone!(tried dec div idiv imul inc mul neg not);
    stores!(tried adc add and cmp cmpxchg mov or sbb sub test xadd xchg xor);
    loads!(tried adc add and bsf bsr cmova cmove cmp imul lzcnt mov movbe or popcnt sbb sub);
    loads!(tried test tzcnt xchg xor);
    numbers!(tried adc add and cmp or rcl rcr rol ror sar sbb shl shr sub xor);
    wide_numbers!(tried adc add and cmp mov or sbb sub test xor);
    between!(tried andn mulx pdep pext);
    counted!(tried bextr bzhi sarx shlx shrx);
    to_32_or_64!(tried blsi blsmsk blsr);
    accesses!(tried
        ; adc (al,) BYTE b ()
        ; adcx (rax,) QWORD q ()
        ; adox (rax,) QWORD q ()
        ; mov (al,) BYTE b ()
        ; test () BYTE b (, BYTE 7)
        ; mov () BYTE b (, BYTE 7)
        ; mov () WORD w (, ss)
        ; rol () QWORD q (, cl)
        ; sal () BYTE b (, cl)
        ; sal () QWORD q (, 3)
        ; shld () WORD w (, ax, 3)
        ; shld () DWORD d (, eax, cl)
        ; shld () QWORD q (, rax, 3)
        ; shrd () WORD w (, ax, cl)
        ; shrd () DWORD d (, eax, 3)
        ; shrd () QWORD q (, rax, cl)
        ; rorx (eax,) DWORD d (, 3)
        ; rorx (rax,) QWORD q (, 3)
        ; imul (ax,) WORD w (, 7)
        ; imul (eax,) DWORD d (, DWORD 0x1234_5678)
        ; imul (rax,) QWORD q (, 7)
        ; crc32 (eax,) BYTE b ()
        ; crc32 (rax,) BYTE b ()
        ; crc32 (eax,) WORD w ()
        ; crc32 (eax,) DWORD d ()
        ; crc32 (rax,) QWORD q ()
        ; movbe () WORD w (, ax)
        ; movbe () DWORD d (, eax)
        ; movbe () QWORD q (, rax)
        ; movnti () DWORD d (, eax)
        ; movnti () QWORD q (, rax)
        ; movsx (ax,) BYTE b ()
        ; movsx (eax,) BYTE b ()
        ; movsx (rax,) BYTE b ()
        ; movsx (eax,) WORD w ()
        ; movsx (rax,) WORD w ()
        ; movsxd (rax,) DWORD d ()
        ; movzx (ax,) BYTE b ()
        ; movzx (eax,) BYTE b ()
        ; movzx (rax,) BYTE b ()
        ; movzx (eax,) WORD w ()
        ; movzx (rax,) WORD w ()
        ; call () QWORD q ()
        ; jmp () QWORD q ()
        ; push () QWORD q ()
        ; pop () QWORD q ()
        ; cmpxchg8b () QWORD q ()
        ; ldmxcsr () DWORD d ()
        ; stmxcsr () DWORD d ()
        ; lar (eax,) WORD w ()
        ; lar (rax,) WORD w ()
        ; lsl (eax,) WORD w ()
        ; lsl (rax,) WORD w ()
        ; lldt () WORD w ()
        ; lmsw () WORD w ()
        ; ltr () WORD w ()
        ; sldt () WORD w ()
        ; smsw () WORD w ()
        ; str () WORD w ()
        ; verr () WORD w ()
        ; verw () WORD w ()
        ; bt () WORD w (, 15)
        ; bt () DWORD d (, 31)
        ; bt () QWORD q (, 63)
        ; btc () QWORD q (, 63)
        ; btr () DWORD d (, 31)
        ; bts () QWORD q (, 63)
        ; seta () BYTE b ()
        ; sete () BYTE b ()
    );
    assert!(tried.wrong.is_empty(), "{:#?}", tried.wrong);

    // What names a line or a page accesses nothing.
    let entries = access::TABLE.iter().filter(|(access, _)| *access != Access::Of(1));
    let known: BTreeSet<_> = entries.flat_map(|(_, mnemonics)| *mnemonics).copied().collect();
    let untried: Vec<_> = known.difference(&tried.mnemonics).collect();
    assert!(untried.is_empty(), "not compared: {untried:?}");
}

/// What the table is for: dynasm takes it, and a CPU reads twice as much.
#[test]
fn the_decoder_objects_to_what_is_not_in_the_table() {
    let mut code = CodeBuffer::new();
    {
        use switcher_gen::__private::{Sink as _, dynasm};
        dynasm!(code ; .arch x64 ; pshufb xmm0, QWORD [rdi]);
    }
    let mut tried = Tried::default();
    tried.access("pshufb", 8, code);
    assert_eq!(tried.wrong, ["pshufb of 8: Pshufb of [16]"]);
    assert_eq!(access::of("pshufb"), None);
}
