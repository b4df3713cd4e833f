//! The external queue of an event thread: many producers, one owner, no lock.
//!
//! A Treiber stack of reference-counted nodes, taken whole by its owner and turned round, so that the order is that of
//! arrival: Traffic Server's "protected queue" works the same way. What is added here is that *whether the owner
//! sleeps is part of the same word*:
//!
//! | head | meaning | what a producer owes after its push |
//! |---|---|---|
//! | null | empty, owner awake | nothing |
//! | node | not empty; the owner is awake or already being woken | nothing |
//! | [`SLEEPING`] | empty, owner in `epoll_wait` | one wake-up |
//! | [`CLOSED`] | the owner is gone | the node comes back |
//!
//! So a push is one compare-and-swap, exactly one producer of a batch pays for the system call, and there is no window
//! between "looked at the queue" and "went to sleep" to be closed by fences.
//!
//! A node carries its own link and can therefore be in one queue at a time: `queued` says so, and a second push while
//! it is set is refused. That is at the same time what makes wake-ups of a task coalesce.

use crate::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::ptr;
use std::sync::Arc;

/// A value that can stand in a [`Stack`], with the link it needs there.
pub(crate) struct Node<T> {
    next: AtomicPtr<Node<T>>,
    queued: AtomicBool,
    pub(crate) value: T,
}

impl<T> Node<T> {
    /// A node that its maker has claimed already, to be queued at once.
    pub(crate) fn claimed(value: T) -> Arc<Self> {
        Arc::new(Node { next: AtomicPtr::new(ptr::null_mut()), queued: AtomicBool::new(true), value })
    }

    /// Claims the node for one queue (a stack, or its owner's local queue). False: it stands in one already.
    #[must_use = "who claims the node has to queue it"]
    pub(crate) fn claim(&self) -> bool {
        !self.queued.swap(true, Ordering::AcqRel)
    }

    /// Gives the claim back, before the node's work begins: a wake-up from now on queues it again. It is an exchange
    /// and not a store, so that whatever was written before a coalesced wake-up is seen by the work that follows.
    pub(crate) fn release(&self) {
        self.queued.swap(false, Ordering::AcqRel);
    }
}

/// What a push found.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
#[must_use = "Pushed::WakeOwner obliges the caller to wake the owner"]
pub(crate) enum Pushed {
    /// In the queue; the owner will come by.
    Queued,
    /// In the queue, and the owner sleeps: wake it.
    WakeOwner,
    /// The owner is gone; the node was dropped.
    Closed,
}

/// The queue. See the module's table for what its one word means.
pub(crate) struct Stack<T> {
    head: AtomicPtr<Node<T>>,
}

fn sleeping<T>() -> *mut Node<T> {
    ptr::without_provenance_mut(1)
}

fn closed<T>() -> *mut Node<T> {
    ptr::without_provenance_mut(2)
}

fn is_node<T>(head: *mut Node<T>) -> bool {
    head.addr() > 2
}

// SAFETY: the stack hands every node from the thread that pushes to the thread that takes, as an Arc does; with
// `T: Send + Sync` that is what `Arc<Node<T>>: Send` asks for. The raw pointer in it is never shared otherwise.
unsafe impl<T: Send + Sync> Send for Stack<T> {}
// SAFETY: every method works through one atomic word; see above for what travels through it.
unsafe impl<T: Send + Sync> Sync for Stack<T> {}

impl<T> Stack<T> {
    pub(crate) fn new() -> Self {
        Stack { head: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Pushes a node its caller has [claimed](Node::claim).
    pub(crate) fn push_claimed(&self, node: Arc<Node<T>>) -> Pushed {
        debug_assert!(node.is_claimed());
        let raw = Arc::into_raw(node).cast_mut();
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head == closed() {
                // SAFETY: `raw` came from `Arc::into_raw` above and was not published, so this count is still ours.
                let node = unsafe { Arc::from_raw(raw) };
                node.release();
                return Pushed::Closed;
            }
            let next = if is_node(head) { head } else { ptr::null_mut() };
            // SAFETY: `raw` points to a live node: the count taken out by `into_raw` is ours until the exchange
            // below succeeds. The link is ours alone, because the caller claimed the node.
            unsafe { &*raw }.next.store(next, Ordering::Relaxed);
            match self.head.compare_exchange_weak(head, raw, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(old) if old == sleeping() => return Pushed::WakeOwner,
                Ok(_) => return Pushed::Queued,
                Err(now) => head = now,
            }
        }
    }

    /// Takes everything, oldest first. The owner is awake from here on.
    pub(crate) fn take(&self) -> Batch<T> {
        let head = self.head.load(Ordering::Relaxed);
        if head.is_null() || head == closed() {
            return Batch::empty();
        }
        // Only the owner closes or sleeps, so what was seen cannot become CLOSED meanwhile.
        Batch::reversed(self.head.swap(ptr::null_mut(), Ordering::AcqRel))
    }

    /// Is there nothing to take?
    pub(crate) fn is_empty(&self) -> bool {
        !is_node(self.head.load(Ordering::Acquire))
    }

    /// The owner says that it is about to sleep. False: something has arrived, don't.
    #[must_use = "false means: do not sleep"]
    pub(crate) fn try_sleep(&self) -> bool {
        self.head.compare_exchange(ptr::null_mut(), sleeping(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Takes everything and refuses whatever comes later.
    pub(crate) fn close(&self) -> Batch<T> {
        Batch::reversed(self.head.swap(closed(), Ordering::AcqRel))
    }
}

impl<T> Node<T> {
    fn is_claimed(&self) -> bool {
        self.queued.load(Ordering::Relaxed)
    }
}

impl<T> Drop for Stack<T> {
    fn drop(&mut self) {
        drop(self.close());
    }
}

/// What was taken at once, oldest first. The owner's alone: walking it costs no shared memory traffic but the nodes.
pub(crate) struct Batch<T> {
    head: *mut Node<T>,
    len: usize,
}

impl<T> Batch<T> {
    pub(crate) fn empty() -> Self {
        Batch { head: ptr::null_mut(), len: 0 }
    }

    /// Turns a chain taken from a stack round; sentinels are the empty chain.
    fn reversed(chain: *mut Node<T>) -> Self {
        let mut done = ptr::null_mut();
        let mut len = 0;
        let mut rest = if is_node(chain) { chain } else { ptr::null_mut() };
        while !rest.is_null() {
            // SAFETY: `rest` is in a chain that was taken whole by an exchange: each node in it is kept alive by the
            // count its push left behind, and nobody else can reach its link while it is claimed.
            let node = unsafe { &*rest };
            let next = node.next.load(Ordering::Relaxed);
            node.next.store(done, Ordering::Relaxed);
            done = rest;
            rest = next;
            len += 1;
        }
        Batch { head: done, len }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// How many are left.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl<T> Iterator for Batch<T> {
    type Item = Arc<Node<T>>;

    /// The next node, its claim given back.
    fn next(&mut self) -> Option<Arc<Node<T>>> {
        if self.head.is_null() {
            return None;
        }
        // SAFETY: the chain holds one count per node, left by its push; this node leaves the chain here, and with it
        // its count becomes the caller's.
        let node = unsafe { Arc::from_raw(self.head) };
        self.head = node.next.load(Ordering::Relaxed);
        self.len -= 1;
        node.release();
        Some(node)
    }
}

impl<T> Drop for Batch<T> {
    fn drop(&mut self) {
        for node in self.by_ref() {
            drop(node);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    impl<T> Node<T> {
        fn new(value: T) -> Arc<Self> {
            let node = Self::claimed(value);
            node.release();
            node
        }
    }

    impl<T> Stack<T> {
        fn push(&self, node: Arc<Node<T>>) -> Pushed {
            if node.claim() { self.push_claimed(node) } else { Pushed::Queued }
        }
    }

    #[test]
    fn order_is_that_of_arrival() {
        let stack = Stack::new();
        for n in 0..5 {
            assert_eq!(stack.push(Node::new(n)), Pushed::Queued);
        }
        assert_eq!(stack.take().map(|n| n.value).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(stack.take().is_empty());
    }

    #[test]
    fn only_the_first_push_onto_a_sleeper_wakes_it() {
        let stack = Stack::new();
        assert!(stack.try_sleep());
        assert_eq!(stack.push(Node::new(1)), Pushed::WakeOwner);
        assert_eq!(stack.push(Node::new(2)), Pushed::Queued);
        assert!(!stack.try_sleep());
        let batch = stack.take();
        assert_eq!(batch.len(), 2);
        assert_eq!(batch.count(), 2);
    }

    #[test]
    fn a_node_stands_in_one_queue_only() {
        let stack = Stack::new();
        let node = Node::new(());
        let _ = stack.push(node.clone());
        let _ = stack.push(node.clone());
        assert_eq!(stack.take().count(), 1);
        let _ = stack.push(node);
        assert_eq!(stack.take().count(), 1);
    }

    #[test]
    fn closing_returns_what_is_in_it_and_drops_what_comes() {
        let stack = Stack::new();
        let node = Node::new(());
        let _ = stack.push(Node::new(()));
        assert_eq!(stack.close().count(), 1);
        assert_eq!(stack.push(node.clone()), Pushed::Closed);
        assert_eq!(Arc::strong_count(&node), 1);
    }
}

/// Every interleaving of producers with the owner; `RUSTFLAGS="--cfg loom" cargo test -p engine --lib loom`.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc as LoomArc;
    use loom::sync::atomic::AtomicUsize;
    use loom::thread;

    /// A value whose unordered access loom would report.
    fn node(n: usize) -> Arc<Node<loom::cell::Cell<usize>>> {
        Node::claimed(loom::cell::Cell::new(n))
    }

    /// The owner, looking until it has had `all`. The yields matter: loom would not try on its own what comes of looking
    /// again before the producers have ended.
    fn take_all<T>(stack: &Stack<T>, all: usize, mut f: impl FnMut(&Node<T>)) {
        let mut left = all;
        while left > 0 {
            for node in stack.take() {
                f(&node);
                left -= 1;
            }
            thread::yield_now();
        }
    }

    /// Two producers, one of which has an order to keep. Every interleaving with up to three preemptions, which are in a
    /// second some thousands; all of them are too many to wait for.
    #[test]
    fn loom_nothing_is_lost_doubled_or_overtaken() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let stack = LoomArc::new(Stack::new());
            let producers: Vec<_> = [vec![10, 11], vec![20]]
                .into_iter()
                .map(|mine| {
                    let stack = stack.clone();
                    thread::spawn(move || {
                        for n in mine {
                            let _ = stack.push_claimed(Node::claimed(n));
                        }
                    })
                })
                .collect();
            let mut got: Vec<usize> = Vec::new();
            take_all(&stack, 3, |n| got.push(n.value));
            producers.into_iter().for_each(|p| p.join().unwrap());
            got.sort_by_key(|n| n / 10); // stable: each producer's in the order in which they came
            assert_eq!(got, [10, 11, 20]);
        });
    }

    #[test]
    fn loom_what_a_producer_wrote_is_seen_by_the_owner() {
        loom::model(|| {
            let stack = LoomArc::new(Stack::new());
            let producer = {
                let stack = stack.clone();
                thread::spawn(move || {
                    let node = node(0);
                    node.value.set(1);
                    let _ = stack.push_claimed(node);
                })
            };
            take_all(&stack, 1, |node| assert_eq!(node.value.get(), 1));
            producer.join().unwrap();
        });
    }

    #[test]
    fn loom_a_sleeper_is_woken_by_exactly_one() {
        loom::model(|| {
            let stack = LoomArc::new(Stack::new());
            let producers: Vec<_> = (0..2)
                .map(|n| {
                    let stack = stack.clone();
                    thread::spawn(move || stack.push_claimed(Node::claimed(n)))
                })
                .collect();
            let slept = stack.try_sleep();
            let pushed: Vec<_> = producers.into_iter().map(|p| p.join().unwrap()).collect();
            let wakes = pushed.iter().filter(|p| **p == Pushed::WakeOwner).count();
            assert_eq!(wakes, usize::from(slept), "a sleeper that nobody wakes, or a wake-up too many");
            assert_eq!(stack.take().count(), 2);
        });
    }

    /// The promise behind every waker: what is written before a wake-up is seen by a run that begins after it, although
    /// the wake-up found the task queued already and did nothing.
    #[test]
    fn loom_a_coalesced_wake_up_is_not_lost() {
        loom::model(|| {
            let stack = LoomArc::new(Stack::new());
            let news = LoomArc::new(AtomicUsize::new(0));
            let task = Node::claimed(());
            let _ = stack.push_claimed(task.clone());
            let wakers: Vec<_> = (0..2)
                .map(|n| {
                    let (stack, news, task) = (stack.clone(), news.clone(), task.clone());
                    thread::spawn(move || {
                        news.fetch_or(1 << n, Ordering::Relaxed);
                        if task.claim() {
                            let _ = stack.push_claimed(task);
                        }
                    })
                })
                .collect();
            let mut seen = 0;
            for node in stack.take() {
                seen = news.load(Ordering::Relaxed);
                drop(node);
            }
            wakers.into_iter().for_each(|w| w.join().unwrap());
            for node in stack.take() {
                seen = news.load(Ordering::Relaxed);
                drop(node);
            }
            assert_eq!(seen, 0b11);
        });
    }

    #[test]
    fn loom_closing_leaves_nothing_behind() {
        loom::model(|| {
            let stack = LoomArc::new(Stack::new());
            let node = Node::claimed(());
            let producer = {
                let (stack, node) = (stack.clone(), node.clone());
                thread::spawn(move || stack.push_claimed(node))
            };
            let taken = stack.close().count();
            let pushed = producer.join().unwrap();
            assert_eq!(taken, usize::from(pushed != Pushed::Closed));
            assert_eq!(Arc::strong_count(&node), 1);
        });
    }
}
