//! Looks addresses up at the controller on first use, so that an agent holds only what its pods talk to.
//!
//! Addresses come in from the data plane; subscriptions go out through the discovery client, and the answer arrives as
//! a snapshot that says what the address is ("no such address" included). Waiters of one address share one question.
//! Subscriptions that nobody used for a while are given up.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::snapshot::Destination;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::{ControlMetrics, Published};

/// Why an address could not be resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No answer within the limit (the controller is away, or slow).
    #[error("the controller did not answer for {0} in time")]
    Timeout(IpAddr),
    /// So many addresses are held that this one is not asked for (a port scan, or a limit that is too small).
    #[error("{0} was not looked up: too many addresses are in use on this node")]
    TooMany(IpAddr),
}

/// Limits of [`Lookup`].
#[derive(Clone, Copy, Debug)]
pub struct LookupSettings {
    /// How long a connection waits for an answer; a question is also asked again after this time.
    pub limit: Duration,
    /// A subscription that was not used for this long is given up.
    pub idle: Duration,
    /// The most subscriptions held at once.
    pub most: usize,
}

impl Default for LookupSettings {
    fn default() -> Self {
        Self { limit: Duration::from_secs(5), idle: Duration::from_secs(600), most: 65_536 }
    }
}

/// Handle of the data plane to the discovery client. Clones share everything.
#[derive(Clone, Debug)]
pub struct Lookup(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    published: Published,
    settings: LookupSettings,
    metrics: ControlMetrics,
    table: Mutex<Table>,
    /// Wakes the discovery client: the table has something to send.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<IpAddr, Entry>,
    subscribe: HashSet<IpAddr>,
    unsubscribe: HashSet<IpAddr>,
}

#[derive(Debug)]
struct Entry {
    used: Instant,
    asked: Instant,
}

/// What the discovery client has to tell the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) subscribe: Vec<IpAddr>,
    pub(super) unsubscribe: Vec<IpAddr>,
}

impl Lookup {
    /// A handle that asks through whoever serves its `changes` (the discovery client).
    pub fn new(published: Published, settings: LookupSettings, metrics: ControlMetrics) -> Self {
        let (table, changed) = (Mutex::default(), Notify::new());
        Self(Arc::new(Inner { published, settings, metrics, table, changed }))
    }

    /// Returns when the published snapshot says what `address` is. At most 5 s; misses are counted. Marks the address as
    /// used, so that it is not dropped as idle.
    pub async fn ensure(&self, address: IpAddr) -> Result<(), LookupError> {
        let address = address.to_canonical();
        if self.is_known(address) {
            self.touch(address);
            return Ok(());
        }
        self.0.metrics.lookup_misses.inc();
        let mut versions = self.0.published.watch();
        self.ask(address)?;
        let answered = async {
            while !self.is_known(address) {
                if versions.changed().await.is_err() {
                    // Nobody publishes any more: only the limit ends this.
                    std::future::pending::<()>().await;
                }
            }
        };
        timeout(self.0.settings.limit, answered).await.map_err(|_| {
            self.0.metrics.lookup_timeouts.inc();
            LookupError::Timeout(address)
        })
    }

    /// Gives up idle subscriptions, for ever.
    pub(super) async fn expire_idle(self) {
        let period = (self.0.settings.idle / 10).clamp(Duration::from_millis(50), Duration::from_secs(60));
        loop {
            sleep(period).await;
            self.expire(Instant::now());
        }
    }

    /// A new stream begins: every address in use, for its `Hello`. Forgets what was waiting to be sent.
    pub(super) fn begin(&self) -> Vec<IpAddr> {
        let mut table = self.0.table.lock();
        table.subscribe.clear();
        table.unsubscribe.clear();
        let now = Instant::now();
        table.entries.values_mut().for_each(|entry| entry.asked = now);
        table.entries.keys().copied().collect()
    }

    /// Every address that is subscribed to.
    pub(super) fn held(&self) -> Vec<IpAddr> {
        self.0.table.lock().entries.keys().copied().collect()
    }

    /// Goes on with the subscriptions of an earlier agent, as if each had been used now: the next stream's `Hello` names
    /// them.
    pub(super) fn resume(&self, addresses: Vec<IpAddr>) {
        let now = Instant::now();
        let mut table = self.0.table.lock();
        let room = self.0.settings.most.saturating_sub(table.entries.len());
        for address in addresses.into_iter().take(room) {
            table.entries.entry(address.to_canonical()).or_insert(Entry { used: now, asked: now });
        }
        self.0.metrics.lookup_subscriptions.set(gauge(table.entries.len()));
    }

    /// Waits for something to tell the controller, and takes it. Cancel-safe.
    pub(super) async fn changes(&self) -> Changes {
        loop {
            let changed = self.0.changed.notified();
            {
                let mut table = self.0.table.lock();
                if !table.subscribe.is_empty() || !table.unsubscribe.is_empty() {
                    return Changes {
                        subscribe: table.subscribe.drain().collect(),
                        unsubscribe: table.unsubscribe.drain().collect(),
                    };
                }
            }
            changed.await;
        }
    }

    fn is_known(&self, address: IpAddr) -> bool {
        !matches!(self.0.published.load().destination(address), Destination::NotLoaded)
    }

    fn touch(&self, address: IpAddr) {
        // An address that came with a local workload or with a service has no entry of its own.
        if let Some(entry) = self.0.table.lock().entries.get_mut(&address) {
            entry.used = Instant::now();
        }
    }

    fn ask(&self, address: IpAddr) -> Result<(), LookupError> {
        let now = Instant::now();
        let mut table = self.0.table.lock();
        if let Some(entry) = table.entries.get_mut(&address) {
            entry.used = now;
            if now.duration_since(entry.asked) < self.0.settings.limit {
                return Ok(());
            }
            entry.asked = now;
        } else {
            if table.entries.len() >= self.0.settings.most {
                self.0.metrics.lookup_refused.inc();
                return Err(LookupError::TooMany(address));
            }
            table.entries.insert(address, Entry { used: now, asked: now });
        }
        // A pending "unsubscribe" would reach the controller in the same batch: the newer wish wins.
        table.unsubscribe.remove(&address);
        table.subscribe.insert(address);
        self.0.metrics.lookup_subscriptions.set(gauge(table.entries.len()));
        drop(table);
        self.0.changed.notify_one();
        Ok(())
    }

    fn expire(&self, now: Instant) {
        let mut table = self.0.table.lock();
        let idle = self.0.settings.idle;
        let gone: Vec<IpAddr> = table
            .entries
            .iter()
            .filter(|(_, entry)| now.saturating_duration_since(entry.used) >= idle)
            .map(|(address, _)| *address)
            .collect();
        if gone.is_empty() {
            return;
        }
        for address in gone {
            table.entries.remove(&address);
            table.subscribe.remove(&address);
            table.unsubscribe.insert(address);
        }
        self.0.metrics.lookup_subscriptions.set(gauge(table.entries.len()));
        drop(table);
        self.0.changed.notify_one();
    }
}

fn gauge(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use mesh_core::identity::TrustDomain;
    use mesh_core::snapshot::{Delta, Upsert};

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));

    fn lookup(settings: LookupSettings) -> (Lookup, Published, ControlMetrics) {
        let published = Published::new(TrustDomain::new("cluster.local").unwrap());
        let metrics = ControlMetrics::default();
        (Lookup::new(published.clone(), settings, metrics.clone()), published, metrics)
    }

    fn answer(published: &Published, address: IpAddr) {
        let delta = Delta { version: 1, upserts: vec![Upsert::Absent(address)], ..Delta::default() };
        published.publish(published.load().apply(delta));
    }

    #[tokio::test(start_paused = true)]
    async fn many_waiters_ask_once_and_all_get_the_negative_answer() {
        let (lookup, published, metrics) = lookup(LookupSettings::default());
        let waiters: Vec<_> = (0..100)
            .map(|_| {
                tokio::spawn({
                    let lookup = lookup.clone();
                    async move { lookup.ensure(ADDRESS).await }
                })
            })
            .collect();
        assert_eq!(lookup.changes().await.subscribe, [ADDRESS]);
        tokio::task::yield_now().await;
        answer(&published, ADDRESS);
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), Ok(()));
        }
        assert_eq!(lookup.0.table.lock().subscribe.len(), 0, "asked more than once");
        assert_eq!(metrics.lookup_misses.get(), 100);
        assert_eq!(lookup.ensure(ADDRESS).await, Ok(()));
        assert_eq!(metrics.lookup_misses.get(), 100, "a known address is no miss");
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_without_answer_ends_after_the_limit_and_is_asked_again() {
        let (lookup, _published, metrics) = lookup(LookupSettings::default());
        let before = Instant::now();
        assert_eq!(lookup.ensure(ADDRESS).await, Err(LookupError::Timeout(ADDRESS)));
        assert_eq!(before.elapsed().as_secs(), 5);
        assert_eq!(lookup.changes().await.subscribe, [ADDRESS]);
        assert!(lookup.ensure(ADDRESS).await.is_err());
        assert_eq!(lookup.changes().await.subscribe, [ADDRESS]);
        assert_eq!(metrics.lookup_timeouts.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_in_use_stays_and_an_idle_one_is_given_up() {
        let (lookup, published, _) = lookup(LookupSettings::default());
        let other: IpAddr = "10.0.0.10".parse().unwrap();
        answer(&published, other);
        for address in [ADDRESS, other] {
            lookup.ask(address).unwrap();
        }
        lookup.changes().await;
        tokio::time::advance(Duration::from_secs(400)).await;
        lookup.ensure(other).await.unwrap();
        tokio::time::advance(Duration::from_secs(300)).await;
        lookup.expire(Instant::now());
        assert_eq!(lookup.changes().await, Changes { subscribe: vec![], unsubscribe: vec![ADDRESS] });
        assert_eq!(lookup.begin(), [other]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_scan_does_not_fill_the_memory() {
        let settings = LookupSettings { most: 2, ..LookupSettings::default() };
        let (lookup, _published, metrics) = lookup(settings);
        for last in 1..=2 {
            lookup.ask([10, 0, 0, last].into()).unwrap();
        }
        assert_eq!(lookup.ensure(ADDRESS).await, Err(LookupError::TooMany(ADDRESS)));
        assert_eq!(metrics.lookup_refused.get(), 1);
    }
}
