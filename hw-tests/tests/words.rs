//! Comments are whole sentences, and no wider than the code. A test cannot read, so this one looks
//! for the habits that have made comments hard to understand here.

use std::path::PathBuf;

mod tree;
use tree::{files, has_extension, read, root};

/// Folders whose sources are given to the macros, and what comes of them.
const OF_MACROS: [&str; 2] = ["switcher-macros/tests/ui", "switcher-macros/tests/expand"];

/// How wide rustfmt lets the code be.
const WIDTH: usize = 100;

/// Documentation that leaves its reader to guess what it is about. These are all of its words.
const RIDDLES: [&str; 25] = [
    "All",
    "Any",
    "As above",
    "As it was",
    "As they were",
    "Both",
    "Either",
    "How",
    "It",
    "Its own",
    "Likewise",
    "None",
    "Of either",
    "The other one",
    "The others",
    "The rest",
    "The same",
    "Theirs",
    "Those",
    "To what",
    "What",
    "Where",
    "Which",
    "Whose",
    "Why",
];

/// What is wrong with the comments of a source: the number of the line, and what it is.
fn objections(source: &str) -> Vec<(usize, String)> {
    let lines: Vec<&str> = source.lines().map(str::trim_end).collect();
    let mut all = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(text) = comment(line) else { continue };
        // Listings print a comment within `asm!`, so snapshots hold it.
        if is_in_assembly(&lines, at) {
            continue;
        }
        // A row of a table is one line, however long.
        if line.chars().count() > WIDTH && !text.starts_with('|') {
            all.push((at + 1, format!("is wider than {WIDTH} columns")));
        }
        let is_alone = !is_comment_like(&lines, at.checked_sub(1), line)
            && !is_comment_like(&lines, at.checked_add(1), line);
        if let Some(words) = text.strip_suffix('.')
            && is_alone
            && RIDDLES.contains(&words)
        {
            all.push((at + 1, format!("says `{text}`, and not of what")));
        }
        let words: Vec<&str> = text
            .split(|letter: char| !letter.is_alphanumeric())
            .filter(|w| !w.is_empty())
            .collect();
        for (of, pair) in words.windows(2).enumerate() {
            let is_existence = of > 0 && matches!(words[of - 1], "there" | "There");
            if matches!(pair, ["is" | "are" | "was" | "were", "none"]) && !is_existence {
                all.push((at + 1, format!("says `{} none`", pair[0])));
            }
        }
    }
    all
}

/// The text of a line that is a comment and nothing else.
fn comment(line: &str) -> Option<&str> {
    let text = line.trim_start().strip_prefix("//")?;
    Some(text.trim_start_matches(['/', '!']).trim_start())
}

/// Whether the line at `at` is a comment of the same kind and indentation as `line`.
fn is_comment_like(lines: &[&str], at: Option<usize>, line: &str) -> bool {
    let beginning = |line: &str| {
        let slashes = line.len() - line.trim_start().trim_start_matches(['/', '!']).len();
        line[..slashes].to_owned()
    };
    let other = at.and_then(|at| lines.get(at));
    other.is_some_and(|other| comment(other).is_some() && beginning(other) == beginning(line))
}

/// Whether a comment stands within `asm!`, where statements begin with a semicolon.
fn is_in_assembly(lines: &[&str], at: usize) -> bool {
    let next = lines[at..].iter().find(|line| comment(line).is_none());
    next.is_some_and(|line| line.trim_start().starts_with(';'))
}

#[test]
fn comments_have_none_of_the_worst_habits() {
    let of_macros = OF_MACROS.map(|folder| root().join(folder));
    let is_ours = |path: &PathBuf| {
        has_extension(path, &["rs"]) && !of_macros.iter().any(|folder| path.starts_with(folder))
    };
    let sources: Vec<_> = files(root()).into_iter().filter(is_ours).collect();
    assert!(sources.len() > 300, "the tree's sources: {}", sources.len());
    let mut wrong = Vec::new();
    for path in sources {
        let objections = objections(&read(&path)).into_iter();
        wrong.extend(objections.map(|(line, what)| format!("{}:{line} {what}", path.display())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_habit_is_objected_to() {
    let wide = format!("    // {}", "wide ".repeat(20));
    let habits = [
        (wide.trim_end(), "is wider than 100 columns"),
        ("struct S {\n    /// Which.\n    a: u8,\n}", "says `Which.`, and not of what"),
        ("/// The same.\nfn f() {}", "says `The same.`, and not of what"),
        ("// An address that is none.", "says `is none`"),
        ("/// Words that\n/// were none, once.", "says `were none`"),
    ];
    for (source, expected) in habits {
        let found = objections(source);
        assert!(matches!(&found[..], [(_, what)] if what == expected), "{source}: {found:?}");
    }
}

#[test]
fn good_comments_are_left_alone() {
    let row = format!("//! | {} |", "wide ".repeat(20));
    let good = [
        row.as_str(),
        // The paragraph goes on.
        "// It is not known which of them counts, nor\n// Why.",
        "/// The brand string, empty if there is none.",
        "let none = \"is none\";",
        // A listing's comment.
        "asm!(a\n    /// An address that is none.\n    ; nop\n);",
    ];
    for source in good {
        assert_eq!(objections(source), [], "{source}");
    }
}
