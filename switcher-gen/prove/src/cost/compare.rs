//! What the paths that matter cost in every variant, beside the kernel's switcher of 2024.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Figured, figured, kernel_2024};
use crate::{Target, Theorem, Unexplored};

/// The two paths of a round trip by direct switches.
const ROUND_TRIP: [&str; 2] = ["SYSCALL in umod -> smod", "ERETU -> umod by SYSRETQ"];
/// The other kinds of paths that are compared.
const OTHERS: [&str; 3] = [
    "ERETU -> umod by IRETQ (RCX differs)",
    "SYSCALL in smod -> host",
    "enter -> guest by SYSRETQ",
];
/// How many SWAPGS the kernel's switcher of 2024 executes in a round trip.
const KERNEL_2024_SWAPGS: u64 = 4;

/// Variants in which each row is the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Family {
    /// Their names.
    pub variants: Vec<String>,
    /// One for each path of these, in a fixed order.
    pub rows: Vec<Row>,
}

/// One path, or the round trip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The path: [`PathCost::kind`](super::PathCost::kind), or the round trip.
    pub path: String,
    /// Executed instructions.
    pub instructions: usize,
    /// How many instructions the kernel's switcher of 2024 executes, if that is known.
    pub kernel_2024: Option<u64>,
    /// SWAPGS.
    pub swapgs: usize,
    /// How many SWAPGS the kernel's switcher executes, if that is known.
    pub kernel_2024_swapgs: Option<u64>,
    /// Writes of CR3.
    pub cr3_writes: usize,
    /// Operations that make everything else wait, CR3 writes among them.
    pub serialising: usize,
    /// Loads and stores.
    pub accesses: usize,
    /// Distinct cache lines of data, those of the PVCS apart.
    pub data_lines: usize,
    /// Distinct cache lines of the PVCS.
    pub pvcs_lines: usize,
}

/// What the paths that matter cost in each of these targets. Those that cost the same come
/// together, in the order of the first of them.
///
/// # Errors
/// If not all paths of a target can be found.
pub fn compare(
    targets: impl IntoIterator<Item = (String, Target)>,
) -> Result<Vec<Family>, Unexplored> {
    let mut families = Vec::<Family>::new();
    for (name, target) in targets {
        let rows = rows(&target)?;
        match families.iter_mut().find(|family| family.rows == rows) {
            Some(family) => family.variants.push(name),
            None => families.push(Family { variants: vec![name], rows }),
        }
    }
    Ok(families)
}

fn rows(target: &Target) -> Result<Vec<Row>, Unexplored> {
    let mut all = Vec::new();
    for theorem in [Theorem::Syscall64, Theorem::EnterGuest] {
        all.extend(figured(target, theorem)?);
    }
    // If there are several paths of a kind, the longest one counts.
    let find = |kind: &str| {
        let of_kind = all.iter().filter(|found| found.path.kind == kind);
        of_kind.max_by_key(|found| found.path.instructions)
    };
    let single = |kind: &str| find(kind).map(|found| Row::of(kind, target, &[found]));
    let [there, back] = ROUND_TRIP;
    let round_trip = find(there).zip(find(back)).map(|(there, back)| Row {
        kernel_2024_swapgs: Some(KERNEL_2024_SWAPGS),
        ..Row::of("round trip by SYSRETQ", target, &[there, back])
    });
    let others = OTHERS.into_iter().filter_map(single);
    Ok([single(there), single(back), round_trip].into_iter().flatten().chain(others).collect())
}

impl Row {
    /// The sum of these paths, taken one after the other.
    fn of(path: &str, target: &Target, parts: &[&Figured]) -> Self {
        let sum = |of: fn(&super::PathCost) -> usize| parts.iter().map(|part| of(&part.path)).sum();
        let kernel_2024 = parts.iter().map(|part| kernel_2024(&part.path.kind)).sum();
        let touched = parts.iter().fold(super::Touched::default(), |mut all, part| {
            for (region, bytes) in &part.touched {
                all.entry(*region).or_default().extend(bytes);
            }
            all
        });
        let lines = super::data_lines(&touched, target);
        Self {
            path: path.into(),
            instructions: sum(|path| path.instructions),
            kernel_2024,
            swapgs: sum(|path| path.swapgs),
            kernel_2024_swapgs: None,
            cr3_writes: sum(|path| path.cr3_writes),
            serialising: sum(|path| path.serialising),
            accesses: sum(|path| path.loads + path.stores),
            data_lines: lines.hosts(),
            pvcs_lines: lines.pvcs,
        }
    }
}

/// Columns of a table.
const WIDTH: usize = 100;

/// The families as a table, to be read and to be compared with another one.
#[must_use]
pub fn table(families: &[Family]) -> String {
    let mut text = String::from(
        "Counted per path: executed instructions and SWAPGS, in brackets those of the kernel's\n\
         switcher of 2024; CR3 writes; serialising operations, CR3 writes among them; loads and stores;\n\
         distinct cache lines of the host's data, and of the PVCS.\n",
    );
    for Family { variants, rows } in families {
        let mut width = usize::MAX;
        for name in variants {
            let separator = if width.saturating_add(name.len() + 1) > WIDTH { "\n" } else { " " };
            width = if separator == "\n" { name.len() } else { width + 1 + name.len() };
            text += separator;
            text += name;
        }
        let headings = ["instr", "(2024)", "swapgs", "(2024)", "cr3", "serial", "access", "data"];
        text += &format!("\n\n{:<36}", format!("variants: {}", variants.len()));
        for heading in headings.into_iter().chain(["pvcs"]) {
            let _ = write!(text, "  {heading}");
        }
        text += "\n";
        for row in rows {
            let kernel =
                |count: Option<u64>| count.map_or(String::new(), |count| format!("({count})"));
            let _ = writeln!(
                text,
                "{:<36}  {:>5}  {:>6}  {:>6}  {:>6}  {:>3}  {:>6}  {:>6}  {:>4}  {:>4}",
                row.path,
                row.instructions,
                kernel(row.kernel_2024),
                row.swapgs,
                kernel(row.kernel_2024_swapgs),
                row.cr3_writes,
                row.serialising,
                row.accesses,
                row.data_lines,
                row.pvcs_lines,
            );
        }
    }
    text
}
