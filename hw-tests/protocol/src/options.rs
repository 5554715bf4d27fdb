//! The words of the kernel's command line.
//!
//! A misspelt option must not silently run something else than was asked for, so every word of the
//! form `key=value` has to be one the kernel knows. Other words are skipped: QEMU puts the path of
//! the kernel first, GRUB does not.

use core::fmt;
use core::str::FromStr;

use switcher_gen::arch::PagingMode;
use switcher_gen::{Policy, UnknownPolicy};

/// Which of its tests the kernel runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// The platform self tests, then the case list.
    All,
    /// The platform self tests alone: enough to tell whether an engine can run the kernel.
    SelfTest,
}

impl Suite {
    const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::SelfTest => "selftest",
        }
    }
}

/// What the kernel is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// `paging=4level` (the default) or `paging=la57`.
    pub paging: PagingMode,
    /// `policy=` and its name, as in `policy=percpu-current`: of the switcher that is assembled.
    pub policy: Policy,
    /// `suite=all` (the default) or `suite=selftest`.
    pub suite: Suite,
    /// False is `breakpoints=none`: this CPU does not come back from an instruction that has one,
    /// and what needs one is not run.
    pub breakpoints: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            paging: PagingMode::FourLevel,
            policy: Policy::DEFAULT,
            suite: Suite::All,
            breakpoints: true,
        }
    }
}

/// A command line that asks for something the kernel does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionsError {
    /// A `key=value` word whose key is not an option.
    UnknownKey,
    /// `paging=` with a value other than `4level` and `la57`.
    PagingMode,
    /// `policy=` with a value that is no policy's name.
    Policy(UnknownPolicy),
    /// `suite=` with a value other than `all` and `selftest`.
    Suite,
    /// `breakpoints=` with a value other than `all` and `none`.
    Breakpoints,
}

impl fmt::Display for OptionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownKey => {
                "unknown option; the options are paging=, policy=, suite= and breakpoints="
            }
            Self::PagingMode => "unknown paging mode; the modes are 4level and la57",
            Self::Policy(why) => return why.fmt(f),
            Self::Suite => "unknown suite; the suites are all and selftest",
            Self::Breakpoints => "unknown breakpoints; they are all or none",
        })
    }
}

impl core::error::Error for OptionsError {}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { paging, policy, suite, breakpoints } = self;
        write!(f, "paging={} suite={}", paging.name(), suite.name())?;
        if !breakpoints {
            write!(f, " breakpoints=none")?;
        }
        // The default has no name, and needs none.
        if *policy == Policy::DEFAULT { Ok(()) } else { write!(f, " policy={policy}") }
    }
}

impl FromStr for Options {
    type Err = OptionsError;

    /// # Errors
    /// A `key=value` word that is not one of the options. A word with a slash is a path.
    fn from_str(line: &str) -> Result<Self, OptionsError> {
        let mut options = Self::default();
        for word in line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("paging", "4level")) => options.paging = PagingMode::FourLevel,
                Some(("paging", "la57")) => options.paging = PagingMode::FiveLevel,
                Some(("paging", _)) => return Err(OptionsError::PagingMode),
                Some(("policy", name)) => {
                    options.policy = name.parse().map_err(OptionsError::Policy)?;
                }
                Some(("suite", "all")) => options.suite = Suite::All,
                Some(("suite", "selftest")) => options.suite = Suite::SelfTest,
                Some(("suite", _)) => return Err(OptionsError::Suite),
                Some(("breakpoints", "all")) => options.breakpoints = true,
                Some(("breakpoints", "none")) => options.breakpoints = false,
                Some(("breakpoints", _)) => return Err(OptionsError::Breakpoints),
                Some(_) if !word.contains('/') => return Err(OptionsError::UnknownKey),
                _ => {}
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn what_the_runner_writes_the_kernel_reads() {
        for paging in [PagingMode::FourLevel, PagingMode::FiveLevel] {
            for suite in [Suite::All, Suite::SelfTest] {
                for policy in Policy::ALL {
                    for breakpoints in [true, false] {
                        let options = Options { paging, policy, suite, breakpoints };
                        assert_eq!(options.to_string().parse(), Ok(options));
                    }
                }
            }
        }
    }

    #[test]
    fn the_path_qemu_puts_first_is_no_option() {
        let line = "/tmp/a=b/kernel paging=la57";
        assert_eq!(
            line.parse(),
            Ok(Options { paging: PagingMode::FiveLevel, ..Options::default() })
        );
        assert_eq!("".parse(), Ok(Options::default()));
    }

    #[test]
    fn a_misspelt_option_is_refused() {
        assert_eq!("pagign=la57".parse::<Options>(), Err(OptionsError::UnknownKey));
        assert_eq!("paging=5level".parse::<Options>(), Err(OptionsError::PagingMode));
        let policy = "policy=percpus".parse::<Options>();
        assert_eq!(policy, Err(OptionsError::Policy(UnknownPolicy)));
        assert_eq!("suite=".parse::<Options>(), Err(OptionsError::Suite));
        assert_eq!("breakpoints=no".parse::<Options>(), Err(OptionsError::Breakpoints));
    }
}
