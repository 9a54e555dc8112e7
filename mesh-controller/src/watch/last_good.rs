//! The last good version of every object of the `dir` source, on disk, so that a controller that starts over a malformed
//! file still has what it said before. One private JSON document in the state folder; its objects are written as
//! manifests and read by the same decoder, and a document with anything wrong in it is not used at all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Format, Outcome, parse};
use crate::ca::{read_private, write_private};
use crate::object::{Object, ObjectRef, Origin, Status};

/// The form of the document; another one is refused.
const FORMAT: u32 = 1;

/// An object that was decoded, and where.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Good {
    pub(super) object: Arc<Object>,
    pub(super) origin: Origin,
}

/// Objects by their file.
pub(super) type Files = BTreeMap<PathBuf, BTreeMap<ObjectRef, Good>>;

/// The document and what it says.
#[derive(Debug)]
pub(super) struct LastGood {
    path: PathBuf,
    written: String,
    problem: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    files: Vec<FileEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    path: PathBuf,
    objects: Vec<ObjectEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ObjectEntry {
    origin: String,
    manifest: Value,
}

impl LastGood {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, written: String::new(), problem: None }
    }

    /// What an earlier controller wrote; nothing, and a problem to tell, when it cannot be used.
    pub(super) fn load(&mut self) -> Files {
        match read(&self.path) {
            Ok(files) => files,
            Err(problem) => {
                tracing::error!(path = %self.path.display(), %problem, "the last good objects are not used");
                self.problem =
                    Some(format!("{problem}; files that are malformed now have no last good state"));
                Files::new()
            }
        }
    }

    /// Writes what differs from what was written last.
    pub(super) fn store<'a>(
        &mut self,
        files: impl Iterator<Item = (&'a PathBuf, &'a BTreeMap<ObjectRef, Good>)>,
    ) {
        let entries = files.filter(|(_, objects)| !objects.is_empty()).map(|(path, objects)| {
            let objects = objects.values().map(ObjectEntry::of).collect::<Result<_, _>>()?;
            Ok(FileEntry { path: path.clone(), objects })
        });
        let rendered = entries
            .collect::<Result<_, serde_json::Error>>()
            .and_then(|files| serde_json::to_string(&Document { format: FORMAT, files }));
        let outcome = match rendered {
            Ok(text) if text == self.written => return,
            Ok(text) => write_private(&self.path, text.as_bytes()).map(|()| self.written = text),
            Err(error) => {
                self.problem = Some(error.to_string());
                return;
            }
        };
        self.problem = outcome.err().map(|error| {
            tracing::error!(%error, "the last good objects are not written; a restart would not have them");
            error.to_string()
        });
    }

    /// What is wrong with it now.
    pub(super) fn status(&self) -> Option<Status> {
        let problem = self.problem.as_ref()?;
        let origin = Origin::Place(self.path.display().to_string().into());
        Some(Status::refused(&origin, "LastGoodNotKept", problem.clone()))
    }
}

impl ObjectEntry {
    fn of(good: &Good) -> Result<Self, serde_json::Error> {
        Ok(Self { origin: good.origin.to_string(), manifest: manifest(&good.object)? })
    }
}

fn manifest(object: &Object) -> Result<Value, serde_json::Error> {
    match object {
        Object::Namespace(object) => serde_json::to_value(object),
        Object::Node(object) => serde_json::to_value(object),
        Object::ServiceAccount(object) => serde_json::to_value(object),
        Object::Pod(object) => serde_json::to_value(object),
        Object::Service(object) => serde_json::to_value(object),
        Object::EndpointSlice(object) => serde_json::to_value(object),
        Object::AuthorizationPolicy(object) => serde_json::to_value(object),
        Object::MeshConfig(object) => serde_json::to_value(object),
        Object::WorkloadEntry(object) => serde_json::to_value(object),
        Object::Route(object) => Ok((**object).clone()),
    }
}

fn read(path: &Path) -> Result<Files, String> {
    let Some(text) = read_private(path).map_err(|e| e.to_string())? else { return Ok(Files::new()) };
    let document: Document = serde_json::from_str(&text).map_err(|e| format!("it is damaged: {e}"))?;
    if document.format != FORMAT {
        return Err(format!("its format is {}, this controller writes {FORMAT}", document.format));
    }
    let mut files = Files::new();
    for file in document.files {
        let objects = file.objects.iter().map(decode).collect::<Result<_, _>>()?;
        files.insert(file.path, objects);
    }
    Ok(files)
}

fn decode(entry: &ObjectEntry) -> Result<(ObjectRef, Good), String> {
    let mut outcomes = parse(Format::Json, &entry.manifest.to_string());
    match (outcomes.pop(), outcomes.is_empty()) {
        (Some(Outcome::Object { key, object, .. }), true) => {
            let origin = Origin::Place(Arc::from(entry.origin.as_str()));
            Ok((key, Good { object, origin }))
        }
        (Some(Outcome::Bad { message, .. }), _) => Err(format!("{}: {message}", entry.origin)),
        _ => Err(format!("{}: not one object", entry.origin)),
    }
}
