//! The names that have a meaning in a file: those of a switcher's routines, and the host's.

use switcher_gen::asm::{HostSymbol, Label};

/// Where code is entered.
pub(super) const ENTRIES: [Label; 6] = [
    Label::EnterGuest,
    Label::ReturnFromGuest,
    Label::Syscall64,
    Label::SyscallCompat,
    Label::HandOn,
    Label::HandOnStack,
];
/// What else is looked for.
pub(super) const OTHERS: [Label; 5] =
    [Label::Iretq, Label::EventStubs, Label::EventStubsEnd, Label::Routines, Label::RoutinesEnd];

/// The names of the host's routines.
pub(super) fn hosts() -> impl Iterator<Item = &'static str> {
    HostSymbol::HOOKS.iter().chain(&HostSymbol::RETURNS).map(|symbol| symbol.0)
}

/// All names that have a meaning.
pub(super) fn ours() -> impl Iterator<Item = &'static str> {
    ENTRIES.iter().chain(&OTHERS).map(|label| label.name()).chain(hosts())
}
