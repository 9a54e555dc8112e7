//! `meshctl explain`: the agent's explanation as a list of steps and one line with the outcome.

use anyhow::Result;
use serde_json::Value;

use crate::Answer;
use crate::table::{Table, visible};

/// Renders the agent's explanation. A denial is an answer, not a failure.
pub(crate) fn answer(json: Value) -> Result<Answer> {
    let table = render(&json);
    Ok(Answer { json, table, ok: true })
}

fn render(json: &Value) -> String {
    let field = |name: &str| visible(json[name].as_str().unwrap_or_default());
    let mut steps = Table::new(&["STAGE", "WHAT", "OUTCOME"]);
    for step in json["steps"].as_array().into_iter().flatten() {
        let cell = |name: &str| step[name].as_str().unwrap_or_default().to_owned();
        steps.row([cell("stage"), cell("subject"), cell("outcome")]);
    }
    let head =
        format!("{} -> {} (snapshot {})", field("source"), field("destination"), json["snapshot_version"]);
    format!(
        "{head}\n\n{}\n{}: {}\n",
        steps.render("no steps"),
        field("verdict").to_uppercase().replace('_', " "),
        field("reason")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_steps_come_first_and_the_outcome_last() {
        let json = json!({
            "source": "shop/web",
            "destination": "10.96.0.1:80",
            "snapshot_version": 17,
            "steps": [
                { "stage": "route", "subject": "10.96.0.1:80 is service shop/db", "outcome": "1 usable endpoint(s)" },
                { "stage": "authorize", "subject": "10.2.0.1:8080 (shop/db-0)", "outcome": "no ALLOW policy matched" },
            ],
            "verdict": "denied",
            "reason": "no ALLOW policy matched",
        });
        let text = render(&json);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "shop/web -> 10.96.0.1:80 (snapshot 17)");
        assert!(lines[3].starts_with("route      10.96.0.1:80 is service shop/db  1 usable"), "{text}");
        assert_eq!(lines.last(), Some(&"DENIED: no ALLOW policy matched"));
    }
}
