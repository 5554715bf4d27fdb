//! What an operation that would have taken an object away returns if it is refused: the object, and
//! why.

use core::error::Error;
use core::fmt;

/// An operation that takes `T` by value was refused: `T` is as it was, and
/// [`into_inner`](Self::into_inner) gives it back.
///
/// ```no_run
/// # use switcher_runtime::Cpu;
/// # fn log(text: impl core::fmt::Display) {}
/// /// Uninstalls the switcher, or says why not and goes on with it.
/// fn try_to_uninstall(cpu: Cpu<'_>) -> Option<Cpu<'_>> {
///     let refused = cpu.uninstall().err()?;
///     log(&refused);
///     Some(refused.into_inner())
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
#[must_use = "the object is dropped with this, and stays where it is installed or loaded"]
pub struct Refused<T, E> {
    inner: T,
    reason: E,
}

impl<T, E> Refused<T, E> {
    pub(crate) const fn new(inner: T, reason: E) -> Self {
        Self { inner, reason }
    }

    /// Why it was refused.
    pub const fn reason(&self) -> &E {
        &self.reason
    }

    /// What would have been taken away.
    pub fn into_inner(self) -> T {
        self.inner
    }

    /// The object, and why it was refused.
    pub fn into_parts(self) -> (T, E) {
        (self.inner, self.reason)
    }
}

/// The reason alone: the object may hold a whole image.
impl<T, E: fmt::Debug> fmt::Debug for Refused<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<T, E: fmt::Display> fmt::Display for Refused<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

/// The reason speaks for it: its source is this one's.
impl<T, E: Error> Error for Refused<T, E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.reason.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{NotHere, UninstallError};
    use std::string::ToString;

    #[test]
    fn it_says_why_and_gives_the_object_back() {
        let reason = UninstallError::NotHere(NotHere::InterruptsEnabled);
        let refused = Refused::new("a CPU", reason);
        assert_eq!(refused.to_string(), reason.to_string());
        let text = std::format!("{refused:?}");
        assert!(text.contains("InterruptsEnabled") && !text.contains("a CPU"), "{text}");
        assert_eq!(refused.reason(), &reason);
        assert_eq!(refused.into_inner(), "a CPU");
        let (object, why) = refused.into_parts();
        assert_eq!((object, why), ("a CPU", reason));
        // It goes where any error goes, without its object being looked at.
        let error: std::boxed::Box<dyn Error> = std::boxed::Box::new(refused);
        assert_eq!(error.to_string(), reason.to_string());
    }
}
