//! Which images are proved: a table that whoever maps code consults.
//!
//! certificates.txt, beside this crate's Cargo.toml, has a line for each image all of whose
//! theorems were proved: its variant's name and its fingerprint, which does not depend on the
//! address it runs at. The tests have `switcher prove --all` prove all images again, and find that
//! the table has each of them and no other; `BLESS=1 cargo test -p switcher-prove --test proofs`
//! proves them and writes the table.

use core::fmt::Write as _;

use crate::Image;
use crate::image::Fingerprint;

/// The text of the table.
pub const TABLE: &str = include_str!("../certificates.txt");

/// Whether every theorem about exactly these bytes, entry points and windows was proved.
#[must_use]
pub fn is_proved(image: &Image) -> bool {
    let own = image.fingerprint();
    entries().any(|(_, fingerprint)| is(fingerprint, own))
}

/// The lines of the table: names of variants and fingerprints, in hexadecimal.
pub fn entries() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(' '))
}

/// Whether `text` is the fingerprint in hexadecimal. Nothing is allocated.
fn is(text: &str, fingerprint: Fingerprint) -> bool {
    /// The rest of a text that is being compared.
    struct Rest<'a>(&'a str);
    impl core::fmt::Write for Rest<'_> {
        fn write_str(&mut self, part: &str) -> core::fmt::Result {
            self.0 = self.0.strip_prefix(part).ok_or(core::fmt::Error)?;
            Ok(())
        }
    }
    let mut rest = Rest(text);
    write!(rest, "{fingerprint}").is_ok() && rest.0.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Selectors;
    use crate::variant::{Config, Variant};

    #[test]
    fn an_image_that_differs_from_those_in_the_table_is_not_proved() {
        let own = Selectors::new(0x10, 0x33).unwrap();
        let config: Config = Variant::REFERENCE.config();
        let image = Image::new(&Variant::new(config, own).unwrap()).unwrap();
        assert!(!is_proved(&image));
    }

    #[test]
    fn a_fingerprint_is_compared_to_its_last_digit() {
        let image = Image::new(&Variant::REFERENCE).unwrap();
        let text = alloc::format!("{}", image.fingerprint());
        assert!(is(&text, image.fingerprint()));
        assert!(!is(&text[..63], image.fingerprint()));
        assert!(!is(&alloc::format!("{text}0"), image.fingerprint()));
        assert!(!is("", image.fingerprint()));
    }
}
