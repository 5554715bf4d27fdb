//! The files of the tree, and what documents and comments say, for the tests that hold the two
//! together.

#![allow(dead_code, reason = "each test uses some of it")]

use std::fs;
use std::path::{Path, PathBuf};

/// The workspace's root: the first folder above this package's that has deny.toml.
pub(crate) fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().find(|folder| folder.join("deny.toml").exists()).expect("the root")
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// All files below a folder, but for what is built and what is hidden.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut ahead = vec![folder.to_owned()];
    while let Some(folder) = ahead.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match path.is_dir() {
                true if name == "target" || name.starts_with('.') => {}
                true => ahead.push(path),
                false => all.push(path),
            }
        }
    }
    all.sort();
    all
}

pub(crate) fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|own| extensions.iter().any(|known| own == *known))
}

/// The text that people read in a file: all of a document, and the comments of a source.
pub(crate) fn prose(path: &Path, text: &str) -> String {
    if has_extension(path, &["md"]) {
        return text.to_owned();
    }
    let mark = if has_extension(path, &["rs"]) { "//" } else { "#" };
    let comments = text.lines().map(|line| match line.split_once(mark) {
        // Another kind of line, and not an address or the inside of a string.
        Some((before, comment)) if before.trim().is_empty() || before.ends_with(' ') => {
            comment.trim_start_matches(['/', '!', '#'])
        }
        _ => "",
    });
    comments.collect::<Vec<_>>().join("\n")
}

/// The commands in a text: lines of ```` ```console ```` blocks that begin with `$ `, indented
/// lines and spans of code, where they begin with a program that this project is worked with, after
/// variables that are set for it.
pub(crate) fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_console = false;
    let mut paragraphs = String::new();
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            is_console = language == "console";
        } else if let (true, Some(command)) = (is_console, line.strip_prefix("$ ")) {
            found.push(command.to_owned());
        } else if let Some(indented) = line.strip_prefix("    ").filter(|_| !is_console) {
            found.push(indented.split(" # ").next().unwrap_or_default().trim().to_owned());
        }
        paragraphs += line.trim();
        paragraphs.push(if line.trim().is_empty() { '\n' } else { ' ' });
    }
    for paragraph in paragraphs.lines() {
        // What stands between the first and the second backtick, the third and the fourth.
        found.extend(paragraph.split('`').skip(1).step_by(2).map(str::to_owned));
    }
    found.retain(|command| {
        let mut words = command.split(' ').skip_while(|word| is_setting(word));
        matches!((words.next(), words.next()), (Some("cargo" | "switcher"), Some(_)))
    });
    found.sort();
    found.dedup();
    found
}

/// Whether a word of a command line sets a variable: `BLESS=1`.
pub(crate) fn is_setting(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_')
    })
}
