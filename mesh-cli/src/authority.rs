//! `meshctl ca`: what signs, which roots are trusted, how far a change of the root has come; and the order for another root.

use anyhow::Result;
use mesh_api::proto::{AuthorityStatus, RootStage, RootStatus};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::table::{Table, end, visible};
use crate::{Answer, ControllerArgs, controller};

/// What there is.
pub(crate) async fn status(args: &ControllerArgs) -> Result<Answer> {
    Ok(answer(&controller::status(args).await?.authority.unwrap_or_default()))
}

/// Asks for another root.
pub(crate) async fn rotate(args: &ControllerArgs) -> Result<Answer> {
    Ok(answer(&controller::rotate_root(args).await?))
}

fn answer(status: &AuthorityStatus) -> Answer {
    let table = table(status, OffsetDateTime::now_utc());
    Answer { json: as_json(status), table, ok: status.problem.is_empty() }
}

/// The status as scripts read it.
pub(crate) fn as_json(status: &AuthorityStatus) -> Value {
    let roots = status.roots.iter().map(|root| {
        json!({
            "subject": root.subject,
            "sha256": hex(&root.sha256),
            "not_after_unix": root.not_after_unix,
            "stage": stage(root),
            "stage_unix": root.stage_unix,
        })
    });
    json!({
        "roots": roots.collect::<Vec<_>>(),
        "intermediate": status.intermediate,
        "intermediate_not_after_unix": status.intermediate_not_after_unix,
        "waiting_for": status.waiting_for,
        "problem": status.problem,
    })
}

/// The status as people read it.
pub(crate) fn table(status: &AuthorityStatus, now: OffsetDateTime) -> String {
    let mut roots = Table::new(&["ROOT", "STAGE", "SHA-256", "END"]);
    for root in &status.roots {
        let told = match root.stage() {
            RootStage::Next => "trusted; signs when all agents trust it".to_owned(),
            RootStage::Old => format!("trusted until {}", end(root.stage_unix, now)),
            RootStage::Signs => "signs".to_owned(),
            RootStage::Unspecified => "trusted".to_owned(),
        };
        // As long as people compare.
        let print = hex(root.sha256.get(..8).unwrap_or(&root.sha256));
        roots.row([root.subject.clone(), told, print, end(root.not_after_unix, now)]);
    }
    let mut text = roots.render("the authority has not been looked at yet");
    if status.intermediate_not_after_unix > 0 {
        let ends = end(status.intermediate_not_after_unix, now);
        text.push_str(&format!("intermediate: {}, ends {ends}\n", visible(&status.intermediate)));
    }
    if !status.waiting_for.is_empty() {
        // A large cluster has more than a screen of them.
        let named: Vec<_> = status.waiting_for.iter().take(10).map(|node| visible(node)).collect();
        let count = status.waiting_for.len();
        text.push_str(&format!("waiting for {count} agents to trust the next root: {}\n", named.join(", ")));
    }
    if !status.problem.is_empty() {
        text.push_str(&format!(
            "INTERMEDIATE REFUSED, the last good one signs on: {}\n",
            visible(&status.problem)
        ));
    }
    text
}

fn stage(root: &RootStatus) -> &'static str {
    match root.stage() {
        RootStage::Unspecified => "trusted",
        RootStage::Signs => "signs",
        RootStage::Next => "next",
        RootStage::Old => "old",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_and_what_is_waited_for_is_said() {
        let root = |stage: RootStage, stage_unix| RootStatus {
            subject: "CN=root".into(),
            sha256: vec![0xab; 32],
            not_after_unix: 1_000_000_090,
            stage: stage.into(),
            stage_unix,
        };
        let status = AuthorityStatus {
            roots: vec![
                root(RootStage::Signs, 0),
                root(RootStage::Next, 5),
                root(RootStage::Old, 1_000_000_045),
            ],
            intermediate: "plugged in".into(),
            intermediate_not_after_unix: 1_000_000_045,
            waiting_for: vec!["n1".into()],
            problem: "tls.key\u{1b}".into(),
        };
        let text = table(&status, OffsetDateTime::from_unix_timestamp(1_000_000_000).unwrap());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("CN=root  signs") && lines[1].contains("abababababababab"), "{text}");
        assert!(lines[2].contains("trusted; signs when all agents trust it"), "{text}");
        assert!(lines[3].contains("trusted until 2001-09-09T01:47:25Z (in 45s)"), "{text}");
        assert_eq!(lines[4], "intermediate: plugged in, ends 2001-09-09T01:47:25Z (in 45s)");
        assert_eq!(lines[5], "waiting for 1 agents to trust the next root: n1");
        assert!(lines[6].starts_with("INTERMEDIATE REFUSED") && !lines[6].contains('\u{1b}'), "{text}");
        assert_eq!(as_json(&status)["roots"][2]["stage"], "old");
    }
}
