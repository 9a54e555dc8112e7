//! The `kube` source: every kind that the mesh reads, listed and then watched on the API server.
//!
//! No object is kept here, only names: the index holds what it needs of each. What the server sent last stays in force
//! while it is away; a relist (at the start, and when the server has forgotten where a watch stood: 410) ends with the
//! objects that are gone. The first batch comes when every kind that is required has been listed once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kube::core::params::{ListParams, WatchParams};
use kube::core::{DynamicObject, Request, Resource, WatchEvent};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::manifest::{Item, from_api};
use super::{Batch, Change, Source};
use crate::api::{ApiError, Client, optional, required, resource, routes};
use crate::object::{Kind, Name, ObjectRef, Origin, Status};

/// How many objects are asked for at once.
const PAGE: u32 = 500;
/// How long the server lets a watch stand; then it is asked for again.
const WATCH_SECONDS: u32 = 290;
/// The pause after a failure grows from the first to the last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// How often a kind is looked for whose definition is not installed.
const ABSENT_PAUSE: Duration = Duration::from_secs(10);
/// Changes that come within this time of the first are told together.
const GATHER: Duration = Duration::from_millis(5);
/// A watch that stood for so long was in order.
const LASTED: Duration = Duration::from_secs(5);
/// A watch that fails so often in a row starts over with a list.
const FAILURES_TO_RELIST: u32 = 5;

/// Objects of an API server.
#[derive(Debug)]
pub struct KubeSource {
    client: Client,
}

/// What one kind's follower has to say.
enum News {
    Listed(Kind, Vec<Item>),
    /// Its definition is not installed.
    Absent(Kind),
    Applied(Kind, Item),
    Gone(Kind, Name),
    /// Why nothing can be read now; `None` when it can be again.
    Trouble(Kind, Option<String>),
}

impl KubeSource {
    /// Reads from `client`.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

impl Source for KubeSource {
    fn derives_endpoints(&self) -> bool {
        false
    }

    fn start(self, sink: mpsc::Sender<Batch>) -> std::io::Result<()> {
        let (news, told) = mpsc::channel(1024);
        for kind in required().iter().chain(routes()) {
            let follower = Follower { client: self.client.clone(), kind: *kind, news: news.clone() };
            tokio::spawn(follower.run());
        }
        tokio::spawn(gather(self.client.server(), told, sink));
        Ok(())
    }
}

/// Gathers news into batches until nobody wants them.
async fn gather(server: String, mut told: mpsc::Receiver<News>, sink: mpsc::Sender<Batch>) {
    let mut state = State { server, ..State::default() };
    while let Some(first) = told.recv().await {
        state.take(first);
        tokio::time::sleep(GATHER).await;
        while let Ok(more) = told.try_recv() {
            state.take(more);
        }
        if required().iter().all(|kind| state.known.contains_key(kind))
            && sink.send(state.batch()).await.is_err()
        {
            return;
        }
    }
}

/// What is known of the server's objects: their names, and which are in force as they were once.
#[derive(Default)]
struct State {
    server: String,
    known: BTreeMap<Kind, BTreeMap<Name, Known>>,
    refused: BTreeMap<ObjectRef, Status>,
    troubles: BTreeMap<Kind, String>,
    changes: Vec<Change>,
}

/// Whether a version of an object could ever be decoded.
#[derive(Clone, Copy, PartialEq)]
enum Known {
    Good,
    Undecodable,
}

impl State {
    fn take(&mut self, news: News) {
        match news {
            News::Listed(kind, items) => {
                self.troubles.remove(&kind);
                let listed: BTreeSet<Name> = items.iter().map(|item| item.name.clone()).collect();
                let known = self.known.entry(kind).or_default();
                let gone: Vec<Name> = known.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                for name in gone {
                    self.gone(kind, name);
                }
                for item in items {
                    self.apply(kind, item);
                }
            }
            News::Absent(kind) => {
                // Who removes a definition removes its objects first, and the watch tells of them. So what is known still
                // was not taken away by anybody.
                if self.known.entry(kind).or_default().is_empty() {
                    self.troubles.remove(&kind);
                } else {
                    self.troubles.insert(kind, "its CustomResourceDefinition is not there".into());
                }
            }
            News::Applied(kind, item) => self.apply(kind, item),
            News::Gone(kind, name) => self.gone(kind, name),
            News::Trouble(kind, Some(message)) => drop(self.troubles.insert(kind, message)),
            News::Trouble(kind, None) => drop(self.troubles.remove(&kind)),
        }
    }

    fn apply(&mut self, kind: Kind, item: Item) {
        let Item { name, origin, decoded } = item;
        let key = ObjectRef { kind, name: name.clone() };
        let known = self.known.entry(kind).or_default();
        match decoded {
            Ok(object) => {
                known.insert(name, Known::Good);
                self.refused.remove(&key);
                self.changes.push(Change::Apply(key, object, origin));
            }
            Err(message) => {
                let kept = match known.entry(name).or_insert(Known::Undecodable) {
                    Known::Good => "its last good version is kept",
                    Known::Undecodable => {
                        self.changes.push(Change::Undecodable(key.clone(), origin.clone()));
                        "it is not in force"
                    }
                };
                let message = format!("{key}: {message}; {kept}");
                self.refused.insert(key, Status::refused(&origin, "Malformed", message));
            }
        }
    }

    fn gone(&mut self, kind: Kind, name: Name) {
        self.known.entry(kind).or_default().remove(&name);
        let key = ObjectRef { kind, name };
        self.refused.remove(&key);
        self.changes.push(Change::Delete(key));
    }

    fn batch(&mut self) -> Batch {
        let server = Origin::Place(self.server.as_str().into());
        let troubles = self.troubles.iter().map(|(kind, message)| {
            let message = format!("{kind}: {message}; what was read before stays in force");
            Status::refused(&server, "Unreachable", message)
        });
        let statuses = self.refused.values().cloned().chain(troubles).collect();
        Batch { changes: std::mem::take(&mut self.changes), statuses }
    }
}

/// Lists and watches one kind.
struct Follower {
    client: Client,
    kind: Kind,
    news: mpsc::Sender<News>,
}

/// Why a follower's step ended.
enum End {
    /// Nobody listens any more.
    Unwanted,
    /// Asking again from the same place may help.
    Failed(ApiError),
    /// The server no longer knows the place: list again.
    Forgotten,
}

impl From<ApiError> for End {
    fn from(error: ApiError) -> Self {
        if error.is(410) { Self::Forgotten } else { Self::Failed(error) }
    }
}

/// A page of a list.
#[derive(Deserialize)]
struct Page {
    metadata: PageMeta,
    items: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

impl Follower {
    async fn run(self) {
        let mut pauses = Pauses::default();
        let mut troubled = false;
        loop {
            match self.list_and_watch(&mut pauses, &mut troubled).await {
                End::Unwanted => return,
                End::Forgotten => {
                    tracing::info!(kind = %self.kind, "the watch's place is forgotten: listed again")
                }
                End::Failed(error) => {
                    let absent = error.is(404);
                    if absent && optional(self.kind) {
                        if self.tell(News::Absent(self.kind)).await.is_err() {
                            return;
                        }
                        tokio::time::sleep(ABSENT_PAUSE).await;
                        continue;
                    }
                    let hint = if absent { ": is its CustomResourceDefinition installed?" } else { "" };
                    if self.trouble(&mut troubled, Some(format!("{error}{hint}"))).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(pauses.next()).await;
                }
            }
        }
    }

    async fn list_and_watch(&self, pauses: &mut Pauses, troubled: &mut bool) -> End {
        let mut version = match self.list(troubled).await {
            Ok(version) => version,
            Err(end) => return end,
        };
        loop {
            let begun = Instant::now();
            let ended = self.watch(&mut version, troubled).await;
            if begun.elapsed() > LASTED {
                pauses.count = 0;
            }
            match ended {
                // The server ends each watch after a while.
                Ok(()) if begun.elapsed() > LASTED => continue,
                Ok(()) => {}
                Err(End::Failed(error)) if pauses.count < FAILURES_TO_RELIST => {
                    if self.trouble(troubled, Some(error.to_string())).await.is_err() {
                        return End::Unwanted;
                    }
                }
                Err(end) => return end,
            }
            tokio::time::sleep(pauses.next()).await;
        }
    }

    fn request(&self) -> Request {
        Request::new(DynamicObject::url_path(&resource(self.kind), None))
    }

    /// Tells of everything, and answers where a watch goes on.
    async fn list(&self, troubled: &mut bool) -> Result<String, End> {
        let mut items = Vec::new();
        let mut params = ListParams { limit: Some(PAGE), ..ListParams::default() };
        loop {
            let request = self.request().list(&params).map_err(ApiError::from)?;
            let page: Page = self.client.call(request).await?;
            items.extend(page.items.into_iter().filter_map(|value| self.item(value)));
            match page.metadata.next.filter(|next| !next.is_empty()) {
                Some(next) => params.continue_token = Some(next),
                None => {
                    self.tell(News::Listed(self.kind, items)).await?;
                    self.trouble(troubled, None).await?;
                    return Ok(page.metadata.resource_version);
                }
            }
        }
    }

    /// Tells of each change after `version`, until the server ends it.
    async fn watch(&self, version: &mut String, troubled: &mut bool) -> Result<(), End> {
        let params = WatchParams::default().timeout(WATCH_SECONDS);
        let request = self.request().watch(&params, version).map_err(ApiError::from)?;
        let mut lines = self.client.lines(request).await?;
        self.trouble(troubled, None).await?;
        while let Some(line) = lines.next().await? {
            let event = serde_json::from_slice::<WatchEvent<Value>>(&line)
                .map_err(|e| ApiError::Answer(e.to_string()))?;
            let (object, gone) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Bookmark(bookmark) => {
                    *version = bookmark.metadata.resource_version;
                    continue;
                }
                WatchEvent::Error(status) => {
                    let code = status.code;
                    return Err(ApiError::from_status(*status, code).into());
                }
            };
            let at = object.pointer("/metadata/resourceVersion").and_then(Value::as_str).map(str::to_owned);
            if let Some(item) = self.item(object) {
                let news =
                    if gone { News::Gone(self.kind, item.name) } else { News::Applied(self.kind, item) };
                self.tell(news).await?;
            }
            if let Some(at) = at {
                *version = at;
            }
        }
        Ok(())
    }

    fn item(&self, value: Value) -> Option<Item> {
        let item = from_api(self.kind, value);
        if item.is_none() {
            tracing::warn!(kind = %self.kind, "the API server sent an object without a name");
        }
        item
    }

    async fn tell(&self, news: News) -> Result<(), End> {
        self.news.send(news).await.map_err(|_| End::Unwanted)
    }

    /// Tells of the first of several failures in a row, and of their end.
    async fn trouble(&self, troubled: &mut bool, message: Option<String>) -> Result<(), End> {
        if *troubled == message.is_some() {
            return Ok(());
        }
        *troubled = message.is_some();
        self.tell(News::Trouble(self.kind, message)).await
    }
}

/// Pauses that grow with each failure in a row.
#[derive(Default)]
struct Pauses {
    count: u32,
}

impl Pauses {
    fn next(&mut self) -> Duration {
        let pause = PAUSE.0.saturating_mul(1 << self.count.min(16)).min(PAUSE.1);
        self.count += 1;
        pause
    }
}
