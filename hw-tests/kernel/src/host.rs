//! What the host itself has to get right around a switcher: cases that only a kernel can run, with
//! several CPUs and page tables of its own. They are named in [`hw_protocol::HOST_CASES`].

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hw_cases::{Case, End, Expected, HostAfter, Setup, World, place};
use hw_platform::boot::MAX_CPUS;
use hw_platform::code_memory::CodeMemory;
use hw_platform::high::Half;
use hw_platform::memory::{self, HIGH_BASE, PAGE, flags_of};
use hw_platform::percpu::{self, Scratch, Stack};
use hw_platform::{apic, boot, cpu, gs, hooks, returns, smp};
use hw_protocol::HOST_CASES;
use spin::Mutex;
use switcher_runtime::switcher_gen::arch::{Msr as MsrName, RFlags, Vendor, vector};
use switcher_runtime::switcher_gen::asm::Label;
use switcher_runtime::switcher_gen::layout::{
    PerCpu, Placement, Pvcs, PvcsCurrent, PvcsLayout, Revision,
};
use switcher_runtime::switcher_gen::{Axes, Mitigations, Policy};
use switcher_runtime::{
    Access, DebugCauses, DebugError, Detail, Exit, GuestDebug, Mode, Purpose, Switcher,
    UninstallError, Variant, Width,
};
use x86_64::registers::control::{Cr4, Efer};
use x86_64::registers::debug::Dr7;
use x86_64::registers::model_specific::Msr;

use crate::report::Report;
use crate::world::{BareMetal, GUESTS, STACK32};
use crate::{Switchers, cpu_state, fatal, nmi, second_nmi, tracking, unexpected, world_on};

/// What came of a host case: how many guests were entered, or why it failed.
pub(crate) type Ended = Result<u64, String>;

/// MOV AL, [RDI].
const LOAD: &[u8] = &[0x8A, 0x07];
/// MOV [RDI], AL.
const STORE: &[u8] = &[0x88, 0x07];
pub(crate) const SYSCALL: &[u8] = &[0x0F, 0x05];
pub(crate) const PROBE: &[u8] = &[0x0F, 0x0B];

/// The case list, a part of it on every CPU but this one, while this one runs all of it.
pub(crate) struct Others {
    done: [Arc<Mutex<Ended>>; MAX_CPUS],
    /// CPUs that are running it, and how many do at this moment.
    count: usize,
}

/// How many CPUs have a guest, or are about to have one.
static RUNNING: AtomicU64 = AtomicU64::new(0);
/// The most there were at once.
static MOST: AtomicU64 = AtomicU64::new(0);

impl Others {
    /// Starts them.
    pub(crate) fn start(switchers: Switchers, breakpoints: bool) -> Self {
        let done = core::array::from_fn(|_| Arc::new(Mutex::new(Err("not run".into()))));
        let count = smp::count();
        for (cpu, done) in (0..).zip(&done).take(count).skip(1) {
            let done: Arc<Mutex<Ended>> = Arc::clone(done);
            let job = move || {
                let running = RUNNING.fetch_add(1, Ordering::AcqRel) + 1;
                MOST.fetch_max(running, Ordering::AcqRel);
                let ended = part_of_cases(cpu, &mut world_on(switchers, cpu, breakpoints));
                RUNNING.fetch_sub(1, Ordering::AcqRel);
                *done.lock() = ended;
            };
            smp::start(cpu, Box::new(job)).unwrap_or_else(|why| fatal(&why));
        }
        Self { done, count }
    }

    /// Waits for them.
    fn wait(self) -> Ended {
        (1..self.count).for_each(smp::wait);
        let of =
            |cpu: usize| self.done[cpu].lock().clone().map_err(|why| format!("CPU {cpu}: {why}"));
        (1..self.count).map(of).sum()
    }

    /// The same; all of them have had guests at once.
    fn end(self) -> Ended {
        let count = self.count;
        let entered = self.wait()?;
        let most = MOST.load(Ordering::Acquire) as usize + 1;
        if most != count {
            return Err(format!("only {most} of {count} CPUs ran guests at the same time"));
        }
        Ok(entered)
    }
}

/// A CPU's part of the list. The one that has booted runs all of it.
fn part_of_cases(cpu: usize, world: &mut BareMetal<'_>) -> Ended {
    let cases = hw_cases::all();
    let len = cases.len().div_ceil(MAX_CPUS - 1);
    cases.iter().skip((cpu - 1) * len).take(len).map(|case| one_case(case, world)).sum()
}

fn one_case(case: &Case, world: &mut BareMetal<'_>) -> Ended {
    match case.run(world) {
        (entered, End::Passed) => Ok(entered),
        (_, End::Failed(why)) => Err(format!("{}: {why}", case.name)),
        // The CPU that has booted runs the case, too, and reports this.
        (_, End::NotHere(_)) => Ok(0),
    }
}

/// Runs every case of [`HOST_CASES`].
pub(crate) fn all(
    mut world: BareMetal<'static>,
    others: Others,
    before: Control,
    breakpoints: bool,
    report: &mut Report,
) {
    let mut others = Some(others);
    // Where the instructions of each are, the first case that interrupts them finds out for the
    // others.
    let mut paths = nmi::paths(&world);
    let (last, names) = HOST_CASES.split_last().unwrap_or((&"", &[]));
    for &name in names {
        let lacking = match name {
            // Also what is about counters of all CPUs wants nobody else to run a guest by then.
            "host/four_cpus_run_guests_at_once" if smp::count() < MAX_CPUS => {
                let ended = others.take().map_or(Ok(0), Others::wait);
                if ended.is_err() {
                    report_one(report, name, &ended);
                    continue;
                }
                Some("there are not four CPUs")
            }
            "host/the_pvcs_flips_while_guests_switch"
            | "host/no_nmi_is_lost_during_a_million_switches"
            | "host/no_nmi_is_lost_while_rsp_is_an_address_of_the_hosts"
                if smp::count() < 2 =>
            {
                Some("there is no other CPU")
            }
            "host/a_second_nmi_arrives_when_the_first_one_is_over" if !apic::is_there() => {
                Some("there is no local APIC")
            }
            "host/an_indirect_branch_to_no_endbr64_is_refused" if !cpu::is_tracking() => {
                Some("the CPU does not track indirect branches")
            }
            "host/an_nmi_at_every_instruction_of_every_path_changes_nothing"
            | "host/a_machine_check_at_every_instruction_of_every_path_changes_nothing"
            | "host/a_second_nmi_arrives_when_the_first_one_is_over"
            | "host/an_nmi_at_every_instruction_writes_nowhere_while_rsp_is_the_hosts"
                if !breakpoints =>
            {
                Some("a breakpoint on execution hangs this CPU")
            }
            _ => None,
        };
        if let Some(lacking) = lacking {
            report.not_here(name, lacking);
            continue;
        }
        let ended = match name {
            "host/four_cpus_run_guests_at_once" => {
                others.take().map_or_else(|| Err("run twice".into()), Others::end)
            }
            "host/the_pvcs_flips_while_guests_switch" => flipping_pvcs(&mut world),
            "host/a_guests_root_has_what_is_listed_and_nothing_else" => roots(&world),
            "host/a_guest_that_probes_the_host_faults" => probes(&mut world),
            "host/what_was_unmapped_faults_after_a_direct_switch" => unmapped(&mut world),
            "host/a_guests_watchpoint_is_live_on_its_own_addresses_alone" => {
                watchpoints(&mut world)
            }
            "host/int_n_reaches_three_gates_and_no_other" => int_n(&mut world),
            "host/an_indirect_branch_to_no_endbr64_is_refused" => tracking::enforced(&mut world),
            "host/each_exit_untrains_returns_once_where_the_host_does" => untraining(&mut world),
            "host/a_push_works_in_32_bit_code_after_sysret" => push_in_32_bits(&mut world),
            "host/mov_ss_on_a_watched_operand_and_syscall_is_no_event_of_the_host" => {
                mov_ss(&mut world)
            }
            "host/an_nmi_at_every_instruction_of_every_path_changes_nothing" => {
                nmi::at_every_boundary(&mut world, &mut paths, vector::NMI)
            }
            "host/a_machine_check_at_every_instruction_of_every_path_changes_nothing" => {
                nmi::at_every_boundary(&mut world, &mut paths, vector::MC)
            }
            "host/a_second_nmi_arrives_when_the_first_one_is_over" => {
                second_nmi::arrives(&mut world, &mut paths)
            }
            "host/no_nmi_is_lost_during_a_million_switches" => {
                nmi::flood(&mut world, 10, 50_000, &[])
            }
            "host/an_nmi_at_every_instruction_writes_nowhere_while_rsp_is_the_hosts" => {
                nmi::boundaries_with_host_rsp(&mut world, &paths)
            }
            "host/no_nmi_is_lost_while_rsp_is_an_address_of_the_hosts" => {
                nmi::flood_with_host_rsp(&mut world)
            }
            "host/an_unexpected_fault_in_the_switcher_ends_in_the_hosts_hook" => {
                unexpected::ends_in_the_hook(&mut world)
            }
            "host/a_forgotten_ldt_is_refused" => cpu_state::stale_ldt(&mut world),
            "host/descriptors_that_no_guest_may_have_are_refused" => {
                cpu_state::descriptors(&mut world)
            }
            "host/control_bits_that_no_guest_may_run_with_are_refused" => {
                cpu_state::control_bits(&mut world)
            }
            "host/breakpoints_and_debugctl_of_the_hosts_are_no_guests" => {
                cpu_state::debugging(&mut world)
            }
            "host/segment_registers_and_fs_base_are_each_ones_own" => {
                cpu_state::segment_registers(&mut world)
            }
            "host/a_barrier_stands_between_two_guests_by_turns" => {
                cpu_state::two_guests(&mut world)
            }
            "host/a_root_on_a_dead_ones_page_has_none_of_its_translations" => {
                cpu_state::recycled_root(&mut world)
            }
            _ => Err("no such case".into()),
        };
        report_one(report, name, &ended);
    }
    // The one that ends with no switcher is the last.
    report_one(report, last, &teardown(world, &before));
}

fn report_one(report: &mut Report, name: &str, ended: &Ended) {
    let (entered, failure) = match ended {
        Ok(entered) => (*entered, None),
        Err(why) => (0, Some(why.as_str())),
    };
    report.case(name, entered, failure);
}

/// What a switcher changes of a CPU.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Control {
    cr4: u64,
    efer: u64,
    msrs: [u64; 7],
}

impl Control {
    /// The numbers of spec/abi.md's MSRs, from the manuals: STAR, LSTAR, CSTAR, SFMASK, SYSENTER_CS,
    /// GS base, KERNEL_GS_BASE.
    const MSRS: [u32; 7] =
        [0xC000_0081, LSTAR, 0xC000_0083, 0xC000_0084, 0x174, 0xC000_0101, 0xC000_0102];

    pub(crate) fn read() -> Self {
        // SAFETY: MSRs of every CPU with long mode; reading changes nothing.
        let msr = |number| unsafe { Msr::new(number).read() };
        Self { cr4: Cr4::read_raw(), efer: Efer::read_raw(), msrs: Self::MSRS.map(msr) }
    }
}

const LSTAR: u32 = 0xC000_0082;

/// Uninstalls the switcher, installs and unloads another one: the CPU is as it was before the first.
fn teardown(mut world: BareMetal<'static>, before: &Control) -> Ended {
    let as_before = |what: &str| match Control::read() {
        now if now == *before => Ok(()),
        now => Err(format!("{what}: {now:x?}, not {before:x?}")),
    };
    // An entry leaves another KERNEL_GS_BASE.
    let mut rng = fastrand::Rng::with_seed(4);
    let setup = setup(&world, &mut rng, Mode::Smod, PROBE);
    check(&mut world, &setup, &Expected::unchanged(&setup, Expected::UD))?;
    if Control::read() == *before {
        return Err("a switcher is installed and nothing has changed".into());
    }

    let cpu = world.into_cpu();
    let switcher = cpu.switcher();
    let variant = *switcher.image().variant();
    let installed = switcher.installed();
    // Whoever changes LSTAR relies on it: nothing is restored behind its back.
    let entry = switcher.address(Label::Syscall64);
    // SAFETY: no guest runs, and no SYSCALL is executed, until the MSR has its value again.
    let write_lstar = |value| unsafe { Msr::new(LSTAR).write(value) };
    write_lstar(entry + 16);
    let cpu = match cpu.uninstall() {
        Err((cpu, UninstallError::Changed { register: MsrName::Lstar, .. })) => cpu,
        Err((_, why)) => return Err(format!("LSTAR was changed, and this was refused: {why}")),
        Ok(()) => return Err("LSTAR was changed, and lost".into()),
    };
    write_lstar(entry);
    cpu.uninstall().map_err(|refused| format!("{}", refused.1))?;
    as_before("uninstalled")?;

    // The other one: it leaves the CPU and the memory. It has no place behind this CPU's block, nor
    // near the return thunk.
    let Axes { policy, mitigations, .. } = variant.axes();
    let mitigations = Mitigations { untrain: false, ..mitigations };
    let axes = Axes { mitigations, ..variant.axes() };
    let elsewhere = Variant::new(axes, variant.selectors()).map_err(|why| format!("{why}"))?;
    let elsewhere = elsewhere.with_policy(Policy { placement: Placement::Gs, ..policy });
    let mut memory = CodeMemory::at(memory::code_start(Half::Lower) + 64 * PAGE);
    let other = Switcher::assemble(&elsewhere, &hooks::hooks(), &mut memory)
        .map_err(|why| format!("{why}"))?;
    let base = other.base();
    let block = NonNull::new(percpu::block(0)).ok_or("no block")?;
    // SAFETY: as for the first one, which is not installed here any more; no guest is entered.
    let cpu = cpu::tracked(|| unsafe { other.install(block) });
    let cpu = cpu.map_err(|why| format!("{why}"))?;
    if other.installed() != 1 || Control::read() == *before {
        return Err("the other one is not installed".into());
    }
    cpu.uninstall().map_err(|refused| format!("{}", refused.1))?;
    as_before("uninstalled again")?;
    let alone = under_a_gs_base_of_the_hosts(&other, block);
    as_before("and once more")?;
    // Sealed code cannot be freed: not before it is unloaded.
    // SAFETY: it was assembled into this memory above.
    unsafe { other.unload(&mut memory) }.map_err(|refused| format!("{}", refused.1))?;
    alone?;
    if let Some(flags) = memory::host_flags(base) {
        return Err(format!("the unloaded switcher is still mapped, {flags:?}"));
    }
    let expected = match policy.placement {
        Placement::Gs => smp::count(),
        Placement::PerCpu => 1,
    };
    if installed != expected {
        return Err(format!("it was installed on {installed} CPUs"));
    }
    Ok(1)
}

/// A host whose GS base is another one than the switcher's, as that of every kernel is: from the moment that
/// `install` has written it until `uninstall` gives it back, nothing is allocated or freed, also where
/// `uninstall` refuses.
fn under_a_gs_base_of_the_hosts(other: &Switcher, block: NonNull<PerCpu>) -> Result<(), String> {
    const OWN: u64 = 0x5A5A_0000;
    let entry = other.address(Label::Syscall64);
    // SAFETY: no SYSCALL is executed until the MSR has its value again.
    let write_lstar = |value| unsafe { Msr::new(LSTAR).write(value) };
    let gs = gs::base();
    memory::watch(gs);
    drop(core::hint::black_box(Box::new(gs)));
    if memory::watched() < 2 {
        return Err("the allocator is not watched".into());
    }
    // SAFETY: nothing here asks for the CPU's number until it is back.
    unsafe { gs::set_base(OWN) };
    memory::watch(gs);
    // SAFETY: as for the ones before; no guest is entered.
    let installed = cpu::tracked(|| unsafe { other.install(block) });
    let ended = installed.map_err(|why| format!("{why}")).and_then(|cpu| {
        write_lstar(entry + 16);
        let refused = cpu.uninstall();
        write_lstar(entry);
        let Err((cpu, UninstallError::Changed { .. })) = refused else {
            return Err("LSTAR was changed, and this was not refused".into());
        };
        cpu.uninstall().map_err(|refused| format!("{}", refused.1))
    });
    let (times, left) = (memory::watched(), gs::base());
    // SAFETY: as it was.
    unsafe { gs::set_base(gs) };
    ended?;
    match (times, left) {
        (0, OWN) => Ok(()),
        _ => Err(format!("the allocator was used {times} times; GS base was left as {left:#x}")),
    }
}

/// A guest in `mode` that runs `code`.
pub(crate) fn setup(
    world: &BareMetal<'_>,
    rng: &mut fastrand::Rng,
    mode: Mode,
    code: &[u8],
) -> Setup {
    let mut setup = Setup::random(rng, &world.platform(), mode).with(mode, place::UMOD_CODE, code);
    setup.regs.rip = place::UMOD_CODE;
    setup.regs.eflags &= !RFlags::AC.bits();
    setup
}

/// Runs a guest and compares everything.
pub(crate) fn check(
    world: &mut BareMetal<'_>,
    setup: &Setup,
    expected: &Expected,
) -> Result<(), String> {
    match world.run(setup) {
        Ok(outcome) => expected.compare(setup, &outcome).map_err(|why| why.0),
        Err(why) => Err(format!("{why:?}")),
    }
}

/// Every leaf of both roots: what is not for users is on the list, with the rights and the page that
/// the host's root has there, and everything on the list is there.
fn roots(world: &BareMetal<'_>) -> Ended {
    let listed = world.listed();
    for (mode, space) in world.spaces() {
        let mut found = 0;
        for leaf in space.leaves() {
            let at = format!("{mode:?}, {:#x}: {:?}", leaf.virt, leaf.flags);
            let Some(rights) = listed.iter().find(|(page, _)| *page == leaf.virt).map(|it| it.1)
            else {
                if leaf.flags.contains(memory::Flags::USER) && !leaf.global && leaf.size == PAGE {
                    continue;
                }
                return Err(format!("{at}: neither a page of the guest's nor on the list"));
            };
            found += 1;
            if leaf.flags != flags_of(rights) || leaf.global || leaf.size != PAGE {
                return Err(format!("{at}: listed as {rights:?}"));
            }
            if memory::host_address(leaf.virt) != Some(leaf.phys) {
                return Err(format!("{at}: maps {:#x}, the host does not", leaf.phys));
            }
        }
        if found != listed.len() {
            return Err(format!("{mode:?}: {found} pages of {} on the list", listed.len()));
        }
    }
    // The list itself: what a switch needs, each on pages of its own.
    let list = world.cpu().mappings();
    for purpose in [Purpose::Code, Purpose::PerCpuBlock, Purpose::EntryStack, Purpose::IstStack(1)]
        .into_iter()
        .chain([Purpose::IstStack(4), Purpose::Idt, Purpose::Gdt])
    {
        if list.iter().filter(|mapping| mapping.purpose == purpose).count() != 1 {
            return Err(format!("{purpose:?} is not listed once"));
        }
    }
    // This case enters no guest; it has looked at this many pages.
    Ok(2 * listed.len() as u64)
}

/// Reads, writes and jumps to host addresses, in both modes.
fn probes(world: &mut BareMetal<'_>) -> Ended {
    /// Bits of a page fault's error code: present, write, user, fetch.
    const P: u32 = 1;
    const W: u32 = 2;
    const U: u32 = 4;
    const F: u32 = 16;

    let listed: Vec<u64> = world.listed().into_iter().map(|(page, _)| page).collect();
    let heap = Box::new(0_u8);
    let elsewhere = [
        (&raw const *heap).addr() as u64,
        // Code, constants, variables and stacks of the host's.
        probes as *const () as u64,
        HOST_CASES.as_ptr().addr() as u64,
        (&raw const RUNNING).addr() as u64,
        boot::stack_top() - 64,
        Stack::Fatal.top(0) - 8,
        Stack::Sp0.top(0) - 2 * PAGE,
        // What is this CPU's, but not the guest's to rely on, and another CPU's.
        percpu::block(0).addr() as u64 + Scratch::OFFSET as u64,
        percpu::block(1).addr() as u64,
        Stack::Sp0.top(1) - 8,
        // Page tables, firmware, the page behind the switcher, the rest of both halves' middle.
        memory::host_cr3(),
        world.spaces()[0].1.cr3(),
        0x1000,
        0xF_FFF0,
        HIGH_BASE - 8,
        HIGH_BASE + 256 * PAGE,
        0xFFFF_8000_0000_0000,
    ];
    let mut rng = fastrand::Rng::with_seed(22);
    let mut entered = 0;
    let inside = listed.iter().map(|page| page + rng.u64(..PAGE)).collect::<Vec<_>>();
    for address in inside.into_iter().chain(elsewhere) {
        let is_present = listed.contains(&(address & !(PAGE - 1)));
        let present = if is_present { P } else { 0 };
        for mode in [Mode::Smod, Mode::Umod] {
            for (code, error) in [(LOAD, U), (STORE, U | W), (PROBE, U | F)] {
                let mut setup = setup(world, &mut rng, mode, code);
                setup.regs.rdi = address;
                if error & F != 0 {
                    setup.regs.rip = address;
                }
                let exit = Expected::page_fault(present | error, address);
                check(world, &setup, &Expected::unchanged(&setup, exit))
                    .map_err(|why| format!("{mode:?} at {address:#x}, {error:#x}: {why}"))?;
                entered += 1;
            }
        }
    }
    // The addresses outside the list are the host's, or the case would show nothing.
    let hosts = elsewhere.iter().filter(|at| memory::host_flags(**at).is_some()).count();
    if hosts < 12 || elsewhere.iter().any(|at| listed.contains(&(at & !(PAGE - 1)))) {
        return Err(format!("only {hosts} of the addresses are the host's and unlisted"));
    }
    Ok(entered)
}

/// Direct switches to umod, which loads from its stack: while it is mapped, and after it was taken
/// away with no flush but the runtime's (spec/hazards.md, row 20).
fn unmapped(world: &mut BareMetal<'_>) -> Ended {
    const USER: u32 = 4;
    let platform = world.platform();
    let mut rng = fastrand::Rng::with_seed(20);
    let mapping = |why: memory::MapError| format!("umod's stack: {why}");
    let mut entered = 0;
    for _ in 0..50 {
        for mapped in [true, false] {
            if !mapped {
                world.set_stack_mapped(false).map_err(mapping)?;
            }
            let mut setup = Setup::random(&mut rng, &platform, Mode::Smod)
                .with(Mode::Smod, place::ERETU, SYSCALL)
                .with(Mode::Umod, place::UMOD_CODE, &[LOAD, PROBE].concat());
            setup.regs.rdi = place::STACK + 8;
            setup.pvcs.eflags = RFlags::GUEST_FIXED.bits() as u32;
            let mut expected = Expected::to_umod(&setup, &platform);
            if mapped {
                expected.regs.rax &= !0xFF;
                expected.regs.rip += LOAD.len() as u64;
            } else {
                expected.exit = Expected::page_fault(USER, setup.regs.rdi);
            }
            // Entered in umod first, so that its translations are kept across direct switches.
            if mapped {
                let mut first = setup.clone();
                first.mode = Mode::Umod;
                first.regs.rip = place::UMOD_CODE;
                first.regs.eflags = RFlags::GUEST_FIXED.bits();
                let mut there = Expected::unchanged(&first, Expected::UD);
                there.regs.rax &= !0xFF;
                there.regs.rip += LOAD.len() as u64;
                check(world, &first, &there).map_err(|why| format!("in umod: {why}"))?;
            }
            let result = check(world, &setup, &expected);
            if !mapped {
                world.set_stack_mapped(true).map_err(mapping)?;
            }
            result.map_err(|why| format!("mapped {mapped}: {why}"))?;
            entered += 2;
        }
    }
    Ok(entered)
}

/// Watchpoints on a guest's data and on addresses of the host's (spec/hazards.md, row 31).
fn watchpoints(world: &mut BareMetal<'_>) -> Ended {
    let mut rng = fastrand::Rng::with_seed(31);
    let mut entered = 0;
    for (number, width) in
        [Width::One, Width::Two, Width::Four, Width::Eight].into_iter().enumerate()
    {
        let at = place::STACK + 8 * number as u64;
        let set = world.debug().set(number, Some((at, Access::Write(width))));
        set.map_err(|why| format!("{width:?}: {why}"))?;
        for (offset, hits) in [(0, true), (width.bytes() - 1, true), (width.bytes(), false)] {
            for mode in [Mode::Smod, Mode::Umod] {
                let mut setup = setup(world, &mut rng, mode, &[STORE, PROBE].concat());
                setup.regs.rdi = at + offset;
                let causes = 1 << number;
                let exit = if hits { Expected::debug(causes) } else { Expected::UD };
                let mut expected = Expected::unchanged(&setup, exit);
                expected.regs.rip += STORE.len() as u64;
                check(world, &setup, &expected)
                    .map_err(|why| format!("{width:?}, {offset} bytes behind: {why}"))?;
                entered += 1;
            }
        }
        let cleared = world.debug().set(number, None);
        cleared.map_err(|why| format!("{width:?}: {why}"))?;
    }
    // What straddles the end of the guest's range, and everything of the host's, is refused.
    let end = GUESTS.end - 4;
    let hosts = world.cpu().mappings().into_iter().map(|mapping| mapping.start & !7);
    for address in hosts.chain([GUESTS.end, memory::host_cr3(), 0x10_0000]).collect::<Vec<_>>() {
        for access in [Access::Execute, Access::ReadWrite(Width::Eight)] {
            if world.debug().set(0, Some((address, access))).is_ok() {
                return Err(format!("a breakpoint on {address:#x} was set"));
            }
        }
    }
    // SAFETY: a part of the guests' range, and it is armed for nobody.
    let mut straddling = unsafe { GuestDebug::new(place::TEXT..end) };
    let eight = Access::Write(Width::Eight);
    match straddling.set(0, Some((end & !7, eight))) {
        Err(DebugError::NotTheGuests { .. }) => {}
        other => return Err(format!("a watchpoint behind the end of the range: {other:?}")),
    }
    // A watchpoint in force when the guest exits is not in force in the host.
    let enabled = Dr7::read_raw() & 0xFF;
    if enabled != 0 || Dr7::read_raw() & 1 << 13 != 0 {
        return Err(format!("DR7 is {:#x} in the host", Dr7::read_raw()));
    }
    Ok(entered)
}

/// MOV SS from a watched word, and SYSCALL, on a stack that is none: the #DB of the watchpoint is
/// held off until the SYSCALL has been executed, and comes at its entry, in ring 0 (spec/hazards.md,
/// row 12: CVE-2018-8897). It is ignored there.
fn mov_ss(world: &mut BareMetal<'_>) -> Ended {
    /// MOV SS, [RDI]; SYSCALL.
    const MOV_SS_SYSCALL: &[u8] = &[0x8E, 0x17, 0x0F, 0x05];
    /// MOV [RDI], SS; MOV SS, [RDI]; SYSCALL.
    const STORE_SS: &[u8] = &[0x8C, 0x17];

    let platform = world.platform();
    let mut rng = fastrand::Rng::with_seed(12);
    let at = place::STACK + 0x40;
    let set = world.debug().set(1, Some((at, Access::ReadWrite(Width::Two))));
    set.map_err(|why| format!("{why}"))?;
    let mut entered = 0;
    for rsp in [1 << 63, place::first_non_canonical(platform.paging), 0, Stack::Nmi.top(0), 8] {
        for watched in [false, true] {
            // The word is written where it is watched, too: this alone traps.
            let mut setup = setup(world, &mut rng, Mode::Umod, &[STORE_SS, PROBE].concat());
            setup.regs.rdi = at;
            setup.regs.rsp = rsp;
            let mut expected = Expected::unchanged(&setup, Expected::debug(1 << 1));
            expected.regs.rip += STORE_SS.len() as u64;
            check(world, &setup, &expected).map_err(|why| format!("storing SS: {why}"))?;

            let mut setup = self::setup(world, &mut rng, Mode::Umod, MOV_SS_SYSCALL).with(
                Mode::Smod,
                place::SMOD_ENTRY,
                PROBE,
            );
            setup.regs.rdi = if watched { at } else { at + 0x40 };
            setup.regs.rsp = rsp;
            if !watched {
                // The unwatched word has SS as well: 0 would be a null selector.
                let store = [STORE_SS, PROBE].concat();
                let mut first = self::setup(world, &mut rng, Mode::Umod, &store);
                first.regs.rdi = at + 0x40;
                let mut stored = Expected::unchanged(&first, Expected::UD);
                stored.regs.rip += STORE_SS.len() as u64;
                check(world, &first, &stored).map_err(|why| format!("storing SS: {why}"))?;
                entered += 1;
            }
            let syscall = place::UMOD_CODE + 2;
            let outcome = world.run(&setup).map_err(|why| format!("{why:?}"))?;
            // QEMU's interpreter does not hold data breakpoints off.
            let at_once = Expected::debug(1 << 1);
            let expected = if watched && outcome.exit == at_once {
                let mut expected = Expected::unchanged(&setup, at_once);
                expected.regs.rip = syscall;
                expected
            } else {
                Expected::to_smod(&setup, &platform, syscall)
            };
            expected
                .compare(&setup, &outcome)
                .map_err(|why| format!("RSP {rsp:#x}, watched: {watched}: {why}"))?;
            entered += 2;
        }
    }
    entered += behind_mov_ss(world, &mut rng, at)?;
    world.debug().set(1, None).map_err(|why| format!("{why}"))?;
    Ok(entered)
}

/// What else the #DB of MOV SS is held off by: each instruction that leaves CPL 3 by an event. The guest
/// gets that event, and the host does not notice the other one. `watched` is of umod's, and holds SS.
fn behind_mov_ss(world: &mut BareMetal<'_>, rng: &mut fastrand::Rng, watched: u64) -> Ended {
    /// MOV SS, [RDI].
    const MOV_SS: &[u8] = &[0x8E, 0x17];
    /// Of a page fault: user.
    const U: u32 = 4;

    let gp = Expected::general_protection;
    // INT3; INT 0x80; INT 0x21, whose error code is another one in QEMU 7.2; CLI; MOV AL, [RSI];
    // SYSENTER, by vendor; INT1. What it is, whether it is a trap, and what may come of it.
    let behind: [(&[u8], bool, [Exit; 2]); 7] = [
        (&[0xCC], true, [Expected::exception(3); 2]),
        (&[0xCD, 0x80], true, [Exit::Interrupt { vector: 0x80 }; 2]),
        (&[0xCD, 0x21], false, [gp(0x21 * 8 + 2), gp(0x21 * 16 + 2)]),
        (&[0xFA], false, [gp(0); 2]),
        (&[0x8A, 0x06], false, [Expected::page_fault(U, place::NOWHERE); 2]),
        (&[0x0F, 0x34], false, [gp(0), Expected::UD]),
        (&[0xF1], true, [Expected::debug(0), Expected::debug(1 << 1)]),
    ];
    let mut entered = 0;
    for (code, is_trap, exits) in behind {
        for rsp in [1 << 63, 0, Stack::Nmi.top(0)] {
            let mut setup = setup(world, rng, Mode::Umod, &[MOV_SS, code].concat());
            (setup.regs.rdi, setup.regs.rsi, setup.regs.rsp) = (watched, place::NOWHERE, rsp);
            let outcome = world.run(&setup).map_err(|why| format!("{why:?}"))?;
            // QEMU's interpreter does not hold data breakpoints off.
            let at_once = Expected::debug(1 << 1);
            let is_early = outcome.exit == at_once && outcome.regs.rip == place::UMOD_CODE + 2;
            let known = exits.into_iter().find(|exit| *exit == outcome.exit).unwrap_or(exits[0]);
            let mut expected = Expected::unchanged(&setup, if is_early { at_once } else { known });
            let executed = if is_trap && !is_early { code.len() } else { 0 };
            expected.regs.rip += (MOV_SS.len() + executed) as u64;
            expected
                .compare(&setup, &outcome)
                .map_err(|why| format!("MOV SS, {code:x?}, RSP {rsp:#x}: {why}"))?;
            entered += 1;
        }
    }
    Ok(entered)
}

/// Exits call the host's untraining of returns, direct switches do not (spec/hazards.md, row 29). Only
/// this CPU runs guests now.
fn untraining(world: &mut BareMetal<'_>) -> Ended {
    let mut rng = fastrand::Rng::with_seed(29);
    let variant = *world.cpu().switcher().image().variant();
    let each = u64::from(variant.axes().mitigations.untrain);
    let mut entered = 0;
    // smod's SYSCALL is an exit; umod's leads to smod, which faults.
    for code in [PROBE, &[SYSCALL, PROBE].concat()] {
        for mode in [Mode::Smod, Mode::Umod] {
            for _ in 0..100 {
                let before = returns::untrained();
                let setup = setup(world, &mut rng, mode, code);
                let setup = setup.with(Mode::Smod, place::SMOD_ENTRY, PROBE);
                world.run(&setup).map_err(|why| format!("{why:?}"))?;
                let times = returns::untrained() - before;
                if times != each {
                    return Err(format!("{mode:?}: returns were untrained {times} times"));
                }
                entered += 1;
            }
        }
    }
    Ok(entered)
}

/// INT n for all n: three gates are a guest's, and everything else is #GP (spec/hazards.md, row 32).
fn int_n(world: &mut BareMetal<'_>) -> Ended {
    let mut rng = fastrand::Rng::with_seed(32);
    let mut entered = 0;
    for vector in 0..=255_u8 {
        for mode in [Mode::Smod, Mode::Umod] {
            let setup = setup(world, &mut rng, mode, &[0xCD, vector]);
            let outcome = world.run(&setup).map_err(|why| format!("{why:?}"))?;
            let exit = match vector {
                3 | 4 => Expected::exception(vector),
                0x80 => Exit::Interrupt { vector },
                _ => {
                    // The error code names the gate, 8 bytes each; 16 in QEMU 7.2.
                    let [manual, qemu] = [8, 16]
                        .map(|size| Expected::general_protection(u32::from(vector) * size + 2));
                    if outcome.exit == qemu { qemu } else { manual }
                }
            };
            let mut expected = Expected::unchanged(&setup, exit);
            if matches!(vector, 3 | 4 | 0x80) {
                expected.regs.rip += 2;
            }
            let compared = expected.compare(&setup, &outcome);
            compared.map_err(|why| format!("{mode:?}, INT {vector:#x}: {why}"))?;
            entered += 1;
        }
    }
    Ok(entered)
}

/// After an exit by an event, which on AMD leaves a null SS in ring 0, the guest is entered by SYSRET
/// and goes to 32-bit code, whose pushes need SS's attributes (spec/hazards.md, row 18).
fn push_in_32_bits(world: &mut BareMetal<'_>) -> Ended {
    /// MOV DWORD [RSP], TEXT32; MOV WORD [RSP+4], user32_cs; JMP FAR DWORD [RSP].
    const TO_32_BITS: &[u8] =
        &[0xC7, 0x04, 0x24, 0, 0, 0, 0xC0, 0x66, 0xC7, 0x44, 0x24, 0x04, 0x23, 0, 0xFF, 0x2C, 0x24];
    /// A page fault's error code.
    const USER_WRITE: u32 = 6;
    /// PUSH EAX; UD2.
    const PUSH: &[u8] = &[0x50, 0x0F, 0x0B];
    let platform = world.platform();
    let cs = u64::from(platform.selectors.user32_cs());
    if cs != u64::from(TO_32_BITS[12]) || place::TEXT32 != 0xC000_0000 {
        return Err("the guest's program is for other places".into());
    }
    let mut rng = fastrand::Rng::with_seed(18);
    let mut entered = 0;
    for round in 0..20 {
        for by_eretu in [false, true] {
            // The exit by an event.
            let first = setup(world, &mut rng, Mode::Umod, PROBE);
            check(world, &first, &Expected::unchanged(&first, Expected::UD))?;
            // The entry, straight to umod or to smod, whose ERETU returns by SYSRET as well.
            let flags = RFlags::GUEST_FIXED.bits();
            let mut setup = setup(world, &mut rng, Mode::Umod, TO_32_BITS)
                .with(Mode::Umod, place::TEXT32, PUSH)
                .with(Mode::Smod, place::ERETU, SYSCALL);
            let regs = &mut setup.regs;
            // Registers beyond 32 bits are not defined in 32-bit mode.
            for register in [
                &mut regs.rax,
                &mut regs.rbx,
                &mut regs.rdx,
                &mut regs.rsi,
                &mut regs.rdi,
                &mut regs.rbp,
            ] {
                *register &= u64::from(u32::MAX);
            }
            (regs.rcx, regs.r11, regs.eflags) = (regs.rip, flags, flags);
            regs.rsp = STACK32 + 0x800;
            let pvcs = &mut setup.pvcs;
            (pvcs.user_cs, pvcs.user_ss) =
                (platform.selectors.user_cs(), platform.selectors.user_ds());
            (pvcs.rip, pvcs.rcx, pvcs.rsp) = (place::UMOD_CODE, place::UMOD_CODE, STACK32 + 0x800);
            (pvcs.r11, pvcs.eflags) = (flags, flags as u32);
            if by_eretu {
                setup.mode = Mode::Smod;
                setup.regs.rip = place::ERETU;
                setup.regs.rcx = place::ERETU;
            }
            let mut expected = match by_eretu {
                true => Expected::to_umod(&setup, &platform),
                false => Expected::unchanged(&setup, Expected::UD),
            };
            expected.regs.cs = cs;
            expected.regs.rip = place::TEXT32 + 1;
            expected.regs.rsp = STACK32 + 0x800 - 4;
            let outcome = world.run(&setup).map_err(|why| format!("{why:?}"))?;
            // Bochs, 3.0 too, keeps SS's attributes as AMD's SYSRET does, on Intel's models too. Nothing
            // reloads SS there, and the one that an event leaves has stacks of 16 bits.
            let in_16_bits = Expected::page_fault(USER_WRITE, (STACK32 + 0x800 - 4) & 0xFFFF);
            if platform.vendor == Vendor::Intel && outcome.exit == in_16_bits {
                expected.exit = in_16_bits;
                expected.regs.rip = place::TEXT32;
                expected.regs.rsp = STACK32 + 0x800;
            }
            expected
                .compare(&setup, &outcome)
                .map_err(|why| format!("round {round}, by ERETU: {by_eretu}: {why}"))?;
            entered += 2;
        }
    }
    Ok(entered)
}

/// Another CPU writes to the PVCS all the time, while this one makes direct switches through it:
/// whatever the switcher reads, and however often, nothing comes of it but the guest's own faults
/// (spec/hazards.md, row 24).
fn flipping_pvcs(world: &mut BareMetal<'static>) -> Ended {
    /// Entries. Each makes direct switches until one of them leads to an exit.
    const ENTRIES: u64 = 2000;
    static STOP: AtomicBool = AtomicBool::new(false);
    static WRITTEN: AtomicU64 = AtomicU64::new(0);

    let platform = world.platform();
    let selectors = platform.selectors;
    let behind = place::first_non_canonical(platform.paging);
    let rips = [place::UMOD_CODE, place::UMOD_CODE + 0x40, behind, 1 << 63, place::NOWHERE];
    let flags = [0x202_u64, 0x202 | RFlags::TF.bits(), 0x202 | RFlags::RF.bits(), 0x3_7FFF_FFFF];
    let pairs = [
        u64::from(selectors.user_cs()) | u64::from(selectors.user_ds()) << 16,
        u64::from(selectors.kernel_cs()) | u64::from(selectors.kernel_ds()) << 16,
        0,
    ];
    STOP.store(false, Ordering::Release);
    WRITTEN.store(0, Ordering::Release);
    let pvcs = world.pvcs_address() as usize;
    let words = match platform.revision {
        Revision::Rfc => words_of::<Pvcs>(),
        Revision::Current => words_of::<PvcsCurrent>(),
    };
    let flip = move || {
        let mut rng = fastrand::Rng::with_seed(24);
        let word = |at: usize| core::ptr::with_exposed_provenance_mut::<u64>(pvcs + at);
        while !STOP.load(Ordering::Acquire) {
            let rip = rips[rng.usize(..rips.len())];
            let eflags = flags[rng.usize(..flags.len())];
            // Most of the time, what lets ERETU succeed, so that it is tried again at once.
            let usual = rng.u8(..) < 200;
            let pair = pairs[if usual { 0 } else { rng.usize(..pairs.len()) }];
            let rip = if usual { rips[rng.usize(..2)] } else { rip };
            // Bochs 2.7 lets key 0's bits apply to the supervisor's pages as well.
            let pkru = u64::from(rng.u32(..) & Setup::PKRU);
            let values = [
                pair,
                rng.u64(..),
                eflags & 0xFFFF_FFFF | pkru << 32,
                rip,
                if rng.bool() { rip } else { rng.u64(..) },
                if rng.bool() { eflags } else { rng.u64(..) },
                rng.u64(..),
            ];
            for (&at, value) in words.iter().zip(values) {
                // SAFETY: the PVCS's frame is in the identity map, and nothing has a reference into
                // it; the words are aligned and within its 128 bytes. Whoever reads expects anything.
                unsafe { word(at).write_volatile(value) }
            }
            WRITTEN.fetch_add(1, Ordering::Relaxed);
        }
    };
    smp::start(1, Box::new(flip)).map_err(|why| format!("{why}"))?;
    let result = switch_for(world, ENTRIES, &rips);
    STOP.store(true, Ordering::Release);
    smp::wait(1);
    let written = WRITTEN.load(Ordering::Acquire);
    if written < ENTRIES {
        return Err(format!("the other CPU has written only {written} times"));
    }
    result
}

/// Where a PVCS has the words that a switcher reads: both selectors, GS base, flags and protection
/// keys, RIP, RCX, R11, and RSP, if it has that.
fn words_of<P: PvcsLayout>() -> Vec<usize> {
    [
        P::USER_CS.bytes(),
        P::USER_GSBASE.bytes(),
        P::EFLAGS.bytes(),
        P::RIP.bytes(),
        P::RCX.bytes(),
        P::R11.bytes(),
    ]
    .into_iter()
    .chain(P::RSP.map(|rsp| rsp.bytes()))
    .collect()
}

/// Enters guests that make direct switches for as long as the PVCS lets them.
fn switch_for(world: &mut BareMetal<'_>, entries: u64, rips: &[u64]) -> Ended {
    /// 1: SYSCALL; JMP 1b.
    const AGAIN: &[u8] = &[0x0F, 0x05, 0xEB, 0xFC];
    let platform = world.platform();
    let mut rng = fastrand::Rng::with_seed(25);
    let mut in_umod = 0;
    for entry in 0..entries {
        // smod: ERETU. umod, at both of its addresses: SYSCALL, which leads to ERETU; again.
        let mut setup = Setup::random(&mut rng, &platform, Mode::Smod)
            .with(Mode::Smod, place::ERETU, SYSCALL)
            .with(Mode::Umod, place::UMOD_CODE, AGAIN)
            .with(Mode::Umod, place::UMOD_CODE + 0x40, AGAIN);
        setup.smod_entry = place::ERETU;
        setup.regs.eflags = RFlags::GUEST_FIXED.bits();
        let outcome = world.run(&setup).map_err(|why| format!("entry {entry}: {why:?}"))?;
        let wrong = |what: &str| Err(format!("entry {entry}: {what}: {outcome:x?}"));
        // Everything but what the PVCS gives is the guest's own, whatever has been read of it.
        let Expected { mut regs, .. } = Expected::unchanged(&setup, outcome.exit);
        let got = outcome.regs;
        (regs.rip, regs.rcx, regs.r11) = (got.rip, got.rcx, got.r11);
        (regs.eflags, regs.orig_ax) = (got.eflags, got.orig_ax);
        if platform.revision == Revision::Rfc {
            regs.rsp = got.rsp;
        }
        if got != regs {
            return wrong("a register has changed");
        }
        let flags = RFlags::from_bits_retain(got.eflags) - RFlags::RF;
        if flags != flags.sanitised() - RFlags::RF {
            return wrong("forbidden flags");
        }
        if !platform.paging.is_canonical(outcome.gs_base) {
            return wrong("GS base is no address");
        }
        if outcome.host.without_arithmetic() != HostAfter::IN_ORDER {
            return wrong("the host is not in order");
        }
        let is_right = match (outcome.exit, outcome.mode) {
            // Other selectors are the host's business, and of umod's SYSCALLs none exits.
            (Exit::Syscall, Mode::Smod) => got.rip == place::RETU_RIP,
            (Exit::Exception(exception), Mode::Umod) => {
                in_umod += 1;
                match exception.detail {
                    // Where nothing is mapped.
                    Detail::Cr2(address) => address == got.rip && rips.contains(&address),
                    // TF.
                    Detail::Dr6(causes) => causes == DebugCauses::SINGLE_STEP,
                    Detail::None => exception.vector == 13 && rips.contains(&got.rip),
                }
            }
            // An emulator's #DB after a SYSCALL with TF.
            (Exit::Exception(exception), Mode::Smod) => exception.vector == 1,
            _ => false,
        };
        if !is_right {
            return wrong("an exit that nothing in the PVCS leads to");
        }
    }
    match in_umod {
        0 => Err("no guest came to umod".into()),
        _ => Ok(entries),
    }
}
