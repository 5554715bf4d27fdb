//! What the bare-metal kernel (`hw-tests/kernel`) and the engine runner (`hw-tests`) say to each
//! other.
//!
//! * Runner to kernel: words on the multiboot command line, [`Options`], and a multiboot module with
//!   instructions to execute, [`vectors`].
//! * Kernel to runner: one line per event on the serial port, [`Event`], each [`PREFIX`]ed so that
//!   what the BIOS, GRUB or an emulator's debugger prints is told apart from a report.
//!
//! Both directions are defined here once, and used by both sides. The lines of a run are, in this
//! order: one [`Event::Machine`], one [`Event::Begin`], an [`Event::Case`] per self test, an
//! [`Event::Switcher`] per switcher that is assembled, an [`Event::Case`] per case and per [host
//! case](HOST_CASES), one [`Event::End`]. A kernel that dies prints a [`PANIC`] or a [`FATAL`] line
//! instead, which are plain text because nothing (the heap least of all) can be trusted by then.

#![no_std]

extern crate alloc;

mod event;
mod options;
pub mod vectors;

pub use event::{Event, EventError, FATAL, PANIC, PREFIX, Verdict};
pub use options::{Options, OptionsError, Suite};

/// How many CPUs an engine has for the kernel, and how many of a machine's it uses at most.
pub const CPUS: usize = 4;

/// The platform self tests that the kernel runs before any case, by the names they report.
///
/// They show that the kernel itself is fit to judge a switcher: that an event from CPL3 leaves an
/// exact `PtRegs`, whatever the vector, and that code of the host is mapped in every root and never
/// writable while it is executable. [`MODEL`] is the other way round: the CPU judges.
pub const SELFTESTS: &[&str] = &[
    "selftest/host_code",
    "selftest/int3",
    "selftest/ud2",
    "selftest/int_n",
    "selftest/page_fault",
    "selftest/single_step",
    "selftest/iret_bad_cs",
    "selftest/iret_non_canonical",
    MODEL,
];

/// The cases that are about the host around a switcher, by the names they report: with several CPUs
/// and page tables of its own, which only the kernel has. It runs them after the case list.
pub const HOST_CASES: &[&str] = &[
    "host/four_cpus_run_guests_at_once",
    "host/the_pvcs_flips_while_guests_switch",
    "host/a_guests_root_has_what_is_listed_and_nothing_else",
    "host/a_guest_that_probes_the_host_faults",
    "host/what_was_unmapped_faults_after_a_direct_switch",
    "host/a_guests_watchpoint_is_live_on_its_own_addresses_alone",
    "host/int_n_reaches_three_gates_and_no_other",
    "host/an_indirect_branch_to_no_endbr64_is_refused",
    "host/each_exit_untrains_returns_once_where_the_host_does",
    "host/a_push_works_in_32_bit_code_after_sysret",
    "host/mov_ss_on_a_watched_operand_and_syscall_is_no_event_of_the_host",
    "host/an_nmi_at_every_instruction_of_every_path_changes_nothing",
    "host/a_machine_check_at_every_instruction_of_every_path_changes_nothing",
    "host/a_second_nmi_arrives_when_the_first_one_is_over",
    "host/no_nmi_is_lost_during_a_million_switches",
    "host/an_nmi_at_every_instruction_writes_nowhere_while_rsp_is_the_hosts",
    "host/no_nmi_is_lost_while_rsp_is_an_address_of_the_hosts",
    "host/an_unexpected_fault_in_the_switcher_ends_in_the_hosts_hook",
    "host/a_forgotten_ldt_is_refused",
    "host/descriptors_that_no_guest_may_have_are_refused",
    "host/control_bits_that_no_guest_may_run_with_are_refused",
    "host/breakpoints_and_debugctl_of_the_hosts_are_no_guests",
    "host/segment_registers_and_fs_base_are_each_ones_own",
    "host/a_barrier_stands_between_two_guests_by_turns",
    "host/a_root_on_a_dead_ones_page_has_none_of_its_translations",
    "host/a_cpu_without_its_switcher_is_as_it_was",
];

/// The one that executes the [`vectors`]: does this CPU do what `switcher_gen::machine` says?
pub const MODEL: &str = "selftest/instructions_do_what_the_model_says";
