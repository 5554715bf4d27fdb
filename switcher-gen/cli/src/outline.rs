//! Anybody's code as text to be compared: entry point by entry point what is executed from there,
//! without addresses, encodings and what else depends on where it lies.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::FlowControl;
use switcher_gen::asm::{HostSymbol, Label};
use switcher_prove::Target;

use crate::operands;

/// Two outlines that can be compared.
pub(crate) struct Outlines {
    /// The texts.
    pub(crate) texts: [String; 2],
    /// What only one of them has a name for, and so is in neither.
    pub(crate) not_compared: Vec<String>,
}

/// The outlines of two switchers, of those entry points that both have.
pub(crate) fn of(a: &Target, b: &Target) -> Outlines {
    let (own, others) = (entries(a), entries(b));
    let mut not_compared = Vec::new();
    let names: BTreeSet<_> = own.keys().chain(others.keys()).collect();
    let mut stubs = BTreeSet::new();
    for name in names {
        let only = match (own.contains_key(name), others.contains_key(name)) {
            (true, false) => "first",
            (false, true) => "second",
            _ => continue,
        };
        // One line for all 256.
        if name.2.starts_with(STUB) {
            stubs.insert(only);
        } else {
            not_compared.push(format!("{}: only the {only} has that symbol", name.2));
        }
    }
    let events = |only| format!("the entries of events: only the {only} has symbols for them");
    not_compared.extend(stubs.into_iter().map(events));
    let common: Vec<_> = own.keys().filter(|name| others.contains_key(*name)).cloned().collect();
    let texts =
        [(a, &own), (b, &others)].map(|(target, entries)| outline(target, entries, &common));
    Outlines { texts, not_compared }
}

/// What the name of an event's entry begins with.
const STUB: &str = "event ";

/// In an order of their own, wherever they lie: a rank, a number, and the name.
type Name = (u8, u8, String);

/// The places that code is entered at, by name.
fn entries(target: &Target) -> BTreeMap<Name, u64> {
    let mut entries = BTreeMap::new();
    let mut add = |rank: u8, number: u8, name: &str, at: Option<u64>| {
        entries.extend(at.map(|at| ((rank, number, name.to_owned()), at)));
    };
    add(0, 0, Label::EnterGuest.name(), Some(target.enter_guest));
    add(1, 0, Label::Syscall64.name(), Some(target.syscall_64));
    add(2, 0, Label::SyscallCompat.name(), target.syscall_compat);
    add(3, 0, Label::ReturnFromGuest.name(), Some(target.return_from_guest));
    let [here, on_stack] = target.hand_on;
    add(4, 0, Label::HandOn.name(), here);
    add(5, 0, Label::HandOnStack.name(), on_stack);
    for gate in target.gates.iter().flatten() {
        let name = format!("{STUB}{}, IST {}, DPL {}", gate.vector, gate.ist, gate.dpl);
        add(6, gate.vector, &name, Some(gate.address));
    }
    entries
}

/// What is executed from each entry point, if it was not from one before.
fn outline(target: &Target, entries: &BTreeMap<Name, u64>, common: &[Name]) -> String {
    let mut names: BTreeMap<u64, String> = BTreeMap::new();
    for name in common {
        names.entry(entries[name]).or_insert_with(|| name.2.clone());
    }
    if let Some(iretq) = target.iretq {
        names.entry(iretq).or_insert_with(|| Label::Iretq.name().to_owned());
    }
    let hosts = HostSymbol::HOOKS.iter().zip(target.hooks);
    let hosts = hosts.chain(HostSymbol::RETURNS.iter().zip(target.returns));
    names.extend(hosts.filter(|(_, at)| *at != 0).map(|(symbol, at)| (at, symbol.0.to_owned())));

    let mut seen = BTreeSet::new();
    let mut text = String::new();
    for name in common {
        let reached: Vec<u64> =
            reached_from(target, entries[name]).into_iter().filter(|at| seen.insert(*at)).collect();
        text += &format!("{}:\n", name.2);
        if !reached.contains(&entries[name]) {
            text += "    ; see above\n";
        }
        let mut lines = Lines { names: names.clone(), reached: reached.clone() };
        for at in reached {
            if at != entries[name]
                && let Some(label) = lines.names.get(&at)
            {
                text += &format!("{label}:\n");
            }
            text += &format!("    {}\n", lines.text(target, at));
        }
    }
    text
}

/// The addresses of what is executed from `entry` on, in their order, as far as the code itself
/// says where it leads.
fn reached_from(target: &Target, entry: u64) -> BTreeSet<u64> {
    let (mut reached, mut ahead) = (BTreeSet::new(), vec![entry]);
    while let Some(at) = ahead.pop() {
        if !target.program.contains(at) || !reached.insert(at) {
            continue;
        }
        let instruction = target.program.instruction(at);
        let (next, to) = (instruction.next_ip(), instruction.near_branch_target());
        match instruction.flow_control() {
            FlowControl::Next | FlowControl::IndirectCall => ahead.push(next),
            FlowControl::ConditionalBranch | FlowControl::Call => ahead.extend([next, to]),
            FlowControl::UnconditionalBranch => ahead.push(to),
            // What stops speculation after a jump belongs to it.
            FlowControl::Return | FlowControl::IndirectBranch => {
                let trap = target.program.contains(next).then(|| target.program.instruction(next));
                if trap.is_some_and(|trap| trap.flow_control() == FlowControl::Interrupt) {
                    reached.insert(next);
                }
            }
            _ => {}
        }
    }
    reached
}

/// Instructions as text.
struct Lines {
    /// The names that both sides have.
    names: BTreeMap<u64, String>,
    /// The addresses of the instructions of this routine.
    reached: Vec<u64>,
}

impl Lines {
    fn text(&mut self, target: &Target, at: u64) -> String {
        operands::text(target, at, &self.names, &self.reached)
    }
}
