//! Headers, TOML and JSON, and what is wrong with them.

use switcher_offsets::{Contradiction, Found, OffsetsError, Source, merge, read};

mod tools;
use tools::place;

const TOML: &str = "
# What a kernel of ours has.
[tss]
size = 104
fields = { sp0 = 4, sp2 = { at = 20, size = 8 }, ist = 36 }

[tss_extra]
size = 0x80
at = 104
[tss_extra.fields]
host_cr3 = 0
\"pgtbl[0].smod_cr3\" = { at = 0x48, size = 8 }
switch_flags = 0x40

[pvcs.fields]
rip = 96
";

const JSON: &str = r#"{
  "tss": {"size": 104, "fields": {"sp0": 4, "sp2": {"at": 20, "size": 8}, "ist": 36}},
  "tss_extra": {
    "fields": {
      "host_cr3": 0, "pgtbl[0].smod_cr3": {"at": 72, "size": 8}, "switch_flags": 64
    },
    "size": 128, "at": 104
  },
  "pvcs": {"fields": {"rip": 96}}
}"#;

const HEADER: &str = "\
/* Generated: DO NOT MODIFY. */
#ifndef ASM_OFFSETS_H
#define ASM_OFFSETS_H
#define TASK_threadsp 3040 /* offsetof(struct task_struct, thread.sp) */
#define TSS_sp0 4 // offset
#define TSS_ist 0x24
#define TSS_unknown 5
#define TSS_EX_host_cr3 0x1068UL
#define TSS_EX_switch_flags /* a comment */ 4264 /* of
two lines */
#  define PVCS_rip \\
 96
#define PVCS_GUARD
#define PVCS_rip 96
#endif
";

fn ok(text: &str) -> Found {
    read(text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What is said of a text that is wrong.
fn wrong(text: &str) -> String {
    read(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn toml_and_json_say_the_same() {
    let (toml, json) = (ok(TOML), ok(JSON));
    assert_eq!((toml.source, json.source), (Source::Toml, Source::Json));
    assert_eq!(Found { source: Source::Json, ..toml.clone() }, json);
    assert_eq!(toml.tss_at, None);
    assert_eq!(toml.tss_extra_at, Some(104));
    assert!(toml.is_start_known);
    assert_eq!(toml.tss_extra.as_ref().unwrap().size, Some(128));
    assert_eq!(place(&toml.tss_extra, "pgtbl[0].smod_cr3"), (0x48, Some(8)));
    assert_eq!(place(&toml.tss, "sp2"), (20, Some(8)));
    assert_eq!(place(&toml.pvcs, "rip"), (96, None));
    // As editors on other systems leave it.
    assert_eq!(ok(&format!("\u{FEFF}{}", TOML.replace('\n', "\r\n"))), toml);
}

#[test]
fn headers_of_a_kernels_build_are_read() {
    let found = ok(HEADER);
    assert_eq!(found.source, Source::Header);
    assert_eq!((found.tss_extra_at, found.is_start_known), (Some(0x1068), false));
    assert_eq!(place(&found.tss_extra, "host_cr3"), (0, None));
    assert_eq!(place(&found.tss_extra, "switch_flags"), (0x40, None));
    assert_eq!(place(&found.tss, "ist"), (0x24, None));
    assert_eq!(found.tss.as_ref().unwrap().fields.len(), 2);
    assert_eq!(found.pvcs.as_ref().unwrap().fields.len(), 1);
    assert_eq!(place(&found.pvcs, "rip"), (96, None));
    assert_eq!(ok(&HEADER.replace('\n', "\r\n")), found);
}

#[test]
fn what_is_wrong_with_a_header_names_the_line() {
    for (line, expected) in [
        ("#define TSS_EX_rip (8 + 4)", "TSS_EX_rip is `(8 + 4)`, and only numbers are read"),
        ("#define TSS_EX_rip 8 + 4", "`8 + 4`"),
        ("#define TSS_EX_rip OTHER", "`OTHER`"),
        ("#define TSS_EX_rip -8", "`-8`"),
        ("#define TSS_EX_rip 010", "`010`"),
        ("#define PVCS_rip(x) 8", "`(x) 8`"),
        ("#define PVCS_rip 70000", "at most 64 KiB"),
        ("#define PVCS_rip 99999999999999999999", "only numbers"),
        ("#define PVCS_ 8", "no name of a field"),
        ("#undef PVCS_rip", "is undefined"),
        ("#define PVCS_rip 97", "PVCS_rip is 97, and line 11 says 96: conditions"),
        ("/* without an end", "a comment has no end"),
    ] {
        let text = format!("{HEADER}\n{line}\n");
        let error = wrong(&text);
        assert!(error.starts_with("line 17: ") && error.contains(expected), "{line}: {error}");
    }
    let none = wrong("#define TSS_ex_host_cr3 8\n#define OTHER 9\n");
    assert!(none.contains("none of TSS_EX_NAME, PVCS_NAME, TSS_sp0"), "{none}");
    assert!(none.contains("there are TSS_ex_host_cr3") && !none.contains("OTHER"), "{none}");
}

#[test]
fn what_is_wrong_with_toml_and_json_names_the_line() {
    for (text, expected) in [
        ("[tss_extra.fields]\na = 0\n[tss_exstra.fields]\nb = 1", "do you mean `tss_extra`?"),
        ("[pvcs]\nfields = { a = 0 }\nsise = 8", "do you mean `size`?"),
        ("[pvcs]\nfields = { a = 0 }\nat = 8", "a struct has no key `at`"),
        ("[pvcs.fields]\na = 0\nb = { att = 0 }", "do you mean `at`?"),
        ("[pvcs.fields]\na = 0\nb = { size = 0 }", "a field has no `at`"),
        ("[pvcs.fields]\na = 0\nb = -1", "negative"),
        ("[pvcs.fields]\na = 0\nb = \"1\"", "an offset in bytes"),
        ("[pvcs.fields]\na = 0\nb = 1.5", "an offset in bytes"),
        ("[pvcs.fields]\na = 0\n\"b c\" = 0", "`b c` is no name of a field"),
        ("[pvcs.fields]\na = 0\na = 1", "duplicate key"),
    ] {
        let error = wrong(text);
        assert!(error.contains("line 3") && error.contains(expected), "{text}: {error}");
    }
    for (text, expected) in [
        ("{\"pvcs\":\n{\"fields\": {},\n\"sise\": 8}}", "do you mean `size`?"),
        ("{\"pvcs\":\n{\"fields\": {\"a\": 0},\n\"fields\": {}}}", "has `fields` twice"),
        ("{\"pvcs\":\n{\"fields\": {\"a\": 0,\n\"a\": 0}}}", "`a` is there twice"),
        ("{\"pvcs\":\n{\"fields\": {\"a\": 0,\n\"b\": -1}}}", "negative"),
        ("{\"pvcs\":\n{\"fields\": {\"a\": 0}\n", "EOF"),
    ] {
        let error = wrong(text);
        assert!(error.contains("line 3") && error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn layouts_that_cannot_be_are_refused() {
    let error = |text: &str| read(text.as_bytes()).unwrap_err();
    let outside = error("[pvcs]\nsize = 8\nfields = { a = { at = 4, size = 5 } }");
    assert!(matches!(outside, OffsetsError::Outside { end: 9, size: 8, .. }), "{outside}");
    let outside = error("[pvcs]\nsize = 8\nfields = { a = 8 }");
    assert!(matches!(outside, OffsetsError::Outside { end: 9, size: 8, .. }), "{outside}");
    let overflow = error("[pvcs.fields]\na = { at = 9, size = 9223372036854775807 }");
    assert!(matches!(overflow, OffsetsError::Outside { size: 65536, .. }), "{overflow}");
    let large = error("[pvcs]\nsize = 65537\nfields = { a = 0 }");
    assert!(matches!(large, OffsetsError::TooLarge { size: 65537, .. }), "{large}");
    let far = error("[tss_extra]\nat = 65536\nfields = { a = 0 }");
    assert!(matches!(far, OffsetsError::TooLarge { size: 65536, .. }), "{far}");
    for empty in ["[pvcs]\nsize = 8", "[pvcs.fields]", "{\"pvcs\": {}}"] {
        assert!(matches!(error(empty), OffsetsError::NoFields { .. }), "{empty}");
    }
    assert!(matches!(error("{}"), OffsetsError::NotFound { .. }));
    // Fields that overlap are a union.
    assert_eq!(ok("[pvcs.fields]\na = 8\nb = 8").pvcs.unwrap().fields.len(), 2);
}

#[test]
fn what_is_of_no_known_kind_says_what_is() {
    for bytes in [&b""[..], b"hello", b"# nothing", b"\xFF\xFE", b"\0\0\0\0\0", b"\x7fEL"] {
        let error = read(bytes).unwrap_err();
        assert!(matches!(error, OffsetsError::Unrecognised), "{bytes:?}: {error}");
        assert!(error.to_string().contains("vmlinux"), "{error}");
    }
}

/// Merges texts named a, b, ...
fn merged(texts: &[&str]) -> Result<Found, Contradiction> {
    let named = (b'a'..).zip(texts).map(|(name, text)| (char::from(name).to_string(), ok(text)));
    merge(named).map(Option::unwrap)
}

#[test]
fn files_complete_each_other() {
    let whole = merged(&[HEADER, "[tss_extra]\nat = 0x1060\nfields = { host_gs = 0 }"]).unwrap();
    assert_eq!((whole.tss_extra_at, whole.is_start_known), (Some(0x1060), true));
    assert_eq!(place(&whole.tss_extra, "host_cr3"), (8, None));
    assert_eq!(place(&whole.tss_extra, "switch_flags"), (0x48, None));
    let sizes =
        merged(&["[pvcs.fields]\na = 8", "[pvcs]\nsize = 16\nfields.a = {at = 8, size = 8}"]);
    let pvcs = sizes.unwrap().pvcs;
    assert_eq!((pvcs.as_ref().unwrap().size, place(&pvcs, "a")), (Some(16), (8, Some(8))));
    // Of two headers, the one with the earlier field counts.
    let two = ["#define TSS_EX_b 24", "#define TSS_EX_a 8", "#define TSS_EX_b 24"];
    for order in [[0, 1, 2], [1, 0, 2]] {
        let both = merged(&order.map(|at| two[at])).unwrap();
        assert_eq!((both.tss_extra_at, both.is_start_known), (Some(8), false));
        assert_eq!(place(&both.tss_extra, "b"), (16, None));
    }
    assert_eq!(merge([]).unwrap(), None);
    assert_eq!(merged(&[TOML]).unwrap(), ok(TOML));
}

#[test]
fn files_that_contradict_each_other_are_named() {
    let field = |at: u64| format!("[pvcs.fields]\na = {at}");
    let all = [
        (
            vec![field(8), "[tss.fields]\na = 8".into(), field(9)],
            "a and c",
            "pvcs.a is 0x8 and 0x9",
        ),
        (
            vec!["[pvcs]\nsize = 8\nfields.a = 0".into(), "[pvcs]\nsize = 9\nfields.a = 0".into()],
            "a and b",
            "the size of pvcs is 0x8 and 0x9",
        ),
        (
            vec!["[pvcs]\nsize = 8\nfields.a = 0".into(), "[pvcs.fields]\nb = 8".into()],
            "a and b",
            "the end of pvcs is 0x8 and 0x9, by field b",
        ),
        (
            vec!["[tss_extra]\nat = 16\nfields.a = 0".into(), "#define TSS_EX_a 8".into()],
            "a and b",
            "where tss_extra lies in the block is at most 0x8 and 0x10",
        ),
        (
            vec!["[tss_extra]\nat = 16\nfields.a = 8".into(), "#define TSS_EX_a 32".into()],
            "a and b",
            "tss_extra.a is 0x8 and 0x10",
        ),
    ];
    for (texts, who, what) in all {
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        let error = merged(&texts).unwrap_err().to_string();
        assert!(error.starts_with(who) && error.ends_with(what), "{error}");
    }
}
