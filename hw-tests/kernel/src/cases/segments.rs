//! Segment registers and FS base: each guest has its own, and so has the host.

use alloc::format;

use hw_platform::segments;
use switcher_gen::program;
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::{DataSelectors, Guest, State};

use crate::bench::{Ended, HostCase};
use crate::case_host::BareMetal;
use crate::programs::PROBE;
use crate::refusal::{enter, expect, guest, refused};
use crate::registers::{host_segments, set_host_segments};

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/segment_registers_and_fs_base_are_each_ones_own",
    shown: "Nobody sees another one's segment registers or FS base.",
    rows: &[Hazard::VisibleHostState],
    cpus: 1,
    needs: &[],
    run: |bench| segment_registers(bench.host()?),
}];

/// The host and each guest have segment registers and an FS base of their own: nobody sees
/// another's.
fn segment_registers(host: &mut BareMetal<'_>) -> Ended {
    const READ: &[u8] = program!(
        ; mov eax, ds
        ; mov ebx, es
        ; mov ecx, fs
        ; mov edx, gs
        ; rdfsbase rsi
    );
    const WRITE: &[u8] = program!(
        ; mov ds, ax
        ; mov es, bx
        ; mov fs, cx
        ; mov gs, dx
        ; wrfsbase rsi
    );
    const HOST_FS: u64 = 0x0000_1234_5678_9ABC;
    const GUEST_FS: u64 = 0xFFFF_8765_4321_0FED;

    let kernel = segments::KERNEL_DS;
    let (user, code, code32) = (segments::USER_DS, segments::USER_CS, segments::USER32_CS);
    let at_first = host_segments();
    set_host_segments([kernel; 4], HOST_FS);
    let mine = host_segments();

    let mut entered = 0;
    let mut ended = Ok(());
    // Null selectors with an RPL are not among them, because IRETQ makes some of them 0.
    // An RPL below 3 is kept, and such a selector can be loaded again.
    let other_rpls = [user & !3, code & !1, code32 & !2, user & !3];
    for theirs in [[user, code, code32, user], other_rpls, [0, 0, user, 0], [code32, user, 0, 0]] {
        let result = (|| {
            let is = |guest: &Guest, what: &str| {
                let regs = guest.regs;
                let found = [regs.rax, regs.rbx, regs.rcx, regs.rdx].map(|reg| reg as u16);
                Err(format!("{what}: {found:x?}, {:#x}, not {theirs:x?}", regs.rsi))
            };
            // A new guest sees nothing of the host's.
            let mut one = guest(host, READ);
            enter(host, &mut one)?;
            let regs = one.regs;
            if (regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi) != (0, 0, 0, 0, 0) {
                return is(&one, "a new guest");
            }
            // The guest loads its own, and has them the next time, whoever has run in between.
            let mut two = guest(host, WRITE);
            let [ds, es, fs, gs] = theirs;
            two.regs.rax = ds.into();
            (two.regs.rbx, two.regs.rcx, two.regs.rdx) = (es.into(), fs.into(), gs.into());
            two.regs.rsi = GUEST_FS;
            enter(host, &mut two)?;
            if two.selectors != (DataSelectors { ds, es, fs, gs }) || two.fs_base() != GUEST_FS {
                return Err(format!("{:x?}, {:#x}", two.selectors, two.fs_base()));
            }
            if host_segments() != mine {
                return Err(format!("the host has {:x?}, not {mine:x?}", host_segments()));
            }
            let mut other = guest(host, READ);
            enter(host, &mut other)?;
            if other.regs.rsi != 0 || other.regs.rax != 0 {
                return is(&other, "another guest");
            }
            let again = guest(host, READ);
            (two.regs, _) = (again.regs, again);
            enter(host, &mut two)?;
            let regs = two.regs;
            let found = [regs.rax, regs.rbx, regs.rcx, regs.rdx].map(|reg| reg as u16);
            if found != theirs || regs.rsi != GUEST_FS {
                return is(&two, "the guest's second time");
            }
            entered += 4;
            Ok(())
        })();
        ended = ended.and(result);
    }
    // Selectors that cannot be loaded are refused, and nothing has been loaded then.
    for bad in [kernel, kernel | 3, kernel | 1, user | 4, segments::TSS | 3, 0xFFFB] {
        let mut guest = guest(host, PROBE);
        guest.selectors.es = bad;
        let said = refused(host, &mut guest);
        ended = ended.and(expect(&format!("ES {bad:#x}"), said, State::Segments));
    }
    if host_segments() != mine {
        ended = ended.and(Err(format!("the host has {:x?}, not {mine:x?}", host_segments())));
    }
    set_host_segments(at_first.0, at_first.1);
    ended.map(|()| entered)
}
