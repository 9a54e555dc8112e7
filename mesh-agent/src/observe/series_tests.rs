//! Series are capped, and go some time after their workloads.

use mesh_core::snapshot::{Delta, Remove, Upsert};
use prometheus_client::encoding::text::encode;

use super::*;
use crate::fixture;
use crate::observe::Reporter;

const LINGER: Duration = Duration::from_secs(600);

fn labels(source: &str) -> Labels {
    Labels {
        reporter: Reporter::Source,
        source: Party::of(&fixture::workload(source, [10, 0, 0, 1].into()), true),
        destination: Party::Unknown,
        service: None,
        security_policy: "none",
        response_flags: "-",
    }
}

fn table(most: usize) -> (SeriesTable, Registry) {
    let mut registry = Registry::default();
    let table = SeriesTable::new(SeriesLimits { most, linger: LINGER }, &mut registry);
    (table, registry)
}

fn text(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).unwrap();
    text
}

#[test]
fn beyond_the_cap_connections_are_counted_under_other() {
    let (table, registry) = table(2);
    for job in 0..5 {
        table.get(labels(&format!("job-{job}"))).opened.inc();
    }
    table.get(labels("job-0")).opened.inc();
    let text = text(&registry);
    let opened: Vec<&str> = text.lines().filter(|l| l.starts_with("tcp_connections_opened_total{")).collect();
    assert_eq!(opened.len(), 3, "{opened:#?}");
    let other = opened.iter().find(|line| line.contains("source_workload=\"other\"")).unwrap();
    assert!(other.ends_with(" 3") && other.contains("destination_service=\"other\""), "{other}");
    assert!(text.contains("metric_series_overflow_total 3"), "{text}");
}

#[test]
fn a_series_goes_ten_minutes_after_its_workload() {
    let (table, registry) = table(100);
    let web = fixture::workload("web", [10, 0, 0, 1].into());
    let published = fixture::published(vec![Upsert::Workload(web.clone())]);
    let start = Instant::now();
    table.get(labels("web")).opened.inc();
    assert_eq!(table.expire(&published.load(), start + LINGER * 9), 0, "the workload is there");
    let removes = vec![Remove::Workload(web.uid.clone())];
    let without = published.load().apply(Delta { version: 9, removes, ..Delta::default() });
    let left = start + LINGER * 10;
    assert_eq!(table.expire(&without, left), 0);
    assert_eq!(table.expire(&without, left + LINGER - Duration::from_secs(1)), 0);
    assert!(text(&registry).contains("source_workload=\"web\""));
    assert_eq!(table.expire(&without, left + LINGER), 1);
    assert!(!text(&registry).contains("source_workload=\"web\""));
    assert!(table.is_empty());
}

#[test]
fn a_workload_that_comes_back_and_an_open_connection_keep_their_series() {
    let (table, _registry) = table(100);
    let nothing = fixture::published(Vec::new()).load();
    let web =
        fixture::published(vec![Upsert::Workload(fixture::workload("web", [10, 0, 0, 1].into()))]).load();
    let start = Instant::now();
    drop(table.get(labels("web")));
    let open = table.get(labels("job"));
    assert_eq!(table.expire(&nothing, start), 0);
    assert_eq!(table.expire(&web, start + LINGER / 2), 0);
    assert_eq!(table.expire(&nothing, start + LINGER), 0, "its time begins anew");
    drop(open);
    assert_eq!(table.expire(&nothing, start + LINGER * 2), 1);
    assert_eq!(table.expire(&nothing, start + LINGER * 3), 1);
}
