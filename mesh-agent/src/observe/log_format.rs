//! How an event becomes a line of JSON: `{"timestamp", "level", "fields": {..}, "target"}`, as tracing-subscriber's own
//! formatter writes it, but built in one buffer. At thousands of connections a second, each with a record, that is a
//! visible part of what a connection costs.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// RFC 3339 in UTC, without the fraction.
const SECOND: &[FormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Formats events as JSON. Spans are not written: the agent has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct JsonLines;

#[derive(Default)]
struct Scratch {
    line: String,
    /// What a value's `Debug` or `Display` wrote.
    value: String,
    /// The last second that was written, and its text.
    second: (i64, String),
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.line.clear();
            scratch.line.push_str("{\"timestamp\":\"");
            scratch.timestamp(SystemTime::now().into())?;
            let about = event.metadata();
            write!(scratch.line, "\",\"level\":\"{}\",\"fields\":{{", about.level())?;
            let mut fields = Fields { scratch, first: true };
            event.record(&mut fields);
            scratch.line.push_str("},\"target\":");
            quote(&mut scratch.line, about.target());
            scratch.line.push_str("}\n");
            writer.write_str(&scratch.line)
        })
    }
}

impl Scratch {
    fn timestamp(&mut self, now: OffsetDateTime) -> fmt::Result {
        let (second, text) = &mut self.second;
        if *second != now.unix_timestamp() || text.is_empty() {
            *text = now.format(SECOND).map_err(|_| fmt::Error)?;
            *second = now.unix_timestamp();
        }
        self.line.push_str(text);
        write!(self.line, ".{:06}Z", now.microsecond())
    }
}

/// Writes the fields of one event; one that is absent (`None`) is never shown to it.
struct Fields<'a> {
    scratch: &'a mut Scratch,
    first: bool,
}

/// Without the mark of a raw identifier.
fn raw_name(name: &str) -> &str {
    name.strip_prefix("r#").unwrap_or(name)
}

impl Fields<'_> {
    fn key(&mut self, field: &Field) -> &mut String {
        let line = &mut self.scratch.line;
        line.push_str(if self.first { "\"" } else { ",\"" });
        self.first = false;
        // Names of fields are identifiers of the source: nothing in them needs an escape.
        line.push_str(raw_name(field.name()));
        line.push_str("\":");
        line
    }

    fn plain(&mut self, field: &Field, value: impl fmt::Display) {
        let text = value.to_string();
        self.key(field).push_str(&text);
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = std::mem::take(&mut self.scratch.value);
        text.clear();
        if write!(text, "{value:?}").is_err() {
            text.push_str(" (cannot be shown further)");
        }
        quote(self.key(field), &text);
        self.scratch.value = text;
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        quote(self.key(field), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() { self.plain(field, value) } else { self.plain(field, "null") }
    }
}

/// Whether a byte cannot stand in a JSON string as it is.
fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Appends `text` as a JSON string (RFC 8259, section 7).
fn quote(line: &mut String, text: &str) {
    line.push('"');
    // Nearly every text is plain. Looked at without an early end, which lets the compiler take many bytes at once.
    if !text.bytes().fold(false, |any, byte| any | is_special(byte)) {
        line.push_str(text);
        line.push('"');
        return;
    }
    let mut rest = text;
    while let Some(at) = rest.bytes().position(is_special) {
        let (plain, special) = rest.split_at(at);
        line.push_str(plain);
        match special.as_bytes().first() {
            Some(b'"') => line.push_str("\\\""),
            Some(b'\\') => line.push_str("\\\\"),
            Some(b'\n') => line.push_str("\\n"),
            Some(b'\r') => line.push_str("\\r"),
            Some(b'\t') => line.push_str("\\t"),
            Some(control) => line.push_str(&format!("\\u{control:04x}")),
            None => {}
        }
        rest = special.get(1..).unwrap_or_default();
    }
    line.push_str(rest);
    line.push('"');
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What this formatter and tracing-subscriber's own make of the same events.
    fn both(work: impl Fn()) -> [Vec<Value>; 2] {
        let lines = |sink: &Sink| -> Vec<Value> {
            let text = String::from_utf8(sink.0.lock().clone()).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let (ours, theirs) = (Sink::default(), Sink::default());
        let writer = ours.clone();
        let log =
            tracing_subscriber::fmt().event_format(JsonLines).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(log, &work);
        let writer = theirs.clone();
        let log = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(log, &work);
        [lines(&ours), lines(&theirs)]
    }

    #[test]
    fn a_line_says_what_the_librarys_own_formatter_says() {
        let [ours, theirs] = both(|| {
            let absent: Option<u64> = None;
            tracing::info!(target: "access", name = "web", absent, count = 3_u64, low = -1, ok = true, "said");
            tracing::warn!(path = ?"a \"quoted\" one", shown = %"tab\there", share = 0.5, none = f64::NAN);
            tracing::error!("line one\nline two \u{1} \u{7f} ü 漢");
        });
        assert_eq!(ours.len(), 3);
        for (mut ours, mut theirs) in ours.into_iter().zip(theirs) {
            let stamps = [&mut ours, &mut theirs].map(|line| line["timestamp"].take());
            assert!(stamps.iter().all(|stamp| stamp.as_str().is_some_and(|s| s.len() == 27)), "{stamps:?}");
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn a_timestamp_keeps_up_with_the_second() {
        let mut scratch = Scratch::default();
        let mut at = |nanos: i128| {
            scratch.line.clear();
            scratch.timestamp(OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap()).unwrap();
            scratch.line.clone()
        };
        assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(999_999_999), "1970-01-01T00:00:00.999999Z");
        assert_eq!(at(1_000_001_000), "1970-01-01T00:00:01.000001Z");
    }

    proptest! {
        #[test]
        fn any_text_comes_back_out_of_its_quotes(text in any::<String>()) {
            let mut line = String::new();
            quote(&mut line, &text);
            prop_assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), json!(text));
        }
    }
}
