//! This machine, as far as user mode can see it.

use std::fs;

use raw_cpuid::{CpuId, CpuIdReaderNative};
use switcher_gen::arch::{HostFeatures, HostState, PagingMode, Selectors};
use switcher_gen::{NoVariant, Variant};

use crate::output::Failure;

const CPUINFO: &str = "/proc/cpuinfo";

/// This CPU's features and how its operating system has set them up.
///
/// Control registers cannot be read in user mode. Linux shows in /proc/cpuinfo what it uses, so a
/// feature that CPUID has and the kernel leaves off is absent there.
pub(crate) fn features() -> Result<HostFeatures, Failure> {
    let cpuid = CpuId::new();
    let cpuinfo = fs::read_to_string(CPUINFO);
    let uses = |flag| cpuinfo.as_ref().is_ok_and(|text| has_flag(text, flag));
    let has_la57 = cpuid.get_extended_feature_info().is_some_and(|info| info.has_la57());
    if let Err(error) = &cpuinfo
        && has_la57
    {
        let context = format!("cannot tell this host's paging mode without {CPUINFO}");
        return Err(Failure::failed(context, error));
    }
    let paging =
        if has_la57 && uses("la57") { PagingMode::FiveLevel } else { PagingMode::FourLevel };
    let (pcid, ibt, pku) = (uses("pcid"), uses("ibt"), uses("ospke"));
    // Linux uses SMEP wherever it shows it. It says nothing of IA32_ARCH_CAPABILITIES and SPEC_CTRL
    // as such: the CPU is taken to need everything, and the host to have switched on nothing.
    let smep = uses("smep");
    let state = HostState { paging, pcid, ibt, pku, smep, ..HostState::PLAIN };
    Ok(HostFeatures::from_cpuid(CpuIdReaderNative, state))
}

/// The variant for this machine.
pub(crate) fn variant(features: &HostFeatures) -> Result<Variant, NoVariant> {
    Variant::for_host(features, Selectors::DEFAULT)
}

/// The machine's variant where one is only wanted as a default.
pub(crate) fn variant_if_known() -> Option<Variant> {
    features().ok().and_then(|features| variant(&features).ok())
}

/// Whether the first CPU's flags have `flag`.
fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "flags")
        .is_some_and(|(_, flags)| flags.split_whitespace().any(|known| known == flag))
}

#[cfg(test)]
mod tests {
    use super::has_flag;

    #[test]
    fn flags_are_whole_words_of_the_flags_line() {
        let text = "model name\t: la57 special\nflags\t\t: fpu invpcid lm\nvmx flags\t: pcid\n";
        assert!(has_flag(text, "lm") && has_flag(text, "invpcid"));
        assert!(!has_flag(text, "pcid") && !has_flag(text, "la57"));
        assert!(!has_flag("", "lm"));
    }
}
