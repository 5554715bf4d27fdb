//! Names of variants on the command line: an unknown one is answered with those that may be meant.

use std::collections::BTreeSet;

use switcher_gen::{Mitigation, UnknownVariant, Variant};

/// How many names an answer has.
const FEW: usize = 3;

/// A name that no variant has, and the names that are most like it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{unknown}{}\n\nnames are {}", suggestion(.nearest), Variant::GRAMMAR)]
pub(crate) struct Unknown {
    unknown: UnknownVariant,
    nearest: Vec<String>,
}

fn suggestion(nearest: &[String]) -> String {
    match nearest {
        [] => String::new(),
        names => format!("\n\n  maybe it is `{}`", names.join("`, `")),
    }
}

/// Reads the name of a variant.
pub(crate) fn variant(typed: &str) -> Result<Variant, Unknown> {
    typed.parse().map_err(|unknown| Unknown { unknown, nearest: nearest(typed) })
}

/// The names that may be meant, the likeliest first: what comes of it once each of its words is one
/// that there is, and the names that as a whole take the fewest keys to get to.
fn nearest(typed: &str) -> Vec<String> {
    let typed = typed.to_ascii_lowercase();
    let distance = |name: &str| strsim::damerau_levenshtein(&typed, name);
    // A name all of which would have to be typed anew was not meant.
    let most = typed.chars().count() / 2;
    let mut near: Vec<_> = Variant::all()
        .map(|variant| variant.to_string())
        .map(|name| (distance(&name), name))
        .filter(|(distance, _)| *distance <= most)
        .collect();
    near.sort_by(|(one, name), (other, second)| {
        (one, name.len(), name).cmp(&(other, second.len(), second))
    });
    let near = near.into_iter().map(|(_, name)| name);
    let mut seen = BTreeSet::new();
    let all = corrected(&typed).into_iter().chain(near);
    all.filter(|name| seen.insert(name.clone())).take(FEW).collect()
}

/// The names that come of it if each unknown word is replaced by the one that is most like it, and
/// each is put where it belongs: with all of them if there is such a variant, or else without one.
fn corrected(typed: &str) -> Vec<String> {
    let mut words = Vec::new();
    for word in typed.split(['-', '+', ',', '_', ' ']).filter(|word| !word.is_empty()) {
        // One wrong key in three.
        let most = word.chars().count().div_ceil(3);
        let known = Variant::words().chain(Mitigation::ALL.into_iter().map(Mitigation::name));
        let distances = known.map(|known| (strsim::damerau_levenshtein(word, known), known));
        let likeliest = distances.filter(|(distance, _)| *distance <= most).min_by_key(|it| it.0);
        words.extend(likeliest.map(|(_, known)| known));
    }
    if let Some(name) = of_words(&words) {
        return vec![name];
    }
    let without =
        (0..words.len()).map(|left_out| [&words[..left_out], &words[left_out + 1..]].concat());
    without.filter_map(|words| of_words(&words)).collect()
}

/// The name with these words, each where it belongs.
fn of_words(words: &[&str]) -> Option<String> {
    let is_mitigation = |word: &&str| Mitigation::ALL.into_iter().any(|it| it.name() == *word);
    let (mitigations, options): (Vec<&str>, Vec<&str>) =
        words.iter().partition(|it| is_mitigation(it));
    let mut name = options.join("-");
    mitigations.iter().for_each(|mitigation| name += &format!("+{mitigation}"));
    name.parse::<Variant>().ok().map(|variant| variant.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_was_meant_comes_first() {
        for (typed, meant) in [
            ("intl-4level", "intel-4level"),
            ("intel-4levle-pcid", "intel-4level-pcid"),
            ("amd-la75+rsb", "amd-la57+rsb"),
            ("intel-4level-rsb", "intel-4level+rsb"),
            ("intel-pcid-itb-la57", "intel-la57-ibt-pcid"),
            ("intel_la57", "intel-la57"),
            ("Intel-4level+ibsr+RSB-pcid", "intel-4level-pcid+ibrs+rsb"),
            ("amd-4level+untrian", "amd-4level+untrain"),
        ] {
            let unknown = variant(typed).unwrap_err();
            assert_eq!(unknown.nearest.first().map(String::as_str), Some(meant), "{typed}");
            assert!(unknown.nearest.len() <= FEW);
            let text = unknown.to_string();
            assert!(text.starts_with(&format!("unknown variant `{typed}`: ")), "{text}");
            assert!(text.contains(&format!("maybe it is `{meant}`")), "{text}");
            assert!(text.ends_with(Variant::GRAMMAR), "{text}");
        }
    }

    #[test]
    fn what_is_like_no_name_is_answered_with_the_grammar_alone() {
        for typed in ["", "x", "everything", "sapphire rapids"] {
            let unknown = variant(typed).unwrap_err();
            assert_eq!(unknown.nearest, [""; 0], "{typed}");
            assert!(!unknown.to_string().contains("maybe"), "{typed}");
        }
    }

    #[test]
    fn what_no_cpu_has_is_answered_with_what_one_has() {
        let unknown = variant("amd-la57-ibt").unwrap_err();
        assert_eq!(unknown.nearest[0], "amd-la57");
        assert!(unknown.to_string().contains("no indirect branch tracking"));
        let unknown = variant("amd-intel-la57+rsb").unwrap_err();
        assert_eq!(unknown.nearest[..2], ["intel-la57+rsb", "amd-la57+rsb"]);
    }
}
