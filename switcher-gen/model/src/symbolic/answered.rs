//! What the solver has answered in this process: thousands of proofs ask the same few hundred
//! questions.
//!
//! A [`Question`] says all that the solver is told, so that who asked it first makes no difference.

use std::sync::{LazyLock, Mutex, PoisonError};

use foldhash::HashMap;

use super::lowering::Verdict;
use super::question::Question;

/// How many terms the questions that are kept may have together: some 50 MB at most.
const TERMS: usize = 1 << 20;

static ANSWERED: LazyLock<Mutex<Answered>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Answered {
    verdicts: HashMap<Question, Verdict>,
    terms: usize,
}

/// What the solver said of the question when it was asked first; nothing if it was not.
pub(super) fn known(question: &Question) -> Option<Verdict> {
    // A panic elsewhere leaves no half of an entry behind: what is there is right.
    let answered = ANSWERED.lock().unwrap_or_else(PoisonError::into_inner);
    answered.verdicts.get(question).cloned()
}

/// Keeps an answer. That it has found no answer is nothing to keep.
pub(super) fn keep(question: Question, verdict: &Verdict) {
    if matches!(verdict, Verdict::Unknown(_)) {
        return;
    }
    let answered = &mut *ANSWERED.lock().unwrap_or_else(PoisonError::into_inner);
    let size = question.size();
    // Simple and rare: whatever is still needed comes back soon.
    if answered.terms + size > TERMS {
        *answered = Answered::default();
    }
    if answered.verdicts.insert(question, verdict.clone()).is_none() {
        answered.terms += size;
    }
}
