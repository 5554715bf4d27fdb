//! What was proved of one target is proved of each whose code is the same up to where it lies.
//!
//! A theorem's proof depends on its setting, on what the entry has saved of the host, and on the code
//! that it comes to: on these instructions, on which of them follows which, and on what the host is
//! told of their addresses. Where they lie does not matter as long as no address becomes a value. So
//! a proof is kept by all this, [`key`], if it has not shown on the way that more matters: see
//! [`depends_on_place`].
//!
//! A proof also holds of code that is the same in all that the proof has **executed**, a [`TraceShape`]:
//! every run of it is a run of the other code, too, with other addresses. What a call pushes may
//! differ, then, if it is seen at proof time that nothing but its RET has read it; any other address
//! that becomes a value must be the same number. What was not executed does not matter.

use std::collections::hash_map::Entry;
pub(crate) mod key;
pub(crate) mod shape;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::shared::key::Key;
use crate::shared::shape::{Executed, TraceShape};
use crate::target::Target;
use crate::theorem::Theorem;
use crate::verdict::Report;

/// Proofs that several provers share, on any number of threads.
#[derive(Debug, Default)]
pub struct Shared {
    proofs: Mutex<HashMap<Key, Arc<Proof>>>,
    /// By [`host`].
    shapes: Mutex<HashMap<Key, Vec<Arc<Shaped>>>>,
    proved: AtomicUsize,
    shared: AtomicUsize,
}

/// What was shown of a theorem; `None` if that holds of one target only. Empty until it is known.
pub(crate) type Proof = OnceLock<Option<Vec<Report>>>;

/// Code, and what was shown of it.
type Shaped = (TraceShape, Vec<Report>);

impl Shared {
    /// How many theorems were tried to be proved, each with and without a hostile guest.
    #[must_use]
    pub fn proved(&self) -> usize {
        self.proved.load(Ordering::Relaxed)
    }

    /// How many needed no proof of their own.
    #[must_use]
    pub fn shared(&self) -> usize {
        self.shared.load(Ordering::Relaxed)
    }

    /// The same proofs for somebody else: what either adds is not the other's.
    #[must_use]
    pub fn fork(&self) -> Arc<Self> {
        let proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (proofs, shapes) = (Mutex::new(proofs), Mutex::new(shapes));
        Arc::new(Self { proofs, shapes, ..Self::default() })
    }

    pub(crate) fn count(&self, is_shared: bool) {
        let counter = if is_shared { &self.shared } else { &self.proved };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// What was shown of code that executes the same for such a host.
    pub(crate) fn like(&self, host: Key, target: &Target, theorem: Theorem) -> Option<Vec<Report>> {
        let entries = theorem.entries(target);
        // What executes nothing is about the IDT itself.
        if entries.is_empty() {
            return None;
        }
        let shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = shapes.get(&host).cloned().unwrap_or_default();
        drop(shapes);
        let found = known.iter().find(|shaped| shaped.0.is_of(target, &entries))?;
        Some(found.1.clone())
    }

    /// Keeps what was shown, if it holds of more than this one target.
    pub(crate) fn keep(
        &self,
        host: Key,
        target: &Target,
        theorem: Theorem,
        executed: &Executed,
        reports: &[Report],
    ) {
        let entries = theorem.entries(target);
        if entries.is_empty() {
            return;
        }
        let Some(shape) = TraceShape::new(target, &entries, executed) else { return };
        let mut shapes = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        shapes.entry(host).or_default().push(Arc::new((shape, reports.to_vec())));
    }

    /// The proof of that key, whoever makes it.
    pub(crate) fn proof(&self, key: Key) -> Arc<Proof> {
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        match proofs.entry(key) {
            Entry::Occupied(entry) => Arc::clone(entry.get()),
            Entry::Vacant(entry) => Arc::clone(entry.insert(Arc::default())),
        }
    }
}
