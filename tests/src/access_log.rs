//! The agents' access log: one JSON record a connection, searched for and waited for.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::poll;

/// Records, oldest first.
#[derive(Clone, Debug, Default)]
pub struct AccessLog(pub Vec<Value>);

impl AccessLog {
    /// Picks the access records out of an agent's output; a record's fields are lifted to its top.
    pub fn parse(text: &str) -> Self {
        let records = text.lines().filter_map(|line| {
            let mut record: Value = serde_json::from_str(line).ok()?;
            let is_access =
                record.get("target").and_then(Value::as_str).is_some_and(|t| t.ends_with("access"));
            if !is_access {
                return None;
            }
            if let Some(Value::Object(fields)) = record.get_mut("fields").map(Value::take) {
                return Some(Value::Object(fields));
            }
            Some(record)
        });
        Self(records.collect())
    }

    /// The last record for which each named field has the value (compared as text).
    pub fn find(&self, wanted: &[(&str, &str)]) -> Option<&Value> {
        self.0.iter().rev().find(|record| matches(record, wanted))
    }

    /// How many records match.
    pub fn count(&self, wanted: &[(&str, &str)]) -> usize {
        self.0.iter().filter(|record| matches(record, wanted)).count()
    }
}

/// Waits for a record.
pub fn wait_for(read: impl Fn() -> AccessLog, wanted: &[(&str, &str)]) -> Result<Value> {
    poll::until(&format!("an access record with {wanted:?}"), Duration::from_secs(5), || {
        read().find(wanted).cloned().ok_or_else(|| anyhow!("no such record"))
    })
    .with_context(|| {
        let AccessLog(all) = read();
        let last: Vec<String> = all.iter().rev().take(8).map(Value::to_string).collect();
        format!("the last records:\n{}", last.join("\n"))
    })
}

/// A field as text; an absent one is empty.
pub fn field(record: &Value, name: &str) -> String {
    match record.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn matches(record: &Value, wanted: &[(&str, &str)]) -> bool {
    wanted.iter().all(|(name, value)| field(record, name) == *value)
}

/// Names of a record's fields.
pub mod names {
    /// Which side wrote it: [`SOURCE`] or [`DESTINATION`].
    pub const REPORTER: &str = "reporter";
    /// Value of [`REPORTER`].
    pub const SOURCE: &str = "source";
    /// Value of [`REPORTER`].
    pub const DESTINATION: &str = "destination";
    /// SPIFFE ID of the client's side.
    pub const SOURCE_ID: &str = "source_principal";
    /// SPIFFE ID of the server's side.
    pub const DESTINATION_ID: &str = "destination_principal";
    /// The client's address and port.
    pub const CLIENT: &str = "client";
    /// How it was carried.
    pub const PROTOCOL: &str = "protocol";
    /// Why it ended as it did; several are joined.
    pub const FLAGS: &str = "response_flags";
    /// What the client dialled.
    pub const DIALLED: &str = "dialled";
    /// Value of an identity that nobody proved.
    pub const NOBODY: &str = "";
}
