//! Datagrams: a server that sends back, and a client that says what became of each.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use crate::wire::name_of;

/// How the client sends.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum How {
    /// `sendto()` on a socket that is not connected.
    Sendto,
    /// `connect()` and `send()`.
    Connected,
    /// `connect()` to the server's DNS port, then `sendto()`; the echo is one of a second `connect()`, for the first lets none in.
    ConnectedElsewhere,
}

/// Sends datagrams and waits for each one's echo.
#[derive(clap::Args)]
pub(crate) struct Datagrams {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, value_enum, default_value = "sendto")]
    how: How,
    /// Use a dual-stack IPv6 socket with a v4-mapped address.
    #[arg(long)]
    mapped: bool,
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// A new socket for each datagram, as resolvers do it.
    #[arg(long)]
    fresh: bool,
    /// Stop at the first that is not echoed.
    #[arg(long)]
    until_refused: bool,
    /// How long an echo is waited for.
    #[arg(long, default_value_t = 3000)]
    timeout_ms: u64,
    /// Wait so long between two.
    #[arg(long, default_value_t = 0)]
    pause_us: u64,
}

impl Datagrams {
    pub(crate) fn run(&self) -> Result<Value> {
        let to = match self.to {
            SocketAddr::V4(to) if self.mapped => SocketAddr::new(to.ip().to_ipv6_mapped().into(), to.port()),
            to => to,
        };
        let (start, mut outcomes) = (Instant::now(), BTreeMap::<String, u64>::new());
        let mut kept = None;
        for number in 0..self.count {
            let outcome = match self.one(to, number, &mut kept) {
                Ok(()) => "echoed".to_owned(),
                Err(error) => name_of(&error),
            };
            let ends = self.until_refused && outcome != "echoed";
            *outcomes.entry(outcome).or_default() += 1;
            if ends {
                break;
            }
            std::thread::sleep(Duration::from_micros(self.pause_us));
        }
        Ok(json!({ "outcomes": outcomes, "seconds": start.elapsed().as_secs_f64() }))
    }

    fn one(&self, to: SocketAddr, number: u64, kept: &mut Option<UdpSocket>) -> std::io::Result<()> {
        if self.fresh {
            *kept = None;
        }
        // A socket stays after a failure too: the next `send()` is one more of the same connection.
        let socket = match kept {
            Some(socket) => socket,
            None => kept.insert(self.socket(to)?),
        };
        let text = format!("datagram {number}");
        if self.how != How::Connected {
            socket.send_to(text.as_bytes(), to)?;
        }
        if self.how == How::ConnectedElsewhere {
            socket.connect(to)?;
        }
        if self.how != How::Sendto {
            socket.send(text.as_bytes())?;
        }
        let mut answer = [0; 64];
        loop {
            let read = socket.recv(&mut answer)?;
            // The echo of an earlier one that was given up is not this one's.
            if answer.get(..read) == Some(text.as_bytes()) {
                return Ok(());
            }
        }
    }

    fn socket(&self, to: SocketAddr) -> std::io::Result<UdpSocket> {
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(Duration::from_millis(self.timeout_ms)))?;
        match self.how {
            How::Sendto => {}
            How::Connected => socket.connect(to)?,
            How::ConnectedElsewhere => socket.connect(SocketAddr::new(to.ip(), 53))?,
        }
        Ok(socket)
    }
}

pub(crate) fn echo(at: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(at)?;
    println!("bound");
    let mut buffer = [0; 2048];
    loop {
        // An ICMP error of an earlier answer is no failure of the server.
        let Ok((read, from)) = socket.recv_from(&mut buffer) else { continue };
        drop(socket.send_to(&buffer[..read], from));
    }
}
