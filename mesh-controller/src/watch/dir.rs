//! The `dir:PATH` source: a folder of Kubernetes manifests (`.yaml`, `.yml`, `.json`, any depth), read again as they change.
//!
//! Files are found by looking (size, inode, mtime, ctime) every 200 ms, which works the same on every file system, for
//! renames over a file and for symlink swaps. A change is read only when two looks in a row saw the same, so that a file
//! that is being written, and a rename that is half seen, are not taken for the truth. What cannot be decoded keeps its
//! last good version and gets a status with file and line; [`DirSource::keeping`] lets that outlive the controller. Hidden files and folders are passed over.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::last_good::{Good, LastGood};
use super::{Batch, Change, Format, Outcome, Source, parse};
use crate::object::{ObjectRef, Origin, Status};

/// How often the folder is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Larger files are not manifests.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Deeper folders are a loop of symlinks.
const MAX_DEPTH: usize = 16;

/// A folder of manifests.
#[derive(Debug)]
pub struct DirSource {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
    published: BTreeMap<ObjectRef, Good>,
    undecodable: BTreeSet<ObjectRef>,
    statuses: Vec<Status>,
    last_good: Option<LastGood>,
    first: bool,
}

/// What tells one state of a file from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[derive(Debug)]
struct File {
    /// `None` when the last look did not find the file.
    seen: Option<Signature>,
    read: Option<Signature>,
    good: BTreeMap<ObjectRef, Good>,
    undecodable: BTreeMap<ObjectRef, Origin>,
    statuses: Vec<Status>,
}

/// One look at the folder.
#[derive(Default)]
struct Look {
    files: BTreeMap<PathBuf, Signature>,
    unreadable: BTreeMap<PathBuf, String>,
}

impl DirSource {
    /// A source over `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            files: BTreeMap::new(),
            published: BTreeMap::new(),
            undecodable: BTreeSet::new(),
            statuses: Vec::new(),
            last_good: None,
            first: true,
        }
    }

    /// Keeps the last good version of every object in the file `path`, and begins with what is there.
    #[must_use]
    pub fn keeping(mut self, path: impl Into<PathBuf>) -> Self {
        self.last_good = Some(LastGood::new(path.into()));
        self
    }

    /// Looks once; a batch if anything is to be said.
    pub fn poll(&mut self) -> Option<Batch> {
        if self.first {
            self.recall();
        }
        let mut look = Look::default();
        list(&self.root, 0, &mut look);
        let mut news = self.first;
        self.files.retain(|path, file| {
            let found = look.files.contains_key(path);
            let unknown = look.unreadable.keys().any(|folder| path.starts_with(folder));
            // A file that is gone is believed at the second look: a rename may show the old name gone before the new
            // name has settled.
            let keep = found || unknown || file.seen.take().is_some();
            news |= !keep;
            keep
        });
        for (path, signature) in &look.files {
            let file = self.files.entry(path.clone()).or_insert_with(File::new);
            let settled = file.seen == Some(*signature) || self.first;
            file.seen = Some(*signature);
            if settled && file.read != Some(*signature) {
                // The first look reads without waiting, so it is confirmed by a second reading.
                file.read = (!self.first).then_some(*signature);
                file.reload(path, signature.size);
                news = true;
            }
        }
        let unreadable = look.unreadable.iter().map(|(folder, error)| {
            let message = format!("{error}; what was read from there before is kept");
            Status::refused(&Origin::Place(folder.display().to_string().into()), "Unreadable", message)
        });
        let unreadable: Vec<_> = unreadable.collect();
        news |= unreadable.iter().any(|s| !self.statuses.contains(s))
            || self.statuses.iter().any(|s| s.reason == "Unreadable" && !unreadable.contains(s));
        news.then(|| self.publish(unreadable)).flatten()
    }

    /// Takes an earlier controller's last good objects for those of their files, until the files have been read.
    fn recall(&mut self) {
        let Some(last_good) = &mut self.last_good else { return };
        for (path, good) in last_good.load() {
            self.files.insert(path, File { good, ..File::new() });
        }
    }

    /// What changed since the last batch. Of two objects with one name the first by path and line wins.
    fn publish(&mut self, mut statuses: Vec<Status>) -> Option<Batch> {
        let mut next: BTreeMap<ObjectRef, Good> = BTreeMap::new();
        for file in self.files.values() {
            statuses.extend(file.statuses.iter().cloned());
            for (key, good) in &file.good {
                match next.entry(key.clone()) {
                    Entry::Vacant(free) => drop(free.insert(good.clone())),
                    Entry::Occupied(winner) => {
                        statuses.push(duplicate(key, &good.origin, &winner.get().origin))
                    }
                }
            }
        }
        let mut undecodable: BTreeMap<ObjectRef, Origin> = BTreeMap::new();
        for (key, origin) in self.files.values().flat_map(|f| &f.undecodable) {
            if !next.contains_key(key) {
                undecodable.entry(key.clone()).or_insert_with(|| origin.clone());
            }
        }
        let changes = self.changes(&next, &undecodable);
        self.undecodable = undecodable.into_keys().collect();
        self.published = next;
        if let Some(last_good) = &mut self.last_good {
            last_good.store(self.files.iter().map(|(path, file)| (path, &file.good)));
            statuses.extend(last_good.status());
        }
        statuses.sort();
        let told = std::mem::replace(&mut self.statuses, statuses) == self.statuses;
        let first = std::mem::take(&mut self.first);
        (first || !changes.is_empty() || !told).then(|| Batch { changes, statuses: self.statuses.clone() })
    }

    fn changes(
        &self,
        next: &BTreeMap<ObjectRef, Good>,
        undecodable: &BTreeMap<ObjectRef, Origin>,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for key in self.published.keys().filter(|k| !next.contains_key(k)) {
            changes.push(Change::Delete(key.clone()));
        }
        for key in self.undecodable.iter().filter(|k| !next.contains_key(k) && !undecodable.contains_key(k)) {
            changes.push(Change::Delete(key.clone()));
        }
        for (key, origin) in undecodable.iter().filter(|(key, _)| !self.undecodable.contains(*key)) {
            changes.push(Change::Undecodable(key.clone(), origin.clone()));
        }
        for (key, good) in next {
            if self.published.get(key) != Some(good) {
                changes.push(Change::Apply(key.clone(), Arc::clone(&good.object), good.origin.clone()));
            }
        }
        changes
    }
}

impl Source for DirSource {
    fn derives_endpoints(&self) -> bool {
        true
    }

    fn start(mut self, sink: mpsc::Sender<Batch>) -> std::io::Result<()> {
        let look = move || {
            while !sink.is_closed() {
                if let Some(batch) = self.poll()
                    && sink.blocking_send(batch).is_err()
                {
                    return;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        };
        std::thread::Builder::new().name("dir-source".into()).spawn(look).map(drop)
    }
}

impl File {
    fn new() -> Self {
        Self {
            seen: None,
            read: None,
            good: BTreeMap::new(),
            undecodable: BTreeMap::new(),
            statuses: Vec::new(),
        }
    }

    fn reload(&mut self, path: &Path, size: u64) {
        self.statuses.clear();
        let whole = |message: String| Outcome::Bad { key: None, line: 1, message };
        let format = if path.extension().is_some_and(|e| e == "json") { Format::Json } else { Format::Yaml };
        let outcomes = if size > MAX_FILE_BYTES {
            vec![whole(format!("{size} bytes are too many for a manifest"))]
        } else {
            match std::fs::read_to_string(path) {
                Ok(text) => parse(format, &text),
                Err(error) => vec![whole(error.to_string())],
            }
        };
        let nameless = outcomes.iter().any(|o| matches!(o, Outcome::Bad { key: None, .. }));
        let old = std::mem::take(&mut self.good);
        self.undecodable.clear();
        for outcome in outcomes {
            self.take(path, outcome, &old);
        }
        if nameless {
            // Any object of the file could be the one that cannot be read: all of it stays as it was.
            self.good = old;
        }
    }

    fn take(&mut self, path: &Path, outcome: Outcome, old: &BTreeMap<ObjectRef, Good>) {
        let at = |line: usize| Origin::Place(format!("{}:{line}", path.display()).into());
        match outcome {
            Outcome::Object { key, object, line, unknown } => {
                for (line, field) in unknown {
                    let message = format!("{key}: field {field} is not known and has no effect");
                    self.statuses.push(Status::noted(&at(line), "UnknownField", message));
                }
                match self.good.entry(key.clone()) {
                    Entry::Vacant(free) => drop(free.insert(Good { object, origin: at(line) })),
                    Entry::Occupied(winner) => {
                        self.statuses.push(duplicate(&key, &at(line), &winner.get().origin));
                    }
                }
            }
            Outcome::Bad { key: None, line, message } => {
                let kept = if old.is_empty() {
                    "nothing of the file is in force"
                } else {
                    "the file's last good state is kept"
                };
                self.statuses.push(Status::refused(&at(line), "Malformed", format!("{message}; {kept}")));
            }
            Outcome::Bad { key: Some(key), line, message } => {
                let kept = match old.get(&key) {
                    Some(good) => {
                        self.good.entry(key.clone()).or_insert_with(|| good.clone());
                        "its last good version is kept"
                    }
                    None => {
                        self.undecodable.insert(key.clone(), at(line));
                        "it is not in force"
                    }
                };
                self.statuses.push(Status::refused(
                    &at(line),
                    "Malformed",
                    format!("{key}: {message}; {kept}"),
                ));
            }
        }
    }
}

fn duplicate(key: &ObjectRef, loser: &Origin, winner: &Origin) -> Status {
    Status::refused(loser, "DuplicateName", format!("{key} is also at {winner}, which wins"))
}

fn list(folder: &Path, depth: usize, look: &mut Look) {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) if depth <= MAX_DEPTH => entries,
        Ok(_) => {
            let error = format!("folders deeper than {MAX_DEPTH} are not read");
            look.unreadable.insert(folder.to_path_buf(), error);
            return;
        }
        Err(error) => {
            look.unreadable.insert(folder.to_path_buf(), error.to_string());
            return;
        }
    };
    for entry in entries {
        let path = match entry {
            Ok(entry) if entry.file_name().as_encoded_bytes().starts_with(b".") => continue,
            Ok(entry) => entry.path(),
            Err(error) => {
                look.unreadable.insert(folder.to_path_buf(), error.to_string());
                return;
            }
        };
        // A file that went away between the two calls is seen as gone: the second look decides.
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        let manifest = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if meta.is_dir() {
            list(&path, depth + 1, look);
        } else if meta.is_file() && manifest {
            look.files.insert(path, Signature::of(&meta));
        }
    }
}

impl Signature {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}
