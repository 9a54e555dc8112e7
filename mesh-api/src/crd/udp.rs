//! Rules for UDP: what can be said of datagrams. A rule as it was written comes in, and is refused when it asks for what nobody
//! could enforce: it would be weaker than it looks.

use mesh_core::model::Action;

use super::policy::{ProtocolName, RuleSpec};
use super::{FieldError, l7};

/// Refuses a rule that asks more of UDP than its sources and its ports.
pub(super) fn check(rule: &RuleSpec, action: Action, path: &str) -> Result<(), FieldError> {
    let operations = rule.to.iter().flatten().map(|to| &to.operation).enumerate();
    for (index, operation) in operations.filter(|(_, o)| o.protocol == Some(ProtocolName::Udp)) {
        let path = format!("{path}.to[{index}].operation");
        if action == Action::Audit {
            return Err(FieldError::new(path, "AUDIT has no say in UDP: no record is written of datagrams"));
        }
        if operation.ports.is_none() || operation.not_ports.is_some() {
            return Err(FieldError::new(path, "names its UDP ports in `ports`; what no rule names passes"));
        }
        if !l7::of_operation(operation).is_empty() {
            return Err(FieldError::new(path, "has conditions of HTTP, which UDP does not carry"));
        }
        let sources = rule.from.iter().flatten();
        let of_http = sources.into_iter().any(|from| !l7::of_source(&from.source).is_empty());
        if of_http || rule.when.as_ref().is_some_and(|when| !when.is_empty()) {
            return Err(FieldError::new(path, "is in a rule with conditions that UDP cannot answer"));
        }
    }
    Ok(())
}
