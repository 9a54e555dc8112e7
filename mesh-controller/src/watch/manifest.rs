//! One manifest file: text in, decoded objects and errors with their lines out.
//!
//! Documents of a YAML file stand for themselves: one that has a name but cannot be decoded does not touch the others.
//! A document whose name cannot be read could be any object, so its error concerns the whole file (the caller's part).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mesh_api::crd::{
    AuthorizationPolicy, AuthorizationPolicySpec, DeclaredUnit, FieldError, GROUP, MeshConfig,
    MeshConfigSpec, MeshSettings, WorkloadEntry, WorkloadEntrySpec,
};
use mesh_core::model as core;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::unknown;
use crate::object::{ApiOrigin, Kind, Name, Object, ObjectRef, Origin};

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// YAML, any number of documents.
    Yaml,
    /// One JSON document.
    Json,
}

/// What came of one object of a file.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It was decoded.
    Object {
        /// Its key.
        key: ObjectRef,
        /// The object.
        object: Arc<Object>,
        /// Where it begins.
        line: usize,
        /// Fields that were not understood, with their lines.
        unknown: Vec<(usize, String)>,
    },
    /// It was not.
    Bad {
        /// Which object it was meant to be, if that much could be read.
        key: Option<ObjectRef>,
        /// Where the error is.
        line: usize,
        /// What is wrong.
        message: String,
    },
}

/// Decodes a whole file. Objects of kinds that the mesh does not read are passed over.
pub fn parse(format: Format, text: &str) -> Vec<Outcome> {
    match format {
        Format::Json => document(&Text::Json(text), 1),
        Format::Yaml => split(text).into_iter().flat_map(|(line, doc)| yaml_document(line, doc)).collect(),
    }
}

/// The text of one document in the form that gives the best positions.
enum Text<'a> {
    Yaml(&'a str),
    Json(&'a str),
    /// An item of a List, at the line of the List.
    Item(&'a Value, usize),
    /// An object of an API server, whose fields are those of its schema.
    Api(&'a Value),
}

impl Text<'_> {
    /// The document as it is written. YAML 1.1's booleans stay text here: a node may be called `n`.
    fn value(&self) -> Result<Value, (usize, String)> {
        match self {
            Self::Yaml(text) => {
                let options = serde_saphyr::options! { strict_booleans: true };
                serde_saphyr::from_str_with_options(text, options).map_err(|e| yaml_error(&e))
            }
            _ => self.decode(),
        }
    }

    fn decode<T: DeserializeOwned>(&self) -> Result<T, (usize, String)> {
        match self {
            Self::Yaml(text) => serde_saphyr::from_str(text).map_err(|e| yaml_error(&e)),
            Self::Json(text) => serde_json::from_str(text).map_err(|e| (e.line().max(1), e.to_string())),
            Self::Item(value, line) => T::deserialize(*value).map_err(|e| (*line, e.to_string())),
            Self::Api(value) => T::deserialize(*value).map_err(|e| (1, e.to_string())),
        }
    }

    /// The fields of `written` that `decoded` has not.
    fn unknown(&self, written: &Value, decoded: &impl Serialize) -> Vec<String> {
        match self {
            Self::Api(_) => Vec::new(),
            _ => unknown::fields(written, decoded),
        }
    }

    /// The first line from `from` on that looks like the field at the end of `path`.
    fn line_of(&self, path: &str, from: usize) -> usize {
        let (Self::Yaml(text) | Self::Json(text)) = self else { return from };
        let key = path.rsplit('.').next().unwrap_or(path);
        let found = text.lines().position(|line| {
            let line = line.trim_start().trim_start_matches("- ").trim_start_matches(['{', ' ']);
            let line = line.strip_prefix('"').unwrap_or(line);
            line.strip_prefix(key)
                .is_some_and(|rest| rest.trim_start_matches('"').trim_start().starts_with(':'))
        });
        found.map_or(from, |index| index + 1)
    }
}

fn yaml_error(error: &serde_saphyr::Error) -> (usize, String) {
    let line = error.location().and_then(|at| usize::try_from(at.line()).ok()).unwrap_or(1);
    (line.max(1), error.without_snippet().to_string().replace('\n', " "))
}

/// Splits at document markers (`---` at the beginning of a line can be nothing else in YAML), with first lines.
fn split(text: &str) -> Vec<(usize, &str)> {
    let (mut documents, mut start, mut first, mut offset) = (Vec::new(), 0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(|c: char| c.is_ascii_whitespace())) {
            documents.push((first, &text[start..offset]));
            (start, first) = (offset, index + 1);
        }
        offset += line.len();
    }
    documents.push((first, &text[start..]));
    documents
}

fn yaml_document(first: usize, document_text: &str) -> Vec<Outcome> {
    let content = |line: &str| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        !line.is_empty() && !line.starts_with('#') && line != "..."
    };
    let Some(begin) = document_text.lines().position(content) else { return Vec::new() };
    // Blank lines stand for what comes before, so that every position is one of the file.
    let text = format!("{}{document_text}", "\n".repeat(first - 1));
    document(&Text::Yaml(&text), first + begin)
}

/// As much of an object as is needed to know which one it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: HeaderMeta,
}

#[derive(Default, Deserialize)]
struct HeaderMeta {
    name: Option<String>,
    namespace: Option<String>,
}

fn document(text: &Text<'_>, line: usize) -> Vec<Outcome> {
    let bad = |(line, message): (usize, String)| vec![Outcome::Bad { key: None, line, message }];
    let value = match text.value() {
        Ok(Value::Null) => return Vec::new(),
        Ok(value) => value,
        Err(error) => return bad(error),
    };
    let header = match Header::deserialize(&value) {
        Ok(header) => header,
        Err(error) => return bad((line, format!("not a Kubernetes object: {error}"))),
    };
    if (header.api_version.as_str(), header.kind.as_str()) == ("v1", "List") {
        let items = value.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        return items.iter().flat_map(|item| document(&Text::Item(item, line), line)).collect();
    }
    let kind = match kind_of(&header) {
        Ok(Some(kind)) => kind,
        Ok(None) => return Vec::new(),
        Err(message) => return bad((line, message)),
    };
    let Some(name) = header.metadata.name.filter(|name| !name.is_empty()) else {
        return bad((line, format!("a {kind} without metadata.name")));
    };
    // What kubectl would do with a manifest that names no namespace.
    let namespace = match kind {
        Kind::Namespace | Kind::Node => String::new(),
        _ => header.metadata.namespace.filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into()),
    };
    let key = ObjectRef { kind, name: Name::new(&namespace, &name) };
    vec![match decode(&key, text, &value) {
        Ok((object, unknown)) => {
            let unknown = unknown.into_iter().map(|path| (text.line_of(&path, line), path)).collect();
            Outcome::Object { key, object: Arc::new(object), line, unknown }
        }
        Err((line, message)) => Outcome::Bad { key: Some(key), line, message },
    }]
}

fn kind_of(header: &Header) -> Result<Option<Kind>, String> {
    let (group, version) = header.api_version.rsplit_once('/').unwrap_or(("", &header.api_version));
    let (kind, want) = match (group, header.kind.as_str()) {
        ("", "Namespace") => (Kind::Namespace, "v1"),
        ("", "Node") => (Kind::Node, "v1"),
        ("", "ServiceAccount") => (Kind::ServiceAccount, "v1"),
        ("", "Pod") => (Kind::Pod, "v1"),
        ("", "Service") => (Kind::Service, "v1"),
        ("discovery.k8s.io", "EndpointSlice") => (Kind::EndpointSlice, "v1"),
        (GROUP, "AuthorizationPolicy") => (Kind::AuthorizationPolicy, mesh_api::crd::VERSION),
        (GROUP, "MeshConfig") => (Kind::MeshConfig, mesh_api::crd::VERSION),
        (GROUP, "WorkloadEntry") => (Kind::WorkloadEntry, mesh_api::crd::VERSION),
        (GROUP, other) => return Err(format!("{GROUP} has no kind {other:?}")),
        _ => return Ok(None),
    };
    if version != want {
        return Err(format!("{kind}: version {version:?} is not supported, {want} is"));
    }
    Ok(Some(kind))
}

/// The envelope of a custom resource, as strict as its spec.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Strict<S> {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: S,
    status: Option<Value>,
}

type Decoded = Result<(Object, Vec<String>), (usize, String)>;

fn decode(key: &ObjectRef, text: &Text<'_>, written: &Value) -> Decoded {
    let namespace = Some(key.name.namespace.to_string()).filter(|n| !n.is_empty());
    /// Decodes a built-in kind, whose unknown fields may come from a newer Kubernetes: told, but not refused.
    macro_rules! builtin {
        ($variant:ident) => {{
            let mut object: Box<$variant> = Box::new(text.decode()?);
            let unknown = text.unknown(written, &object);
            set_namespace(&mut *object, namespace);
            Ok((Object::$variant(object), unknown))
        }};
    }
    /// Decodes a kind of the mesh's own, and tries whether it can be honoured.
    macro_rules! custom {
        ($variant:ident($spec:ty) becomes $checked:ty) => {{
            let strict: Strict<$spec> = text.decode()?;
            let unknown = text.unknown(written, &strict);
            let mut object = $variant { metadata: strict.metadata, spec: strict.spec, status: None };
            object.metadata.namespace = namespace;
            valid(<$checked>::try_from(&object), text)?;
            Ok((Object::$variant(Box::new(object)), unknown))
        }};
    }
    match key.kind {
        Kind::Namespace => builtin!(Namespace),
        Kind::Node => builtin!(Node),
        Kind::ServiceAccount => builtin!(ServiceAccount),
        Kind::Pod => builtin!(Pod),
        Kind::Service => builtin!(Service),
        Kind::EndpointSlice => builtin!(EndpointSlice),
        Kind::AuthorizationPolicy => {
            custom!(AuthorizationPolicy(AuthorizationPolicySpec) becomes core::AuthorizationPolicy)
        }
        Kind::MeshConfig => custom!(MeshConfig(MeshConfigSpec) becomes MeshSettings),
        Kind::WorkloadEntry => custom!(WorkloadEntry(WorkloadEntrySpec) becomes DeclaredUnit),
        Kind::HTTPRoute | Kind::GRPCRoute | Kind::TCPRoute | Kind::TLSRoute => {
            Ok((Object::Route(Box::new(written.clone())), Vec::new()))
        }
    }
}

/// An object as the server sent it.
pub(super) struct Item {
    pub(super) name: Name,
    pub(super) origin: Origin,
    pub(super) decoded: Result<Arc<Object>, String>,
}

/// An object of an API server; `None` when it has no name.
pub(super) fn from_api(kind: Kind, mut value: Value) -> Option<Item> {
    let meta = value.get_mut("metadata")?.as_object_mut()?;
    // Half of the bytes of many objects, and of no use here.
    meta.remove("managedFields");
    let text = |field: &str| meta.get(field).and_then(Value::as_str).unwrap_or_default();
    let name = Name::new(text("namespace"), text("name"));
    let uid: Arc<str> = text("uid").into();
    let generation = meta.get("generation").and_then(Value::as_i64).unwrap_or_default();
    if name.name.is_empty() {
        return None;
    }
    let key = ObjectRef { kind, name: name.clone() };
    let decoded = decode(&key, &Text::Api(&value), &value);
    Some(Item {
        name,
        origin: Origin::Api(Arc::new(ApiOrigin { object: key, uid, generation })),
        decoded: decoded.map(|(object, _)| Arc::new(object)).map_err(|(_, message)| message),
    })
}

/// What has the right form and cannot be honoured is as bad as what has not: its last good version stays.
fn valid<T>(converted: Result<T, FieldError>, text: &Text<'_>) -> Result<(), (usize, String)> {
    converted.map(drop).map_err(|error| {
        let from = if let Text::Item(_, line) = text { *line } else { 1 };
        let field = error.path.rsplit('.').next().and_then(|last| last.split('[').next()).unwrap_or_default();
        (text.line_of(field, from), error.to_string())
    })
}

fn set_namespace(object: &mut impl k8s_openapi::Metadata<Ty = ObjectMeta>, namespace: Option<String>) {
    object.metadata_mut().namespace = namespace;
}
