//! What the model says of ring 0: the table that the bare-metal kernel compares with.

use hw_protocol::vectors::{
    CODE, DATA, DATA_LEN, NO_ERROR, NONE, Needs, Platforms, Registers, Vector, VectorEnd,
    VectorProgram, filler, write,
};
use switcher_engine::fuzz::scenario::Random;
use switcher_gen::arch::{PagingMode, RFlags, Selectors, Vendor, vector};
use switcher_gen::layout::PtRegs;
use switcher_model as machine;
use switcher_model::{
    CR4, CR4_PCIDE, CR4_PKE, Concrete, CpuModel, EFER, Features, Flags, Gpr, Memory, Msrs, Region,
    RegionName, State, Step, Stuck, Unobserved,
};

use crate::forms::{self, Form};
use crate::known;
use crate::random::operands;

/// Random states of what is the same at any privilege level.
const STATES: usize = 12;
/// Random states of what is ring 0's.
const STATES_OF_RING_0: usize = 64;
/// How many states are tried until the outcome of one can be foretold.
const TRIES: usize = 64;
/// The limit of instructions. No program has as many.
const LONGEST: usize = 64;
/// Where the kernel has its GDT entries.
const SELECTORS: Selectors = Selectors::DEFAULT;

/// The last addresses and the first ones of each canonical half and of what lies between them.
const EDGES: [u64; 8] = [
    (1 << 47) - 1,
    1 << 47,
    (1 << 56) - 1,
    1 << 56,
    !(1 << 56),
    !((1 << 56) - 1),
    !(1 << 47),
    !((1 << 47) - 1),
];

const PLATFORMS: [(Vendor, PagingMode); 4] = [
    (Vendor::Intel, PagingMode::FourLevel),
    (Vendor::Intel, PagingMode::FiveLevel),
    (Vendor::Amd, PagingMode::FourLevel),
    (Vendor::Amd, PagingMode::FiveLevel),
];

/// The table for an engine: the same on every run, and the same for all engines but for what their
/// CPUs are [`known`] to do otherwise.
///
/// # Panics
/// If a form cannot be assembled, or the model has no semantics for it: a mistake in [`forms`].
#[must_use]
pub fn table(engine: &str) -> Vec<u8> {
    let known: Vec<_> = known::ALL.iter().filter(|known| known.engines.contains(&engine)).collect();
    let mut code = Vec::new();
    let mut starts = Vec::new();
    let mut vectors = Vec::new();
    let everywhere = forms::everywhere().into_iter().map(|form| (form, STATES));
    let of_ring_0 = forms::ring_0().into_iter().map(|form| (form, STATES_OF_RING_0));
    // The states of a form are chosen by its number: what is new comes last, and the others keep
    // theirs.
    let new = [forms::exchanges(), forms::strings_and_loops()].into_iter().flatten();
    let new = new.map(|form| (form, STATES));
    let forms: Vec<_> = everywhere.chain(of_ring_0).chain(new).collect();
    for (index, (form, states)) in forms.iter().enumerate() {
        let name = &form.name;
        let start = CODE + code.len() as u64;
        let bytes = form.assemble(start).unwrap_or_else(|why| panic!("{name}: {why}"));
        starts.push(code.len() as u32);
        code.extend(&bytes);
        let program = machine::Program::new(start, bytes);
        let mut random = Random(index as u64);
        for _ in 0..*states {
            let mut found = (0..TRIES)
                .map(|_| foretell(form, &program, &before(&mut random, start)))
                .find(|found| !found.is_empty())
                .unwrap_or_else(|| panic!("{name}: no state can be foretold"));
            for vector in &mut found {
                vector.program = index as u16;
                let of = known.iter().position(|known| (known.concerns)(name, vector));
                vector.known = of.map_or(NONE, |of| of as u16);
            }
            vectors.append(&mut found);
        }
    }
    let programs: Vec<_> = forms
        .iter()
        .zip(starts)
        .map(|((form, _), offset)| VectorProgram {
            offset,
            undefined: form.undefined,
            name: &form.name,
        })
        .collect();
    let reasons: Vec<_> = known.iter().map(|known| known.why).collect();
    write(&code, &reasons, &programs, &vectors)
}

/// A random state of ring 0.
fn before(random: &mut Random, rip: u64) -> Registers {
    let r: PtRegs = operands(random, DATA);
    // Of the manuals' flags: TF would trap after each instruction, RF has no effect that is not one
    // of TF or of breakpoints, and VIF, VIP and VM are of another mode.
    let flags = RFlags::from_bits_truncate(random.next())
        .difference(RFlags::TF | RFlags::RF | RFlags::VM | RFlags::VIF | RFlags::VIP);
    let mut gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ];
    let [rax, rcx, rdx] = [Gpr::Rax, Gpr::Rcx, Gpr::Rdx].map(|register| register as usize);
    let edge = EDGES[random.below(EDGES.len() as u64) as usize];
    match random.below(4) {
        0 => (gpr[rax], gpr[rcx]) = (edge, edge),
        1 => (gpr[rax], gpr[rdx]) = (edge & 0xFFFF_FFFF, edge >> 32),
        _ => {}
    }
    // Both are canonical, or nothing could have loaded them.
    let mut base = || match random.below(4) {
        0 => random.next() >> 17,
        1 => random.next() >> 17 | 0xFFFF_8000_0000_0000,
        _ => DATA + 8 * random.below(32),
    };
    Registers {
        gpr,
        rip,
        rflags: flags.bits() | RFlags::FIXED.bits(),
        ss: SELECTORS.kernel_ds().into(),
        gs_base: DATA,
        kernel_gs_base: base(),
        fs_base: base(),
    }
}

/// What comes of a state, on each platform; one vector for those that agree. The program is not
/// named yet.
fn foretell(form: &Form, program: &machine::Program, before: &Registers) -> Vec<Vector> {
    let outcome = |vendor, paging| {
        // Forms that need something are run where it is.
        let features = Features::all();
        let model = CpuModel { vendor, paging, selectors: SELECTORS, aliases: None, features };
        run(&form.name, &model, program, before)
    };
    let mut vectors: Vec<Vector> = Vec::new();
    for (vendor, paging) in PLATFORMS {
        let Some(after) = outcome(vendor, paging) else { continue };
        let mut needs = form.needs;
        if outcome(vendor, PagingMode::FiveLevel).is_some_and(|wider| wider != after) {
            needs |= Needs::NO_LA57;
        }
        let platform = Platforms::of(vendor, paging);
        match vectors.iter_mut().find(|vector| vector.after == after && vector.needs == needs) {
            Some(vector) => vector.platforms |= platform,
            None => vectors.push(Vector {
                program: 0,
                platforms: platform,
                needs,
                known: NONE,
                before: *before,
                after,
            }),
        }
    }
    vectors
}

/// Runs a program until its exception. `None` if it reaches for memory of which nobody knows here
/// what the kernel has there.
fn run(
    name: &str,
    model: &CpuModel,
    program: &machine::Program,
    before: &Registers,
) -> Option<VectorEnd> {
    let d = &Concrete::default();
    let page: Vec<u8> = (0..DATA_LEN / 8).flat_map(|word| filler(word).to_le_bytes()).collect();
    let mut state = State {
        gpr: before.gpr,
        rip: before.rip,
        flags: Flags::new(d, before.rflags),
        cs: model.selectors.kernel_cs().into(),
        ss: before.ss,
        cpl: 0,
        gs_base: before.gs_base,
        inactive_gs_base: before.kernel_gs_base,
        fs_base: before.fs_base,
        // Any: what depends on it is taken out by the programs.
        cr3: 0x1000,
        // Programs with RDPKRU and WRPKRU, or with NOFLUSH, are run where these are switched on.
        cr4: CR4 | CR4_PKE | CR4_PCIDE,
        pkru: 0,
        nmi_blocked: false,
        msrs: Msrs { star: 0, lstar: 0, cstar: 0, sfmask: 0, spec_ctrl: 0, efer: EFER },
        memory: Memory {
            regions: vec![Region::new(RegionName::Stack, DATA, 0, page)],
            racing: false,
        },
    };
    for _ in 0..LONGEST {
        let at = state.gpr;
        let op = program.at(state.rip).and_then(Result::ok).copied();
        let step = state.step(d, model, program, &mut Unobserved);
        let (vector, error_code) = match step {
            Ok(Step::Next) => continue,
            Ok(Step::Fault(fault)) => {
                let op = op.unwrap_or_else(|| panic!("{name}: a fault of no instruction"));
                if op.is_trap(&fault) {
                    state.rip = op.next;
                }
                (fault.vector, fault.error_code.map_or(NO_ERROR, |code| code as u32))
            }
            Err(Stuck::Wild { address, .. }) if !model.paging.is_canonical(address) => {
                let on_stack = op.is_some_and(|op| op.is_on_stack());
                (if on_stack { vector::SS } else { vector::GP }, 0)
            }
            Err(Stuck::Wild { .. }) => return None,
            other => panic!("{name} at {:#x}: {other:?}", state.rip),
        };
        // An instruction that faults changes no register.
        state.gpr = at;
        let page = &state.memory.regions[0].cells;
        let changed = |(index, word): (usize, &[u8])| {
            let word = u64::from_le_bytes(word.try_into().ok()?);
            (word != filler(index)).then_some((index as u16, word))
        };
        return Some(VectorEnd {
            registers: Registers {
                gpr: state.gpr,
                rip: state.rip,
                rflags: state.rflags(d) & !RFlags::RF.bits(),
                ss: state.ss,
                gs_base: state.gs_base,
                kernel_gs_base: state.inactive_gs_base,
                fs_base: state.fs_base,
            },
            vector,
            error_code,
            memory: page.chunks_exact(8).enumerate().filter_map(changed).collect(),
        });
    }
    panic!("{name}: does not end")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hw_protocol::vectors::VectorTable;

    #[test]
    fn the_table_covers_every_form_on_every_platform() {
        let bytes = table("");
        assert!(bytes == table(""), "two runs, two tables");
        let table = VectorTable::parse(&bytes).unwrap();
        let vectors: Vec<_> = table.vectors().map(Result::unwrap).collect();
        for (vendor, paging) in PLATFORMS {
            let platform = Platforms::of(vendor, paging);
            for (index, program) in table.programs.iter().enumerate() {
                let covers = |vector: &&Vector| {
                    usize::from(vector.program) == index && vector.platforms.contains(platform)
                };
                let count = vectors.iter().filter(covers).count();
                // What is no address under four levels may be one that nobody knows of under five.
                assert!(count >= STATES / 2, "{}: {count}", program.name);
            }
        }
        println!("{} vectors, {} bytes", vectors.len(), bytes.len());
    }

    #[test]
    fn every_known_difference_concerns_some_vector() {
        for known in known::ALL {
            for engine in known.engines {
                let bytes = table(engine);
                let table = VectorTable::parse(&bytes).unwrap();
                let index = table.known.iter().position(|why| *why == known.why).unwrap();
                let concerns = |vector: Vector| usize::from(vector.known) == index;
                assert!(table.vectors().map(Result::unwrap).any(concerns), "{}", known.why);
            }
        }
    }
}
