//! Interruptions before every instruction of a path through the switcher.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hw_platform::hooks;
use switcher_runtime::switcher_gen::arch::vector;
use switcher_runtime::switcher_gen::asm::Label;
use switcher_runtime::switcher_gen::layout::PtRegs;

use crate::bench::Ended;
use crate::case_host::BareMetal;
use crate::idt::{aim_breakpoint, call_under_copy, set_breakpoint};
use crate::paths::Path;

/// Calls the switcher with an instruction breakpoint in it. Its #DB takes the entry and the stack
/// of an NMI or a machine check. The hook sets RF, so that the instruction is executed afterwards;
/// the breakpoint is met again if the path passes it again.
///
/// # Safety
/// The contract of [`call_under_copy`] must hold.
unsafe fn call_with_breakpoint(entry: u64) -> *mut PtRegs {
    hooks::set_resuming(true);
    set_breakpoint(true);
    // SAFETY: the caller vouches for it. The switcher resumes after what happens at the breakpoint.
    let frame = unsafe { call_under_copy(entry) };
    set_breakpoint(false);
    hooks::set_resuming(false);
    frame
}

/// An interruption that comes before an instruction.
pub(crate) struct Interruption {
    /// The name of the interruption, for messages.
    pub(crate) name: &'static str,
    /// Runs a guest with a breakpoint at which the interruption comes.
    pub(crate) call: unsafe fn(u64) -> *mut PtRegs,
    /// The number of interruptions so far, or an error if one has gone wrong.
    pub(crate) count: fn() -> Result<u64, String>,
    /// Whether the breakpoint itself stands for the interruption. Then it comes each time that the
    /// path passes the instruction, and exactly there.
    pub(crate) is_breakpoint: bool,
    /// Whether it may return without an IRET. QEMU's interpreter leaves a null SS on any stack of
    /// the IST, which only an IRET puts back there.
    pub(crate) may_leave_ss: bool,
}

/// A breakpoint that stands for an NMI or a machine check.
pub(crate) const fn taken_for(name: &'static str, may_leave_ss: bool) -> Interruption {
    Interruption {
        name,
        may_leave_ss,
        call: call_with_breakpoint,
        count: || Ok(hooks::hooked_nmis() + hooks::hooked_machine_checks()),
        is_breakpoint: true,
    }
}

/// Interrupts every instruction of one path. Returns the number of interruptions.
pub(crate) fn boundaries(
    host: &mut BareMetal<'_>,
    path: &mut Path,
    interruption: &Interruption,
) -> Ended {
    let Interruption { name, call, count, is_breakpoint, may_leave_ss } = *interruption;
    let switcher = host.cpu().switcher();
    let base = switcher.base();
    let stubs = switcher.address(Label::EventStubs);
    hooks::set_no_rf_from(switcher.address(Label::RoutinesEnd));
    // These are all routines, the stubs of the two exceptions that end these guests, and the stub
    // of the NMI.
    let stub = |vector| {
        let at = base + u64::from(switcher.image().gate(vector).offset);
        at..at + 8
    };
    let all =
        (base..stubs).chain(stub(vector::UD)).chain(stub(vector::GP)).chain(stub(vector::NMI));
    // The first run has no breakpoint in the path: it is at address 0, where nothing is executed.
    let addresses: Vec<_> = match &path.met[..] {
        [] => [0].into_iter().chain(all).collect(),
        met => met.to_vec(),
    };
    let by = path.by.iter().map(|(label, times)| (switcher.address(*label), *times));
    let by: Vec<_> = by.collect();
    let (executed, times) = path.executes;
    let code = switcher.linked().bytes().windows(executed.len());
    let executed_at: Vec<_> =
        (base..).zip(code).filter_map(|(at, code)| (code == executed).then_some(at)).collect();

    let same = |host: &mut BareMetal<'_>, at: u64| {
        // SAFETY: `call` does what `checked_call` does; a copy of the IDT exists.
        let outcome = unsafe { host.run_by(&path.setup, call) };
        let mut outcome = outcome.map_err(|why| format!("{}: {why:?}", path.name))?;
        outcome.host.stack_segment_loaded |= may_leave_ss;
        let [expected, other] = &path.expected;
        let compared = expected.compare(&path.setup, &outcome);
        compared
            .or_else(|_| other.compare(&path.setup, &outcome))
            .map_err(|why| format!("{}, {name} at {at:#x}: {}", path.name, why.0))
    };

    let mut met = Vec::new();
    let mut all = 0;
    let mut found = 0;
    let mut executed = 0;
    for at in addresses {
        aim_breakpoint(at);
        let before = count()?;
        same(host, at)?;
        let here = count().map_err(|why| format!("{}, at {at:#x}: {why}", path.name))? - before;
        if is_breakpoint && here != 0 && hooks::last_interrupted() != at {
            let got = hooks::last_interrupted();
            return Err(format!("{}: the hook saw {got:#x}, not {at:#x}", path.name));
        }
        if let Some((_, least)) = by.iter().find(|(label, _)| *label == at) {
            // An interruption that the breakpoint sends comes when it is met first.
            let least = if is_breakpoint { *least } else { 1 };
            if here < least {
                return Err(format!("{}: {name} came {here} times at {at:#x}", path.name));
            }
            found += 1;
        }
        if here != 0 || at == 0 {
            met.push(at);
        }
        all += here;
        executed += if executed_at.contains(&at) { here } else { 0 };
    }
    if executed < times {
        return Err(format!("{}: {name} came {executed} times at its return", path.name));
    }
    if all < path.least {
        return Err(format!("{}: {name} came only {all} times", path.name));
    }
    if found != by.len() {
        return Err(format!("{}: {found} of {} places are in the code", path.name, by.len()));
    }
    path.met = met;
    Ok(all)
}
