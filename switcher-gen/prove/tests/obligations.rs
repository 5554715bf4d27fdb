//! The table of obligations is what spec/obligations.md says it is, and each severity is one that
//! somebody decided. `BLESS=1` accepts what differs.

use std::path::Path;
use std::{env, fs};

use switcher_prove::{Obligation, Severity};

#[test]
fn the_document_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../spec/obligations.md");
    let now = Obligation::document();
    if env::var_os("BLESS").is_some() {
        fs::write(&path, &now).unwrap();
    }
    let held = fs::read_to_string(&path).unwrap_or_default();
    let differing = now.lines().zip(held.lines()).find(|(now, held)| now != held);
    assert!(
        held == now,
        "spec/obligations.md is not the table any more ({} lines, {} in the table), first at \
         {differing:?}; BLESS=1 cargo test -p switcher-prove --test obligations accepts that",
        held.lines().count(),
        now.lines().count(),
    );
}

/// Each obligation is in the document once, under its severity.
#[test]
fn each_obligation_is_under_its_severity() {
    let document = Obligation::document();
    let mut sections = document.split("\n## Severity `").skip(1);
    for severity in Severity::ALL {
        let section = sections.next().unwrap();
        assert!(section.starts_with(&format!("{severity}`: ")), "{section}");
        for Obligation { name, severity: of, .. } in Obligation::ALL {
            let rows = section.matches(&format!("\n| `{name}` | ")).count();
            assert_eq!(rows, usize::from(*of == severity), "{name}: {severity}");
        }
    }
    assert_eq!(sections.next(), None);
}

#[test]
fn severities_are_ordered_and_read_as_they_are_written() {
    assert!(Severity::ALL.is_sorted_by(|graver, other| graver < other));
    for severity in Severity::ALL {
        assert_eq!(severity.to_string().parse(), Ok(severity));
        assert!(severity.is_at_least(severity) && severity.is_at_least(Severity::Speed));
        assert!(Obligation::ALL.iter().any(|it| it.severity == severity), "{severity}");
    }
    assert!(!Severity::Speed.is_at_least(Severity::Contract));
    let unknown = "hosts".parse::<Severity>().unwrap_err().to_string();
    assert!(unknown.contains("host, guest, contract, speed"), "{unknown}");
}

/// Sentences of one kind: the report puts a comma, a colon or a full stop around them.
#[test]
fn what_comes_of_it_is_the_second_half_of_a_sentence() {
    for Obligation { name, otherwise, statement, .. } in Obligation::ALL {
        assert!(!otherwise.ends_with('.') && !otherwise.is_empty(), "{name}");
        assert_ne!(otherwise, statement, "{name}");
    }
}
