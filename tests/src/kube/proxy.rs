//! The API server for a thread that acts as a node: one `kubectl proxy` with that node's rights, asked in plain HTTP. In:
//! method, path, JSON. Out: JSON, or the lines of a watch.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::poll;
use crate::world::{Process, netns};

/// How long one request may take.
const ANSWER: Duration = Duration::from_secs(30);
const READY: Duration = Duration::from_secs(20);

/// A running proxy in the wire namespace.
pub(super) struct Proxy {
    pub(super) process: Process,
    pub(super) port: u16,
    pub(super) netns: String,
}

/// The lines of a watch.
pub(super) struct Lines {
    stream: BufReader<TcpStream>,
    begun: Vec<u8>,
}

impl Proxy {
    /// Waits until it answers.
    pub(super) fn ready(&self) -> Result<()> {
        let look = || self.ask("GET", "/readyz", None).map(drop);
        poll::until("kubectl proxy to answer", READY, look).with_context(|| self.process.tail())
    }

    /// The answer's JSON; a status that says no is an error with its number first.
    pub(super) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut text = String::new();
        self.send(method, path, body, ANSWER)?.read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Watches; nothing for `silence` is no end.
    pub(super) fn watch(&self, path: &str, silence: Duration) -> Result<Lines> {
        let stream = self.send("GET", path, None, ANSWER)?;
        stream.get_ref().set_read_timeout(Some(silence))?;
        Ok(Lines { stream, begun: Vec::new() })
    }

    /// Sends a request of HTTP/1.0, whose answer ends with the connection, and reads the answer's head.
    fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<BufReader<TcpStream>> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let mut stream = netns::inside(&self.netns, || TcpStream::connect_timeout(&to, limit))??;
        stream.set_read_timeout(Some(limit))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\nContent-Type: {kind}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while stream.read_line(&mut head)? > 2 {}
        let status = head.split(' ').nth(1).unwrap_or_default();
        if !status.starts_with('2') {
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            bail!("{status} {method} {path}: {answer}");
        }
        Ok(stream)
    }
}

impl Lines {
    /// The next line; nothing if none came in time.
    pub(super) fn next(&mut self) -> Result<Option<Value>> {
        match self.stream.read_until(b'\n', &mut self.begun) {
            Ok(_) => {
                ensure!(self.begun.ends_with(b"\n"), "the watch has ended");
                let line = serde_json::from_slice(&self.begun)?;
                self.begun.clear();
                Ok(Some(line))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
