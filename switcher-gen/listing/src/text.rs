//! The listing as text: fixed columns, so that a change of one line changes one line.

use std::fmt;

use super::{Instruction, Line, Listing, Symbol, WindowSpan};
use switcher_gen::asm::{Label, Window};

/// Bytes without anything between them.
pub(super) struct Hex<'a>(pub(super) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The letter of a window in the margin of a listing.
fn letter(window: Window) -> char {
    match window {
        Window::UnsafeStack => 'S',
        Window::GuestRoot => 'R',
    }
}

/// What a line of text shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    /// Everything that the listing knows.
    Full,
    /// No bytes, and names alone where they stand for numbers.
    Brief,
}

/// How many event entries there are, and how many of them a text shows: those with stacks of their
/// own and an error code are among the first.
const STUBS: u64 = 256;
const SHOWN: u64 = 11;

/// A line, or the number of lines like it that are left out.
enum Folded<'a> {
    Line(&'a Line),
    More,
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { variant, size, fingerprint, .. } = self;
        writeln!(f, "; switcher {variant}: {size} bytes")?;
        writeln!(f, "; fingerprint {fingerprint}")?;
        writeln!(f, ";\n; symbols")?;
        for Symbol { name, address } in &self.symbols {
            writeln!(f, ";   {}  {name}", self.address(*address))?;
        }
        writeln!(f, ";\n; windows, and their letters in the margin")?;
        for WindowSpan { window, start, end } in &self.windows {
            let (start, end) = (self.address(*start), self.address(*end));
            writeln!(f, ";   {start}..{end}  {}  {}", letter(*window), window.name())?;
        }
        self.write_lines(f, &self.lines, Detail::Full)
    }
}

impl Listing {
    /// Some of the lines as text, without bytes and with names alone where they stand for numbers:
    /// narrow enough for a terminal.
    pub fn brief<'a>(&'a self, lines: &'a [Line]) -> impl fmt::Display + 'a {
        struct Excerpt<'a>(&'a Listing, &'a [Line]);
        impl fmt::Display for Excerpt<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.write_lines(f, self.1, Detail::Brief)
            }
        }
        Excerpt(self, lines)
    }

    /// The lines without addresses, bytes and what depends on them: two variants' outlines differ
    /// exactly where their code does, however far it moved.
    #[must_use]
    pub fn outline(&self) -> String {
        let mut outline = String::new();
        for line in self.folded(&self.lines) {
            let Folded::Line(line) = line else {
                outline += "    ; and so on\n";
                continue;
            };
            match line {
                Line::Routine { file } => outline += &format!("; ---- {file} ----\n"),
                Line::Comment { text } => outline += &format!("    ; {text}\n"),
                Line::Label { name } => outline += &format!("{name}:\n"),
                Line::Instruction(i) => {
                    outline += format!("{}  {}", Margin(&i.windows), OperationText(i)).trim_end();
                    outline.push('\n');
                }
                // The number of its bytes follows from the alignment of the code that comes next.
                Line::Filler { .. } => outline += "    ; filler\n",
            }
        }
        outline
    }

    /// The lines without most of the event entries, which differ in a number only.
    fn folded<'a>(&self, lines: &'a [Line]) -> impl Iterator<Item = Folded<'a>> {
        let cut = self.symbol(Label::EventStubs) + SHOWN * self.stride();
        let end = self.symbol(Label::EventStubsEnd);
        let is_cut = move |line: &Line| match line {
            Line::Instruction(Instruction { address, .. }) | Line::Filler { address, .. } => {
                (cut..end).contains(address)
            }
            _ => false,
        };
        let mut before = false;
        lines.iter().filter_map(move |line| {
            let was_cut = std::mem::replace(&mut before, is_cut(line));
            match (before, was_cut) {
                (false, _) => Some(Folded::Line(line)),
                (true, false) => Some(Folded::More),
                (true, true) => None,
            }
        })
    }

    /// Where a label is that every image exports.
    fn symbol(&self, label: Label) -> u64 {
        let symbol = self.symbols.iter().find(|symbol| symbol.name == label.name());
        symbol.map_or(0, |symbol| symbol.address)
    }

    /// How far the event entries are from each other.
    fn stride(&self) -> u64 {
        (self.symbol(Label::EventStubsEnd) - self.symbol(Label::EventStubs)) / STUBS
    }

    fn address(&self, address: u64) -> String {
        let width = if self.base.is_some() { 16 } else { 4 };
        format!("{address:0width$x}")
    }

    fn write_lines(
        &self,
        f: &mut fmt::Formatter<'_>,
        lines: &[Line],
        detail: Detail,
    ) -> fmt::Result {
        let indent = " ".repeat("SR  ".len() + self.address(0).len() + "  ".len());
        let mut leads_in = false;
        let shown: Vec<_> = self.folded(lines).collect();
        for (i, line) in shown.iter().enumerate() {
            // An empty line stands in front of the comments and headings that lead in a label.
            let was_leading = std::mem::replace(&mut leads_in, leads_to_label(&shown[i..]));
            if leads_in && !was_leading {
                writeln!(f)?;
            }
            let Folded::Line(line) = line else {
                let stride = self.stride();
                writeln!(f, "{indent}; and so on: {STUBS} in all, {stride} bytes apart")?;
                continue;
            };
            match line {
                Line::Routine { file } => writeln!(f, "; ---- {file} ----")?,
                Line::Comment { text } => writeln!(f, "{indent}; {text}")?,
                Line::Label { name } => writeln!(f, "{name}:")?,
                Line::Instruction(line) => {
                    let (margin, address) = (Margin(&line.windows), self.address(line.address));
                    let text = match detail {
                        Detail::Full => full(line),
                        Detail::Brief => with_source(OperationText(line).to_string(), line, 60),
                    };
                    writeln!(f, "{margin}  {address}  {text}")?;
                }
                Line::Filler { address, byte, count } => {
                    let address = self.address(*address);
                    writeln!(f, "    {address}  {count} bytes of {byte:02x}")?;
                }
            }
        }
        Ok(())
    }
}

/// Mnemonic and operands.
struct OperationText<'a>(&'a Instruction);

impl fmt::Display for OperationText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Instruction { mnemonic, operands, .. } = self.0;
        match operands.as_slice() {
            [] => f.write_str(mnemonic),
            operands => write!(f, "{mnemonic:<7} {}", operands.join(", ")),
        }
    }
}

fn full(line: &Instruction) -> String {
    let mut text = format!("{:<26}  {}", Hex(&line.bytes).to_string(), OperationText(line));
    if !line.encoded.is_empty() {
        text = format!("{text:<86} ; {}", line.encoded.join(", "));
    }
    with_source(text, line, 116)
}

/// `text` with the emitter's file and line from `column` on, if the listing has them.
fn with_source(text: String, line: &Instruction, column: usize) -> String {
    match &line.source {
        Some(source) => format!("{text:<column$}  {}:{}", source.file, source.line),
        None => text,
    }
}

/// Whether nothing but comments and headings stands in front of the next label.
fn leads_to_label(lines: &[Folded<'_>]) -> bool {
    let is_lead = |line: &&Folded<'_>| {
        matches!(line, Folded::Line(Line::Routine { .. } | Line::Comment { .. }))
    };
    let leads = lines.iter().take_while(is_lead).count();
    matches!(lines.first(), Some(Folded::Line(Line::Routine { .. })))
        || matches!(lines.get(leads), Some(Folded::Line(Line::Label { .. })))
}

/// The letters of the windows that apply, each in its own column.
struct Margin<'a>(&'a [Window]);

impl fmt::Display for Margin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for window in Window::ALL {
            let applies = self.0.contains(&window);
            write!(f, "{}", if applies { letter(window) } else { ' ' })?;
        }
        Ok(())
    }
}
