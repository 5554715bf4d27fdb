//! What a finding asks for, in words: what was required, what there is instead, and what comes of
//! it.
//!
//! A finding knows numbers where it was replayed, and terms where the solver was asked: both are
//! said, so that whoever reads `0x23 (frame.cs)` knows where the number comes from.

use crate::obligation;
use crate::obligation::Obligation;

/// What a sentence is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Broken<'a> {
    /// What is broken.
    pub(crate) obligation: Obligation,
    /// What of the state is wrong.
    pub(crate) about: &'static str,
    /// What should be there and is, as terms.
    pub(crate) terms: Option<&'a (String, String)>,
    /// The same as numbers, of the state that was replayed.
    pub(crate) replay: Option<(u64, u64)>,
    /// How the path ends.
    pub(crate) end: &'a str,
    /// Whether it takes a wrong prediction to come there.
    pub(crate) is_predicted: bool,
}

/// What was required and why, in one or two sentences.
pub(crate) fn required(broken: Broken<'_>) -> String {
    let Broken { obligation, about, end, .. } = broken;
    let what = match obligation {
        obligation::IRETQ_RETURN => {
            // What SYSRETQ loads is known by name.
            let name = match about {
                "CS" => " (USER_CS)",
                "SS" => " (USER_DS)",
                _ => "",
            };
            let difference = match broken.values() {
                Some((own, given)) => format!("{about} would be {given}{name}, and must be {own}"),
                None => format!("{about} would not be the guest's own"),
            };
            format!("the return must be by IRETQ: by SYSRETQ, {difference}")
        }
        obligation::SYSRETQ_RETURN => String::from(
            "the return must be by SYSRETQ: CS, SS, RFLAGS and RIP are such as it leaves them",
        ),
        obligation::KIND => {
            let other = match end.starts_with("to the host") {
                true => "in the guest",
                false => "in the host, or where it was interrupted",
            };
            format!("the routine must end {other}, but it ends {end}")
        }
        Obligation { statement, .. } => format!("{statement}: {}", broken.difference()),
    };
    format!("{what}. Otherwise, {}.", obligation.otherwise)
}

impl Broken<'_> {
    /// What is there instead of what should be.
    fn difference(&self) -> String {
        let Self { about, end, .. } = self;
        match self.values() {
            // No value is required: this one is what the finding is about.
            Some((expected, got)) if expected == got => match self.is_the_end() {
                true => format!("here {about} is {got}, and the path ends in {end}"),
                false => format!("here {about} is {got}"),
            },
            Some((expected, got)) => format!("here {about} must be {expected}, and is {got}"),
            None if self.is_predicted => {
                format!("a wrong prediction leads to where that is not so of {about}")
            }
            None if self.is_the_end() => {
                format!("that is not so of {about}, and the path ends in {end}")
            }
            None => format!("that is not so of {about} here"),
        }
    }

    /// Whether the path ends with what is broken, and not where a routine may end.
    fn is_the_end(&self) -> bool {
        ["a load ", "a store ", "exception ", "the IRETQ ", "HLT "]
            .iter()
            .any(|start| self.end.starts_with(start))
    }

    /// What should be there and is, to be read.
    fn values(&self) -> Option<(String, String)> {
        let (terms, replay) = (self.terms, self.replay);
        match (replay, terms) {
            (Some((expected, got)), Some((of_expected, of_got))) => {
                Some((value(expected, of_expected), value(got, of_got)))
            }
            (Some((expected, got)), None) => Some((format!("{expected:#x}"), format!("{got:#x}"))),
            (None, Some((expected, got))) => Some((short(expected), short(got))),
            (None, None) => None,
        }
    }
}

/// Terms that are longer say nothing at a glance.
const GLANCE: usize = 60;

/// A number, with the term that it is a value of if that says more.
fn value(number: u64, term: &str) -> String {
    let number = format!("{number:#x}");
    let is_number = term.starts_with(|c: char| c.is_ascii_digit());
    match is_number || term.len() > GLANCE {
        true => number,
        false => format!("{number} ({term})"),
    }
}

/// A term that may be long.
fn short(term: &str) -> String {
    match term.char_indices().nth(GLANCE) {
        Some((end, _)) => format!("{}...", &term[..end]),
        None => term.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKEN: Broken<'_> = Broken {
        obligation: obligation::MEMORY,
        about: "address",
        terms: None,
        replay: None,
        end: "to the guest by SYSRET",
        is_predicted: false,
    };

    #[test]
    fn a_return_by_the_wrong_instruction_says_what_it_would_give() {
        let terms = (String::from("frame.cs"), String::from("0x33"));
        let broken = Broken {
            obligation: obligation::IRETQ_RETURN,
            about: "CS",
            terms: Some(&terms),
            replay: Some((0x23, 0x33)),
            ..BROKEN
        };
        let text = required(broken);
        let expected = "the return must be by IRETQ: by SYSRETQ, CS would be 0x33 (USER_CS), and must be 0x23 \
                        (frame.cs). Otherwise, ";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.ends_with(&format!("{}.", obligation::IRETQ_RETURN.otherwise)), "{text}");
    }

    #[test]
    fn a_value_for_which_none_is_required_is_said_once() {
        let terms = (String::from("guest.rsp"), String::from("guest.rsp"));
        let end = "a load of 8 bytes from memory that is not the switcher's, at 0x10";
        let broken = Broken { terms: Some(&terms), replay: Some((5, 5)), end, ..BROKEN };
        let text = required(broken);
        let expected = format!("here address is 0x5 (guest.rsp), and the path ends in {end}. ");
        assert!(text.contains(&expected), "{text}");
    }

    #[test]
    fn an_end_at_the_wrong_place_names_the_right_one() {
        let kind = Broken { obligation: obligation::KIND, ..BROKEN };
        assert!(required(kind).starts_with("the routine must end in the host"), "{kind:?}");
        let kind = Broken { end: "to the host", ..kind };
        assert!(required(kind).starts_with("the routine must end in the guest"), "{kind:?}");
    }

    #[test]
    fn long_terms_are_cut_where_a_character_ends() {
        let term = "ä".repeat(GLANCE + 1);
        let terms = (term.clone(), term);
        let text = required(Broken { terms: Some(&terms), ..BROKEN });
        assert!(text.contains(&format!("{}...", "ä".repeat(GLANCE))), "{text}");
    }
}
