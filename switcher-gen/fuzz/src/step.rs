//! Decoding and executing any bytes, on numbers and on terms that are constants.

use iced_x86::{Decoder, DecoderOptions};
use switcher_gen::arch::{PagingMode, Selectors, Vendor};
use switcher_model::symbolic::{self, Symbolic};
use switcher_model::{
    CR4, CR4_PCIDE, CR4_PKE, Concrete, CpuModel, Domain, EFER, Effect, Features, Flags, Gpr,
    Memory, Msrs, Observer, Op, Program, Region, RegionName, State, Step, Stuck,
};
use yaxpeax_arch::LengthedInstruction as _;
use yaxpeax_x86::long_mode::InstDecoder;

/// Where the code lies.
pub const CODE: u64 = 0xFFFF_FE80_0000_0000;
/// Where the memory lies that it can access, and how much there is.
pub const DATA: u64 = 0x4000_0000;
/// Its size in bytes.
pub const DATA_LEN: usize = 256;
/// No more code than this is looked at.
const LONGEST: usize = 48;
/// So many instructions are executed.
const STEPS: usize = 6;

/// What a run begins with, as bytes: first a byte of [`Input::platform`], then RFLAGS, the
/// features, the general registers and the beginning of the memory; what follows is code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Bit 0: AMD; bit 1: five levels; bit 2: CPL 3; bit 3: NMIs are blocked.
    pub platform: u8,
    /// RFLAGS.
    pub rflags: u32,
    /// What the CPU has.
    pub features: u32,
    /// By number.
    pub gpr: [u64; 16],
    /// Repeated to fill the memory.
    pub memory: [u8; 32],
    /// The code.
    pub code: Vec<u8>,
}

impl Input {
    /// Reads an input. `None` if it is too short.
    #[must_use]
    pub fn read(data: &[u8]) -> Option<Self> {
        let (&[platform], data) = data.split_first_chunk()?;
        let (rflags, data) = data.split_first_chunk()?;
        let (features, data) = data.split_first_chunk()?;
        let (mut gpr, mut data) = ([0; 16], data);
        for register in &mut gpr {
            let (value, rest) = data.split_first_chunk()?;
            (*register, data) = (u64::from_le_bytes(*value), rest);
        }
        let (memory, code) = data.split_first_chunk()?;
        Some(Self {
            platform,
            rflags: u32::from_le_bytes(*rflags),
            features: u32::from_le_bytes(*features),
            gpr,
            memory: *memory,
            code: code[..code.len().min(LONGEST)].to_vec(),
        })
    }

    /// As bytes.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = vec![self.platform];
        bytes.extend(self.rflags.to_le_bytes());
        bytes.extend(self.features.to_le_bytes());
        self.gpr.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        bytes.extend(self.memory);
        bytes.extend(&self.code);
        bytes
    }

    const fn has(&self, bit: u8) -> bool {
        self.platform >> bit & 1 != 0
    }

    fn model(&self) -> CpuModel {
        CpuModel {
            vendor: if self.has(0) { Vendor::Amd } else { Vendor::Intel },
            paging: if self.has(1) { PagingMode::FiveLevel } else { PagingMode::FourLevel },
            selectors: Selectors::DEFAULT,
            aliases: None,
            features: Features::from_bits_truncate(self.features),
        }
    }

    /// The state that it describes, of whatever kind of value.
    fn state<D: Domain>(&self, d: &D) -> State<D> {
        let selectors = Selectors::DEFAULT;
        let (cs, ss, cpl) = match self.has(2) {
            true => (selectors.user_cs(), selectors.user_ds(), 3),
            false => (selectors.kernel_cs(), selectors.kernel_ds(), 0),
        };
        let memory: Vec<u8> = self.memory.iter().copied().cycle().take(DATA_LEN).collect();
        let data = d.word(DATA);
        State {
            gpr: self.gpr.map(|value| d.word(value)),
            rip: d.code(CODE),
            flags: Flags::new(d, d.word(u64::from(self.rflags) & switcher_model::WRITABLE | 2)),
            cs: d.word(cs.into()),
            ss: d.word(ss.into()),
            cpl,
            gs_base: data,
            inactive_gs_base: d.word(self.gpr[3]),
            fs_base: data,
            cr3: d.word(0x1000),
            cr4: d.word(CR4 | CR4_PKE | CR4_PCIDE),
            pkru: d.word(0),
            nmi_blocked: d.bit(self.has(3)),
            msrs: Msrs {
                star: d.word(selectors.star().bits()),
                lstar: d.word(CODE),
                cstar: d.word(CODE + 1),
                sfmask: d.word(0x4_7700),
                spec_ctrl: d.word(0),
                efer: d.word(EFER),
            },
            memory: Memory {
                regions: vec![Region::new(RegionName::Stack, data, 0, d.cells(&memory))],
                racing: false,
            },
        }
    }
}

/// Decodes and executes an input, and asserts what must be so of any.
///
/// # Panics
/// If it is not.
pub fn check(data: &[u8]) {
    let Some(input) = Input::read(data) else { return };
    if input.code.is_empty() {
        return;
    }
    // Wherever in its cache lines it lies, it lies there and nowhere else: a number that is an
    // address of the code's is one.
    let program = Program::new(CODE, input.code.clone()).fixed();
    for at in CODE..CODE + input.code.len() as u64 {
        if let Some(Ok(op)) = program.at(at) {
            check_decoding(&program, at, op);
        }
    }
    check_execution(&input, &program);
}

/// What the model takes for an instruction is one to both decoders, of the same length, and depends
/// on nothing that follows it.
fn check_decoding(program: &Program, at: u64, op: &Op) {
    let bytes = program.from(at);
    let length = op.next.wrapping_sub(at) as usize;
    let first = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).decode();
    assert!(!first.is_invalid(), "{bytes:02x?}: no instruction to iced-x86: {op:?}");
    assert_eq!(first.len(), length, "{bytes:02x?}: its length by iced-x86: {op:?}");
    let second = InstDecoder::default().decode_slice(bytes);
    let second = second.unwrap_or_else(|why| panic!("{bytes:02x?}: by yaxpeax-x86, {why}: {op:?}"));
    assert_eq!(second.len().to_const(), length as u64, "{bytes:02x?}: by yaxpeax-x86: {op:?}");
    let alone = Program::new(at, bytes[..length].to_vec());
    assert_eq!(alone.at(at), Some(Ok(op)), "{bytes:02x?}: by what follows it");
}

/// What an execution came to, in numbers.
#[derive(Clone, Debug, PartialEq)]
struct Outcome {
    /// What the last step came to.
    last: Result<Step<u64>, Stuck<u64>>,
    /// Each access: which region, where in it, how many bytes, whether it is a store, and the
    /// value.
    accesses: Vec<(usize, usize, usize, bool, u64)>,
    /// All registers.
    registers: Vec<u64>,
    /// All memory, in words.
    memory: Vec<u64>,
}

/// What was accessed.
struct Accesses<D: Domain>(Vec<(usize, usize, usize, bool, D::Word)>);

impl<D: Domain> Observer<D> for Accesses<D> {
    fn observe(&mut self, _: &D, _: &State<D>, event: Effect<D::Word>) {
        if let Effect::Access(access) = event {
            let place = access.place;
            self.0.push((place.region, place.index, place.size, access.store, access.value));
        }
    }
}

/// An execution before it is put into numbers.
struct Execution<D: Domain> {
    last: Result<Step<D::Word>, Stuck<D::Word>>,
    accesses: Accesses<D>,
    state: State<D>,
}

fn execute<D: Domain>(d: &D, input: &Input, program: &Program) -> Execution<D> {
    let (mut state, mut accesses) = (input.state(d), Accesses(Vec::new()));
    let model = input.model();
    let mut last = Ok(Step::Next);
    for _ in 0..STEPS {
        last = state.step(d, &model, program, &mut accesses);
        if last != Ok(Step::Next) {
            break;
        }
    }
    Execution { last, accesses, state }
}

impl<D: Domain> Execution<D> {
    fn outcome(
        &self,
        d: &D,
        word: impl Fn(D::Word) -> u64,
        bit: impl Fn(D::Bit) -> bool,
    ) -> Outcome {
        let State { rip, cs, ss, gs_base, inactive_gs_base, fs_base, cr3, cr4, pkru, .. } =
            self.state;
        let Msrs { star, lstar, cstar, sfmask, spec_ctrl, efer } = self.state.msrs;
        let others = [
            rip,
            cs,
            ss,
            gs_base,
            inactive_gs_base,
            fs_base,
            cr3,
            cr4,
            pkru,
            star,
            lstar,
            cstar,
            sfmask,
            spec_ctrl,
            efer,
        ];
        let others = others.into_iter().chain([self.state.rflags(d)]);
        let mut registers: Vec<_> = self.state.gpr.into_iter().chain(others).map(&word).collect();
        registers.extend([u64::from(self.state.cpl), u64::from(bit(self.state.nmi_blocked))]);
        let cells = &self.state.memory.regions[0].cells;
        Outcome {
            last: in_numbers(&self.last, &word),
            accesses: (self.accesses.0.iter())
                .map(|&(region, index, size, store, value)| {
                    (region, index, size, store, word(value))
                })
                .collect(),
            registers,
            memory: cells.chunks(8).map(|cells| word(d.load(cells))).collect(),
        }
    }
}

fn in_numbers<W: Copy + std::fmt::Debug>(
    last: &Result<Step<W>, Stuck<W>>,
    word: impl Fn(W) -> u64,
) -> Result<Step<u64>, Stuck<u64>> {
    use switcher_model::Fault;
    match last.clone() {
        Ok(Step::Next) => Ok(Step::Next),
        Ok(Step::Guest { by_sysretq }) => Ok(Step::Guest { by_sysretq }),
        Ok(Step::Left) => Ok(Step::Left),
        Ok(Step::Halted) => Ok(Step::Halted),
        Ok(Step::Fault(Fault { vector, error_code })) => {
            Ok(Step::Fault(Fault { vector, error_code: error_code.map(word) }))
        }
        Err(Stuck::Program(error)) => Err(Stuck::Program(error)),
        Err(Stuck::Wild { at, address, size, store }) => {
            Err(Stuck::Wild { at, address: word(address), size, store })
        }
        Err(Stuck::SelfModifying { at }) => Err(Stuck::SelfModifying { at }),
        Err(Stuck::Msr { at, number }) => Err(Stuck::Msr { at, number: word(number) }),
        Err(Stuck::Several { at }) => Err(Stuck::Several { at }),
        Err(Stuck::Count { at }) => Err(Stuck::Count { at }),
        Err(Stuck::NoCode { rip }) => Err(Stuck::NoCode { rip: word(rip) }),
    }
}

/// On terms that are constants, the same comes of it as on numbers. What the manuals leave
/// undefined is an unknown there, and zero here; so is how far from its address the code lies. So
/// of several ways that terms go, that one is compared on which all unknowns are zero; and only
/// what depends on one may stop terms earlier than numbers.
fn check_execution(input: &Input, program: &Program) {
    let d = Concrete::default();
    let numbers = execute(&d, input, program).outcome(&d, |word| word, |bit| bit);
    if numbers.last == Ok(Step::Halted) {
        crate::planted("HLT, which no switcher executes");
    }

    let zero = symbolic::Model::default();
    let d = Symbolic::default();
    let mut met = 0;
    let explored = d.explore(
        |d| execute(d, input, program),
        |path, execution| {
            let taken = |decision: &symbolic::Decision| {
                d.evaluate_bit(&zero, decision.condition) == decision.taken
            };
            if !path.decisions.iter().all(taken) {
                return;
            }
            met += 1;
            let word = |word| d.evaluate(&zero, word);
            let terms = execution.outcome(&d, word, |bit| d.evaluate_bit(&zero, bit));
            let is_open = match &execution.last {
                Err(Stuck::Wild { address: open, .. } | Stuck::Msr { number: open, .. }) => {
                    d.known(*open).is_none()
                }
                Err(Stuck::Count { .. }) => d.known(execution.state.get(Gpr::Rcx)).is_none(),
                Err(Stuck::Several { .. }) => true,
                _ => false,
            };
            if is_open {
                // Numbers go on from there, or stop for the same reason.
                let begun = &numbers.accesses[..terms.accesses.len().min(numbers.accesses.len())];
                assert_eq!(begun, terms.accesses, "{input:x?}");
            } else {
                assert_eq!(numbers, terms, "{input:x?}");
            }
        },
    );
    match explored {
        Ok(_) => assert_eq!(met, 1, "ways on which all unknowns are zero: {input:x?}"),
        // The solver gives up, or there is no end of ways: nobody is told anything.
        Err(_) => assert!(met <= 1, "ways on which all unknowns are zero: {input:x?}"),
    }
}
