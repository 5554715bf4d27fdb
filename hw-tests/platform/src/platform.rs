//! The order in which the platform comes up.

use switcher_gen::arch::PagingMode;

use crate::cpu::Features;
use crate::{cpu, events, exit, memory, multiboot, screen, segments, serial, smp};

/// The word of the command line that asks for a paging mode, by [`PagingMode::name`]. Without it,
/// there are four levels.
const PAGING: &str = "paging=";

/// What the host is told when it starts.
#[derive(Debug, Clone, Copy)]
pub struct Platform {
    /// The command line, empty if there is none. The binary judges its words, except for `paging=`.
    pub command_line: &'static str,
    /// The paging mode that the command line asked for, which is the current one.
    pub paging: PagingMode,
    /// The features of this CPU.
    pub features: Features,
    /// Bytes of memory left for frames after the heap.
    pub memory: u64,
    /// The first module, which the loader has put into memory along with the image; empty if the
    /// loader has put none there.
    pub module: &'static [u8],
}

/// Brings the platform up. [`kernel_main!`](crate::kernel_main) calls it.
///
/// A machine that cannot do what the command line asks for ends the run with a `fatal:` line.
///
/// # Safety
/// Must be called once, by the boot code, with the two values that a multiboot loader left in EAX
/// and EBX, on the boot stack and under the boot page tables.
pub unsafe fn init(magic: u32, information: u32) -> Platform {
    serial::init();
    // SAFETY: the caller says that the boot page tables are loaded.
    unsafe { screen::init() }
    let features = cpu::detect();
    cpu::enable(&features);
    // SAFETY: this is called once, before anything else touches the per-CPU block.
    unsafe { segments::init(0) }
    events::init();
    // SAFETY: the boot code passes on what the loader left, and memory/ has not run yet.
    let boot = match unsafe { multiboot::read(magic, information) } {
        Ok(boot) => boot,
        Err(why) => exit::fatal(format_args!("{why}")),
    };
    let Some(paging) = paging(boot.command_line) else {
        exit::fatal(format_args!("the command line has an unknown paging mode"))
    };
    if paging == PagingMode::FiveLevel && !features.la57 {
        exit::fatal(format_args!("paging=la57 was asked for, and this CPU has no LA57"));
    }
    // SAFETY: this is called once, on the boot stack, with the boot page tables, GDT and IDT
    // loaded.
    let memory = match unsafe { memory::init(&boot.usable, boot.module.end, paging) } {
        Ok(memory) => memory,
        Err(why) => exit::fatal(format_args!("setting up memory: {why}")),
    };
    if let Err(why) = smp::init() {
        exit::fatal(format_args!("looking for CPUs: {why}"));
    }
    let module = match boot.module.is_empty() {
        true => &[],
        false => {
            let start = core::ptr::with_exposed_provenance::<u8>(boot.module.start as usize);
            // SAFETY: this is the loader's module, within the identity map; its pages are in no
            // list of usable memory, so nothing writes there.
            unsafe { core::slice::from_raw_parts(start, boot.module.len() as usize) }
        }
    };
    Platform { command_line: boot.command_line, paging, features, memory, module }
}

/// The paging mode that a command line asks for; `None` if no paging mode has that name.
fn paging(command_line: &str) -> Option<PagingMode> {
    let asked = command_line.split_ascii_whitespace().find_map(|word| word.strip_prefix(PAGING));
    let Some(asked) = asked else {
        return Some(PagingMode::FourLevel);
    };
    let mut modes = [PagingMode::FourLevel, PagingMode::FiveLevel].into_iter();
    modes.find(|mode| mode.name() == asked)
}

/// Makes a function the main function of a bare-metal binary:
/// `fn main(platform: hw_platform::Platform) -> !`.
///
/// Use it once, in a `#![no_std] #![no_main]` binary that links with this package's arguments.
#[macro_export]
macro_rules! kernel_main {
    ($main:path) => {
        #[panic_handler]
        fn panic(info: &::core::panic::PanicInfo<'_>) -> ! {
            $crate::exit::panic(info)
        }

        // SAFETY: only boot.rs knows this name, and expects exactly this signature.
        #[unsafe(no_mangle)]
        extern "C" fn hw_platform_main(magic: u32, information: u32) -> ! {
            let main: fn($crate::platform::Platform) -> ! = $main;
            // SAFETY: this is the boot code's only call into Rust, and it does not return.
            main(unsafe { $crate::platform::init(magic, information) })
        }
    };
}
