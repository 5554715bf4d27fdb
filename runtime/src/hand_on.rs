//! Hands an event that has ended a guest's run on to the host's own handler, as hardware would have
//! delivered it.
//!
//! The delivery to the switcher has used the event up: an interrupt is in service in the APIC, and
//! after an NMI, NMIs are blocked. Only the host's handler can finish it. What the handler finds,
//! and what comes back, is emitted and proved (spec/switcher.md, "Handing events on"); which
//! handler it is, and on which stack, is read here.

use core::arch::asm;

use switcher_gen::GateDescriptor;
use switcher_gen::arch::{PagingMode, RFlags, cr4, vector};
use switcher_gen::asm::Label;
use switcher_gen::layout::Tss;

use crate::cpu::Cpu;
use crate::exit::Exit;
use crate::prepare::{Prepared, WrongCpu};
use crate::registers::{self, DescriptorTablePointer};
use crate::state;

/// An event that has ended a guest's run, and that the host's own handler has to finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostEvent {
    /// An interrupt, which is in service in the local APIC.
    Interrupt {
        /// The vector, 32 to 255 but for 0x80.
        vector: u8,
    },
    /// An NMI.
    Nmi,
    /// A machine check.
    MachineCheck,
}

impl HostEvent {
    /// The vector whose gate leads to the handler.
    #[must_use]
    pub const fn vector(self) -> u8 {
        match self {
            Self::Interrupt { vector } => vector,
            Self::Nmi => vector::NMI,
            Self::MachineCheck => vector::MC,
        }
    }
}

impl Exit {
    /// The event that is the host's to handle, if an event is the reason for the exit and it is not
    /// the guest's own. `INT 0x80` is the guest's.
    #[must_use]
    pub const fn host_event(self) -> Option<HostEvent> {
        match self {
            Self::Interrupt { vector: vector::SYSTEM_CALL } => None,
            Self::Interrupt { vector } => Some(HostEvent::Interrupt { vector }),
            Self::Nmi => Some(HostEvent::Nmi),
            Self::MachineCheck => Some(HostEvent::MachineCheck),
            Self::Syscall | Self::Exception(_) | Self::FailedEntry { .. } | Self::Unknown(_) => {
                None
            }
        }
    }
}

/// Where the host's handler of an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostHandler {
    /// Where the gate of the host's IDT says, on the stack that it names: one of the IST of the
    /// host's TSS, or the stack that [`Cpu::hand_on`] is called on.
    Gate,
    /// At this address, on the stack that [`Cpu::hand_on`] is called on. It is for NMIs and machine
    /// checks of hosts whose gates lead to an entry that something else must not call.
    At(u64),
}

/// Why an event was not handed on. Nothing has been changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandOnError {
    /// This is another CPU than that of `prepare`, or interrupts are enabled.
    #[error(transparent)]
    WrongCpu(#[from] WrongCpu),
    /// The host's events do not come through its IDT.
    #[error(
        "CR4.FRED is set: events of this host do not come through its IDT, and no frame of FRED's is made"
    )]
    Fred,
    /// No interrupt of the host's has this vector.
    #[error(
        "vector {vector} is no interrupt of the host's: those have 32 to 255, and 0x80 is the guests'"
    )]
    NoInterrupt {
        /// The vector.
        vector: u8,
    },
    /// Another event that is not over has to be handed on first: the IRET of this one's handler
    /// would end the blocking of NMIs.
    #[error("an NMI has ended the last run: hand that on first")]
    NmiFirst,
    /// The handler of NMIs has a stack of its own, and NMIs are not blocked: the next one would
    /// overwrite its frame. That is so of an NMI that a hook has counted.
    #[error(
        "NMIs are not blocked, and the handler of NMIs has a stack of its own: name one that has none, or send \
         this CPU an NMI"
    )]
    NmisNotBlocked,
    /// The host's IDT has no such gate.
    #[error("the host's IDT, whose limit is {limit:#x}, has no gate for vector {vector}")]
    NoGate {
        /// The vector.
        vector: u8,
        /// The limit in IDTR.
        limit: u16,
    },
    /// The gate is no interrupt gate of this code segment that is present: the CPU would have
    /// delivered the event in another way.
    #[error(
        "the gate of vector {vector} in the host's IDT is {gate:#x}, which is no present interrupt gate to \
         selector {cs:#x}"
    )]
    OtherGate {
        /// The vector.
        vector: u8,
        /// The lower half of the gate.
        gate: u64,
        /// The code segment that the host runs in.
        cs: u16,
    },
    /// The gate of an interrupt names a stack of the IST, where another interrupt may be handled.
    #[error(
        "the gate of vector {vector} in the host's IDT has IST {ist}, and interrupts must have none"
    )]
    InterruptOnIst {
        /// The vector.
        vector: u8,
        /// The number of the stack.
        ist: u8,
    },
    /// An address is not canonical: the handler's, or that of its stack.
    #[error(
        "the {what} of vector {vector} is {address:#x}, which is no address of this paging mode"
    )]
    Address {
        /// What has the address: "handler" or "stack".
        what: &'static str,
        /// The vector.
        vector: u8,
        /// The address.
        address: u64,
    },
}

/// A handler, and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Handler {
    address: u64,
    /// The number of its stack in the IST, 0 if it has none.
    ist: u8,
}

/// What a gate of the host's leads to.
fn decode(
    vector: u8,
    gate: GateDescriptor,
    cs: u16,
    paging: PagingMode,
) -> Result<Handler, HandOnError> {
    // Intel SDM vol. 3, figure 6-8: type 14 is an interrupt gate, bit 47 says that it is present,
    // and bit 44 is clear of a system descriptor.
    const KIND: u64 = 0x9F << 40;
    const INTERRUPT_GATE: u64 = 0x8E << 40;
    let GateDescriptor { low, high } = gate;
    let selector = (low >> 16) as u16;
    if low & KIND != INTERRUPT_GATE || selector != cs {
        return Err(HandOnError::OtherGate { vector, gate: low, cs });
    }
    let address = low & 0xFFFF | low >> 48 << 16 | high << 32;
    check_address("handler", vector, address, paging)?;
    Ok(Handler { address, ist: (low >> 32) as u8 & 7 })
}

const fn check_address(
    what: &'static str,
    vector: u8,
    address: u64,
    paging: PagingMode,
) -> Result<(), HandOnError> {
    match paging.address(address) {
        Ok(_) => Ok(()),
        Err(_) => Err(HandOnError::Address { what, vector, address }),
    }
}

/// Whether an event may be handed on to a handler, given whether NMIs are blocked since an exit.
const fn check_order(event: HostEvent, ist: u8, nmis_blocked: bool) -> Result<(), HandOnError> {
    let vector = event.vector();
    match event {
        HostEvent::Interrupt { vector: 0..=31 | vector::SYSTEM_CALL } => {
            Err(HandOnError::NoInterrupt { vector })
        }
        HostEvent::Interrupt { .. } | HostEvent::MachineCheck if nmis_blocked => {
            Err(HandOnError::NmiFirst)
        }
        HostEvent::Interrupt { .. } if ist != 0 => Err(HandOnError::InterruptOnIst { vector, ist }),
        HostEvent::Nmi if ist != 0 && !nmis_blocked => Err(HandOnError::NmisNotBlocked),
        _ => Ok(()),
    }
}

impl Prepared<'_> {
    /// Calls the host's own handler of `event`, which finds what it would have found if the event
    /// had interrupted this call, and returns by its IRET. Interrupts are off when this returns.
    ///
    /// * *An interrupt*: the frame's RFLAGS have IF set, as if the interrupt had come right behind
    ///   an STI. Whatever else waits normally comes before this returns. (Timers of newer Linux
    ///   kernels are armed again on a return to IF = 1 only.)
    /// * *An NMI*: NMIs stay blocked up to the handler, and its IRET ends that. IF is clear.
    /// * *A machine check*: IF is clear.
    ///
    /// A host hands an NMI on before anything is traced, and an interrupt before anything else
    /// runs. NMIs that [`Hooks::nmi`](crate::Hooks::nmi) has counted are the host's, too: NMIs are
    /// not blocked after those, so a host whose handler has a stack of its own sends this CPU an
    /// NMI.
    ///
    /// ```no_run
    /// use core::ops::ControlFlow;
    /// use switcher_runtime::{Cpu, Exit, Guest, HandOnError, HostHandler};
    ///
    /// fn handle(cpu: &mut Cpu<'_>, exit: Exit) -> Result<(), HandOnError> {
    ///     match exit.host_event() {
    ///         // SAFETY: the gates of this host lead to handlers that can be called here.
    ///         Some(event) => unsafe { cpu.hand_on(event, HostHandler::Gate) },
    ///         None => Ok(()),
    ///     }
    /// }
    /// ```
    ///
    /// It needs less than 0.5 KiB of stack, in an optimised build, besides what the handlers need,
    /// and allocates nothing.
    ///
    /// # Errors
    /// If the host has no such handler, or if it cannot be called here and now.
    ///
    /// # Safety
    /// Must be called at CPL 0, after an exit for this event and once for each. The host's IDT, GDT
    /// and TSS are loaded, as they are when [`Cpu::enter`] has returned. The handler can be called
    /// where interrupts are on, or for an NMI and a machine check anywhere; it returns by IRET,
    /// with all registers as it has found them; and there is room for it on the stack that it
    /// begins on.
    ///
    /// Preemption is off, so that the handler returns on this CPU, before another task runs here.
    /// After an NMI's exit, the host executes no IRET before this, not even that of a #MC or a #PF:
    /// it would end the blocking. A machine check's frame says that ring 0 was interrupted: a host
    /// that tells recoverable errors by the CS in it names a handler of its own.
    pub unsafe fn hand_on(
        &mut self,
        event: HostEvent,
        handler: HostHandler,
    ) -> Result<(), HandOnError> {
        self.is_here()?;
        if registers::cr4() & cr4::FRED != 0 {
            return Err(HandOnError::Fred);
        }
        let vector = event.vector();
        let paging = self.switcher.variant().paging();
        let handler = match handler {
            HostHandler::At(address) => {
                check_address("handler", vector, address, paging)?;
                Handler { address, ist: 0 }
            }
            HostHandler::Gate => {
                let idtr = DescriptorTablePointer::idtr();
                let (limit, at) = (idtr.limit(), 16 * u16::from(vector));
                if limit < at + 15 {
                    return Err(HandOnError::NoGate { vector, limit });
                }
                let gate = idtr.base().wrapping_add(at.into()) as *const GateDescriptor;
                // SAFETY: the caller vouches that the host's IDT is loaded, and the gate is within
                // its limit.
                decode(vector, unsafe { gate.read_unaligned() }, registers::cs(), paging)?
            }
        };
        check_order(event, handler.ist, self.nmis_blocked)?;
        let top = match handler.ist {
            0 => None,
            ist => {
                let (gdtr, tr) = (DescriptorTablePointer::gdtr(), registers::tr());
                let slot = Tss::ist1.bytes() + 8 * (usize::from(ist) - 1);
                let at = state::tss_of(gdtr, tr).wrapping_add(slot as u64) as *const u64;
                // SAFETY: the caller vouches that the host's TSS is loaded, whose IST a gate of the
                // host's names.
                let top = unsafe { at.read_unaligned() };
                check_address("stack", vector, top, paging)?;
                Some(top)
            }
        };
        let here = registers::flags();
        let flags = match event {
            HostEvent::Interrupt { .. } => here | RFlags::IF,
            HostEvent::Nmi | HostEvent::MachineCheck => here,
        };
        let entry = match top {
            None => Label::HandOn,
            Some(_) => Label::HandOnStack,
        };
        // The handler's IRET ends the blocking.
        self.nmis_blocked = false;
        let entry = self.switcher.address(entry);
        // SAFETY: the entry is that of sealed code, which keeps to the System V ABI if the handler
        // keeps all registers; the caller vouches for the handler, its stack and this moment.
        unsafe { call(entry, handler.address, top.unwrap_or_default(), flags.bits()) };
        Ok(())
    }
}

impl Cpu<'_> {
    /// Does what [`Prepared::hand_on`] does.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn hand_on(
        &mut self,
        event: HostEvent,
        handler: HostHandler,
    ) -> Result<(), HandOnError> {
        // SAFETY: the caller vouches for the same contract.
        unsafe { self.prepared.hand_on(event, handler) }
    }
}

/// Calls the emitted routine by a far RET: that is no indirect call, which a predictor would answer
/// for, and, unlike an IRETQ, leaves the blocking of NMIs as it is.
///
/// # Safety
/// Must be called at CPL 0 with interrupts off. `entry` must be the address of a function with
/// these arguments that is sound to call here and now.
unsafe fn call(entry: u64, handler: u64, top: u64, flags: u64) {
    // SAFETY: the caller vouches for `entry`; `clobber_abi` says what the call may change. The far
    // RET leads to where `entry` says, in the code segment that is loaded.
    unsafe {
        asm!(
            "call 3f",
            "jmp 5f",
            // RSP -> the address after the call.
            "3: mov ecx, cs",
            "push rcx",
            "push rax",
            "retfq",
            "int3",
            "5:",
            in("rax") entry,
            in("rdi") handler,
            in("rsi") top,
            in("rdx") flags,
            clobber_abi("sysv64"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::exit::{Detail, Exception};

    const CS: u16 = 0x10;
    const FOUR: PagingMode = PagingMode::FourLevel;
    const FIVE: PagingMode = PagingMode::FiveLevel;

    fn gate(address: u64, ist: u64, kind: u64) -> GateDescriptor {
        let low = address & 0xFFFF | u64::from(CS) << 16 | ist << 32 | kind << 40;
        GateDescriptor { low: low | (address >> 16 & 0xFFFF) << 48, high: address >> 32 }
    }

    #[test]
    fn a_gate_leads_to_its_whole_address() {
        let at = 0xFF12_3456_789A_BCDE;
        let found = Handler { address: at, ist: 2 };
        assert_eq!(decode(2, gate(at, 2, 0x8E), CS, FIVE), Ok(found));
        // Under four levels, the CPU would fault.
        let refused = HandOnError::Address { what: "handler", vector: 2, address: at };
        assert_eq!(decode(2, gate(at, 2, 0x8E), CS, FOUR), Err(refused));
        // A gate of DPL 3 is one, too: hardware does not look at that.
        let at = 0xFFFF_8000_0000_1234;
        assert_eq!(decode(0x40, gate(at, 0, 0xEE), CS, FOUR).map(|it| it.address), Ok(at));
    }

    #[test]
    fn what_is_no_interrupt_gate_of_this_segment_is_refused() {
        // A trap gate, one that is not present, a call gate, and a 64-bit TSS.
        for kind in [0x8F, 0x0E, 0x8C, 0x89, 0x9E, 0] {
            let gate = gate(0x1000, 0, kind);
            let refused = HandOnError::OtherGate { vector: 0x40, gate: gate.low, cs: CS };
            assert_eq!(decode(0x40, gate, CS, FOUR), Err(refused), "{kind:#x}");
        }
        let other = gate(0x1000, 0, 0x8E);
        let refused = HandOnError::OtherGate { vector: 0x40, gate: other.low, cs: 0x18 };
        assert_eq!(decode(0x40, other, 0x18, FOUR), Err(refused));
    }

    #[test]
    fn an_event_is_handed_on_in_its_order_and_to_its_stack() {
        let interrupt = |vector| HostEvent::Interrupt { vector };
        for (event, ist, nmis_blocked, answer) in [
            (interrupt(0x40), 0, false, Ok(())),
            (interrupt(0x40), 0, true, Err(HandOnError::NmiFirst)),
            (interrupt(0x40), 1, false, Err(HandOnError::InterruptOnIst { vector: 0x40, ist: 1 })),
            (interrupt(31), 0, false, Err(HandOnError::NoInterrupt { vector: 31 })),
            (interrupt(0x80), 0, false, Err(HandOnError::NoInterrupt { vector: 0x80 })),
            (HostEvent::Nmi, 2, true, Ok(())),
            (HostEvent::Nmi, 0, true, Ok(())),
            (HostEvent::Nmi, 0, false, Ok(())),
            (HostEvent::Nmi, 2, false, Err(HandOnError::NmisNotBlocked)),
            (HostEvent::MachineCheck, 4, false, Ok(())),
            (HostEvent::MachineCheck, 4, true, Err(HandOnError::NmiFirst)),
        ] {
            assert_eq!(check_order(event, ist, nmis_blocked), answer, "{event:?} {ist}");
        }
    }

    #[test]
    fn a_guests_own_events_are_not_the_hosts() {
        let fault = Exception { vector: 14, error_code: Some(4), detail: Detail::Cr2(0) };
        for exit in [Exit::Syscall, Exit::Exception(fault), Exit::Interrupt { vector: 0x80 }] {
            assert_eq!(exit.host_event(), None, "{exit:?}");
        }
        let timer = Exit::Interrupt { vector: 0xEC };
        assert_eq!(timer.host_event(), Some(HostEvent::Interrupt { vector: 0xEC }));
        assert_eq!(Exit::Nmi.host_event().map(HostEvent::vector), Some(2));
        assert_eq!(Exit::MachineCheck.host_event().map(HostEvent::vector), Some(18));
    }
}
