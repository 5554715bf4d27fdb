//! One run of the cases, which an engine collects, and the judge judges.

use std::time::Duration;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEnd {
    /// The run came to its end: the kernel asked the engine to stop.
    ByItself,
    /// The run ended in another way: it was killed for a hang, a triple fault, or trouble of the
    /// emulator.
    Otherwise(String),
}

/// One run of the cases, as a rule one boot of the kernel.
#[derive(Debug, Clone)]
pub struct EngineRun {
    /// The output on the serial port.
    pub log: String,
    /// The emulator's own output, for a human.
    pub emulator: String,
    /// How the run ended.
    pub end: RunEnd,
    /// How long the run took.
    pub took: Duration,
}

impl EngineRun {
    /// The last lines of both logs, for a failure report.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        let last = |text: &str| {
            let all: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        };
        match last(&self.emulator) {
            emulator if emulator.is_empty() => last(&self.log),
            emulator => format!("{}\n--- the emulator says ---\n{emulator}", last(&self.log)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines_of_both_logs() {
        let run = EngineRun {
            log: "a\n\nb\nc\n".into(),
            emulator: "x\ny\n".into(),
            end: RunEnd::ByItself,
            took: Duration::ZERO,
        };
        assert_eq!(run.tail(2), "b\nc\n--- the emulator says ---\nx\ny");
        assert_eq!(EngineRun { emulator: String::new(), ..run }.tail(9), "a\nb\nc");
    }
}
