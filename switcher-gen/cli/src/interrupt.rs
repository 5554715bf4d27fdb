//! Ctrl-C: what was found until then is reported, as what it is.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use serde::Serialize;
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use crate::output::Failure;

/// Set by the first Ctrl-C, once somebody [`listen`]s.
static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on, Ctrl-C asks whoever looks at [`requested`] to come to an end. A second one ends the
/// program at once. Where no handler can be had, the first one does.
pub(crate) fn listen() {
    let flag = FLAG.get_or_init(Arc::default);
    let register = || -> io::Result<()> {
        // In this order: the first one finds the flag not yet set.
        flag::register_conditional_default(SIGINT, Arc::clone(flag))?;
        flag::register(SIGINT, Arc::clone(flag))?;
        Ok(())
    };
    let _ = register();
}

/// What Ctrl-C sets, for whoever looks at it.
pub(crate) fn flag() -> Arc<AtomicBool> {
    Arc::clone(FLAG.get_or_init(Arc::default))
}

/// Whether Ctrl-C was pressed.
pub(crate) fn requested() -> bool {
    FLAG.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// How far a command had come when it was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Interrupted {
    /// So many were done.
    pub(crate) after: u64,
    /// Of so many.
    pub(crate) of: u64,
}

impl Interrupted {
    /// `None` if all was done, whoever has pressed what.
    pub(crate) fn new(after: u64, of: u64) -> Option<Self> {
        (requested() && after < of).then_some(Self { after, of })
    }

    /// What a report begins with.
    pub(crate) fn heading(self, what: &str) -> String {
        let Self { after, of } = self;
        format!("interrupted after {after} of {of} {what}: of the others nothing is said\n")
    }
}

/// What is said of a part is no verdict on the whole, but what is wrong in it is wrong.
pub(crate) fn verdict(
    interrupted: Option<Interrupted>,
    what: &str,
    verdict: Result<(), Failure>,
) -> Result<(), Failure> {
    let Some(Interrupted { after, of }) = interrupted else { return verdict };
    let mut message = format!("interrupted after {after} of {of} {what}");
    if let Err(found) = verdict {
        message += &format!("\n{found}");
    }
    Err(Failure::Interrupted(message))
}
