//! Exactly one record a connection, whatever happens: the log line and the counters.

use std::io::Write;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::*;
use crate::authorize::Denial;
use crate::fixture;
use crate::observe::SeriesLimits;

/// What was logged, one JSON object a line.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn during(work: impl FnOnce()) -> Vec<Value> {
        let log = Self::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, work);
        let text = String::from_utf8(log.0.lock().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.filter(|line: &Value| line["target"] == "access").collect()
    }
}

fn record(metrics: &Arc<Metrics>) -> Record {
    let (client, server) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let facts = Facts {
        source: Side::proven(&Arc::new(fixture::workload("web", client))),
        destination: Side::proven(&Arc::new(fixture::workload("db", server))),
        service: Some(ServiceName { namespace: "shop".into(), name: "db".into() }),
        dialled: Some("10.96.0.1:80".parse().unwrap()),
        endpoint: Some("10.0.0.2:5432".parse().unwrap()),
        protocol: Some(Protocol::Ferromesh),
        ..Facts::new(Reporter::Source, "10.0.0.1:40000".parse().unwrap())
    };
    Record::new(metrics, facts)
}

fn samples(metrics: &Metrics, name: &str) -> Vec<String> {
    let text = metrics.text().unwrap();
    text.lines().filter(|line| line.starts_with(&format!("{name}{{"))).map(str::to_owned).collect()
}

#[test]
fn a_record_that_nobody_ends_is_written_once_when_it_is_dropped() {
    let metrics = Metrics::new(SeriesLimits::default());
    let lines = Log::during(|| drop(record(&metrics)));
    assert_eq!(lines.len(), 1);
    assert_eq!((&lines[0]["result"], &lines[0]["response_flags"]), (&"aborted".into(), &"aborted".into()));
    assert_eq!(metrics.aborted.get(), 1);
    assert_eq!(metrics.open.get(), 0);
    let closed = samples(&metrics, "ferromesh_tcp_connections_closed_total");
    assert!(closed.len() == 1 && closed[0].ends_with(" 1"), "{closed:?}");
}

#[test]
fn a_record_that_was_ended_has_every_field_and_is_not_written_again() {
    let metrics = Metrics::new(SeriesLimits::default());
    let lines = Log::during(|| {
        let mut record = record(&metrics);
        let refused = record.meter(Near::Client);
        assert_eq!(refused.counted(), (false, 0, 0));
        drop(record.meter(Near::Client));
        record.carried(5, 3);
        record.end(Outcome::ok());
    });
    assert_eq!(lines.len(), 1);
    let expected = [
        ("reporter", "source"),
        ("source_workload", "web"),
        ("source_pod", "web-0"),
        ("source_namespace", "shop"),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/web"),
        ("destination_workload", "db"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/db"),
        ("service", "shop/db"),
        ("client", "10.0.0.1:40000"),
        ("dialled", "10.96.0.1:80"),
        ("endpoint", "10.0.0.2:5432"),
        ("protocol", "ferromesh/1"),
        ("security_policy", "mutual_tls"),
        ("result", "ok"),
        ("response_flags", "-"),
    ];
    for (name, value) in expected {
        assert_eq!(lines[0][name], value, "{name}");
    }
    assert_eq!((&lines[0]["bytes_sent"], &lines[0]["bytes_received"]), (&5.into(), &3.into()));
    assert!(lines[0].get("reason").is_none(), "an empty reason is left out");
    for (name, value) in [
        ("connections_opened_total", 1),
        ("connections_closed_total", 1),
        ("sent_bytes_total", 5),
        ("received_bytes_total", 3),
        ("connection_duration_seconds_count", 1),
    ] {
        let found = samples(&metrics, &format!("ferromesh_tcp_{name}"));
        assert!(found.len() == 1 && found[0].ends_with(&format!(" {value}")), "{name}: {found:?}");
        for label in ["source_workload=\"web\"", "destination_service=\"shop/db\"", "response_flags=\"-\""] {
            assert!(found[0].contains(label), "{label} in {found:?}");
        }
    }
}

#[test]
fn a_denial_is_named_and_counted_by_reason() {
    let metrics = Metrics::new(SeriesLimits::default());
    let lines = Log::during(|| {
        let denial = Denial(mesh_core::authorize::DenyReason::StrictMtls);
        record(&metrics).end(Outcome::from(&denial));
    });
    assert_eq!((&lines[0]["result"], &lines[0]["response_flags"]), (&"denied".into(), &"strict_mtls".into()));
    assert!(lines[0]["reason"].as_str().unwrap().contains("mutual TLS only"));
    let denials = samples(&metrics, "ferromesh_authorization_denials_total");
    assert_eq!(denials, ["ferromesh_authorization_denials_total{reason=\"strict_mtls\"} 1"]);
}
