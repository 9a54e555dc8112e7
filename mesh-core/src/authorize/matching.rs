//! Does a policy match a request? Against a peer without identity every identity condition, positive or negated, is
//! false in ALLOW and AUDIT and true in DENY, so that neither sending plaintext nor a negation opens a door.

use crate::authorize::Request;
use crate::model::{Action, AuthorizationPolicy, Operation, Rule, Source, StringMatch};

pub(super) fn policy(policy: &AuthorizationPolicy, request: &Request<'_>) -> bool {
    let plain_holds = policy.action == Action::Deny;
    policy.rules.iter().any(|r| rule(r, request, plain_holds))
}

fn rule(rule: &Rule, request: &Request<'_>, plain_holds: bool) -> bool {
    (rule.from.is_empty() || rule.from.iter().any(|s| source(s, request, plain_holds)))
        && (rule.to.is_empty() || rule.to.iter().any(|o| operation(o, request.port)))
}

fn source(source: &Source, request: &Request<'_>, plain_holds: bool) -> bool {
    let asks_identity = !source.principals.is_empty()
        || !source.not_principals.is_empty()
        || !source.namespaces.is_empty()
        || !source.not_namespaces.is_empty();
    let identity_holds = match request.peer.identity() {
        _ if !asks_identity => true,
        None => plain_holds,
        Some(id) => {
            let text = id.to_string();
            let principal = text.strip_prefix("spiffe://").unwrap_or(&text);
            among(&source.principals, principal)
                && !any(&source.not_principals, principal)
                && among(&source.namespaces, id.namespace())
                && !any(&source.not_namespaces, id.namespace())
        }
    };
    let client = request.client.to_canonical();
    identity_holds
        && (source.ip_blocks.is_empty() || source.ip_blocks.iter().any(|b| b.contains(&client)))
        && !source.not_ip_blocks.iter().any(|b| b.contains(&client))
}

fn operation(operation: &Operation, port: u16) -> bool {
    (operation.ports.is_empty() || operation.ports.contains(&port)) && !operation.not_ports.contains(&port)
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
