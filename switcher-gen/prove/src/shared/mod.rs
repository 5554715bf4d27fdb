//! What was proved of one target is proved of each whose code is the same up to where it lies.
//!
//! A theorem's proof depends on its setting, on what the entry has saved of the host, and on the
//! code that it comes to: on these instructions, on which of them follows which, and on what the
//! host is told of their addresses. Where they lie does not matter as long as no address becomes a
//! value. So a proof is kept by all this, [`key::key`], if it has not shown on the way that more
//! matters: see [`key::depends_on_place`].
//!
//! A proof also holds of code that is the same in all that the proof has **executed**, a
//! [`TraceShape`]: every run of it is a run of the other code, too, with other addresses. What a
//! call pushes may differ, then, if it is seen at proof time that nothing but its RET has read it;
//! any other address that becomes a value must be the same number. Where an arm makes something of
//! two addresses, each must be the same, what calls and INTs push among them. What was not executed
//! does not matter.

pub(crate) mod key;
pub(crate) mod shape;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::entry::{Entry, EntryPoints};
use crate::prover::{Prove, Prover};
use crate::shared::key::Key;
use crate::shared::shape::{Executed, TraceShape};
use crate::target::Target;
use crate::theorem::Theorem;
use crate::verdict::{Report, Verdict};
use crate::world::Saved;
use switcher_model::symbolic::Symbolic;

/// Proofs that several provers share, on any number of threads.
#[derive(Debug, Default)]
pub struct Shared {
    proofs: Mutex<HashMap<Key, Arc<Proof>>>,
    /// By [`key::host`].
    shapes: Mutex<HashMap<Key, Vec<Arc<Shaped>>>>,
    proved: AtomicUsize,
    shared: AtomicUsize,
}

/// What was shown of a theorem; `None` if that holds of one target only. Empty until it is known.
type Proof = OnceLock<Option<Vec<Report>>>;

/// Code, and what was shown of it.
type Shaped = (TraceShape, Vec<Report>);

impl Shared {
    /// How many theorems were tried to be proved, each with and without a guest that writes its
    /// memory meanwhile.
    #[must_use]
    pub fn proved(&self) -> usize {
        self.proved.load(Ordering::Relaxed)
    }

    /// How many needed no proof of their own.
    #[must_use]
    pub fn shared(&self) -> usize {
        self.shared.load(Ordering::Relaxed)
    }

    /// A copy of these proofs: what is added to one of the two is not in the other.
    #[must_use]
    pub fn fork(&self) -> Arc<Self> {
        let proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (proofs, shapes) = (Mutex::new(proofs), Mutex::new(shapes));
        Arc::new(Self { proofs, shapes, ..Self::default() })
    }

    fn count(&self, is_shared: bool) {
        let counter = if is_shared { &self.shared } else { &self.proved };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// What was shown of code that executes the same for such a host.
    fn like(&self, host: Key, entry: Entry<'_>) -> Option<Vec<Report>> {
        // A theorem that executes nothing is about the IDT itself.
        if entry.addresses().is_empty() {
            return None;
        }
        let shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = shapes.get(&host).cloned().unwrap_or_default();
        drop(shapes);
        let found = known.iter().find(|shaped| shaped.0.is_of(entry))?;
        Some(found.1.clone())
    }

    /// Keeps what was shown, if it holds of more than this one target.
    fn keep(&self, host: Key, entry: Entry<'_>, executed: &Executed, reports: &[Report]) {
        if entry.addresses().is_empty() {
            return;
        }
        let Some(shape) = TraceShape::new(entry, executed) else { return };
        let mut shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        shapes.entry(host).or_default().push(Arc::new((shape, reports.to_vec())));
    }

    /// The proof of a key, which is empty until somebody has made it.
    fn proof(&self, key: Key) -> Arc<Proof> {
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        match proofs.entry(key) {
            hash_map::Entry::Occupied(entry) => Arc::clone(entry.get()),
            hash_map::Entry::Vacant(entry) => Arc::clone(entry.insert(Arc::default())),
        }
    }
}

/// A prover that proves nothing again that was proved of the same code for another target.
///
/// The prover knows nothing of that. It is asked where nothing is known, and what it executes is
/// noted meanwhile.
#[derive(Debug)]
pub struct SharingProver {
    prover: Prover,
    shared: Arc<Shared>,
}

/// What became of a theorem, and of which code that holds.
struct Judged {
    verdict: Verdict,
    /// Whether a proof was made, and its runs have shown nothing that [`key::key`] leaves out.
    is_by_key: bool,
}

impl SharingProver {
    /// A new prover that shares these proofs with others.
    #[must_use]
    pub fn new(shared: &Arc<Shared>) -> Self {
        Self::around(Prover::default(), shared)
    }

    /// This prover, sharing these proofs with others.
    #[must_use]
    pub fn around(prover: Prover, shared: &Arc<Shared>) -> Self {
        Self { prover, shared: Arc::clone(shared) }
    }

    /// Proves or refutes all theorems about `target`, or finds them proved: see [`Prover::prove`].
    #[must_use]
    pub fn prove(&self, target: &Target) -> Verdict {
        Prove::prove(self, target)
    }

    /// Proves or refutes one theorem, or finds it proved.
    fn theorem(&self, entry: Entry<'_>, saved: Option<&Saved<Symbolic>>, whole: Key) -> Verdict {
        // What is proved of code at one address need not hold of it anywhere.
        if entry.target.program.is_fixed() {
            return self.prover.theorem(entry, saved, &|_| ());
        }
        let host = key::host(&self.prover.domain, entry, saved);
        let proof = self.shared.proof(key::key(entry, host, whole));
        let mut own = None;
        let known = proof.get_or_init(|| {
            let judged = own.insert(self.like(entry, saved, host));
            // Of a proof that was found for another target, it is known only that it holds of this
            // very image.
            let is_shared = entry.theorem.is_of_events() || judged.is_by_key;
            match &judged.verdict {
                Verdict::Proved(reports) if is_shared => Some(reports.clone()),
                _ => None,
            }
        });
        match (own, known) {
            (Some(own), _) => own.verdict,
            (None, Some(found)) => {
                self.shared.count(true);
                Verdict::Proved(found.clone())
            }
            (None, None) => self.like(entry, saved, host).verdict,
        }
    }

    /// Finds one theorem proved of code that executes the same, or proves it.
    fn like(&self, entry: Entry<'_>, saved: Option<&Saved<Symbolic>>, host: Key) -> Judged {
        let found = self.shared.like(host, entry);
        self.shared.count(found.is_some());
        if let Some(found) = found {
            return Judged { verdict: Verdict::Proved(found), is_by_key: false };
        }
        let (executed, depends_on_place) = (RefCell::<Executed>::default(), Cell::new(false));
        let verdict = self.prover.theorem(entry, saved, &|run| {
            executed.borrow_mut().add(entry, run);
            let depends = !entry.theorem.is_of_events() && key::depends_on_place(entry, run);
            depends_on_place.set(depends_on_place.get() || depends);
        });
        if let Verdict::Proved(reports) = &verdict {
            self.shared.keep(host, entry, &executed.take(), reports);
        }
        Judged { verdict, is_by_key: !depends_on_place.get() }
    }
}

impl Prove for SharingProver {
    fn prover(&self) -> &Prover {
        &self.prover
    }

    fn prove_in_order(&self, target: &Target, order: &[Theorem]) -> Verdict {
        let (points, whole) = (EntryPoints::of(target), key::whole(target));
        self.prover.all(&points, order, |entry, saved| self.theorem(entry, saved, whole))
    }
}
