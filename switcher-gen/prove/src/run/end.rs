//! Where the machine came to, and what is broken if that is no end that a theorem allows.

use iced_x86::Mnemonic;
use switcher_model::exists::Condition;

use crate::bad_code::BadCode;
use crate::obligation;
use crate::obligation::Obligation;
use crate::run::watch::Watch;
use crate::target::Target;
use switcher_model::exists::Address;
use switcher_model::{Domain, Fault, Stuck};

/// Where the machine came to.
pub(crate) enum End<W> {
    Guest {
        by_sysretq: bool,
    },
    Host,
    /// Where an event has interrupted ring 0.
    Resumed {
        hooked: bool,
    },
    /// In the host's own handler of exceptions.
    HandedOn,
    /// In the host, for good; or nothing was executed.
    Stopped,
    Broken {
        obligation: Obligation,
        text: String,
        about: &'static str,
        values: Option<(W, W)>,
    },
}

impl<W> End<W> {
    /// Something is broken, and no values show it.
    pub(crate) const fn broken(obligation: Obligation, text: String, about: &'static str) -> Self {
        Self::Broken { obligation, text, about, values: None }
    }
}

impl<D: Domain> Watch<'_, D> {
    /// What an exception of the instruction at `at` breaks, and why.
    pub(crate) fn fault(
        &self,
        at: u64,
        fault: &Fault<D::Word>,
    ) -> (Obligation, String, &'static str) {
        let text = format!("exception {} in ring 0 at {at:#x}", fault.vector);
        match self.needs.missing {
            // What a GS base lacks has an obligation of its own.
            Some(Condition::Canonical(Address::GsBase | Address::KernelGsBase)) | None => {
                (fault_breaks(self.entry.target, at, fault), text, "RIP")
            }
            Some(condition) => {
                let instruction = self.entry.target.program.text(at).unwrap_or_default();
                let text = format!("{text}: `{instruction}` needs {condition}");
                (obligation::EXISTS, text, condition.about())
            }
        }
    }
}

/// An access goes to memory that no assumption is made of.
pub(crate) fn wild<W: Copy>(at: u64, address: W, size: usize, store: bool) -> End<W> {
    let (what, to) = if store { ("a store", "to") } else { ("a load", "from") };
    let text = format!("{what} of {size} bytes {to} memory that is not the switcher's, at {at:#x}");
    let values = Some((address, address));
    End::Broken { obligation: obligation::MEMORY, text, about: "address", values }
}

/// Why no theorem can be about the code, if the instruction at `at` cannot be executed.
pub(crate) fn bad<W: core::fmt::Debug>(stuck: Stuck<W>, at: u64) -> BadCode {
    match stuck {
        Stuck::Program(error) => error.into(),
        Stuck::SelfModifying { at } => BadCode::SelfModifying { at },
        Stuck::NoCode { .. } | Stuck::Wild { .. } => BadCode::Leaves { at, target: at },
        Stuck::Msr { at, .. } => BadCode::Msr { at },
        Stuck::Several { at } => BadCode::Several { at },
        Stuck::Count { at } => BadCode::Count { at },
    }
}

/// What an exception in ring 0 breaks.
pub(crate) fn fault_breaks<W>(target: &Target, at: u64, fault: &Fault<W>) -> Obligation {
    match target.program.instruction(at).mnemonic() {
        Mnemonic::Wrgsbase => obligation::WRGSBASE_CANONICAL,
        Mnemonic::Sysretq => obligation::SYSRETQ_CANONICAL,
        _ if fault.vector == 3 || fault.vector == 6 => obligation::NO_TRAP,
        _ => obligation::NO_FAULT,
    }
}
