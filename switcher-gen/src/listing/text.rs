//! The listing as text: fixed columns, so that a change of one line changes one line.

use std::fmt;

use super::{Instruction, Line, Listing, Symbol, WindowSpan};
use crate::asm::Window;

/// Where the numbers behind an operand's names go, counted from the mnemonic.
const ENCODED_COLUMN: usize = 58;
/// Where the emitter's file and line go, counted likewise.
const SOURCE_COLUMN: usize = 88;

/// Bytes without anything between them.
pub(super) struct Hex<'a>(pub(super) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Window {
    /// Its letter in the margin of a listing.
    const fn letter(self) -> char {
        match self {
            Self::UnsafeStack => 'S',
            Self::GuestRoot => 'R',
        }
    }
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
            writeln!(f, ";   {start}..{end}  {}  {}", window.letter(), window.name())?;
        }
        self.write_lines(f, &self.lines)
    }
}

impl Listing {
    /// Some of the lines as text, as in the whole listing.
    pub fn display<'a>(&'a self, lines: &'a [Line]) -> impl fmt::Display + 'a {
        struct Part<'a>(&'a Listing, &'a [Line]);
        impl fmt::Display for Part<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.write_lines(f, self.1)
            }
        }
        Part(self, lines)
    }

    /// The lines without addresses, bytes and what depends on them: two variants' outlines differ
    /// exactly where their code does, however far it moved.
    #[must_use]
    pub fn outline(&self) -> String {
        let mut outline = String::new();
        for line in &self.lines {
            match line {
                Line::Routine { file } => outline += &format!("; ---- {file} ----\n"),
                Line::Comment { text } => outline += &format!("      ; {text}\n"),
                Line::Label { name } => outline += &format!("{name}:\n"),
                Line::Instruction(i) => {
                    let windows = Margin(&i.windows);
                    let line = format!("{windows}    {:<7} {}", i.mnemonic, i.operands.join(", "));
                    outline += line.trim_end();
                    outline.push('\n');
                }
                // How much there is follows from the alignment of what comes next.
                Line::Filler { .. } => outline += "      ; filler\n",
            }
        }
        outline
    }

    fn address(&self, address: u64) -> String {
        let width = if self.base.is_some() { 16 } else { 4 };
        format!("{address:0width$x}")
    }

    fn write_lines(&self, f: &mut fmt::Formatter<'_>, lines: &[Line]) -> fmt::Result {
        let indent = " ".repeat("SR  ".len() + self.address(0).len() + "  ".len());
        let mut leads_in = false;
        for (i, line) in lines.iter().enumerate() {
            // An empty line in front of what leads in a label, be it a comment or a heading.
            let was_leading = std::mem::replace(&mut leads_in, leads_to_label(&lines[i..]));
            if leads_in && !was_leading {
                writeln!(f)?;
            }
            match line {
                Line::Routine { file } => writeln!(f, "; ---- {file} ----")?,
                Line::Comment { text } => writeln!(f, "{indent}; {text}")?,
                Line::Label { name } => writeln!(f, "{name}:")?,
                Line::Instruction(instruction) => self.write_instruction(f, instruction)?,
                Line::Filler { address, byte, count } => {
                    let address = self.address(*address);
                    writeln!(f, "    {address}  {count} bytes of {byte:02x}")?;
                }
            }
        }
        Ok(())
    }

    fn write_instruction(&self, f: &mut fmt::Formatter<'_>, line: &Instruction) -> fmt::Result {
        let mut text = format!("{:<7} {}", line.mnemonic, line.operands.join(", "));
        if !line.encoded.is_empty() {
            text = format!("{text:<ENCODED_COLUMN$} ; {}", line.encoded.join(", "));
        }
        if let Some(source) = &line.source {
            text = format!("{text:<SOURCE_COLUMN$} {}:{}", source.file, source.line);
        }
        let (margin, address) = (Margin(&line.windows), self.address(line.address));
        let bytes = Hex(&line.bytes).to_string();
        writeln!(f, "{margin}  {address}  {bytes:<26}  {}", text.trim_end())
    }
}

/// Whether nothing but comments and headings stands in front of the next label.
fn leads_to_label(lines: &[Line]) -> bool {
    let is_lead = |line: &&Line| matches!(line, Line::Routine { .. } | Line::Comment { .. });
    let leads = lines.iter().take_while(is_lead).count();
    matches!(lines.first(), Some(Line::Routine { .. }))
        || matches!(lines.get(leads), Some(Line::Label { .. }))
}

/// The letters of the windows that apply, each in its own column.
struct Margin<'a>(&'a [Window]);

impl fmt::Display for Margin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for window in Window::ALL {
            let applies = self.0.contains(&window);
            write!(f, "{}", if applies { window.letter() } else { ' ' })?;
        }
        Ok(())
    }
}
