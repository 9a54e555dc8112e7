//! Conditions that only HTTP could answer, in a mesh that enforces L4: a policy goes in, the paths of such fields and what
//! is left to enforce come out.
//!
//! As in Istio's ambient mode, what is left is never weaker than what was written: in DENY the condition is left out, so
//! that more is denied; in ALLOW and AUDIT an alternative with such a condition is left out, and a rule that has no
//! alternative left is left out as a whole.

use mesh_core::model::Action;

use super::{AuthorizationPolicy, policy};

impl AuthorizationPolicy {
    /// The paths of the fields that are not enforced.
    pub fn unenforced_fields(&self) -> Vec<String> {
        let mut paths = Vec::new();
        for (i, rule) in self.spec.rules.iter().flatten().enumerate() {
            for (j, from) in rule.from.iter().flatten().enumerate() {
                let fields = of_source(&from.source);
                paths.extend(fields.iter().map(|f| format!("spec.rules[{i}].from[{j}].source.{f}")));
            }
            for (j, to) in rule.to.iter().flatten().enumerate() {
                let fields = of_operation(&to.operation);
                paths.extend(fields.iter().map(|f| format!("spec.rules[{i}].to[{j}].operation.{f}")));
            }
            if rule.when.as_ref().is_some_and(|when| !when.is_empty()) {
                paths.push(format!("spec.rules[{i}].when"));
            }
        }
        paths
    }
}

/// The fields of a source that are there and not enforced.
pub(super) fn of_source(source: &policy::SourceSpec) -> Vec<&'static str> {
    there(&[
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
    ])
}

/// The fields of an operation that are there and not enforced.
pub(super) fn of_operation(operation: &policy::OperationSpec) -> Vec<&'static str> {
    there(&[
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ])
}

fn there(fields: &[(&'static str, &Option<Vec<String>>)]) -> Vec<&'static str> {
    fields.iter().filter(|(_, value)| value.is_some()).map(|(name, _)| *name).collect()
}

/// The alternatives that count, each given with whether L4 can answer all of it; `None` when some were written and none
/// is left, since an empty list would take anybody.
pub(super) fn enforceable<T>(alternatives: Vec<(T, bool)>, action: Action) -> Option<Vec<T>> {
    let written = !alternatives.is_empty();
    let kept = alternatives.into_iter().filter(|(_, whole)| *whole || action == Action::Deny);
    let kept: Vec<T> = kept.map(|(alternative, _)| alternative).collect();
    (!written || !kept.is_empty()).then_some(kept)
}
