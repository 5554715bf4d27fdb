//! What is kept of arms, the ways on that a CPU may predict and no path takes: which of them are
//! still to be followed, and what is known of the states that have come to a place.
//!
//! How they are followed, and what must hold of them, is in [`untaken`](super::untaken).

pub(crate) mod memory;
pub(crate) mod origin_set;
pub(crate) mod points;
pub(crate) mod seen;

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use crate::run::arms::memory::Strayed;
use crate::run::arms::seen::Seen;
use crate::run::barriers::Barriers;
use switcher_model::{Domain, Msrs, State as Machine};

/// Where the arms of a path have led.
#[derive(Clone, Debug, Default)]
pub struct Untaken {
    /// The addresses of the instructions that arms have come to.
    pub at: BTreeSet<u64>,
    /// How many instructions were executed.
    pub executed: usize,
    /// The branches that must stay in their cache line for what was shown.
    pub lines: BTreeSet<u64>,
    /// Whether it may matter where the code lies: a RET has led to what no call of the code's has
    /// pushed.
    pub of_place: bool,
    /// Whether it may matter how far addresses of the code are from each other: something was made
    /// of two of them.
    pub have_met: bool,
}

/// What an arm has done, and the path before it, besides what [`Barriers`] say.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SoFar {
    /// What its stores may have left where nobody knows.
    pub(crate) strayed: Strayed,
    /// How many VERWs the path had executed, if nothing may be read after the last of them.
    pub(crate) overwritten: usize,
}

/// Where an arm begins, or comes to.
#[derive(Debug)]
pub(crate) struct Arm<D: Domain> {
    pub(crate) to: u64,
    pub(crate) state: Rc<Machine<D>>,
    pub(crate) barriers: Barriers,
    pub(crate) so_far: SoFar,
}

/// A conditional jump of which it is not known yet which arm is taken.
#[derive(Debug)]
pub(crate) struct Jump<D: Domain> {
    pub(crate) arms: [u64; 2],
    pub(crate) state: Rc<Machine<D>>,
    pub(crate) barriers: Barriers,
    pub(crate) so_far: SoFar,
}

/// A jump or call through a register or memory. Where it may be predicted to lead is not known
/// before all arms are followed: each may make another address a value.
#[derive(Debug)]
pub(crate) struct Indirect<D: Domain> {
    pub(crate) at: u64,
    pub(crate) is_jump: bool,
    /// Where it leads indeed.
    pub(crate) only: Option<u64>,
    /// After it.
    pub(crate) state: Rc<Machine<D>>,
    pub(crate) barriers: Barriers,
    pub(crate) so_far: SoFar,
}

/// The arms of a path.
#[derive(Debug)]
pub(crate) struct Arms<D: Domain> {
    pub(crate) seen: HashMap<u64, Vec<Seen<D>>>,
    pub(crate) open: Option<Jump<D>>,
    pub(crate) ahead: Vec<Arm<D>>,
    pub(crate) reached: Untaken,
    /// How many VERWs of memory the path has executed.
    pub(crate) verws: usize,
    /// Conditions by which a jump tells no more than is told anyway: truth values as numbers, and
    /// their contraries. The path's jumps were decided by them, or they say whether a guest is
    /// being run.
    pub(crate) told: Vec<D::Word>,
    /// Places whose address the path or an arm has made a value.
    pub(crate) named: BTreeSet<u64>,
    /// The jumps that may be predicted to lead there.
    pub(crate) indirect: Vec<Indirect<D>>,
    /// A place that arms have come to in too many states to tell them apart.
    pub(crate) crowded: Option<u64>,
}

impl<D: Domain> Default for Arms<D> {
    fn default() -> Self {
        Self {
            seen: HashMap::new(),
            open: None,
            ahead: Vec::new(),
            reached: Untaken::default(),
            verws: 0,
            told: Vec::new(),
            named: BTreeSet::new(),
            indirect: Vec::new(),
            crowded: None,
        }
    }
}

/// More instructions than all arms of a theorem have.
pub(crate) const ARMS: usize = 1 << 17;

/// A state of its own.
pub(crate) fn copy<D: Domain>(state: &Machine<D>) -> Machine<D> {
    let Machine { msrs, memory, .. } = state;
    Machine { msrs: Msrs { ..*msrs }, memory: memory.clone(), ..*state }
}
