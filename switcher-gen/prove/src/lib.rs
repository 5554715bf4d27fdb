//! Proofs: the bytes do what the specification says, for every state, and stay safe if the guest
//! changes its memory between any two instructions.
//!
//! A [`Target`] is code: an image, or anybody's object file ([`elf`]). A [`Prover`] gives a
//! [`Verdict`] about it: proved, refuted with a state that shows it, or not known. `switcher prove`
//! prints verdicts, and the tests prove every variant and write `certificates.txt`, without which
//! the runtime maps no image.
//!
//! Files lie in the order in which they may use each other, the lowest first.
//!
//! | file | what it is for |
//! |---|---|
//! | `setting` | what a switcher is meant for: a variant, and what its host says of itself |
//! | `layouts` | where the fields of structs lie, as in ours or as in somebody else's |
//! | `contract` | what the code around a switcher guarantees |
//! | `host_data` | data of the host's that somebody's code uses |
//! | `profile` | known kernels: names, layouts, contracts |
//! | `gate` | an entry of the IDT |
//! | `target` | the code: an [`Image`](switcher_gen::Image), or anybody's; what lies around its instructions; what may not overlap |
//! | `elf` | anybody's files, to targets |
//! | `lines` | which line of which source an address of a file comes from |
//! | `vectors`, `theorem` | what a theorem is about: one entry point, and whose state it finds |
//! | `areas` | the parts of a switcher that are judged, or are not |
//! | `stubs`, `entry` | where the theorems of a target begin, resolved once; [`Entry`] is passed from here on |
//! | `severity` | what is at stake where something does not hold |
//! | `obligation`, `goal` | what must hold, by name and by row of hazards.md; and each time that it must |
//! | `bad_code` | code that no theorem can be about |
//! | `boundary` | what theorems about ring 0 assume, shown between any two instructions |
//! | `world` | the states that theorems are about, as the machine and as the specification have them; **all assumptions** |
//! | `run` | one run of one theorem, and the goals that come up on it |
//! | `run/untaken` | arms of jumps that a path does not take, and a CPU may predict |
//! | `required` | what a finding asks for, in words |
//! | `counterexample` | the state in which a goal does not hold, in words, replayed on numbers |
//! | `verdict`, `findings` | what became of a target: one [`Verdict`], or all that is wrong with it |
//! | `prover` | every path of every theorem, goal by goal |
//! | `shared` | proofs that hold of several targets, so that each code is proved once: wraps a prover |
//! | `substance` | whether a proof says anything |
//! | `equivalence` | whether two targets leave the same |
//! | `cost` | what each path costs |
//! | `mutate`, `redundancy` | code broken on purpose: whether the proofs object, and whether each instruction is needed |
//!
//! A theorem is run like a test: from a state to an outcome, by [`machine`](switcher_model), and
//! the outcome is compared with what [`spec`](switcher_spec) makes of the same state. On numbers
//! that is one case (`switcher-engine`'s `fuzz`); on unknowns it is all of them.
//!
//! ```
//! use switcher_gen::{Image, Variant};
//! use switcher_prove::mutate::{self, Operator};
//! use switcher_prove::{Prover, Target, Verdict};
//!
//! let right = Target::image(&Image::new(&Variant::REFERENCE)?);
//! let prover = Prover::default();
//! assert!(matches!(prover.prove(&right), Verdict::Proved(_)));
//!
//! // Without one instruction: what WRGSBASE loads is not made canonical.
//! let mutants = mutate::mutants(&right);
//! let wrong = mutants.iter().find(|mutant| {
//!     mutant.operator == Operator::Delete && mutant.original == "sar r11,10h"
//! });
//! let wrong = wrong.and_then(|mutant| mutant.target()).ok_or("there is such an instruction")?;
//! let Verdict::Refuted(found) = prover.prove(&wrong) else { panic!("it was not refuted") };
//! assert_eq!(found.obligation.name, "wrgsbase-canonical");
//! assert!(found.replay(&wrong) && !found.replay(&right));
//! println!("{found}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod cost;
pub mod elf;
pub mod mutate;
pub mod obligation;
pub mod redundancy;

mod areas;
mod bad_code;
mod boundary;
mod contract;
mod counterexample;
mod entry;
mod equivalence;
mod findings;
mod gate;
mod goal;
mod host_data;
mod layouts;
mod lines;
mod profile;
mod prover;
mod required;
mod run;
mod setting;
mod severity;
mod shared;
mod stubs;
mod substance;
mod target;
mod theorem;
mod vectors;
mod verdict;
mod world;

pub use areas::{Area, NotJudged, UnknownArea};
pub use bad_code::BadCode;
pub use contract::{Clauses, Contract, NoClause, NoRoom, Room};
pub use counterexample::{Counterexample, Numbers};
pub use entry::{Entry, EntryPoints};
pub use equivalence::Equivalence;
pub use findings::{Findings, Refused};
pub use gate::TargetGate;
pub use goal::Goal;
pub use host_data::{DataAt, HostData, WrongData};
pub use layouts::{ExtraField, KnownField, LayoutError, Places, PvcsField};
pub use lines::{Lines, NoLines, SourceLine};
pub use obligation::Obligation;
pub use profile::{NoProfile, Profile, Range as ProfileRange};
pub use prover::{Prove, Prover, Unexplored};
pub use run::arms::Untaken;
pub use run::saved::saved;
pub use run::{Run, Walk, run};
pub use setting::{BlockOffsets, Setting};
pub use severity::{Severity, UnknownSeverity};
pub use shared::{Shared, SharingProver};
pub use substance::Substance;
pub use target::overlap::Overlap;
pub use target::{Target, TargetError};
pub use theorem::{GuestMemory, Theorem};
pub use verdict::{Report, Verdict};
pub use world::Saved;
use world::fields::{read_extra, read_pvcs};
pub use world::name::{Name, Object, Part, Source};
