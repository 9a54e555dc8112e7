//! One warning on one object, as `kubectl describe` and `kubectl events` show it.

use k8s_openapi::jiff::Timestamp;
use kube::core::Request;
use kube::core::params::PostParams;
use serde_json::{Value, json};

use crate::api::{ApiError, Client, MANAGER};

/// What `kubectl` can show of an event.
const MAX_MESSAGE: usize = 1024;

/// The object that an event is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Involved<'a> {
    pub(super) api_version: &'a str,
    pub(super) kind: &'a str,
    pub(super) uid: &'a str,
    /// Empty where it is in none.
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

/// Sends a warning.
pub(super) async fn warn(
    client: &Client,
    about: Involved<'_>,
    reason: &str,
    message: &str,
) -> Result<(), ApiError> {
    let Involved { api_version, kind, uid, namespace, name } = about;
    // Events of what is in no namespace are kept in this one.
    let kept = if namespace.is_empty() { "default" } else { namespace };
    let now = Timestamp::now();
    let message: String = message.chars().take(MAX_MESSAGE).collect();
    let second = Timestamp::from_second(now.as_second()).unwrap_or_default().to_string();
    let event = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": { "namespace": kept, "name": format!("{name}.{:x}", now.as_nanosecond()) },
        "involvedObject": {
            "apiVersion": api_version, "kind": kind, "uid": uid, "namespace": namespace, "name": name,
        },
        "type": "Warning", "reason": reason, "message": message, "count": 1,
        "firstTimestamp": second, "lastTimestamp": second, "source": { "component": MANAGER },
    });
    let path = format!("/api/v1/namespaces/{kept}/events");
    let request = Request::new(path).create(&PostParams::default(), event.to_string().into_bytes())?;
    client.call::<Value>(request).await.map(drop)
}
