//! What ranks that are threads of one process tell each other about a step on devices.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Control;
use crate::array::Form;
use crate::execute::{Patience, Stopped};
use crate::schedule::{Rank, Tensor};

/// How long a rank waits for an announcement before it looks whether another rank has failed.
const LOOK: Duration = Duration::from_millis(5);

/// What the ranks share.
#[derive(Default)]
pub struct Board {
    forms: Mutex<HashMap<(Rank, Tensor), Form>>,
    bell: Condvar,
}

impl Board {
    /// A rank's place at it. `failed` tells whether another rank has failed.
    pub fn seat<F: Fn() -> bool>(&self, rank: Rank, failed: F) -> Seat<'_, F> {
        Seat { board: self, rank, failed }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Rank, Tensor), Form>> {
        self.forms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One rank's place at a [`Board`].
pub struct Seat<'a, F> {
    board: &'a Board,
    rank: Rank,
    failed: F,
}

impl<F: Fn() -> bool> Control for Seat<'_, F> {
    fn failed(&self) -> bool {
        (self.failed)()
    }

    fn announce(&mut self, to: Rank, tensor: Tensor, form: &Form) {
        self.board.lock().insert((to, tensor), form.clone());
        self.board.bell.notify_all();
    }

    fn announced(&mut self, _: Rank, tensor: Tensor, patience: Patience) -> Result<Option<Form>, Stopped> {
        let mut forms = self.board.lock();
        loop {
            if let Some(form) = forms.remove(&(self.rank, tensor)) {
                return Ok(Some(form));
            }
            if (self.failed)() {
                return Err(Stopped);
            }
            if patience == Patience::Look {
                return Ok(None);
            }
            forms = self.board.bell.wait_timeout(forms, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
