//! Arms of a path, and what is remembered of them: data alone. How they are found and followed is in
//! `untaken`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use crate::run::barriers::Barriers;
use switcher_model::{Domain, State as Machine};

/// Where the arms of a path have led.
#[derive(Clone, Debug, Default)]
pub struct Untaken {
    /// The addresses of the instructions that arms have come to.
    pub at: BTreeSet<u64>,
    /// Whether a RET has led to what no call of the code's has pushed: then it matters what an
    /// address is.
    pub by_value: bool,
    /// How many instructions were executed.
    pub executed: usize,
    /// The branches that must stay in their cache line for what was shown.
    pub lines: BTreeSet<u64>,
    /// Whether an arm has ended because the CPU lacks something that another may have.
    pub lacks: bool,
}

/// What an arm has done, and the path before it, besides what [`Barriers`] say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SoFar {
    /// Whether it has stored to where a guest says.
    pub(crate) has_stored: bool,
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
}

impl<D: Domain> Default for Arms<D> {
    fn default() -> Self {
        let (seen, reached) = (HashMap::new(), Untaken::default());
        Self { seen, open: None, ahead: Vec::new(), reached, verws: 0, told: Vec::new() }
    }
}

/// What is never forgotten of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Traits {
    pub(crate) so_far: SoFar,
    /// Whether either GS base is the host's.
    pub(crate) gs: [bool; 2],
    pub(crate) has_host_spec_ctrl: bool,
}

/// What is forgotten of a state but for where it comes from: sets of [`Origin`]s, none of them empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Forgotten {
    pub(crate) words: [u16; WORDS],
    pub(crate) flags: u16,
    /// What is forgotten of memory, by region and by index of the chunk.
    pub(crate) cells: BTreeMap<(usize, usize), u16>,
}

/// The states that have come to a place, joined.
#[derive(Debug)]
pub(crate) struct Seen<D: Domain> {
    pub(crate) traits: Traits,
    /// The regions that registers and FS base point to.
    pub(crate) pointers: [Option<usize>; 17],
    pub(crate) barriers: Barriers,
    pub(crate) state: Rc<Machine<D>>,
    pub(crate) forgotten: Forgotten,
    /// How many states were seen there before.
    pub(crate) rounds: usize,
}

/// How many words a state has besides RIP, flags and memory.
pub(crate) const WORDS: usize = 29;
