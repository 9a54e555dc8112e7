//! Keeps an SVID for the identity of every enrolled workload of this node: obtained when the snapshot first names it,
//! renewed at half of its life, or soon after the authority began to sign under another certificate, forgotten with the
//! last such workload. When the controller is away the old one stays until it ends, and asking goes on with growing waits.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use mesh_api::proto::SignWorkloadRequest;
use mesh_api::proto::certificate_authority_client::CertificateAuthorityClient;
use mesh_core::identity::SpiffeId;
use rustls::pki_types::CertificateDer;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::issued::{CertificateError, Issued, accept, new_key, request, rfc3339};
use super::keyring::Keyring;
use super::renewal;
use crate::control::bundle::Bundle;
use crate::control::dial::explain_status;
use crate::control::status::CertificateProblem;
use crate::control::{Backoff, ControlMetrics, ControlStatus, Controller, Published};
use crate::identify::{Svid, SvidStore};

const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Requests to the controller that are under way at once.
const MOST_AT_ONCE: usize = 8;

/// Why no SVID was obtained.
#[derive(Debug, thiserror::Error)]
enum SignError {
    #[error("{0}")]
    Refused(String),
    #[error("the controller did not answer in time")]
    Timeout,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// Obtains and renews the SVIDs of this node's workloads.
#[derive(Debug)]
pub(in crate::control) struct Signer {
    pub(in crate::control) controller: Arc<Controller>,
    pub(in crate::control) published: Published,
    pub(in crate::control) svids: Arc<SvidStore>,
    pub(in crate::control) keyring: Arc<Keyring>,
    pub(in crate::control) bundle: Bundle,
    pub(in crate::control) node: Arc<str>,
    pub(in crate::control) status: Arc<ControlStatus>,
    pub(in crate::control) metrics: ControlMetrics,
    /// Waits after failures, as every identity begins them.
    pub(in crate::control) backoff: Backoff,
}

/// What is known of one wanted identity.
struct Slot {
    due: Instant,
    busy: bool,
    backoff: Backoff,
    problem: Option<String>,
}

type Attempt = (SpiffeId, Result<Issued, SignError>);

impl Signer {
    /// Keeps the store as described above, for ever.
    pub(in crate::control) async fn run(self) {
        // Those that another agent handed over count from 1.
        let generation = AtomicU64::new(self.svids.all().len() as u64 + 1);
        let mut versions = self.published.watch();
        let mut issuers = self.bundle.issuers();
        let mut slots: HashMap<SpiffeId, Slot> = HashMap::new();
        let mut attempts: JoinSet<Attempt> = JoinSet::new();
        loop {
            self.reconcile(&mut slots);
            self.start_due(&mut slots, &mut attempts);
            self.report(&slots);
            let next = slots.values().filter(|slot| !slot.busy).map(|slot| slot.due).min();
            let room = attempts.len() < MOST_AT_ONCE;
            tokio::select! {
                changed = versions.changed() => if changed.is_err() { return },
                changed = issuers.changed() => match changed {
                    Ok(()) => self.hasten(&mut slots),
                    Err(_) => return,
                },
                Some(joined) = attempts.join_next() => match joined {
                    Ok((identity, outcome)) => self.finish(&mut slots, identity, outcome, &generation),
                    Err(error) => {
                        // It cannot be told whose it was: all that wait are asked for again.
                        tracing::error!(%error, "a certificate request broke off");
                        slots.values_mut().for_each(|slot| slot.busy = false);
                    }
                },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() && room => {}
            }
        }
    }

    fn reconcile(&self, slots: &mut HashMap<SpiffeId, Slot>) {
        let snapshot = self.published.load();
        let wanted: HashSet<SpiffeId> = snapshot
            .workloads()
            .filter(|workload| workload.enrolled && *workload.node == *self.node)
            .map(|workload| workload.identity.clone())
            .collect();
        slots.retain(|identity, _| {
            let keep = wanted.contains(identity);
            if !keep {
                tracing::info!(%identity, "no enrolled workload has this identity any more");
                self.svids.remove(identity);
                self.keyring.forget(identity);
                self.status.certificates_changed.notify_one();
            }
            keep
        });
        for identity in wanted {
            if let Entry::Vacant(vacant) = slots.entry(identity) {
                let first = self.first_slot(vacant.key());
                vacant.insert(first);
            }
        }
    }

    /// An SVID that another agent handed over is renewed in its turn; any other is obtained now.
    fn first_slot(&self, identity: &SpiffeId) -> Slot {
        let (backoff, now) = (self.backoff.clone(), SystemTime::now());
        match self.svids.get(identity, now) {
            Some(held) => {
                let half = renewal::wait(held.not_before, held.not_before, held.not_after, now);
                let due = Instant::now() + self.bounded(half, &held.key.cert, held.not_after, now);
                Slot { due, busy: false, backoff, problem: None }
            }
            None => {
                let problem = Some("not obtained yet".to_owned());
                Slot { due: Instant::now(), busy: false, backoff, problem }
            }
        }
    }

    /// `half`, or less if the authority signs under another certificate since.
    fn bounded(
        &self,
        half: Duration,
        chain: &[CertificateDer<'static>],
        not_after: SystemTime,
        now: SystemTime,
    ) -> Duration {
        if self.bundle.is_current(chain) { half } else { half.min(renewal::soon(not_after, now)) }
    }

    /// The authority signs under another certificate: what it signed under the one before is asked for again soon. What
    /// is under way is looked at when it arrives.
    fn hasten(&self, slots: &mut HashMap<SpiffeId, Slot>) {
        let (at, now) = (Instant::now(), SystemTime::now());
        for (identity, slot) in slots.iter_mut().filter(|(_, slot)| !slot.busy) {
            if let Some(held) = self.svids.get(identity, now) {
                let left = slot.due.saturating_duration_since(at);
                slot.due = at + self.bounded(left, &held.key.cert, held.not_after, now);
            }
        }
    }

    fn start_due(&self, slots: &mut HashMap<SpiffeId, Slot>, attempts: &mut JoinSet<Attempt>) {
        let now = Instant::now();
        for (identity, slot) in slots.iter_mut().filter(|(_, slot)| !slot.busy && slot.due <= now) {
            if attempts.len() >= MOST_AT_ONCE {
                return;
            }
            slot.busy = true;
            let (identity, controller) = (identity.clone(), Arc::clone(&self.controller));
            attempts.spawn(async move {
                let outcome = obtain(&controller, &identity).await;
                (identity, outcome)
            });
        }
    }

    fn finish(
        &self,
        slots: &mut HashMap<SpiffeId, Slot>,
        identity: SpiffeId,
        outcome: Result<Issued, SignError>,
        generation: &AtomicU64,
    ) {
        // Not wanted any more: what was signed is dropped with its key.
        let Some(slot) = slots.get_mut(&identity) else { return };
        slot.busy = false;
        match outcome {
            Ok(issued) => {
                let now = SystemTime::now();
                slot.backoff.reset();
                slot.problem = None;
                let half = renewal::wait(now, issued.not_before, issued.not_after, now);
                // Another replica of the controller may not have followed yet.
                slot.due = Instant::now() + self.bounded(half, &issued.key.cert, issued.not_after, now);
                self.metrics.certificates_signed.inc();
                tracing::info!(%identity, until = %rfc3339(issued.not_after), "obtained a certificate");
                // Never repeats, also when an identity leaves the node and comes back.
                let generation = generation.fetch_add(1, Ordering::Relaxed);
                self.keyring.keep(identity.clone(), generation, issued.pkcs8);
                let (not_before, not_after) = (issued.not_before, issued.not_after);
                self.svids.put(Arc::new(Svid {
                    identity,
                    key: issued.key,
                    not_before,
                    not_after,
                    generation,
                }));
                self.status.certificates_changed.notify_one();
            }
            Err(error) => {
                let wait = slot.backoff.wait();
                slot.due = Instant::now() + wait;
                self.metrics.certificate_failures.inc();
                tracing::warn!(%identity, %error, ?wait, "obtaining a certificate failed");
                slot.problem = Some(error.to_string());
            }
        }
    }

    fn report(&self, slots: &HashMap<SpiffeId, Slot>) {
        let now = SystemTime::now();
        let mut problems: Vec<CertificateProblem> = slots
            .iter()
            .filter_map(|(identity, slot)| {
                let problem = slot.problem.clone()?;
                let missing = self.svids.get(identity, now).is_none();
                Some(CertificateProblem { identity: identity.to_string(), missing, problem })
            })
            .collect();
        problems.sort_by(|a, b| a.identity.cmp(&b.identity));
        self.status.set_certificates(problems);
    }
}

async fn obtain(controller: &Controller, identity: &SpiffeId) -> Result<Issued, SignError> {
    let key = new_key()?;
    let spiffe_id = identity.to_string();
    let request = SignWorkloadRequest { spiffe_id: spiffe_id.clone(), csr_der: request(&key)? };
    let mut client = CertificateAuthorityClient::new(controller.channel());
    let signed = timeout(CALL_LIMIT, client.sign_workload(request))
        .await
        .map_err(|_| SignError::Timeout)?
        .map_err(|status| SignError::Refused(explain_status(&status)))?
        .into_inner();
    Ok(accept(key.serialize_der(), signed.chain_der, &spiffe_id, SystemTime::now())?)
}
