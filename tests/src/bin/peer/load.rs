//! The measuring clients of the bench.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use crate::clients::one_asked;
use crate::wire::name_of;

pub(crate) fn pingpong(to: SocketAddr, seconds: f64) -> Result<Value> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut times = Vec::new();
    let mut byte = [1];
    for round in 0_u32.. {
        let start = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        let now = Instant::now();
        // The first rounds warm the path.
        if round >= 200 {
            times.push(now - start);
        }
        if now > end {
            break;
        }
    }
    times.sort_unstable();
    let at = |share: f64| {
        let index = (times.len() as f64 * share) as usize;
        times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    Ok(json!({ "p50_us": at(0.5), "p99_us": at(0.99), "count": times.len() }))
}

pub(crate) fn bulk(to: SocketAddr, seconds: f64) -> Result<Value> {
    let mut stream = TcpStream::connect(to)?;
    let buffer = vec![0x5a; 128 << 10];
    let start = Instant::now();
    let limit = Duration::from_secs_f64(seconds);
    let mut sent = 0_u64;
    while start.elapsed() < limit {
        stream.write_all(&buffer)?;
        sent += buffer.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({ "gbit_s": sent as f64 * 8.0 / seconds / 1e9, "bytes": sent }))
}

pub(crate) fn rate(to: SocketAddr, seconds: f64, threads: u64) -> Result<Value> {
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(seconds);
    let (mut good, mut errors) = (0_u64, BTreeMap::<String, u64>::new());
    thread::scope(|scope| {
        let work = || {
            let (mut good, mut errors) = (0, BTreeMap::<String, u64>::new());
            while Instant::now() < end {
                match one_asked(to) {
                    Ok(()) => good += 1,
                    Err(error) => *errors.entry(name_of(&error)).or_default() += 1,
                }
            }
            (good, errors)
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (some, failed) = worker.join().unwrap_or_default();
            good += some;
            for (error, seen) in failed {
                *errors.entry(error).or_default() += seen;
            }
        }
    });
    Ok(json!({ "per_second": good as f64 / start.elapsed().as_secs_f64(), "good": good, "errors": errors }))
}

/// Opens and holds connections, for ever, and prints how many are open when that has grown.
pub(crate) fn hog(to: SocketAddr, count: usize, half_handshake: bool) -> Result<()> {
    let mut held: Vec<TcpStream> = Vec::new();
    let mut most = 0;
    loop {
        held.retain(|stream| !(half_handshake && is_closed(stream)));
        while held.len() < count {
            let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(500)) else { break };
            stream.set_nonblocking(true)?;
            // A handshake record of 512 bytes that never comes.
            if half_handshake && stream.write_all(&[22, 3, 1, 2, 0, 1]).is_err() {
                break;
            }
            held.push(stream);
        }
        if held.len() > most {
            most = held.len();
            println!("{}", json!({ "open": most }));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn is_closed(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}
