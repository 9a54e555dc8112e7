//! The servers.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::Result;
use serde_json::{Value, json};

use crate::wire::{Known, each, listen};

pub(crate) fn echo(at: SocketAddr) -> Result<()> {
    each(at, |mut stream| {
        stream.set_nodelay(true)?;
        echo_to_end(&mut stream)
    })
}

fn echo_to_end(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        stream.write_all(&buffer[..read])?;
    }
}

pub(crate) fn banner(at: SocketAddr, text: &str) -> Result<()> {
    // Lives as long as the program.
    let text: &'static str = Box::leak(text.to_owned().into_boxed_str());
    each(at, move |mut stream| {
        stream.write_all(text.as_bytes())?;
        echo_to_end(&mut stream)
    })
}

/// `accept()`, `getpeername()` and `getsockname()` as the server sees them.
pub(crate) fn names(at: SocketAddr) -> Result<()> {
    let listener = listen(at)?;
    loop {
        let (mut stream, accepted) = listener.accept()?;
        let answer = || -> io::Result<Value> {
            Ok(json!({
                "accept": accepted.to_string(),
                "getpeername": stream.peer_addr()?.to_string(),
                "getsockname": stream.local_addr()?.to_string(),
            }))
        };
        let answer = answer().unwrap_or_else(|error| json!({ "error": error.to_string() }));
        // A client that is gone needs no answer.
        drop(writeln!(stream, "{answer}"));
    }
}

pub(crate) fn accept_loop(at: SocketAddr, count: u64, threads: usize) -> Result<Value> {
    let listener = listen(at)?;
    let left = AtomicU64::new(count);
    let peers: BTreeMap<String, u64> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| accept_some(&listener, &left))).collect();
        let mut all = BTreeMap::new();
        for worker in workers {
            for (peer, seen) in worker.join().unwrap_or_default() {
                *all.entry(peer).or_default() += seen;
            }
        }
        all
    });
    Ok(json!({ "peers": peers }))
}

fn accept_some(listener: &std::net::TcpListener, left: &AtomicU64) -> BTreeMap<String, u64> {
    let mut peers = BTreeMap::new();
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        let Ok((mut stream, accepted)) = listener.accept() else { break };
        *peers.entry(accepted.ip().to_string()).or_default() += 1;
        match stream.peer_addr() {
            Ok(peer) if peer == accepted => {}
            Ok(peer) => *peers.entry(format!("accept {accepted} but getpeername {peer}")).or_default() += 1,
            // The client may already be gone.
            Err(_) => {}
        }
        // Likewise.
        drop(stream.write_all(b"x"));
    }
    peers
}

/// The client sends its length (8 bytes), the bytes, and its end; the answer is one verdict byte and as many bytes.
pub(crate) fn exact(at: SocketAddr) -> Result<()> {
    each(at, |mut stream| {
        let mut header = [0; 8];
        stream.read_exact(&mut header)?;
        let length = u64::from_le_bytes(header);
        let (mut known, mut good, mut seen) = (Known::new(length), true, 0_u64);
        let (mut buffer, mut wanted) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        while seen < length {
            let part = usize::try_from((length - seen).min(64 << 10)).unwrap_or(64 << 10);
            stream.read_exact(&mut buffer[..part])?;
            known.fill(&mut wanted[..part]);
            good &= buffer[..part] == wanted[..part];
            seen += part as u64;
        }
        good &= stream.read(&mut buffer)? == 0;
        stream.write_all(&[u8::from(good)])?;
        let mut known = Known::new(!length);
        let mut sent = 0;
        while sent < length {
            let part = usize::try_from((length - sent).min(64 << 10)).unwrap_or(64 << 10);
            known.fill(&mut wanted[..part]);
            stream.write_all(&wanted[..part])?;
            sent += part as u64;
        }
        stream.shutdown(Shutdown::Write)
    })
}

/// Closes first, so that TIME_WAIT stays on this side and clients do not run out of ports.
pub(crate) fn once(at: SocketAddr) -> Result<()> {
    each(at, |mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)
    })
}

pub(crate) fn sink(at: SocketAddr) -> Result<()> {
    each(at, |mut stream| {
        let mut buffer = vec![0; 256 << 10];
        while stream.read(&mut buffer)? > 0 {}
        // The sender measures until everything has been read.
        stream.write_all(b"x")
    })
}
