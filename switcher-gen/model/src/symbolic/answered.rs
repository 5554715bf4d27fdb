//! What the solver has answered in this process: thousands of proofs ask the same few hundred
//! questions.
//!
//! A [`Question`] says all that the solver is told, so that who asked it first makes no difference.

use std::sync::{LazyLock, Mutex, PoisonError};

use foldhash::HashMap;

use super::lowering::Verdict;
use super::question::Question;

/// How large the questions that are kept may be together, by their [`size`](Question::size): each
/// unit takes a few tens of bytes.
const ROOM: usize = 1 << 20;

static ANSWERED: LazyLock<Mutex<Answered>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Answered {
    verdicts: HashMap<Question, Verdict>,
    size: usize,
}

/// What the solver said of the question when it was asked first; nothing if it was not.
pub(super) fn known(question: &Question) -> Option<Verdict> {
    // A panic elsewhere leaves no half of an entry behind: what is there is right.
    let answered = ANSWERED.lock().unwrap_or_else(PoisonError::into_inner);
    answered.verdicts.get(question).cloned()
}

/// Keeps what the solver says of a question, if it has found an answer.
pub(super) fn keep(question: Question, verdict: &Verdict) {
    if matches!(verdict, Verdict::Unknown(_)) {
        return;
    }
    let answered = &mut *ANSWERED.lock().unwrap_or_else(PoisonError::into_inner);
    let size = question.size();
    // Simple and rare: whatever is still needed comes back soon.
    if answered.size + size > ROOM {
        *answered = Answered::default();
    }
    if answered.verdicts.insert(question, verdict.clone()).is_none() {
        answered.size += size;
    }
}
