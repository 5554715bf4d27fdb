//! Where the IDT leads, as an argument says it: a vector or a range of them, and a symbol.

use std::ops::RangeInclusive;

use switcher_prove::elf::{GateError, Gates};

use crate::emit::number;

/// Reads `14=asm_exc_page_fault` or `32-255=irq_entries_start,stride=8`.
pub(crate) fn gates(text: &str) -> Result<Gates, String> {
    let wrong = || {
        String::from(
            "write a vector or a range of them, `=`, and the symbol of the first entry, such as \
             2=asm_exc_nmi,ist=2 or 32-255=irq_entries_start,stride=8",
        )
    };
    let (of, to) = text.split_once('=').ok_or_else(wrong)?;
    let mut parts = to.split(',');
    let place = parts.next().filter(|place| !place.is_empty()).ok_or_else(wrong)?;
    let (symbol, offset) = match place.split_once('+') {
        Some((symbol, offset)) if !symbol.is_empty() => (symbol, number(offset)),
        Some(_) => return Err(wrong()),
        None => (place, Some(0)),
    };
    let offset = offset.ok_or("what follows the `+` is a number, such as 4 or 0x10")?;
    let mut gates = Gates::new(vectors(of, wrong)?, symbol).with_offset(offset);
    let mut said: Vec<&str> = Vec::new();
    for part in parts {
        let unknown = || format!("`{part}`: there is `stride=N`, `ist=N` and `dpl=N`");
        let (name, value) = part.split_once('=').ok_or_else(unknown)?;
        let value = number(value).ok_or_else(|| format!("`{part}`: not a number"))?;
        // What is more than a byte is refused as what is more than 7 or 3.
        let byte = u8::try_from(value);
        gates = match name {
            "stride" => gates.with_stride(value),
            "ist" => {
                let ist = byte.map_err(|_| GateError::Ist { ist: value }.to_string())?;
                gates.with_ist(ist)
            }
            "dpl" => {
                let dpl = byte.map_err(|_| GateError::Dpl { dpl: value }.to_string())?;
                gates.with_dpl(dpl)
            }
            _ => return Err(unknown()),
        };
        if said.contains(&name) {
            return Err(format!("`{name}` is said twice: leave one"));
        }
        said.push(name);
    }
    Ok(gates)
}

/// Reads `14` or `32-255`.
fn vectors(text: &str, wrong: impl Fn() -> String) -> Result<RangeInclusive<u8>, String> {
    let vector = |text: &str| {
        let vector = number(text).ok_or_else(&wrong)?;
        u8::try_from(vector).map_err(|_| format!("there is no vector {vector}: they end at 255"))
    };
    match text.split_once('-') {
        Some((first, last)) => Ok(vector(first)?..=vector(last)?),
        None => {
            let vector = vector(text)?;
            Ok(vector..=vector)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_of_a_vector_or_of_several() {
        let page_fault = Gates::new(14..=14, "asm_exc_page_fault");
        assert_eq!(gates("14=asm_exc_page_fault"), Ok(page_fault.clone()));
        assert_eq!(gates("0xe=asm_exc_page_fault+0x10"), Ok(page_fault.with_offset(16)));
        let rest = Gates::new(32..=255, "irq_entries_start").with_stride(8);
        assert_eq!(gates("32-0xff=irq_entries_start,stride=8"), Ok(rest));
        let nmi = Gates::new(2..=2, "nmi").with_ist(2).with_dpl(3);
        assert_eq!(gates("2=nmi,dpl=3,ist=0x2"), Ok(nmi));
    }

    #[test]
    fn what_is_no_gate_is_refused() {
        for (bad, why) in [
            ("", "write a vector"),
            ("14", "write a vector"),
            ("=x", "write a vector"),
            ("x=y", "write a vector"),
            ("14=", "write a vector"),
            ("14=,ist=1", "write a vector"),
            ("14=+4", "write a vector"),
            ("1-2-3=x", "write a vector"),
            ("-1=x", "write a vector"),
            ("14=x+y", "a number"),
            ("14=x+", "a number"),
            ("256=x", "no vector 256"),
            ("0-256=x", "no vector 256"),
            ("0x100=x", "no vector 256"),
            ("14=x,ist=many", "not a number"),
            ("14=x,ist", "there is `stride=N`"),
            ("14=x,cpl=3", "there is `stride=N`"),
            ("14=x,", "there is `stride=N`"),
            ("14=x,ist=1,ist=1", "said twice"),
            ("14=x,ist=256", "number 256"),
            ("14=x,dpl=0x1_0000", "65536 is no privilege level"),
        ] {
            let error = gates(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
