//! Something that happens once.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Each request of a server waits for its flag, and of a million requests none may leave anything
/// behind: whoever waits has a place, which is free again when he goes.
#[derive(Clone, Default)]
pub(crate) struct Flag {
    state: Rc<State>,
}

#[derive(Default)]
struct State {
    raised: Cell<bool>,
    places: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<usize>>,
}

impl Flag {
    pub(crate) fn raise(&self) {
        if self.state.raised.replace(true) {
            return;
        }
        // In their places, which their owners give back.
        let count = self.state.places.borrow().len();
        for place in 0..count {
            let waker = self.state.places.borrow_mut()[place].take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.state.raised.get()
    }

    /// Runs `future` until it is done or the flag is raised; the latter drops it where it stands.
    pub(crate) fn or<F: Future>(&self, future: F) -> Or<'_, F> {
        Or { future: Some(future), place: None, state: &self.state }
    }
}

/// See [`Flag::or`].
#[must_use = "futures do nothing unless polled"]
pub(crate) struct Or<'a, F> {
    future: Option<F>,
    place: Option<usize>,
    state: &'a State,
}

impl<F: Future> Future for Or<'_, F> {
    type Output = Option<F::Output>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: `future` is moved nowhere: it is polled and dropped in its place.
        let (mut future, place, state) = unsafe {
            let this = self.get_unchecked_mut();
            (Pin::new_unchecked(&mut this.future), &mut this.place, this.state)
        };
        if state.raised.get() {
            future.set(None);
            return Poll::Ready(None);
        }
        // Before the future runs, which may raise the flag.
        state.wait(place, cx.waker());
        let running = future.as_mut().as_pin_mut().expect("not polled after its end");
        let Poll::Ready(output) = running.poll(cx) else { return Poll::Pending };
        future.set(None);
        Poll::Ready(Some(output))
    }
}

impl<F> Drop for Or<'_, F> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.state.leave(place);
        }
    }
}

impl State {
    fn wait(&self, place: &mut Option<usize>, waker: &Waker) {
        let mut places = self.places.borrow_mut();
        let at = *place.get_or_insert_with(|| {
            self.free.borrow_mut().pop().unwrap_or_else(|| {
                places.push(None);
                places.len() - 1
            })
        });
        match &mut places[at] {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    fn leave(&self, place: usize) {
        let waker = self.places.borrow_mut()[place].take();
        self.free.borrow_mut().push(place);
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bb_runtime::Executor;

    use super::*;

    #[test]
    fn a_raised_flag_ends_all_who_wait_and_those_who_come_later() {
        let executor = Executor::simulated(1);
        let rt = executor.rt();
        executor.block_on(async {
            let flag = Flag::default();
            let waiting = (0..3).map(|_| {
                let flag = flag.clone();
                rt.spawn(async move { flag.or(std::future::pending::<()>()).await })
            });
            let waiting: Vec<_> = waiting.collect();
            assert_eq!(flag.or(rt.sleep(Duration::from_secs(1))).await, Some(()));
            flag.raise();
            for task in waiting {
                assert_eq!(task.await, Ok(None));
            }
            assert_eq!(flag.or(async { 1 }).await, None);
            // The future itself may raise it.
            let flag = Flag::default();
            let raises = async {
                flag.raise();
                std::future::pending::<()>().await;
            };
            assert_eq!(flag.or(raises).await, None);
        });
    }

    #[test]
    fn who_has_waited_leaves_nothing_behind() {
        let executor = Executor::simulated(1);
        let rt = executor.rt();
        executor.block_on(async {
            let flag = Flag::default();
            for _ in 0..100 {
                let tasks: Vec<_> = (0..100_u64)
                    .map(|i| {
                        let (flag, rt2) = (flag.clone(), rt.clone());
                        rt.spawn(async move {
                            flag.or(rt2.sleep(Duration::from_millis(i % 7))).await;
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await.expect("runs");
                }
            }
            assert!(flag.state.places.borrow().len() <= 100);
            assert!(flag.state.places.borrow().iter().all(Option::is_none));
        });
    }
}
