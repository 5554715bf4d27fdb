//! What an instruction does with memory.
//!
//! A typed operand says which bytes an instruction accesses: those of a field. That is true of the
//! mnemonics in this table, and of how it is written. `asm!` refuses memory operands of all
//! others, because dynasm takes them as the manual does not have them: it encodes a PSHUFB of eight
//! bytes, of which a CPU reads sixteen.
//!
//! `tests/access.rs` asks a decoder, of each mnemonic in each size, how many bytes it accesses.

/// How many bytes an instruction accesses at its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// As many as the size says, which dynasm compares with the registers beside it.
    AsWritten,
    /// So many, whatever else is written. Those that name a page or a line of a cache do it by a
    /// byte of it.
    Of(usize),
    /// The eight from which one bit is taken, or fewer, if the bit's number is a literal. A number
    /// in a register reaches any bit of memory.
    Bit,
    /// Eight, at an address that is computed after RSP has grown.
    Pop,
    /// None: it is the address that is wanted, without the base of a segment.
    Address,
}

/// What `asm!` takes memory operands of, besides CMOVcc and SETcc.
pub(crate) const TABLE: [(Access, &[&str]); 7] = [
    (
        Access::AsWritten,
        &[
            "adc", "adcx", "add", "adox", "and", "andn", "bextr", "blsi", "blsmsk", "blsr", "bsf",
            "bsr", "bzhi", "cmp", "cmpxchg", "crc32", "dec", "div", "idiv", "imul", "inc", "lzcnt",
            "mov", "movbe", "movnti", "movsx", "movsxd", "movzx", "mul", "mulx", "neg", "not",
            "or", "pdep", "pext", "popcnt", "rcl", "rcr", "rol", "ror", "rorx", "sal", "sar",
            "sarx", "sbb", "shl", "shld", "shlx", "shr", "shrd", "shrx", "sub", "test", "tzcnt",
            "xadd", "xchg", "xor",
        ],
    ),
    (Access::Of(8), &["call", "cmpxchg8b", "jmp", "push"]),
    (Access::Of(4), &["ldmxcsr", "stmxcsr"]),
    (Access::Of(2), &["lar", "lldt", "lmsw", "lsl", "ltr", "sldt", "smsw", "str", "verr", "verw"]),
    (
        Access::Of(1),
        &["clflush", "invlpg", "prefetchnta", "prefetcht0", "prefetcht1", "prefetcht2"],
    ),
    (Access::Bit, &["bt", "btc", "btr", "bts"]),
    (Access::Pop, &["pop"]),
];

/// `None` if `asm!` does not take its memory operand.
pub(crate) fn of(mnemonic: &str) -> Option<Access> {
    if mnemonic == "lea" {
        return Some(Access::Address);
    }
    if mnemonic.starts_with("cmov") {
        return Some(Access::AsWritten);
    }
    if mnemonic.starts_with("set") {
        return Some(Access::Of(1));
    }
    TABLE.iter().find(|(_, mnemonics)| mnemonics.contains(&mnemonic)).map(|(access, _)| *access)
}

/// Whether dynasm refuses a size in front of this instruction's memory operand, for there is only
/// one (or none at all). `asm!` wants it all the same: the field's width is checked by it.
pub(crate) fn is_sizeless(mnemonic: &str) -> bool {
    const SIZELESS: [&str; 10] =
        ["invlpg", "lea", "lldt", "lmsw", "ltr", "sldt", "smsw", "str", "verr", "verw"];
    SIZELESS.contains(&mnemonic)
}

/// Whether it accesses memory that no operand of it names, through registers that it does not name
/// either. The stack is not meant: PUSH, CALL and RET say where they write and read.
pub(crate) fn is_hidden(mnemonic: &str, operands: usize) -> bool {
    const STRINGS: [&str; 7] = ["cmps", "ins", "lods", "movs", "outs", "scas", "stos"];
    let is_string = operands == 0
        && STRINGS.iter().any(|string| {
            mnemonic.strip_prefix(string).is_some_and(|size| ["b", "w", "d", "q"].contains(&size))
        });
    is_string
        || match mnemonic {
            "xlat" | "xlatb" | "enter" => true,
            "maskmovq" | "maskmovdqu" | "vmaskmovdqu" => true,
            "clzero" | "vmload" | "vmrun" | "vmsave" => true,
            "llwpcb" | "slwpcb" | "movdir64b" | "montmul" | "xsha1" | "xsha256" | "xstore" => true,
            _ => mnemonic.starts_with("xcrypt"),
        }
}

/// Which of its operands counts the bits of the first: those of a shift, or up to the bit that is
/// meant. A CPU takes of it what is below 32 or 64, whatever is written.
pub(crate) fn count(mnemonic: &str) -> Option<usize> {
    match mnemonic {
        "rcl" | "rcr" | "rol" | "ror" | "sal" | "sar" | "shl" | "shr" => Some(1),
        "bt" | "btc" | "btr" | "bts" => Some(1),
        "rorx" | "shld" | "shrd" => Some(2),
        _ => None,
    }
}

/// Whether it leads to a label: a jump, with or without a condition, or a call.
pub(crate) fn leads_to_label(mnemonic: &str) -> bool {
    mnemonic.starts_with('j')
        || mnemonic.starts_with("loop")
        || ["call", "xbegin"].contains(&mnemonic)
}

/// Whether nothing after it is ever executed, although a CPU may go on there for a while: it has
/// no condition, and its target is not in the code. `by_label` if its operand is a label.
pub(crate) fn is_last(mnemonic: &str, by_label: bool) -> bool {
    // dynasm has several names for each of them.
    const FAMILIES: [&str; 6] = ["ret", "iret", "sysret", "sysexit", "jmp", "rsm"];
    !by_label && FAMILIES.iter().any(|family| mnemonic.starts_with(family))
}
