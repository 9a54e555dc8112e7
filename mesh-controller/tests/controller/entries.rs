//! Systemd units of plain hosts: what entries mean beside pods, and what is said of those that do not count.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{changes, compiled, entry, index_of, namespace, pod, status, trust_domain};
use mesh_controller::compile::{Compiled, compile};
use mesh_controller::object::{Kind, Name, Object, ObjectRef};
use mesh_controller::serve::View;
use mesh_controller::watch::{Batch, Change};
use mesh_core::model::{ConnectMode, MtlsMode, Workload, WorkloadUid};

fn unit<'a>(compiled: &'a Compiled, uid: &str) -> &'a Workload {
    compiled.workloads.get(&WorkloadUid(uid.into())).unwrap_or_else(|| panic!("no {uid}"))
}

fn object(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: ferromesh.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

/// The account `shop/NAME`.
fn account(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: shop}}\n")
}

/// What is said of the object whose messages begin with `subject`: reasons, and whether it is enforced.
fn said(compiled: &Compiled, subject: &str) -> Vec<(&'static str, Option<bool>)> {
    let own = compiled.statuses.iter().filter(|s| s.message.starts_with(&format!("{subject}: ")));
    own.map(|s| (s.reason, s.enforced)).collect()
}

#[test]
fn a_declared_unit_is_a_workload_of_its_node_beside_a_pod_of_the_same_name() {
    let yaml =
        [namespace("shop", true), account("db"), entry("db", "host-1"), pod("db", "host-1", "10.0.0.1")];
    let compiled = compiled(&yaml.concat());
    assert_eq!(compiled.workloads.len(), 2);
    let db = unit(&compiled, "host-1/db.service");
    assert_eq!((&*db.name, &*db.node, db.unit.as_deref()), ("db", "host-1", Some("db.service")));
    assert_eq!(db.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/db");
    assert_eq!((&*db.owner.kind, &*db.owner.name), ("WorkloadEntry", "db"));
    assert!(db.enrolled && db.addresses.is_empty() && db.probes.is_empty());
    assert_eq!((db.connect, db.agent_lost_after, db.mtls.default), (None, None, MtlsMode::Permissive));
    assert_eq!(unit(&compiled, "uid-db").unit, None, "a pod is no unit");
    assert_eq!(said(&compiled, "WorkloadEntry shop/db"), [("Accepted", None)]);

    let sent = View::new("host-1".into()).advance(&compiled).unwrap();
    assert_eq!(sent.upserts.len(), 2, "{:?}", sent.upserts);
    assert!(View::new("host-2".into()).advance(&compiled).unwrap().upserts.is_empty());
}

#[test]
fn an_entry_s_labels_are_what_policies_and_mesh_configs_select() {
    let yaml = [
        namespace("shop", true),
        entry("db", "host-1"),
        entry("web", "host-1"),
        object("AuthorizationPolicy", "only", "{selector: {matchLabels: {app: db}}}"),
        object("AuthorizationPolicy", "all", "{}"),
        object("AuthorizationPolicy", "none", "{selector: {matchLabels: {app: x}}}"),
        object(
            "MeshConfig",
            "m",
            "{selector: {matchLabels: {app: db}}, mtls: {mode: STRICT}, connect: Eager, agentLostAfter: 5m}",
        ),
    ];
    let compiled = compiled(&yaml.concat());
    let names = |uid| unit(&compiled, uid).policies.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names("host-1/db.service"), ["shop/all", "shop/only"]);
    assert_eq!(names("host-1/web.service"), ["shop/all"]);
    let (db, web) = (unit(&compiled, "host-1/db.service"), unit(&compiled, "host-1/web.service"));
    assert_eq!((db.mtls.default, web.mtls.default), (MtlsMode::Strict, MtlsMode::Permissive));
    assert_eq!((db.connect, web.connect), (Some(ConnectMode::Eager), None));
    assert_eq!((db.agent_lost_after, web.agent_lost_after), (Some(Duration::from_secs(300)), None));
    assert_eq!(said(&compiled, "AuthorizationPolicy shop/only"), [("Accepted", Some(true))]);
    assert_eq!(said(&compiled, "AuthorizationPolicy shop/all"), [("Accepted", Some(true))]);
    assert_eq!(said(&compiled, "AuthorizationPolicy shop/none"), [("SelectsNothing", Some(false))]);
    assert_eq!(said(&compiled, "MeshConfig shop/m"), [("Accepted", None)]);
    assert!(compiled.statuses.iter().any(|s| s.message.ends_with("the 2 selected workloads")));
}

#[test]
fn of_two_entries_of_one_unit_the_first_by_name_counts_and_the_other_is_told() {
    let second = entry("zweite", "host-1").replace("unit: zweite", "unit: db");
    let elsewhere = entry("else", "host-2").replace("unit: else", "unit: db");
    let policy = object("AuthorizationPolicy", "p", "{selector: {matchLabels: {app: zweite}}}");
    let yaml = [namespace("shop", true), second, elsewhere, entry("db", "host-1"), policy];
    let compiled = compiled(&yaml.concat());
    assert_eq!(compiled.workloads.len(), 2);
    assert_eq!(&*unit(&compiled, "host-1/db.service").name, "db");
    assert_eq!(&*unit(&compiled, "host-2/db.service").name, "else");
    let told = status(&compiled.statuses, "DuplicateUnit");
    assert!(!told.accepted);
    assert_eq!(
        told.message,
        "WorkloadEntry shop/zweite: unit db.service of node host-1 is also that of WorkloadEntry shop/db, which wins"
    );
    // The winner's workload is not that of the loser, so no policy is enforced for the loser.
    let missed = status(&compiled.statuses, "NotEnforced");
    assert!(missed.message.ends_with("not enrolled: WorkloadEntry shop/zweite"), "{}", missed.message);
}

#[test]
fn an_entry_is_enrolled_by_its_namespace_and_opts_out_where_it_may() {
    let out = entry("db", "host-1").replace("app: db", "app: db, ferromesh.io/enrolled: \"false\"");
    let enrolled = |yaml: &[String]| unit(&compiled(&yaml.concat()), "host-1/db.service").enrolled;
    assert!(enrolled(&[namespace("shop", true), entry("db", "host-1")]));
    let outside = [namespace("shop", false), entry("db", "host-1")];
    assert!(!enrolled(&outside));
    let compiled = compiled(&outside.concat());
    let told = status(&compiled.statuses, "NotEnrolled");
    assert_eq!(told.message, "WorkloadEntry shop/db: unit db.service of node host-1 is outside of the mesh");

    let closed = [namespace("shop", true), out.clone()];
    assert!(enrolled(&closed));
    let statuses = crate::common::compiled(&closed.concat()).statuses;
    let told = status(&statuses, "OptOutNotAllowed");
    assert!(!told.accepted && told.message.starts_with("WorkloadEntry shop/db: "), "{}", told.message);
    let allows = object("MeshConfig", "m", "{allowOptOut: true}");
    assert!(!enrolled(&[namespace("shop", true), out, allows]));
}

#[test]
fn an_entry_is_never_an_endpoint_of_a_service() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\n\
                   spec: {clusterIP: 10.96.0.1, selector: {app: db}, ports: [{port: 80}]}\n";
    let policy = object(
        "AuthorizationPolicy",
        "p",
        "{rules: [{to: [{operation: {protocol: UDP, ports: [53, 5300]}}]}]}",
    );
    let with = [namespace("shop", true), service.into(), policy, pod("db", "n", "10.0.0.1")].concat();
    let without = compiled(&with);
    let compiled = compiled(&(with + &entry("db", "n")));
    assert_eq!(compiled.services, without.services);
    assert_eq!(compiled.by_address, without.by_address);
    assert_eq!(compiled.udp, without.udp);
    assert!(unit(&compiled, "n/db.service").served.is_empty());
}

#[test]
fn an_edit_that_cannot_be_honoured_keeps_the_unit_and_a_deletion_ends_it() {
    let mut index = index_of(&[namespace("shop", true), entry("db", "host-1")].concat());
    // As a source delivers it that does not look into specs.
    let mut bad = changes(&entry("db", "host-2"));
    let Change::Apply(_, object, _) = &mut bad[0] else { panic!("{bad:?}") };
    let Object::WorkloadEntry(inner) = Arc::make_mut(object) else { panic!("{object:?}") };
    inner.spec.unit = "db.socket".into();
    index.update(Batch { changes: bad, statuses: vec![] });
    let compiled = compile(&index, &trust_domain(), 2, None);
    assert_eq!(&*unit(&compiled, "host-1/db.service").name, "db");
    let told = status(&compiled.statuses, "Invalid");
    assert!(told.message.contains("spec.unit") && told.message.ends_with("is kept"), "{}", told.message);

    let key = ObjectRef { kind: Kind::WorkloadEntry, name: Name::new("shop", "db") };
    index.update(Batch { changes: vec![Change::Delete(key)], statuses: vec![] });
    assert!(compile(&index, &trust_domain(), 3, None).workloads.is_empty());
}

#[test]
fn another_service_account_of_a_unit_is_told_to_a_stream_that_has_it() {
    let mut index = index_of(&[namespace("shop", true), entry("db", "host-1")].concat());
    let first = compile(&index, &trust_domain(), 1, None);
    let mut view = View::new("host-1".into());
    view.advance(&first).unwrap();
    let other = entry("db", "host-1").replace("serviceAccount: db", "serviceAccount: other");
    index.update(Batch { changes: changes(&other), statuses: vec![] });
    let second = compile(&index, &trust_domain(), 2, Some(&first));
    assert_eq!(unit(&second, "host-1/db.service").identity.service_account(), "other");
    assert_eq!(view.advance(&second).unwrap().upserts.len(), 1);
}

#[test]
fn the_host_example_is_in_order() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/host");
    let mut source = mesh_controller::watch::DirSource::new(folder);
    let mut index = mesh_controller::index::Index::new(true);
    index.update(source.poll().expect("a first batch"));
    let compiled = compile(&index, &trust_domain(), 1, None);
    assert!(compiled.statuses.iter().all(|s| s.reason == "Accepted"), "{:#?}", compiled.statuses);
    assert_eq!(compiled.workloads.len(), 2);
    assert!(compiled.workloads.values().all(|w| w.enrolled && w.unit.is_some()));
}
