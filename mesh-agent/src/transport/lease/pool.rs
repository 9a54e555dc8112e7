//! The idle `ferromesh/1` connections of one worker: a stack for each key, last in first out, trimmed by number and age.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::link::{Idle, Link};
use crate::transport::key::PoolKey;

/// The idle connections of one worker.
#[derive(Debug)]
#[expect(clippy::vec_box, reason = "a link has two kilobytes of state and moves with each lease")]
pub(in crate::transport) struct LeasePool {
    idle: HashMap<PoolKey, Vec<Box<Link>>>,
    held: usize,
    max_for_key: usize,
    max: usize,
}

impl LeasePool {
    /// An empty pool with its limits.
    pub(in crate::transport) fn new(max_for_key: usize, max: usize) -> Self {
        Self { idle: HashMap::new(), held: 0, max_for_key, max }
    }

    /// Takes the warmest connection that can be leased now; dead ones on the way are closed.
    pub(in crate::transport) fn take(&mut self, key: &PoolKey) -> Option<Box<Link>> {
        let stack = self.idle.get_mut(key)?;
        for at in (0..stack.len()).rev() {
            match stack[at].check_idle() {
                Idle::Busy => {}
                Idle::Free => {
                    self.held -= 1;
                    return Some(stack.remove(at));
                }
                Idle::Dead => {
                    self.held -= 1;
                    stack.remove(at).close();
                }
            }
        }
        None
    }

    /// Takes back a connection that ended clean. When there are too many, the one that was idle longest goes.
    pub(in crate::transport) fn give(&mut self, key: PoolKey, mut link: Box<Link>) {
        if link.draining || self.max == 0 {
            return link.close();
        }
        link.idle_since = Instant::now();
        link.ended.rest();
        let stack = self.idle.entry(key).or_default();
        stack.push(link);
        self.held += 1;
        if stack.len() > self.max_for_key {
            self.held -= 1;
            stack.remove(0).close();
        } else if self.held > self.max {
            self.drop_oldest();
        }
    }

    /// Closes what is dead, older than `idle_limit`, or of another trust bundle.
    pub(in crate::transport) fn trim(&mut self, idle_limit: Duration, trust_generation: u64) {
        let now = Instant::now();
        for (key, stack) in &mut self.idle {
            let mut at = 0;
            while at < stack.len() {
                let old = now.duration_since(stack[at].idle_since) >= idle_limit;
                let foreign = key.trust_generation != trust_generation;
                if old || foreign || stack[at].check_idle() == Idle::Dead {
                    self.held -= 1;
                    stack.remove(at).close();
                } else {
                    at += 1;
                }
            }
        }
        self.idle.retain(|_, stack| !stack.is_empty());
    }

    /// Closes what is idle under the keys that `gone` names.
    pub(in crate::transport) fn close_where(&mut self, gone: impl Fn(&PoolKey) -> bool) {
        for (_, stack) in self.idle.extract_if(|key, _| gone(key)) {
            self.held -= stack.len();
            stack.into_iter().for_each(|link| link.close());
        }
    }

    /// How many connections are idle.
    pub(in crate::transport) fn len(&self) -> usize {
        self.held
    }

    fn drop_oldest(&mut self) {
        let oldest = self.idle.values_mut().filter(|stack| !stack.is_empty()).min_by_key(|s| s[0].idle_since);
        if let Some(stack) = oldest {
            self.held -= 1;
            stack.remove(0).close();
        }
    }
}
