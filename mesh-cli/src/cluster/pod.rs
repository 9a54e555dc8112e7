//! What the API server says of a pod. In: the pod. Out: its node, and whether it is ready.

use serde_json::Value;

pub(super) fn node(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or("a node to be found")
}

pub(super) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    conditions.iter().any(|held| held["type"] == "Ready" && held["status"] == "True")
}
