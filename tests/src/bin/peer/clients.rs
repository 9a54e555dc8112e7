//! The clients.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};

use crate::wire::{Known, drain, name_of};

/// Connects, talks, and tells how each step went.
#[derive(clap::Args)]
pub(crate) struct Talk {
    #[arg(long)]
    to: SocketAddr,
    /// Bind to this address first.
    #[arg(long)]
    bind: Option<SocketAddr>,
    /// Use a dual-stack IPv6 socket with a v4-mapped address.
    #[arg(long)]
    mapped: bool,
    /// Connect without blocking and wait for the socket to be writable.
    #[arg(long)]
    nonblocking: bool,
    #[arg(long, default_value = "")]
    send: String,
    /// End the sending direction after `send`.
    #[arg(long)]
    half_close: bool,
    /// Stop reading after so many bytes.
    #[arg(long, default_value_t = 1 << 20)]
    limit: usize,
    /// Say a second text so much later, before reading on.
    #[arg(long)]
    again_after_ms: Option<u64>,
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
}

impl Talk {
    pub(crate) fn run(&self) -> Result<Value> {
        let start = Instant::now();
        let mut stream = match self.connect() {
            Ok(stream) => stream,
            Err(error) => {
                return Ok(
                    json!({ "connect": name_of(&error), "connect_ms": millis(start), "end_ms": millis(start) }),
                );
            }
        };
        let connect_ms = millis(start);
        stream.set_read_timeout(Some(Duration::from_millis(self.timeout_ms)))?;
        let names = (text(stream.local_addr()), text(stream.peer_addr()));
        let mut sent = said(stream.write_all(self.send.as_bytes()));
        if self.half_close && sent == "ok" {
            sent = said(stream.shutdown(Shutdown::Write));
        }
        if let Some(pause) = self.again_after_ms {
            thread::sleep(Duration::from_millis(pause));
            sent = said(stream.write_all(self.send.as_bytes()));
        }
        let (received, end) = drain(&mut stream, self.limit);
        Ok(json!({
            "connect": "ok",
            "connect_ms": connect_ms,
            "getsockname": names.0,
            "getpeername": names.1,
            "send": sent,
            "received": String::from_utf8_lossy(&received),
            "end": end,
            "end_ms": millis(start),
        }))
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let to = match self.to {
            SocketAddr::V4(to) if self.mapped => SocketAddr::new(to.ip().to_ipv6_mapped().into(), to.port()),
            to => to,
        };
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if let Some(bind) = self.bind {
            socket.bind(&bind.into())?;
        }
        let limit = Duration::from_millis(self.timeout_ms);
        if self.nonblocking {
            // Connects without blocking, polls for writability and reads SO_ERROR.
            socket.connect_timeout(&to.into(), limit)?;
        } else {
            socket.set_write_timeout(Some(limit))?;
            socket.connect(&to.into())?;
        }
        Ok(socket.into())
    }
}

fn millis(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

fn said(result: io::Result<()>) -> String {
    result.map_or_else(|error| name_of(&error), |()| "ok".to_owned())
}

fn text(address: io::Result<SocketAddr>) -> String {
    address.map_or_else(|error| name_of(&error), |address| address.to_string())
}

pub(crate) fn exact(to: SocketAddr, bytes: u64) -> Result<Value> {
    let start = Instant::now();
    let mut stream = TcpStream::connect(to)?;
    stream.write_all(&bytes.to_le_bytes())?;
    let mut known = Known::new(bytes);
    let (mut buffer, mut wanted) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut sent = 0;
    while sent < bytes {
        let part = usize::try_from((bytes - sent).min(64 << 10))?;
        known.fill(&mut buffer[..part]);
        stream.write_all(&buffer[..part])?;
        sent += part as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut verdict = [0];
    stream.read_exact(&mut verdict)?;
    let (mut known, mut seen) = (Known::new(!bytes), 0_u64);
    loop {
        let read = read_some(&mut stream, &mut buffer)?;
        if read == 0 {
            break;
        }
        // Both sides generate in chunks of 64 KiB, so a read is filled up to that size before it is compared.
        known.fill(&mut wanted[..read]);
        if buffer[..read] != wanted[..read] {
            bail!("the answer differs between bytes {seen} and {}", seen + read as u64);
        }
        seen += read as u64;
    }
    let good = verdict[0] == 1 && seen == bytes;
    Ok(json!({ "exact": good, "server_saw_exact": verdict[0] == 1, "answered": seen, "ms": millis(start) }))
}

fn read_some(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// Opens all, then asks and hears on all, twice.
pub(crate) fn hold(to: SocketAddr, count: usize) -> Result<Value> {
    let start = Instant::now();
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        streams.push(stream);
    }
    let mut good = 0;
    for round in 0..2_u32 {
        for (index, stream) in streams.iter_mut().enumerate() {
            stream.write_all(format!("{round}-{index:08}").as_bytes())?;
        }
        for (index, stream) in streams.iter_mut().enumerate() {
            let mut answer = [0; 10];
            stream.read_exact(&mut answer)?;
            good += usize::from(answer == format!("{round}-{index:08}").as_bytes());
        }
    }
    Ok(json!({ "open": streams.len(), "good_answers": good, "ms": millis(start) }))
}

pub(crate) fn storm(to: SocketAddr, count: u64, threads: u64, reset: bool) -> Result<Value> {
    let one = if reset { one_reset } else { one_heard };
    let (start, left) = (Instant::now(), AtomicU64::new(count));
    let mut all: BTreeMap<String, u64> = BTreeMap::new();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| storm_some(to, &left, one))).collect();
        for worker in workers {
            for (outcome, seen) in worker.join().unwrap_or_default() {
                *all.entry(outcome).or_default() += seen;
            }
        }
    });
    let good = all.remove("ok").unwrap_or_default();
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({ "ok": good, "errors": all, "seconds": seconds }))
}

fn storm_some(
    to: SocketAddr,
    left: &AtomicU64,
    one: fn(SocketAddr) -> io::Result<()>,
) -> BTreeMap<String, u64> {
    let mut outcomes = BTreeMap::new();
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        let outcome = said(one(to));
        *outcomes.entry(outcome).or_default() += 1;
    }
    outcomes
}

fn short(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// Asks an echo server for one byte, and ends by RST.
fn one_reset(to: SocketAddr) -> io::Result<()> {
    let mut stream = short(to)?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

/// Hears one byte and the server's end.
fn one_heard(to: SocketAddr) -> io::Result<()> {
    let mut stream = short(to)?;
    stream.read_exact(&mut [0])?;
    ended(&mut stream)
}

/// Asks `once` for one byte, and hears its end.
pub(crate) fn one_asked(to: SocketAddr) -> io::Result<()> {
    let mut stream = short(to)?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    ended(&mut stream)
}

fn ended(stream: &mut TcpStream) -> io::Result<()> {
    if stream.read(&mut [0])? == 0 { Ok(()) } else { Err(io::Error::other("more than one byte")) }
}

pub(crate) fn ticker(to: SocketAddr, text: &str, every_ms: u64) -> Result<()> {
    let started = Instant::now();
    loop {
        let start = Instant::now();
        let outcome = ask_once(to, text).map_or_else(|error| name_of(&error), |()| "ok".to_owned());
        println!("{}", json!({ "at_ms": millis(started), "outcome": outcome, "took_ms": millis(start) }));
        thread::sleep(Duration::from_millis(every_ms).saturating_sub(start.elapsed()));
    }
}

/// Asks and hears a byte on one connection until the time is over or it fails.
pub(crate) fn pulse(to: SocketAddr, seconds: u64, every_ms: u64) -> Result<Value> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (start, mut beats) = (Instant::now(), 0_u64);
    let mut outcome = "ok".to_owned();
    while start.elapsed() < Duration::from_secs(seconds) {
        let beat = stream.write_all(b".").and_then(|()| stream.read_exact(&mut [0]));
        if let Err(error) = beat {
            outcome = name_of(&error);
            break;
        }
        beats += 1;
        thread::sleep(Duration::from_millis(every_ms));
    }
    Ok(json!({ "outcome": outcome, "beats": beats, "ms": millis(start) }))
}

fn ask_once(to: SocketAddr, text: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(text.as_bytes())?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    if answer == text.as_bytes() { Ok(()) } else { Err(io::Error::other("a wrong answer")) }
}
