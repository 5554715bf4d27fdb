//! Outcomes of a scenario that are not the same, and the smallest scenario that still has such.

use std::fmt;

use super::specified::{EXTRA, Facts};
use crate::scenario::{Places, Setup};
use switcher_gen::layout::PtRegs;

/// A witness: one of those that say what comes of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// The executable specification.
    Specification,
    /// The emitted bytes on this CPU.
    Native,
    /// The emitted bytes in the model of the CPU.
    Interpreter,
}

impl Witness {
    const ALL: [Self; 3] = [Self::Specification, Self::Native, Self::Interpreter];

    /// As in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Specification => "specification",
            Self::Native => "native",
            Self::Interpreter => "interpreter",
        }
    }
}

/// A scenario of which engines say different things, every value of it zero or as usual that may
/// be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeDifference {
    /// Which case of the seed.
    pub case: u64,
    /// Which two differ: one pair, two or all three.
    pub between: Vec<(Witness, Witness)>,
    /// About what.
    pub about: Vec<Disagreement>,
    /// What the scenario starts from: what is not named is zero.
    pub setup: Vec<(String, u64)>,
    /// Where things are, to tell addresses from other numbers.
    pub places: Places,
}

/// One thing that engines say differently, in the order of [`Witness`]'s variants; `None` if an
/// engine could not run the scenario, or says nothing about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// A field of the outcome.
    pub what: String,
    /// Its values.
    pub values: [Option<String>; 3],
}

impl fmt::Display for NativeDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "case {}: ", self.case)?;
        for (n, (one, other)) in self.between.iter().enumerate() {
            let and = if n == 0 { "" } else { ", " };
            write!(f, "{and}{} and {} differ", one.name(), other.name())?;
        }
        writeln!(f)?;
        for Disagreement { what, values } in &self.about {
            writeln!(f, "  {what}:")?;
            for (engine, value) in Witness::ALL.into_iter().zip(values) {
                if let Some(value) = value {
                    writeln!(f, "    {:<14} {value}", engine.name())?;
                }
            }
        }
        writeln!(f, "  from this setup (what is not named is zero):")?;
        for (name, value) in &self.setup {
            writeln!(f, "    {name:<24} {}", number(*value, &self.places))?;
        }
        Ok(())
    }
}

/// With the page it is an address in, because pages are elsewhere in the next process.
fn number(value: u64, places: &Places) -> String {
    let pages = [("smod", places.smod), ("umod", places.umod), ("pvcs", places.pvcs)];
    let page = pages.into_iter().find(|(_, page)| value.wrapping_sub(*page) <= 4096);
    match page {
        Some((name, page)) => format!("{value:#x} ({name}+{:#x})", value - page),
        None => format!("{value:#x}"),
    }
}

/// What an engine says; `None` if it cannot run the scenario.
pub(super) type Said = Option<Result<Facts, String>>;

/// Which of what was said differs.
pub(super) fn between(said: &[Said; 3]) -> Vec<(Witness, Witness)> {
    let mut pairs = Vec::new();
    for one in 0..said.len() {
        for other in one + 1..said.len() {
            if let (Some(a), Some(b)) = (&said[one], &said[other])
                && a != b
            {
                pairs.push((Witness::ALL[one], Witness::ALL[other]));
            }
        }
    }
    pairs
}

/// The fields in which they differ.
pub(super) fn about(said: &[Said; 3], places: &Places) -> Vec<Disagreement> {
    let fields = said.each_ref().map(|said| match said {
        Some(Ok(facts)) => facts_as_text(facts, places),
        Some(Err(error)) => vec![("the run".to_owned(), error.clone())],
        None => Vec::new(),
    });
    let mut names: Vec<&String> = Vec::new();
    for (name, _) in fields.iter().flatten() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let all = names.into_iter().map(|what| {
        let value = |fields: &Vec<(String, String)>| {
            fields.iter().find(|(name, _)| name == what).map(|(_, value)| value.clone())
        };
        Disagreement { what: what.clone(), values: fields.each_ref().map(value) }
    });
    all.filter(|one| {
        let mut ran = said.iter().zip(&one.values).filter(|(said, _)| said.is_some());
        let first = ran.next().map(|(_, value)| value);
        ran.any(|(_, value)| Some(value) != first)
    })
    .collect()
}

fn facts_as_text(facts: &Facts, places: &Places) -> Vec<(String, String)> {
    let number = |value: u64| number(value, places);
    let mut all: Vec<(String, String)> = FIELDS
        .iter()
        .filter(|field| field.name.starts_with("frame.") || field.name.starts_with("pvcs."))
        .map(|field| (field.name.to_owned(), number((field.of_outcome)(facts))))
        .collect();
    let cause = facts.frame.orig_ax;
    all.push(("frame.orig_ax".to_owned(), format!("{cause:?}")));
    all.push(("CR2".to_owned(), facts.cr2.map_or("none".to_owned(), number)));
    all.push(("gs_base".to_owned(), number(facts.gs_base)));
    let extra = EXTRA.iter().zip(facts.extra);
    all.extend(extra.map(|(name, value)| (format!("extra.{name}"), number(value))));
    all.push(("PVCS".to_owned(), format!("{:x?}", facts.pvcs)));
    all.push(("crossings".to_owned(), format!("{:?}", facts.crossings)));
    all.push(("CR3 loads".to_owned(), format!("{:x?}", facts.cr3_loads)));
    let counts = [
        ("number of crossings", facts.crossings_total),
        ("number of CR3 loads", facts.cr3_loads_total),
        ("number of SYSCALLs", facts.system_calls),
        ("number of SYSRETQs", facts.sysretqs),
    ];
    all.extend(counts.map(|(name, count)| (name.to_owned(), count.to_string())));
    all
}

/// A number of a setup, by name.
struct Field {
    name: &'static str,
    get: fn(&Setup) -> u64,
    set: fn(&mut Setup, u64),
    of_outcome: fn(&Facts) -> u64,
}

macro_rules! fields {
    ($($struct:ident.$field:ident: $type:ty),* $(,)?) => {
        &[$(Field {
            name: concat!(stringify!($struct), ".", stringify!($field)),
            get: |setup| setup.$struct.$field.into(),
            set: |setup, value| setup.$struct.$field = value as $type,
            of_outcome: |facts| fields!(@ $struct, $field, facts),
        }),*]
    };
    (@ extra, $field:ident, $facts:ident) => { { let _ = $facts; 0 } };
    (@ $struct:ident, $field:ident, $facts:ident) => { $facts.$struct.$field.into() };
}

/// What may be anything: where the guest's registers come from. Selectors of the frame, the mode
/// and the roots may not.
const FIELDS: &[Field] = fields![
    frame.r15: u64,
    frame.r14: u64,
    frame.r13: u64,
    frame.r12: u64,
    frame.rbp: u64,
    frame.rbx: u64,
    frame.r11: u64,
    frame.r10: u64,
    frame.r9: u64,
    frame.r8: u64,
    frame.rax: u64,
    frame.rcx: u64,
    frame.rdx: u64,
    frame.rsi: u64,
    frame.rdi: u64,
    frame.rip: u64,
    frame.eflags: u64,
    frame.rsp: u64,
    extra.retu_rip: u64,
    extra.smod_entry: u64,
    extra.smod_gsbase: u64,
    extra.smod_rsp: u64,
    pvcs.event_flags: u64,
    pvcs.event_errcode: u32,
    pvcs.event_vector: u32,
    pvcs.cr2: u64,
    pvcs.user_cs: u16,
    pvcs.user_ss: u16,
    pvcs.user_gsbase: u64,
    pvcs.eflags: u32,
    pvcs.pkru: u32,
    pvcs.rip: u64,
    pvcs.rsp: u64,
    pvcs.rcx: u64,
    pvcs.r11: u64,
];

/// All numbers of a setup that are not zero.
pub(super) fn numbers(setup: &Setup) -> Vec<(String, u64)> {
    let Setup { frame: PtRegs { cs, ss, .. }, extra, gs_base, .. } = setup;
    let others = [
        ("frame.cs", *cs),
        ("frame.ss", *ss),
        ("gs_base", *gs_base),
        ("extra.switch_flags", extra.switch_flags.bits()),
        ("extra.host_cr3", extra.host_cr3.bits()),
        ("extra.enter_cr3", extra.enter_cr3.bits()),
        ("extra.smod_cr3", extra.smod_cr3.bits()),
        ("extra.umod_cr3", extra.umod_cr3.bits()),
    ];
    let all = FIELDS.iter().map(|field| (field.name, (field.get)(setup))).chain(others);
    all.filter(|(_, value)| *value != 0).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Makes a setup smaller, step by step, as long as `differs`: as usual, then zero.
pub(super) fn minimise(
    mut setup: Setup,
    usual: &Setup,
    mut differs: impl FnMut(&Setup) -> bool,
) -> Setup {
    // What belongs together changes together, or SYSRETQ would become IRETQ on the way.
    let together: [fn(&mut Setup, &Setup); 9] = [
        |setup, usual| {
            setup.extra.host_cr3 = usual.extra.host_cr3;
            setup.extra.enter_cr3 = usual.extra.enter_cr3;
            setup.extra.smod_cr3 = usual.extra.smod_cr3;
            setup.extra.umod_cr3 = usual.extra.umod_cr3;
        },
        |setup, usual| setup.extra.switch_flags = usual.extra.switch_flags,
        |setup, usual| (setup.frame.cs, setup.frame.ss) = (usual.frame.cs, usual.frame.ss),
        |setup, usual| (setup.frame.rip, setup.frame.rcx) = (usual.frame.rip, usual.frame.rcx),
        |setup, usual| {
            (setup.frame.eflags, setup.frame.r11) = (usual.frame.eflags, usual.frame.r11)
        },
        |setup, usual| (setup.pvcs.rip, setup.pvcs.rcx) = (usual.pvcs.rip, usual.pvcs.rcx),
        |setup, usual| (setup.pvcs.eflags, setup.pvcs.r11) = (usual.pvcs.eflags, usual.pvcs.r11),
        |setup, usual| {
            setup.extra.smod_entry = usual.extra.smod_entry;
            setup.extra.retu_rip = usual.extra.retu_rip;
        },
        |setup, usual| setup.gs_base = usual.gs_base,
    ];
    for change in together {
        let mut smaller = setup.clone();
        change(&mut smaller, usual);
        if differs(&smaller) {
            setup = smaller;
        }
    }
    for field in FIELDS {
        for value in [0, (field.get)(usual)] {
            let old = (field.get)(&setup);
            if old == value {
                break;
            }
            (field.set)(&mut setup, value);
            if differs(&setup) {
                break;
            }
            (field.set)(&mut setup, old);
        }
    }
    setup
}
