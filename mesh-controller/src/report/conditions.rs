//! From statuses to conditions: everything that was said of an object in, `Accepted` and `Enforced` out.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::object::{ApiOrigin, Kind, ObjectRef, Origin, Status};

/// The most bytes of a condition's message; Kubernetes takes 32,768.
const MAX_MESSAGE: usize = 2048;

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `Accepted` or `Enforced`.
    pub about: &'static str,
    /// Whether it is so.
    pub holds: bool,
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What is said of one custom resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which of the objects that ever had this name.
    pub uid: Arc<str>,
    /// The newest generation that was looked at.
    pub generation: i64,
    /// Its conditions.
    pub verdicts: Vec<Verdict>,
}

/// The reports on all custom resources of an API server.
pub fn reports(statuses: &[Status]) -> BTreeMap<ObjectRef, Report> {
    let mut said: BTreeMap<&ObjectRef, Vec<(&ApiOrigin, &Status)>> = BTreeMap::new();
    for status in statuses {
        if let Origin::Api(origin) = &status.source
            && matches!(
                origin.object.kind,
                Kind::AuthorizationPolicy | Kind::MeshConfig | Kind::WorkloadEntry
            )
        {
            said.entry(&origin.object).or_default().push((origin, status));
        }
    }
    said.into_iter().filter_map(|(object, said)| Some((object.clone(), report(object, &said)?))).collect()
}

fn report(object: &ObjectRef, said: &[(&ApiOrigin, &Status)]) -> Option<Report> {
    let newest = said.iter().map(|(origin, _)| *origin).max_by_key(|origin| origin.generation)?;
    let statuses: Vec<&Status> = said.iter().map(|(_, status)| *status).collect();
    let mut verdicts = vec![accepted(object, &statuses)];
    if object.kind == Kind::AuthorizationPolicy {
        verdicts.push(enforced(object, &statuses));
    }
    Some(Report { uid: Arc::clone(&newest.uid), generation: newest.generation, verdicts })
}

fn accepted(object: &ObjectRef, statuses: &[&Status]) -> Verdict {
    let own = || statuses.iter().copied().filter(|s| s.enforced.is_none());
    let refusals: Vec<&Status> = own().filter(|s| !s.accepted).collect();
    if let Some(first) = refusals.first() {
        let message = joined(object, &refusals);
        return Verdict { about: "Accepted", holds: false, reason: first.reason, message };
    }
    let remarks: Vec<&Status> = own().collect();
    let reason = remarks.iter().map(|s| s.reason).find(|r| *r != "Accepted").unwrap_or("Accepted");
    let message = if remarks.is_empty() { "in force".to_owned() } else { joined(object, &remarks) };
    Verdict { about: "Accepted", holds: true, reason, message }
}

fn enforced(object: &ObjectRef, statuses: &[&Status]) -> Verdict {
    let verdict = |holds, reason, message| Verdict { about: "Enforced", holds, reason, message };
    let own = || statuses.iter().copied().filter(|s| s.enforced.is_some());
    let missed: Vec<&Status> = own().filter(|s| s.enforced == Some(false)).collect();
    if let Some(first) = missed.first() {
        return verdict(false, first.reason, joined(object, &missed));
    }
    let well: Vec<&Status> = own().collect();
    if well.is_empty() {
        return verdict(false, "NotAccepted", "no version of it was ever accepted".to_owned());
    }
    verdict(true, "Enforced", joined(object, &well))
}

/// Their messages, without the object's name: it is the object's own status.
fn joined(object: &ObjectRef, statuses: &[&Status]) -> String {
    let name = format!("{object}: ");
    let texts: Vec<&str> =
        statuses.iter().map(|s| s.message.strip_prefix(&name).unwrap_or(&s.message)).collect();
    let mut text = texts.join("; ");
    if text.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Name;

    fn origin(kind: Kind, generation: i64) -> Origin {
        let object = ObjectRef { kind, name: Name::new("shop", "x") };
        Origin::Api(Arc::new(ApiOrigin { object, uid: "u".into(), generation }))
    }

    fn only(statuses: &[Status]) -> Report {
        let mut all = reports(statuses).into_values();
        let report = all.next().unwrap();
        assert!(all.next().is_none());
        report
    }

    #[test]
    fn an_edit_that_is_refused_is_not_accepted_while_the_version_before_is_still_enforced() {
        let (old, new) = (origin(Kind::AuthorizationPolicy, 1), origin(Kind::AuthorizationPolicy, 2));
        let report = only(&[
            Status::noted(&old, "Accepted", "AuthorizationPolicy shop/x: enforced for 2 pods").enforced(true),
            Status::refused(&new, "Invalid", "AuthorizationPolicy shop/x: spec.rules: bad; kept"),
        ]);
        assert_eq!((report.generation, &*report.uid), (2, "u"));
        let [accepted, enforced] = &report.verdicts[..] else { panic!("{report:?}") };
        assert_eq!((accepted.holds, accepted.reason), (false, "Invalid"));
        assert_eq!(accepted.message, "spec.rules: bad; kept");
        assert_eq!((enforced.holds, enforced.message.as_str()), (true, "enforced for 2 pods"));
    }

    #[test]
    fn a_policy_that_selects_nothing_or_that_nobody_enforces_says_so() {
        let origin = origin(Kind::AuthorizationPolicy, 1);
        let nothing = Status::noted(&origin, "SelectsNothing", "no pod is selected").enforced(false);
        let report = only(&[nothing]);
        assert!(report.verdicts[0].holds, "{report:?}");
        assert_eq!((report.verdicts[1].holds, report.verdicts[1].reason), (false, "SelectsNothing"));
        let report = only(&[Status::refused(&origin, "Malformed", "bad")]);
        assert_eq!((report.verdicts[1].holds, report.verdicts[1].reason), (false, "NotAccepted"));
    }

    #[test]
    fn an_entry_has_no_enforced_and_is_not_accepted_where_another_has_its_unit() {
        let origin = origin(Kind::WorkloadEntry, 2);
        let said = |status| only(&[status]).verdicts;
        let [verdict] = &said(Status::noted(&origin, "Accepted", "unit db.service is x"))[..] else {
            panic!()
        };
        assert_eq!((verdict.about, verdict.holds, verdict.reason), ("Accepted", true, "Accepted"));
        let twice = Status::refused(&origin, "DuplicateUnit", "WorkloadEntry shop/x: also that of shop/a");
        let [verdict] = &said(twice)[..] else { panic!() };
        assert_eq!((verdict.holds, verdict.reason), (false, "DuplicateUnit"));
        assert_eq!(verdict.message, "also that of shop/a");
    }

    #[test]
    fn a_mesh_config_has_no_enforced_and_files_have_no_conditions() {
        let place = Origin::Place("a.yaml:1".into());
        let statuses = [
            Status::refused(&place, "Malformed", "bad"),
            Status::noted(&origin(Kind::MeshConfig, 3), "Accepted", "concerns 3 pods"),
            Status::refused(&origin(Kind::Pod, 0), "MissingUid", "a pod gets an event only"),
        ];
        let report = only(&statuses);
        assert_eq!(report.verdicts.len(), 1);
        assert_eq!((report.verdicts[0].holds, report.verdicts[0].reason), (true, "Accepted"));
    }
}
