//! Finds the fields of a manifest that its type does not know: what was written, compared with what was understood.

use serde::Serialize;
use serde_json::Value;

/// The paths of fields in `written` that `understood` lost. Empty values do not count: types drop them.
pub(super) fn fields(written: &Value, understood: &impl Serialize) -> Vec<String> {
    let mut lost = Vec::new();
    if let Ok(understood) = serde_json::to_value(understood) {
        compare(written, &understood, "", &mut lost);
    }
    lost
}

fn compare(written: &Value, understood: &Value, path: &str, lost: &mut Vec<String>) {
    match (written, understood) {
        (Value::Object(written), Value::Object(understood)) => {
            for (key, value) in written {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match understood.get(key) {
                    Some(kept) => compare(value, kept, &path, lost),
                    None if is_empty(value) => {}
                    None => lost.push(path),
                }
            }
        }
        (Value::Array(written), Value::Array(understood)) => {
            for (i, (value, kept)) in written.iter().zip(understood).enumerate() {
                compare(value, kept, &format!("{path}[{i}]"), lost);
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}
