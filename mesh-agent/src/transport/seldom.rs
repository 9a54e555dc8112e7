//! What seldom happens, watched beside what happens with every packet: a group of futures that is polled only when one of
//! them has woken, and not each time their task runs.
//!
//! In: the context of the task. Out: a context for the group when it is due.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Says when a group of futures has to be polled.
#[derive(Debug)]
pub(super) struct Seldom {
    woken: Arc<Woken>,
    waker: Waker,
}

#[derive(Debug)]
struct Woken {
    due: AtomicBool,
    task: AtomicWaker,
}

impl Seldom {
    /// Of a group that was never polled: it is due.
    pub(super) fn new() -> Self {
        let woken = Arc::new(Woken { due: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { waker: Waker::from(Arc::clone(&woken)), woken }
    }

    /// What the group is to be polled with, when it is due. From then on it wakes the task of `cx`.
    pub(super) fn due(&self, cx: &Context<'_>) -> Option<Context<'_>> {
        // In this order: what becomes due in between wakes the task.
        self.woken.task.register(cx.waker());
        self.woken.due.swap(false, Ordering::AcqRel).then(|| Context::from_waker(&self.waker))
    }

    /// Lets go of the task, whose memory a waker keeps.
    pub(super) fn rest(&self) {
        drop(self.woken.task.take());
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.due.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::Poll;

    use tokio::sync::oneshot;

    use super::*;

    #[derive(Default)]
    struct Task(AtomicBool);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_group_is_polled_once_at_first_and_then_only_when_it_woke_its_task() {
        let (sender, receiver) = oneshot::channel();
        let (task, seldom) = (Arc::new(Task::default()), Seldom::new());
        let waker = Waker::from(Arc::clone(&task));
        let (cx, mut receiver) = (Context::from_waker(&waker), pin!(receiver));
        let mut group = seldom.due(&cx).expect("it was never polled");
        assert_eq!(receiver.as_mut().poll(&mut group), Poll::Pending);
        assert!(seldom.due(&cx).is_none());

        sender.send(3).unwrap();
        assert!(task.0.load(Ordering::Relaxed), "the task was woken");
        let mut group = seldom.due(&cx).expect("it was woken");
        assert_eq!(receiver.as_mut().poll(&mut group), Poll::Ready(Ok(3)));
    }

    #[test]
    fn what_woke_while_no_task_was_there_is_due_for_the_next() {
        let (sender, receiver) = oneshot::channel();
        let (first, second) = (Arc::new(Task::default()), Arc::new(Task::default()));
        let seldom = Seldom::new();
        let mut receiver = pin!(receiver);
        let waker = Waker::from(Arc::clone(&first));
        let mut group = seldom.due(&Context::from_waker(&waker)).expect("it was never polled");
        assert_eq!(receiver.as_mut().poll(&mut group), Poll::Pending);
        drop(waker);
        seldom.rest();
        assert_eq!(Arc::strong_count(&first), 1, "the task is let go of");

        sender.send(()).unwrap();
        assert!(!first.0.load(Ordering::Relaxed));
        let waker = Waker::from(second);
        assert!(seldom.due(&Context::from_waker(&waker)).is_some());
    }
}
