//! The loop of a host around a guest: enter, handle the exit, do what else has come up.

use core::ops::ControlFlow;

use crate::cpu::Cpu;
use crate::enter::EnterError;
use crate::exit::Exit;
use crate::guest::Guest;

/// What a host does around a guest's runs. All of it happens on one CPU, on which
/// [`run_guest`](Cpu::run_guest) is called with interrupts off.
pub trait ExitWork {
    /// What the loop ends with.
    type End;

    /// Handles an exit, with interrupts off: what interrupted the guest was acknowledged when it
    /// came, so a host [hands it on](Cpu::hand_on) here, before anything else.
    fn handle(
        &mut self,
        cpu: &mut Cpu<'_>,
        guest: &mut Guest,
        exit: Exit,
    ) -> ControlFlow<Self::End>;

    /// Whether there is work to do before the guest may run: another thread's turn, a signal, an
    /// interrupt to inject. This is asked right before each entry, with interrupts off.
    fn is_pending(&self) -> bool;

    /// Does that work. Interrupts are off when this is called and when it returns; meanwhile the
    /// host may turn them on, but stays on this CPU.
    fn work(&mut self, guest: &mut Guest) -> ControlFlow<Self::End>;
}

impl Cpu<'_> {
    /// Runs a guest until its host ends it: enters it, has each exit handled, and does the host's
    /// work whenever there is some. Whether there is, is asked again at the last moment before each
    /// entry, so no work that has come up waits for the guest's next exit.
    ///
    /// ```no_run
    /// use core::ops::ControlFlow;
    /// use switcher_runtime::{Cpu, EnterError, Exit, ExitWork, Guest, HostHandler};
    ///
    /// struct Host {
    ///     turn_is_over: bool,
    /// }
    ///
    /// impl ExitWork for Host {
    ///     type End = Exit;
    ///
    ///     fn handle(
    ///         &mut self,
    ///         cpu: &mut Cpu<'_>,
    ///         _: &mut Guest,
    ///         exit: Exit,
    ///     ) -> ControlFlow<Exit> {
    ///         let Some(event) = exit.host_event() else { return ControlFlow::Break(exit) };
    ///         // SAFETY: the gates of this host lead to handlers that can be called here.
    ///         match unsafe { cpu.hand_on(event, HostHandler::Gate) } {
    ///             Ok(()) => ControlFlow::Continue(()),
    ///             Err(_) => ControlFlow::Break(exit),
    ///         }
    ///     }
    ///
    ///     fn is_pending(&self) -> bool {
    ///         self.turn_is_over
    ///     }
    ///
    ///     fn work(&mut self, _: &mut Guest) -> ControlFlow<Exit> {
    ///         self.turn_is_over = false;
    ///         ControlFlow::Continue(())
    ///     }
    /// }
    ///
    /// fn run(cpu: &mut Cpu<'_>, guest: &mut Guest) -> Result<Exit, EnterError> {
    ///     cpu.run_guest(guest, &mut Host { turn_is_over: false })
    /// }
    /// ```
    ///
    /// # Errors
    /// Those of [`enter`](Self::enter). The guest is as it was after the last exit.
    pub fn run_guest<W: ExitWork>(
        &mut self,
        guest: &mut Guest,
        host: &mut W,
    ) -> Result<W::End, EnterError> {
        loop {
            let next = match self.enter_unless(guest, || host.is_pending())? {
                Some(exit) => host.handle(self, guest, exit),
                None => host.work(guest),
            };
            if let ControlFlow::Break(end) = next {
                return Ok(end);
            }
        }
    }
}
