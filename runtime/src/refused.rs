//! The error of an operation that takes an object by value: the object, and why the operation was
//! refused.

use core::error::Error;
use core::fmt;

/// An operation that takes `T` by value was refused: `T` is as it was, and
/// [`into_inner`](Self::into_inner) gives it back.
///
/// ```no_run
/// # use switcher_runtime::{Cpu, Prepared};
/// # fn log(text: impl core::fmt::Display) {}
/// /// Gives the host its registers back, or says why not and goes on with the switcher.
/// fn try_to_deactivate(cpu: Cpu<'_>) -> Result<Prepared<'_>, Cpu<'_>> {
///     cpu.deactivate().map_err(|refused| {
///         log(&refused);
///         refused.into_inner()
///     })
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
#[must_use = "the object is dropped with this, and stays where it is active or loaded"]
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

    /// The object, as it was.
    pub fn into_inner(self) -> T {
        self.inner
    }

    /// The object, and why it was refused.
    pub fn into_parts(self) -> (T, E) {
        (self.inner, self.reason)
    }
}

/// Shows the reason alone, because the object may hold a whole image.
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

/// The error's source is that of the reason, which also provides the text.
impl<T, E: Error> Error for Refused<T, E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.reason.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::DeactivateError;
    use crate::prepare::WrongCpu;
    use std::string::ToString;

    #[test]
    fn it_says_why_and_gives_the_object_back() {
        let reason = DeactivateError::WrongCpu(WrongCpu::InterruptsEnabled);
        let refused = Refused::new("a CPU", reason);
        assert_eq!(refused.to_string(), reason.to_string());
        let text = std::format!("{refused:?}");
        assert!(text.contains("InterruptsEnabled") && !text.contains("a CPU"), "{text}");
        assert_eq!(refused.reason(), &reason);
        assert_eq!(refused.into_inner(), "a CPU");
        let (object, why) = refused.into_parts();
        assert_eq!((object, why), ("a CPU", reason));
        // The error can be passed on as any other, without a bound on its object.
        let error: std::boxed::Box<dyn Error> = std::boxed::Box::new(refused);
        assert_eq!(error.to_string(), reason.to_string());
    }
}
