//! Where log lines go: lines of a moment are collected and leave with one system call, because at thousands of
//! connections a second a `write` for each record costs more than forming it. Warnings and errors leave at once.
//!
//! Lines come in from any thread; standard output gets them in order. What a killed process had collected in its last
//! [`COLLECT`] is lost, as are the records of its open connections.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How long lines are collected.
const COLLECT: Duration = Duration::from_millis(20);
/// What may be collected; who logs more in [`COLLECT`] writes for itself and waits.
const MOST_BYTES: usize = 1 << 20;

/// The writer of the process's log.
#[derive(Clone, Debug)]
pub struct LogWriter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    held: Mutex<Vec<u8>>,
    filled: Condvar,
    to: To,
}

/// Where the bytes go.
#[derive(Clone, Copy, Debug)]
enum To {
    Stdout,
    #[cfg(test)]
    Nowhere,
}

/// Takes the lines of one event.
#[derive(Debug)]
pub struct Line<'a> {
    shared: &'a Shared,
    at_once: bool,
}

impl LogWriter {
    /// A writer, and the thread that empties it.
    pub fn start() -> io::Result<Self> {
        let writer = Self::new(To::Stdout);
        let shared = Arc::clone(&writer.0);
        thread::Builder::new().name("log".into()).spawn(move || {
            loop {
                shared.wait();
                thread::sleep(COLLECT);
                shared.write_out(&mut shared.lock());
            }
        })?;
        Ok(writer)
    }

    fn new(to: To) -> Self {
        Self(Arc::new(Shared { held: Mutex::default(), filled: Condvar::new(), to }))
    }

    /// Writes what is held; for the end of the process.
    pub fn flush(&self) {
        self.0.write_out(&mut self.0.lock());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        // Bytes have no state that a panic could leave half-changed.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        let mut held = self.lock();
        while held.is_empty() {
            held = self.filled.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn write_out(&self, held: &mut Vec<u8>) {
        let written = match self.to {
            To::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(held).and_then(|()| out.flush())
            }
            #[cfg(test)]
            To::Nowhere => Ok(()),
        };
        if written.is_err() {
            // Nobody reads the log any more: there is nobody to tell.
        }
        held.clear();
        held.shrink_to(MOST_BYTES);
    }

    fn take(&self, line: &[u8], at_once: bool) {
        let mut held = self.lock();
        let first = held.is_empty();
        held.extend_from_slice(line);
        if at_once || held.len() >= MOST_BYTES {
            self.write_out(&mut held);
        } else if first {
            self.filled.notify_one();
        }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.shared.take(line, self.at_once);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { shared: &self.0, at_once: true }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Line<'a> {
        Line { shared: &self.0, at_once: *about.level() <= Level::WARN }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_in_order_and_a_warning_takes_what_waits_along() {
        let writer = LogWriter::new(To::Nowhere);
        writer.0.take(b"one\n", false);
        writer.0.take(b"two\n", false);
        assert_eq!(*writer.0.lock(), b"one\ntwo\n");
        writer.0.take(b"", true);
        assert!(writer.0.lock().is_empty());
    }

    #[test]
    fn what_is_collected_is_bounded() {
        let writer = LogWriter::new(To::Nowhere);
        writer.0.take(&vec![b'\n'; MOST_BYTES - 1], false);
        assert_eq!(writer.0.lock().len(), MOST_BYTES - 1);
        writer.0.take(b"\n", false);
        assert!(writer.0.lock().is_empty());
    }
}
