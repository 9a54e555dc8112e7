//! Does a policy match a request, by which rule, and if not, for which condition? Against a peer without identity every
//! identity condition, positive or negated, is false in ALLOW and AUDIT and true in DENY, so that neither sending
//! plaintext nor a negation opens a door.

use std::fmt;

use crate::authorize::Request;
use crate::model::{Action, AuthorizationPolicy, Operation, Protocol, Rule, Source, StringMatch};

/// The index of the first rule of `policy` that matches.
pub(super) fn policy(policy: &AuthorizationPolicy, request: &Request<'_>) -> Option<usize> {
    let plain_holds = policy.action == Action::Deny;
    policy.rules.iter().position(|r| rule(r, request, plain_holds))
}

fn rule(rule: &Rule, request: &Request<'_>, plain_holds: bool) -> bool {
    (rule.from.is_empty() || rule.from.iter().any(|s| source(s, request, plain_holds).is_none()))
        && (takes_any(rule, request) || rule.to.iter().any(|o| operation(o, request).is_none()))
}

/// A rule without operations takes any TCP port, and no UDP port.
fn takes_any(rule: &Rule, request: &Request<'_>) -> bool {
    rule.to.is_empty() && request.protocol == Protocol::Tcp
}

/// The field of `source` that does not hold; `None` when all do.
fn source(source: &Source, request: &Request<'_>, plain_holds: bool) -> Option<&'static str> {
    let asks_identity = !source.principals.is_empty()
        || !source.not_principals.is_empty()
        || !source.namespaces.is_empty()
        || !source.not_namespaces.is_empty();
    let identity = match request.peer.identity() {
        _ if !asks_identity => None,
        None if plain_holds => None,
        None => Some("an identity is asked for, and plaintext has none"),
        Some(id) => {
            let text = id.to_string();
            let principal = text.strip_prefix("spiffe://").unwrap_or(&text);
            first_false(&[
                ("principals", among(&source.principals, principal)),
                ("notPrincipals", !any(&source.not_principals, principal)),
                ("namespaces", among(&source.namespaces, id.namespace())),
                ("notNamespaces", !any(&source.not_namespaces, id.namespace())),
            ])
        }
    };
    let client = request.client.to_canonical();
    let blocks = &source.ip_blocks;
    identity.or_else(|| {
        first_false(&[
            ("ipBlocks", blocks.is_empty() || blocks.iter().any(|b| b.contains(&client))),
            ("notIpBlocks", !source.not_ip_blocks.iter().any(|b| b.contains(&client))),
        ])
    })
}

/// The field of `operation` that does not hold; `None` when all do.
fn operation(operation: &Operation, request: &Request<'_>) -> Option<&'static str> {
    let port = request.port;
    first_false(&[
        ("protocol", operation.protocol == request.protocol),
        ("ports", operation.ports.is_empty() || operation.ports.contains(&port)),
        ("notPorts", !operation.not_ports.contains(&port)),
    ])
}

fn first_false(conditions: &[(&'static str, bool)]) -> Option<&'static str> {
    conditions.iter().find(|(_, holds)| !holds).map(|(field, _)| *field)
}

fn among(patterns: &[StringMatch], text: &str) -> bool {
    patterns.is_empty() || any(patterns, text)
}

fn any(patterns: &[StringMatch], text: &str) -> bool {
    patterns.iter().any(|p| match p {
        StringMatch::Exact(want) => text == &**want,
        StringMatch::Prefix(want) => text.starts_with(&**want),
        StringMatch::Suffix(want) => text.ends_with(&**want),
        StringMatch::Present => !text.is_empty(),
    })
}

/// Why a policy matched or did not, as text that is made only when somebody reads it.
pub(super) struct Why<'a> {
    pub(super) policy: &'a AuthorizationPolicy,
    pub(super) request: &'a Request<'a>,
    pub(super) hit: Option<usize>,
}

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(index) = self.hit {
            write!(f, "matched by rules[{index}]")?;
            let asks = |r: &Rule| r.from.iter().any(|s| source(s, self.request, false).is_some());
            let plain = self.request.peer.identity().is_none();
            if plain && self.policy.rules.get(index).is_some_and(asks) {
                f.write_str(" (plaintext meets every identity condition of a DENY)")?;
            }
            return Ok(());
        }
        if self.policy.rules.is_empty() {
            return f.write_str("did not match: it has no rules");
        }
        f.write_str("did not match: ")?;
        let plain_holds = self.policy.action == Action::Deny;
        for (index, rule) in self.policy.rules.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            let (part, field) = failing(rule, self.request, plain_holds);
            write!(f, "{separator}rules[{index}].{part}: {field}")?;
        }
        Ok(())
    }
}

/// Which alternative of a rule that does not match came how far; of several, the last.
fn failing(rule: &Rule, request: &Request<'_>, plain_holds: bool) -> (String, &'static str) {
    let from: Option<Vec<_>> = rule.from.iter().map(|s| source(s, request, plain_holds)).collect();
    match from.as_deref() {
        Some([.., last]) => (format!("from[{}]", rule.from.len() - 1), last),
        _ => {
            let to = rule.to.iter().filter_map(|o| operation(o, request)).next_back();
            (format!("to[{}]", rule.to.len().saturating_sub(1)), to.unwrap_or("no alternative holds"))
        }
    }
}
