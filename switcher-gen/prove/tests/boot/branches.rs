//! Static branches: Linux flips them one after the other, at any time.

use super::{Choice, ReadError, at_exit, elf, linked, said, verdicts, verdicts_of};

const VARIANT: &str = "intel-4level";
const NOP: &str = ".byte 0x0F, 0x1F, 0x44, 0x00, 0x00";
const KEYS: &str = "\t.pushsection .data\n\t.balign 8\n\t.globl one\none:\t.quad 0\n\
                    other:\t.quad 0\n\t.popsection\n";

/// A static branch over some code, with these bytes in the file.
fn branch(number: usize, key: &str, bytes: &str, skipped: &str) -> String {
    let (site, end) = (990 + 2 * number, 991 + 2 * number);
    format!(
        "{site}:\t{bytes}\n\t.pushsection __jump_table, \"aw\"\n\
         \t.long {site}b - ., {end}f - .\n\t.quad {key} - .\n\t.popsection\n\t{skipped}\n{end}:\n"
    )
}

/// RSP goes up, and down again.
fn both(first: &str, second: &str) -> Vec<u8> {
    let up = branch(0, first, NOP, "addq\t$8, %rsp");
    at_exit(&(KEYS.to_owned() + &up + &branch(1, second, NOP, "subq\t$8, %rsp")))
}

fn judged(object: &[u8], choices: &[(Choice, bool)]) -> (usize, usize) {
    let all = verdicts_of(object, VARIANT, choices);
    (all.len(), all.iter().filter(|(_, broken)| broken.is_some()).count())
}

fn key(name: &str, is_on: bool) -> [(Choice, bool); 1] {
    [(Choice::Key(name.into()), is_on)]
}

/// Between the flips of two sites, one of them jumps and the other does not.
#[test]
fn each_static_branch_goes_by_itself_whatever_its_key_is() {
    for (first, second) in
        [("one", "one"), ("one", "one + 1"), ("one", "other"), ("one", "one + 2")]
    {
        let object = both(first, second);
        for file in [&object, &linked(&object)] {
            assert_eq!(judged(file, &[]), (4, 2), "{first}, {second}");
        }
    }
    // What is right either way needs nothing to be said.
    let right = branch(0, "one", NOP, "cld") + &branch(1, "one", NOP, "cld");
    assert_eq!(judged(&at_exit(&(KEYS.to_owned() + &right)), &[]), (4, 0));
    // What is not says what could be said.
    let images = elf::images(&both("one", "one"), said(VARIANT, &[])).unwrap();
    let all = images.iter().map(|image| image.assumed().concat());
    let with = all.filter(|text| text.contains("--boot key@one=on")).count();
    assert_eq!(with, 4);
    assert!(images.iter().all(|image| image.assumed().concat().contains("not flipped between")));
}

/// Whoever knows that a key is never flipped says how it is.
#[test]
fn a_key_that_stays_has_all_of_its_branches_one_way() {
    let object = both("one", "one");
    for file in [&object, &linked(&object)] {
        for is_on in [true, false] {
            let all = verdicts_of(file, VARIANT, &key("one", is_on));
            let way = if is_on { "key@one=on" } else { "key@one=off" };
            assert_eq!(all, [(way.to_owned(), None)]);
        }
    }
    // The other way round, one of them jumps, and here not the right one.
    let inverted = |bytes| {
        let up = branch(0, "one", NOP, "addq\t$8, %rsp");
        at_exit(&(KEYS.to_owned() + &up + &branch(1, "one + 1", bytes, "subq\t$8, %rsp")))
    };
    let jump = inverted(".byte 0xE9; .long 993f - . - 4");
    assert_eq!(judged(&jump, &key("one", true)), (1, 1));
    // A key of another file's; and one that this file does not have.
    assert_eq!(judged(&both("theirs", "theirs"), &key("theirs", true)), (1, 0));
    let error = elf::images(&object, said(VARIANT, &key("two", true))).unwrap_err();
    assert!(error.to_string().contains("key@two"), "{error}");
}

/// A key that is never flipped leaves each site as the file has it.
#[test]
fn what_a_key_that_stays_does_not_reach_is_not_taken_for_it() {
    let jump = ".byte 0xE9; .long 993f - . - 4";
    let mixed = branch(0, "one", NOP, "cld") + &branch(1, "one", jump, "cld");
    // Linux up to 5.13 leaves a site with this bit alone.
    let bit = branch(0, "one", NOP, "cld") + &branch(1, "one + 2", NOP, "cld");
    for (code, is_on) in [(&mixed, true), (&mixed, false), (&bit, true)] {
        let object = at_exit(&(KEYS.to_owned() + code));
        for file in [&object, &linked(&object)] {
            let error = elf::images(file, said(VARIANT, &key("one", is_on))).unwrap_err();
            assert!(matches!(error, ReadError::Table(_)), "{error}");
            assert!(error.to_string().contains("key@one"), "{error}");
        }
    }
    let bit = at_exit(&(KEYS.to_owned() + &bit));
    assert_eq!(judged(&bit, &key("one", false)), (1, 0));
    assert!(verdicts(&bit, VARIANT).iter().all(|(_, broken)| broken.is_none()));
}

/// More sites than can be judged one by one.
#[test]
fn a_key_with_many_branches_is_refused_with_a_way_out() {
    let many: String = (0..7).map(|number| branch(number, "one", NOP, "incl\t%ecx")).collect();
    let object = at_exit(&(KEYS.to_owned() + &many));
    let error = elf::images(&object, said(VARIANT, &[])).unwrap_err();
    assert!(matches!(&error, ReadError::Combinations { .. }), "{error}");
    assert!(error.to_string().contains("--boot key@one=on"), "{error}");
    assert_eq!(elf::images(&object, said(VARIANT, &key("one", true))).unwrap().len(), 1);
}

#[track_caller]
fn refused(code: &str, choices: &[(Choice, bool)], part: &str) {
    let object = at_exit(&(KEYS.to_owned() + code));
    for file in [&object, &linked(&object)] {
        let error = elf::images(file, said(VARIANT, choices)).expect_err(part).to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}

/// Until the first flip, what runs is the file's jump, whatever the table says.
#[test]
fn the_jump_in_the_file_leads_where_the_table_says() {
    for (form, size) in [("0xEB; .byte", 1), ("0xE9; .long", 4)] {
        let jump = |by: u8| {
            let leads = format!(".byte {form} 991f - . - {size} + {by}");
            at_exit(&(KEYS.to_owned() + &branch(0, "one", &leads, "cld") + "\tnop\n"))
        };
        assert_eq!(judged(&jump(0), &[]), (2, 0), "{form}");
        for choices in [&[][..], &key("one", true), &key("one", false)] {
            let error = elf::images(&jump(1), said(VARIANT, choices)).expect_err(form).to_string();
            assert!(error.contains("leads elsewhere"), "{error}");
        }
    }
}

/// Neither of two entries says which way the place goes.
#[test]
fn no_place_is_named_by_two_static_branches() {
    let once = branch(0, "one", NOP, "cld");
    let again = "\t.pushsection __jump_table, \"aw\"\n\t.long 990b - ., 991b - .\n\
                 \t.quad other - .\n\t.popsection\n";
    assert_eq!(judged(&at_exit(&(KEYS.to_owned() + &once)), &[]), (2, 0));
    refused(&(once.clone() + again), &[], "__jump_table");
    // There is no key then of which something could be said.
    refused(&(once.clone() + again), &key("one", true), "key@one");
    refused(&(once + &again.replace("990b - .", "990b + 2 - .")), &[], "__jump_table");
}

/// What is said of a name is said of one key.
#[test]
fn a_name_that_two_keys_have_is_none_of_theirs() {
    let code = |name: &str| {
        let keys =
            format!("\t.pushsection .data\n\t.balign 8\n\t.quad 0, 0\n{name}\t.popsection\n");
        keys + &branch(0, ".data", NOP, "addq\t$8, %rsp")
            + &branch(1, ".data + 8", NOP, "subq\t$8, %rsp")
    };
    let own = at_exit(&code(""));
    let first = [(Choice::Key(".data+0x0".into()), true)];
    let second = [(Choice::Key(".data+0x8".into()), true)];
    let both = [first[0].clone(), second[0].clone()];
    assert_eq!(judged(&own, &both), (1, 0));
    // A symbol of the first key's, which is called what the second one would be.
    let called = "\t.set \".data+0x8\", . - 16\n";
    let error = elf::images(&at_exit(&code(called)), said(VARIANT, &second)).unwrap_err();
    assert!(error.to_string().contains("key@.data+0x8"), "{error}");
}
