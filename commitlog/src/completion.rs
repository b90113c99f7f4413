//! A result that many wait for.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::error::LogError;

/// Set once, awaited by any number of [`Durable`]s.
#[derive(Clone, Default)]
pub(crate) struct Completion {
    state: Rc<RefCell<State>>,
}

#[derive(Default)]
struct State {
    result: Option<Result<(), LogError>>,
    wakers: Vec<Option<Waker>>,
}

impl Completion {
    pub(crate) fn resolve(&self, result: Result<(), LogError>) {
        let wakers = {
            let mut state = self.state.borrow_mut();
            if state.result.is_some() {
                return;
            }
            state.result = Some(result);
            std::mem::take(&mut state.wakers)
        };
        for waker in wakers.into_iter().flatten() {
            waker.wake();
        }
    }

    pub(crate) fn wait(&self) -> Durable {
        Durable { completion: self.clone(), place: None }
    }
}

/// Resolves when a record and everything before it is durable. Dropping it changes nothing for the
/// record.
#[must_use = "a record that nobody waits for may be lost"]
pub struct Durable {
    completion: Completion,
    place: Option<usize>,
}

impl Durable {
    /// The result, if it is known.
    pub fn peek(&self) -> Option<Result<(), LogError>> {
        self.completion.state.borrow().result.clone()
    }
}

impl Future for Durable {
    type Output = Result<(), LogError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let completion = self.completion.clone();
        let mut state = completion.state.borrow_mut();
        if let Some(result) = &state.result {
            return Poll::Ready(result.clone());
        }
        let waker = Some(cx.waker().clone());
        match self.place {
            Some(place) => state.wakers[place] = waker,
            None => {
                self.place = Some(state.wakers.len());
                state.wakers.push(waker);
            }
        }
        Poll::Pending
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        if let Some(place) = self.place
            && let Some(waker) = self.completion.state.borrow_mut().wakers.get_mut(place)
        {
            *waker = None;
        }
    }
}
