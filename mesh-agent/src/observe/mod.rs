//! Stage 7: exactly one record a connection, as one log line and one update of the metrics; and the node's HTTP port
//! for metrics and readiness.

mod labels;
mod log_format;
mod log_writer;
mod metrics;
mod outcome;
mod plaintext;
mod record;
mod series;
mod server;

pub use labels::{Labels, Party, Reporter};
pub use log_format::JsonLines;
pub use log_writer::LogWriter;
pub use metrics::{AcceptFailure, Metrics};
pub use outcome::Outcome;
pub use plaintext::{Named, Plaintext, PlaintextPeers, Speaker, Speaking};
pub use record::{Facts, Near, Record, Side};
pub use series::{Series, SeriesLimits, SeriesTable};
pub use server::{Readiness, serve};
