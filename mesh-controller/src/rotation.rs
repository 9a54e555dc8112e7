//! Keeps the authority as it should be: looks at its files, the shared Secret, a plugged-in intermediate and the clock every
//! few seconds, and takes a change of the root from stage to stage (`ca/stages.rs`). What all agents trust comes in; files,
//! certificates and what people are told go out.
//!
//! Every replica follows; the one that holds the Lease takes the steps.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_api::proto;
use mesh_core::identity::TrustDomain;
use tokio::sync::{mpsc, watch};

use crate::api::{ApiError, Client};
use crate::ca::published::{Note, all_trust, note, notes, publish};
use crate::ca::shared::SharedMaterial;
use crate::ca::{
    CaError, Change, IssuerFolder, Look, Material, SharedRootError, Signing, Waits, another_root, layout,
    shared,
};
use crate::metrics::Metrics;
use crate::object::{Origin, Status};
use crate::report::Leading;
use crate::serve::{Agents, CompiledFeed, Credentials, RotateRequest, TlsError, TlsState};

mod told;

/// How often files and the clock are looked at.
const EVERY: Duration = Duration::from_secs(2);
/// The same where it costs requests to an API server.
const EVERY_SHARED: Duration = Duration::from_secs(5);

/// The authority that replicas share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Where it is.
    pub client: Client,
    /// Whether this replica takes the steps.
    pub leading: Leading,
    /// Which replica this is.
    pub replica: String,
}

/// How a root follows another.
#[derive(Clone, Copy, Debug)]
pub struct RotationSettings {
    /// How long the steps take.
    pub waits: Waits,
    /// How long all agents must have trusted the next root before it signs.
    pub settle: Duration,
}

/// Why a look failed.
#[derive(Debug, thiserror::Error)]
enum TurnError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Shared(#[from] SharedRootError),
    #[error("the agents' notes: {0}")]
    Notes(ApiError),
    #[error("the state folder holds no authority any more")]
    Gone,
    #[error("{0}")]
    Refused(&'static str),
}

/// What the stages are taken from and written to.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) credentials: Credentials,
    pub(crate) folder: PathBuf,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) input: Option<IssuerFolder>,
    pub(crate) shared: Option<Shared>,
    pub(crate) settings: RotationSettings,
    pub(crate) agents: Arc<Agents>,
    pub(crate) compiled: CompiledFeed,
    pub(crate) metrics: Arc<Metrics>,
}

/// The keeper.
#[derive(Debug)]
pub(crate) struct Rotation {
    parts: Parts,
    requests: mpsc::Receiver<RotateRequest>,
    told: watch::Sender<Arc<proto::AuthorityStatus>>,
    /// Since when all agents have trusted the next root, as far as can be told.
    trusted_since: Option<Instant>,
    /// What is wrong with the plugged-in intermediate.
    problem: Option<String>,
    published: Option<String>,
    noted: bool,
}

/// What was read, to be written back.
struct Held {
    material: Material,
    shared: Option<SharedMaterial>,
}

impl Rotation {
    /// A keeper that nobody runs yet.
    pub(crate) fn new(parts: Parts, requests: mpsc::Receiver<RotateRequest>) -> Self {
        let told = watch::Sender::default();
        Self { parts, requests, told, trusted_since: None, problem: None, published: None, noted: false }
    }

    /// What people are told.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<proto::AuthorityStatus>> {
        self.told.subscribe()
    }

    /// Runs for ever.
    pub(crate) async fn run(mut self) {
        let every = if self.parts.shared.is_some() { EVERY_SHARED } else { EVERY };
        let mut last = String::new();
        loop {
            let request = tokio::select! {
                () = tokio::time::sleep(every) => None,
                request = self.requests.recv() => request,
            };
            let outcome = self.turn(SystemTime::now(), request.is_some()).await;
            let error = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
            if !error.is_empty() && error != last {
                tracing::error!(%error, "the authority cannot be looked after; what there is stays");
            }
            last = error;
            if let Some(asked) = request {
                // Who asked may have gone.
                asked.send(outcome.map(|()| self.told.borrow().as_ref().clone()).map_err(refusal)).ok();
            }
        }
    }

    /// One look; `rotate` when somebody asks for another root.
    async fn turn(&mut self, now: SystemTime, rotate: bool) -> Result<(), TurnError> {
        let followed = self.follow(now, rotate).await;
        // Whatever became of that: certificates are renewed.
        let refreshed = self.refresh(now);
        let material = followed?;
        refreshed.map_err(|error| match error {
            TlsError::Ca(error) => TurnError::Ca(error),
            other => TurnError::Ca(CaError::Request(other.to_string())),
        })?;
        self.show(&material, now).await
    }

    async fn follow(&mut self, now: SystemTime, rotate: bool) -> Result<Material, TurnError> {
        let held = self.read().await?;
        let (mut next, mut changes) = (held.material.clone(), Vec::new());
        if rotate {
            if self.parts.input.is_some() {
                return Err(TurnError::Refused(
                    "the intermediate is plugged in (--issuer-dir): put one of another root there, with its ca.crt",
                ));
            }
            if next.stages.next.is_some() {
                return Err(TurnError::Refused("a root is waiting to sign already"));
            }
            changes.extend(next.propose(another_root(&self.parts.trust_domain, now)?, now));
        }
        let wanted = self.look(now);
        if self.leads() {
            if let Some(wanted) = wanted {
                changes.extend(next.propose(wanted, now));
            }
            if changes.is_empty() {
                let trusted = self.all_trust(&next, now).await?;
                changes.extend(next.step(now, trusted, self.parts.settings.waits));
            }
        } else {
            self.trusted_since = None;
        }
        if next != held.material {
            self.write(held, &next).await?;
        }
        layout::store(&self.parts.folder, &next)?;
        changes.into_iter().for_each(tell);
        Ok(next)
    }

    fn leads(&self) -> bool {
        self.parts.shared.as_ref().is_none_or(|shared| *shared.leading.borrow())
    }

    async fn read(&self) -> Result<Held, TurnError> {
        if let Some(shared) = &self.parts.shared {
            let read = shared::read(&shared.client).await?;
            return Ok(Held { material: read.material.clone(), shared: Some(read) });
        }
        let material = layout::load(&self.parts.folder)?.ok_or(TurnError::Gone)?;
        Ok(Held { material, shared: None })
    }

    async fn write(&self, held: Held, next: &Material) -> Result<(), TurnError> {
        if let (Some(shared), Some(read)) = (&self.parts.shared, held.shared) {
            shared::replace(&shared.client, read, next).await?;
        }
        Ok(())
    }

    /// The plugged-in intermediate as it should be; `None` where there is nothing new to say.
    fn look(&mut self, now: SystemTime) -> Option<Signing> {
        let input = self.parts.input.as_mut()?;
        let (wanted, problem) = match input.look(now) {
            Look::Unsettled => return None,
            Look::Good(wanted) => (Some(wanted), None),
            Look::Bad(problem) => (None, Some(problem)),
        };
        if problem != self.problem {
            let folder = input.path().display();
            match &problem {
                Some(problem) => {
                    tracing::error!(%folder, %problem, "the intermediate is not taken; the last good one signs on")
                }
                None => tracing::info!(%folder, "the intermediate can be taken again"),
            }
            self.problem = problem;
        }
        wanted
    }

    fn refresh(&mut self, now: SystemTime) -> Result<(), TlsError> {
        let status = self.problem.as_ref().zip(self.parts.input.as_ref()).map(|(problem, input)| {
            let place = Origin::Place(input.path().display().to_string().into());
            Status::refused(&place, "IntermediateRefused", format!("{problem}; the last good one signs on"))
        });
        self.parts.credentials.refresh(now, status)
    }

    /// Whether all agents trust the next root, and have for long enough.
    async fn all_trust(&mut self, material: &Material, now: SystemTime) -> Result<bool, TurnError> {
        let Some(next) = &material.stages.next else {
            self.trusted_since = None;
            return Ok(false);
        };
        let tls = self.parts.credentials.now();
        let sent = told::der(next.signing.root()).is_some_and(|root| tls.roots.contains(&root));
        if !sent || !self.agents_trust(&tls, now).await? {
            self.trusted_since = None;
            return Ok(false);
        }
        let since = *self.trusted_since.get_or_insert_with(Instant::now);
        Ok(since.elapsed() >= self.parts.settings.settle)
    }

    async fn agents_trust(&self, tls: &TlsState, now: SystemTime) -> Result<bool, TurnError> {
        let Some(shared) = &self.parts.shared else {
            return Ok(self.parts.agents.behind(&tls.roots_id, true).is_empty());
        };
        if !self.parts.agents.behind(&tls.roots_id, false).is_empty() {
            return Ok(false);
        }
        // Agents of other replicas: each says how many of its own follow, and the API server how many there are.
        let Some(compiled) = self.parts.compiled.borrow().clone() else { return Ok(false) };
        let nodes: std::collections::BTreeSet<_> = compiled.agents.values().collect();
        let id = told::hex(&tls.roots_id);
        let notes = notes(&shared.client, now).await.map_err(TurnError::Notes)?;
        Ok(all_trust(&notes, &id, nodes.len()))
    }

    /// Tells people, other replicas, and agents that start.
    async fn show(&mut self, material: &Material, now: SystemTime) -> Result<(), TurnError> {
        let tls = self.parts.credentials.now();
        let changing = material.stages.next.is_some();
        let away = self.parts.shared.is_none();
        let behind = if changing { self.parts.agents.behind(&tls.roots_id, away) } else { Vec::new() };
        let ends = self.parts.credentials.intermediate_ends();
        let status = told::status(material, &tls, ends, behind, self.problem.as_ref());
        self.parts.metrics.authority(&status);
        self.told.send_replace(Arc::new(status));
        let Some(shared) = &self.parts.shared else { return Ok(()) };
        let roots = material.roots_pem();
        if self.published.as_ref() != Some(&roots) {
            publish(&shared.client, &roots).await.map_err(SharedRootError::Publish)?;
            self.published = Some(roots);
        }
        if changing || self.noted {
            let trusting = self.parts.agents.trusting(&tls.roots_id);
            let behind = self.parts.agents.behind(&tls.roots_id, false).len();
            let mine = Note { roots_id: told::hex(&tls.roots_id), trusting, behind };
            let mine = changing.then_some(&mine);
            note(&shared.client, &shared.replica, mine, now).await.map_err(TurnError::Notes)?;
            self.noted = changing;
        }
        Ok(())
    }
}

fn tell(change: Change) {
    tracing::info!(target: "audit", change = ?change, "{}", change.text());
}

fn refusal(error: TurnError) -> tonic::Status {
    match error {
        TurnError::Refused(reason) => tonic::Status::failed_precondition(reason),
        TurnError::Shared(SharedRootError::Api(error)) if error.is(409) => {
            tonic::Status::aborted("another replica was faster; ask again")
        }
        other => {
            tracing::error!(error = %other, "the root was not rotated");
            tonic::Status::internal("the authority failed; the controller's log says why")
        }
    }
}
