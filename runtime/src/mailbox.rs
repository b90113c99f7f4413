//! Messages between executors of different threads (and, the same way, between tasks).
//!
//! A mailbox has one receiver and any number of senders. A message wakes the receiver's task, and
//! through it a reactor that sleeps; a burst of messages wakes it once.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::sync::remember;

struct Shared<T> {
    capacity: usize,
    state: Mutex<State<T>>,
}

struct State<T> {
    queue: VecDeque<T>,
    receiver: Option<Waker>,
    receiver_gone: bool,
    senders: usize,
    /// Tasks that wait for room.
    blocked: Vec<Waker>,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts messages into a mailbox.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// Takes messages out of a mailbox.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

/// Why a message was not taken. It comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrySendError<T> {
    /// The mailbox is full.
    #[error("the mailbox is full")]
    Full(T),
    /// The receiver is gone.
    #[error("nobody receives any more")]
    Closed(T),
}

/// The receiver is gone; here is the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody receives any more")]
pub struct Closed<T>(pub T);

/// A mailbox without a limit: for messages whose number something else bounds.
pub fn unbounded<T: Send>() -> (Sender<T>, Receiver<T>) {
    bounded(usize::MAX)
}

/// A mailbox for at most `capacity` messages (at least one); senders wait for room.
pub fn bounded<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let state = State {
        queue: VecDeque::new(),
        receiver: None,
        receiver_gone: false,
        senders: 1,
        blocked: Vec::new(),
    };
    let shared = Arc::new(Shared { capacity: capacity.max(1), state: Mutex::new(state) });
    (Sender { shared: shared.clone() }, Receiver { shared })
}

impl<T> Sender<T> {
    /// Sends without waiting.
    ///
    /// # Errors
    /// [`TrySendError`], with the message.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        let waker = {
            let mut state = self.shared.lock();
            if state.receiver_gone {
                return Err(TrySendError::Closed(message));
            }
            if state.queue.len() >= self.shared.capacity {
                return Err(TrySendError::Full(message));
            }
            state.queue.push_back(message);
            state.receiver.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Sends all of `messages` with one look at the mailbox and one wake-up, and leaves the vector
    /// empty. Does not wait: what is bounded may hold more than its limit after that.
    ///
    /// # Errors
    /// [`Closed`]; the messages are still in the vector then.
    pub fn send_all(&self, messages: &mut Vec<T>) -> Result<(), Closed<()>> {
        let waker = {
            let mut state = self.shared.lock();
            if state.receiver_gone {
                return Err(Closed(()));
            }
            state.queue.extend(messages.drain(..));
            if state.queue.is_empty() { None } else { state.receiver.take() }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Waits for room, and sends. Who waits longest is not served first.
    ///
    /// # Errors
    /// [`Closed`], with the message.
    pub async fn send(&self, message: T) -> Result<(), Closed<T>> {
        let mut message = Some(message);
        std::future::poll_fn(|cx| {
            let Some(taken) = message.take() else { return Poll::Ready(Ok(())) };
            match self.try_send(taken) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(TrySendError::Closed(back)) => return Poll::Ready(Err(Closed(back))),
                Err(TrySendError::Full(back)) => message = Some(back),
            }
            let mut state = self.shared.lock();
            if state.receiver_gone || state.queue.len() < self.shared.capacity {
                // Changed since the look above.
                cx.waker().wake_by_ref();
            } else {
                remember(&mut state.blocked, cx.waker());
            }
            Poll::Pending
        })
        .await
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.lock().senders += 1;
        Self { shared: self.shared.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.shared.lock();
            state.senders -= 1;
            if state.senders > 0 {
                return;
            }
            state.receiver.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Receiver<T> {
    /// The next message; `None` when there is none left and all senders are gone. Dropping the
    /// future loses nothing.
    pub fn recv(&mut self) -> impl Future<Output = Option<T>> {
        std::future::poll_fn(|cx| self.poll_take(cx, |queue| queue.pop_front()))
    }

    /// All messages that are there, at least one; empty when all senders are gone. Cheaper than
    /// one by one.
    pub async fn recv_all(&mut self) -> VecDeque<T> {
        let all = std::future::poll_fn(|cx| {
            self.poll_take(cx, |queue| (!queue.is_empty()).then(|| std::mem::take(queue)))
        });
        all.await.unwrap_or_default()
    }

    fn poll_take<R>(
        &self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&mut VecDeque<T>) -> Option<R>,
    ) -> Poll<Option<R>> {
        let (taken, blocked) = {
            let mut state = self.shared.lock();
            let taken = take(&mut state.queue);
            if taken.is_none() {
                if state.senders == 0 {
                    return Poll::Ready(None);
                }
                state.receiver = Some(cx.waker().clone());
                return Poll::Pending;
            }
            (taken, std::mem::take(&mut state.blocked))
        };
        // All of them: one that was dropped meanwhile must not swallow the only wake-up.
        for waker in blocked {
            waker.wake();
        }
        Poll::Ready(taken)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let (blocked, queue) = {
            let mut state = self.shared.lock();
            state.receiver_gone = true;
            state.receiver = None;
            (std::mem::take(&mut state.blocked), std::mem::take(&mut state.queue))
        };
        // Without the lock: messages may own senders of this mailbox.
        drop(queue);
        for waker in blocked {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::Executor;

    #[test]
    fn messages_of_one_sender_keep_their_order_and_the_end_is_seen() {
        for seed in 0..20 {
            let executor = Executor::simulated(seed);
            let rt = executor.rt();
            let (sender, mut receiver) = bounded(3);
            for who in 0..4_u32 {
                let (sender, rt2) = (sender.clone(), rt.clone());
                drop(rt.spawn(async move {
                    for i in 0..50_u32 {
                        sender.send((who, i)).await.expect("somebody receives");
                        if i % 7 == who {
                            rt2.sleep(Duration::from_micros(10)).await;
                        }
                    }
                }));
            }
            drop(sender);
            executor.block_on(async {
                let mut next = [0; 4];
                while let Some((who, i)) = receiver.recv().await {
                    assert_eq!(next[who as usize], i);
                    next[who as usize] += 1;
                }
                assert_eq!(next, [50; 4]);
            });
        }
    }

    #[test]
    fn a_sender_that_gives_up_does_not_swallow_the_wakeup_of_another() {
        let executor = Executor::simulated(2);
        let rt = executor.rt();
        let (sender, mut receiver) = bounded(1);
        executor.block_on(async {
            sender.try_send(0).expect("room");
            assert_eq!(sender.try_send(9), Err(TrySendError::Full(9)));
            let (a, b) = (sender.clone(), sender.clone());
            let first = rt.spawn(async move { a.send(1).await });
            rt.sleep(Duration::from_millis(1)).await;
            let second = rt.spawn(async move { b.send(2).await });
            rt.sleep(Duration::from_millis(1)).await;
            assert_eq!(receiver.recv().await, Some(0));
            first.abort();
            assert_eq!(second.await, Ok(Ok(())));
            assert_eq!(receiver.recv_all().await, [2]);
        });
    }

    #[test]
    fn a_receiver_that_goes_away_gives_messages_back() {
        let executor = Executor::simulated(2);
        let rt = executor.rt();
        let (sender, receiver) = bounded(1);
        executor.block_on(async {
            sender.try_send(0).expect("room");
            let s = sender.clone();
            let blocked = rt.spawn(async move { s.send(1).await });
            rt.sleep(Duration::from_millis(1)).await;
            drop(receiver);
            assert_eq!(blocked.await, Ok(Err(Closed(1))));
            assert_eq!(sender.try_send(2), Err(TrySendError::Closed(2)));
        });
    }

    #[test]
    fn many_messages_at_once_keep_their_order_and_come_back_from_a_closed_mailbox() {
        let executor = Executor::simulated(2);
        let (sender, mut receiver) = unbounded();
        let mut messages = vec![2, 3];
        executor.block_on(async {
            sender.try_send(1).expect("no limit");
            assert_eq!(sender.send_all(&mut messages), Ok(()));
            assert!(messages.is_empty());
            assert_eq!(receiver.recv_all().await, [1, 2, 3]);
            // Nothing is no message: the receiver goes on waiting.
            assert_eq!(sender.send_all(&mut messages), Ok(()));
            let rt = executor.rt();
            assert!(rt.timeout(Duration::from_millis(1), receiver.recv_all()).await.is_err());
            drop(receiver);
            messages.push(4);
            assert_eq!(sender.send_all(&mut messages), Err(Closed(())));
            assert_eq!(messages, [4]);
        });
    }

    #[test]
    fn a_dropped_receive_loses_nothing() {
        let executor = Executor::simulated(2);
        let rt = executor.rt();
        let (sender, mut receiver) = unbounded();
        let seen = Rc::new(Cell::new(0));
        executor.block_on(async {
            assert!(rt.timeout(Duration::from_millis(1), receiver.recv()).await.is_err());
            sender.try_send(5).expect("no limit");
            seen.set(receiver.recv().await.expect("open"));
        });
        assert_eq!(seen.get(), 5);
    }
}
