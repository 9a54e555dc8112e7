//! An `AuthorizationPolicy` as L4 can enforce it: the object as it was written goes in, the core's policy comes out, or the field
//! that cannot be meant.

use ipnet::IpNet;
use mesh_core::model::{self as core, StringMatch};

use super::policy::{ActionName, AuthorizationPolicy, OperationSpec, ProtocolName, RuleSpec, SourceSpec};
use super::{FieldError, PortValue, l7, text, udp};

impl TryFrom<&AuthorizationPolicy> for core::AuthorizationPolicy {
    type Error = FieldError;

    fn try_from(policy: &AuthorizationPolicy) -> Result<Self, FieldError> {
        let required = |value: &Option<String>, path: &str| match value.as_deref() {
            None | Some("") => Err(FieldError::new(path, "is missing")),
            Some(text) => Ok(text.into()),
        };
        let name = core::PolicyName {
            namespace: required(&policy.metadata.namespace, "metadata.namespace")?,
            name: required(&policy.metadata.name, "metadata.name")?,
        };
        let action = match policy.spec.action {
            None | Some(ActionName::Allow) => core::Action::Allow,
            Some(ActionName::Deny) => core::Action::Deny,
            Some(ActionName::Audit) => core::Action::Audit,
        };
        let specs = policy.spec.rules.iter().flatten().enumerate();
        let rules = specs.map(|(i, spec)| rule(spec, action, &format!("spec.rules[{i}]")));
        let rules = rules.filter_map(Result::transpose).collect::<Result<_, _>>()?;
        Ok(Self { name, action, rules })
    }
}

/// A rule as L4 can enforce it; `None` when it could only let in more than was meant.
fn rule(spec: &RuleSpec, action: core::Action, path: &str) -> Result<Option<core::Rule>, FieldError> {
    udp::check(spec, action, path)?;
    let from = list(spec.from.as_deref(), &format!("{path}.from"), |f, at| {
        Ok((source(&f.source, &format!("{at}.source"))?, l7::of_source(&f.source).is_empty()))
    })?;
    let to = list(spec.to.as_deref(), &format!("{path}.to"), |t, at| {
        Ok((operation(&t.operation, &format!("{at}.operation"))?, l7::of_operation(&t.operation).is_empty()))
    })?;
    let from = l7::enforceable(from, action);
    let to = l7::enforceable(to, action);
    let whole = spec.when.as_ref().is_none_or(Vec::is_empty) || action == core::Action::Deny;
    Ok(match (from, to) {
        (Some(from), Some(to)) if whole => Some(core::Rule { from, to }),
        _ => None,
    })
}

fn source(spec: &SourceSpec, path: &str) -> Result<core::Source, FieldError> {
    if *spec == SourceSpec::default() {
        return Err(FieldError::new(path, "has no condition; leave `from` out to take any source"));
    }
    let strings =
        |values: &Option<Vec<String>>, field: &str, parse: fn(&str) -> Result<StringMatch, String>| {
            list(values.as_deref(), &format!("{path}.{field}"), |v, at| {
                parse(v).map_err(|m| FieldError::new(at, m))
            })
        };
    let blocks = |values: &Option<Vec<String>>, field: &str| -> Result<Vec<IpNet>, FieldError> {
        list(values.as_deref(), &format!("{path}.{field}"), |v, at| {
            text::ip_block(v).map_err(|m| FieldError::new(at, m))
        })
    };
    Ok(core::Source {
        principals: strings(&spec.principals, "principals", text::principal)?,
        not_principals: strings(&spec.not_principals, "notPrincipals", text::principal)?,
        namespaces: strings(&spec.namespaces, "namespaces", text::pattern)?,
        not_namespaces: strings(&spec.not_namespaces, "notNamespaces", text::pattern)?,
        ip_blocks: blocks(&spec.ip_blocks, "ipBlocks")?,
        not_ip_blocks: blocks(&spec.not_ip_blocks, "notIpBlocks")?,
    })
}

fn operation(spec: &OperationSpec, path: &str) -> Result<core::Operation, FieldError> {
    if *spec == (OperationSpec { protocol: spec.protocol, ..OperationSpec::default() }) {
        return Err(FieldError::new(path, "has no condition; leave `to` out to take any operation"));
    }
    let ports = |values: &Option<Vec<PortValue>>, field: &str| {
        list(values.as_deref(), &format!("{path}.{field}"), |port, _| Ok(port.0))
    };
    let protocol = match spec.protocol {
        None | Some(ProtocolName::Tcp) => core::Protocol::Tcp,
        Some(ProtocolName::Udp) => core::Protocol::Udp,
    };
    Ok(core::Operation {
        protocol,
        ports: ports(&spec.ports, "ports")?,
        not_ports: ports(&spec.not_ports, "notPorts")?,
    })
}

/// Converts a list. A list that is there but empty is refused: in the core an empty list does not constrain, so a
/// template that rendered no principals would open the door to everybody.
fn list<T, U>(
    values: Option<&[T]>,
    path: &str,
    convert: impl Fn(&T, String) -> Result<U, FieldError>,
) -> Result<Vec<U>, FieldError> {
    match values {
        None => Ok(Vec::new()),
        Some([]) => Err(FieldError::new(path, "is an empty list; leave it out if it should not constrain")),
        Some(values) => values.iter().enumerate().map(|(i, v)| convert(v, format!("{path}[{i}]"))).collect(),
    }
}
