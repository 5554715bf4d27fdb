//! What decides which bytes run, and is not in the file: features of the CPU, switches of the
//! kernel, and which kernel it is.

use std::collections::BTreeMap;
use std::fmt;

use super::features::Feature;

/// Something that is one way or the other once the kernel has booted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Choice {
    /// Whether the CPU has a feature.
    Feature(Feature),
    /// Whether returns go through a thunk.
    ReturnThunk,
    /// Whether the kernel is built with FineIBT (CONFIG_FINEIBT), whatever it makes of it.
    FineIbt,
    /// Whether the kernel counts how deep its calls are, for the sake of returns.
    CallDepth,
    /// Whether it is Linux 6.5 or later, which corrects all distances in alternatives.
    Since6_5,
    /// Whether it is Linux 6.10 or later, whose alternatives may be nested.
    Since6_10,
    /// Whether the static branch at this place jumps.
    Branch(String),
    /// Whether the key of static branches that is called so is on, and stays so for good.
    Key(String),
}

/// Those that have a name of their own.
const NAMED: [(Choice, &str); 5] = [
    (Choice::ReturnThunk, "return-thunk"),
    (Choice::FineIbt, "fineibt"),
    (Choice::CallDepth, "call-depth"),
    (Choice::Since6_5, "linux-6.5"),
    (Choice::Since6_10, "linux-6.10"),
];

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, NAMED.iter().find(|(choice, _)| choice == self)) {
            (_, Some((_, name))) => f.write_str(name),
            (Self::Feature(feature), _) => feature.fmt(f),
            (Self::Branch(at), _) => write!(f, "branch@{at}"),
            (Self::Key(name), _) => write!(f, "key@{name}"),
            _ => Err(fmt::Error),
        }
    }
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((choice, _)) = NAMED.iter().find(|(_, name)| *name == text) {
            return Ok(choice.clone());
        }
        match (text.strip_prefix("branch@"), text.strip_prefix("key@")) {
            (Some(at), _) => Ok(Self::Branch(at.into())),
            (None, Some(name)) => Ok(Self::Key(name.into())),
            (None, None) => text.parse().map(Self::Feature),
        }
    }
}

/// What is decided.
pub type Choices = BTreeMap<Choice, bool>;

/// Makes a choice, and what follows from it of later and earlier versions, if nothing else was said
/// of those.
pub(super) fn make(choices: &mut Choices, choice: Choice, is_on: bool) {
    let follows = match (&choice, is_on) {
        (Choice::Since6_10, true) => Some(Choice::Since6_5),
        (Choice::Since6_5, false) => Some(Choice::Since6_10),
        _ => None,
    };
    choices.insert(choice, is_on);
    if let Some(other) = follows {
        choices.entry(other).or_insert(is_on);
    }
}

/// Adds to the ways that lead to one image another one. Where two ways differ in one choice alone,
/// that makes no difference, and neither does what is chosen beside a way that is enough.
pub(super) fn add(ways: &mut Vec<Choices>, way: Choices) {
    let mut way = way;
    loop {
        if ways.iter().any(|known| is_part(known, &way)) {
            return;
        }
        ways.retain(|known| !is_part(&way, known));
        let sibling =
            ways.iter().enumerate().find_map(|(at, known)| Some((at, other(known, &way)?)));
        let Some((at, choice)) = sibling else { break };
        ways.remove(at);
        way.remove(&choice);
    }
    ways.push(way);
}

/// Whether all of these choices are among others.
fn is_part(some: &Choices, all: &Choices) -> bool {
    some.iter().all(|(choice, is_on)| all.get(choice) == Some(is_on))
}

/// The only choice in which two ways differ, if there is one.
fn other(one: &Choices, two: &Choices) -> Option<Choice> {
    let mut differing = one.iter().filter(|(choice, is_on)| two.get(choice) != Some(is_on));
    let (choice, _) = differing.next()?;
    let is_only = differing.next().is_none() && one.keys().eq(two.keys());
    is_only.then(|| choice.clone())
}

/// Choices as text: `la57=off, smap=on`.
#[must_use]
pub fn text(choices: &Choices) -> String {
    let all = choices
        .iter()
        .map(|(choice, is_on)| format!("{choice}={}", if *is_on { "on" } else { "off" }));
    all.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_called_as_it_is_asked_for() {
        let named = ["return-thunk", "fineibt", "call-depth", "linux-6.5", "linux-6.10"];
        for name in named.into_iter().chain(["smap", "branch@here", "key@one"]) {
            assert_eq!(name.parse::<Choice>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn a_version_has_what_earlier_ones_have() {
        let made = |choice, is_on| {
            let mut made = Choices::new();
            make(&mut made, choice, is_on);
            text(&made)
        };
        assert_eq!(made(Choice::Since6_10, true), "linux-6.5=on, linux-6.10=on");
        assert_eq!(made(Choice::Since6_5, false), "linux-6.5=off, linux-6.10=off");
        assert_eq!(made(Choice::Since6_5, true), "linux-6.5=on");
    }

    #[test]
    fn what_makes_no_difference_is_left_out() {
        let way = |text: &str| -> Choices {
            let all = text.split_whitespace().map(|one| one.split_once('=').unwrap());
            all.map(|(name, on)| (name.parse().unwrap(), on == "on")).collect()
        };
        let ways = |all: &[&str]| {
            let mut ways = Vec::new();
            all.iter().for_each(|one| add(&mut ways, way(one)));
            ways.iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(ways(&["smap=on", "smap=off"]), [""]);
        assert_eq!(ways(&["smap=off la57=off", "smap=off la57=on", "smap=on"]), [""]);
        assert_eq!(ways(&["smap=on la57=on", "smap=on la57=off"]), ["smap=on"]);
        assert_eq!(ways(&["smap=on la57=on", "smap=off la57=off"]).len(), 2);
    }
}
