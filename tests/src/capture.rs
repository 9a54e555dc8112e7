//! What went over the link between the nodes: tcpdump writes, this reads.
//!
//! In: a namespace and a link. Out: TCP segments, in which tests look for bytes that must, or must not, be there.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::poll;
use crate::world::{Process, World};

/// A capture that runs.
pub struct Capture {
    file: PathBuf,
    tcpdump: Process,
}

/// One TCP segment.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Where it came from.
    pub from: (IpAddr, u16),
    /// Where it went.
    pub to: (IpAddr, u16),
    /// Its bytes.
    pub payload: Vec<u8>,
    /// Its flags byte (FIN 1, SYN 2, RST 4, PSH 8, ACK 16).
    pub flags: u8,
    /// When it was captured.
    pub at: SystemTime,
}

/// Everything of one capture.
#[derive(Debug, Default)]
pub struct Captured {
    /// In order.
    pub segments: Vec<Segment>,
}

impl Capture {
    /// Starts to capture what node `node` sends and receives over the wire.
    pub fn start(world: &World, node: u8, name: &str) -> Result<Self> {
        let file = world.files.join(format!("{name}.pcap"));
        let path = file.to_string_lossy().into_owned();
        let link = format!("n{node}");
        let arguments = [
            "-i",
            &link,
            "-w",
            &path,
            "-U",
            "-s",
            "0",
            "-B",
            "65536",
            "--immediate-mode",
            "-Z",
            "root",
            "tcp",
        ];
        let tcpdump =
            Process::start(&world.wire(), &format!("tcpdump-{name}"), Path::new("tcpdump"), &arguments)?;
        poll::until_true("tcpdump to listen", Duration::from_secs(10), || {
            tcpdump.stderr().contains("listening on")
        })
        .with_context(|| tcpdump.tail())?;
        Ok(Self { file, tcpdump })
    }

    /// Stops and reads what was captured.
    pub fn stop(self) -> Result<Captured> {
        // What was just sent is written by then.
        std::thread::sleep(Duration::from_millis(200));
        self.tcpdump.terminate()?;
        let finished = self.tcpdump.wait(Duration::from_secs(10))?;
        if !finished.stderr.contains("0 packets dropped by kernel") {
            bail!("the capture is not complete: {}", finished.stderr);
        }
        let bytes = std::fs::read(&self.file).context("read the capture")?;
        parse(&bytes)
    }
}

impl Captured {
    /// True when `needle` was sent in some flow, also across segments.
    pub fn contains(&self, needle: &[u8]) -> bool {
        !self.said(needle).is_empty()
    }

    /// From where and to where `needle` was sent, also across segments.
    pub fn said(&self, needle: &[u8]) -> Vec<[(IpAddr, u16); 2]> {
        let mut flows: BTreeMap<_, Vec<u8>> = BTreeMap::new();
        for segment in &self.segments {
            flows.entry((segment.from, segment.to)).or_default().extend(&segment.payload);
        }
        flows.iter().filter(|(_, bytes)| find(bytes, needle)).map(|((from, to), _)| [*from, *to]).collect()
    }

    /// The answers to SYNs from a server's port.
    pub fn accepted(&self, port: u16) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(move |segment| segment.from.1 == port && segment.flags & 0x12 == 0x12)
    }

    /// Segments to or from a port.
    pub fn with_port(&self, port: u16) -> usize {
        self.segments.iter().filter(|segment| segment.from.1 == port || segment.to.1 == port).count()
    }

    /// Ports that new connections were made to, with how many.
    pub fn dialled(&self) -> BTreeMap<u16, usize> {
        let mut ports = BTreeMap::new();
        for segment in &self.segments {
            if segment.flags & 0x12 == 0x02 {
                *ports.entry(segment.to.1).or_default() += 1;
            }
        }
        ports
    }

    /// True when every byte to or from `port` travels in TLS records (handshake, application data, alert).
    pub fn is_tls(&self, port: u16) -> bool {
        let mut seen = BTreeMap::new();
        for segment in
            self.segments.iter().filter(|segment| segment.to.1 == port && !segment.payload.is_empty())
        {
            seen.entry(segment.from).or_insert_with(|| segment.payload.clone());
        }
        !seen.is_empty() && seen.values().all(|first| first.starts_with(&[0x16, 0x03]))
    }
}

fn find(hay: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && hay.windows(needle.len()).any(|window| window == needle)
}

fn parse(bytes: &[u8]) -> Result<Captured> {
    if bytes.get(..4) != Some(&[0xd4, 0xc3, 0xb2, 0xa1]) {
        bail!("not a pcap file of this machine's byte order");
    }
    let mut captured = Captured::default();
    let mut rest = bytes.get(24..).unwrap_or_default();
    while let Some(header) = rest.get(..16) {
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let at = SystemTime::UNIX_EPOCH + Duration::new(word(0).into(), word(4) * 1000);
        let length = word(8) as usize;
        let Some(frame) = rest.get(16..16 + length) else { break };
        captured.segments.extend(segment(frame, at));
        rest = &rest[16 + length..];
    }
    Ok(captured)
}

/// Ethernet, IPv4 or IPv6 without extension headers, TCP.
fn segment(frame: &[u8], at: SystemTime) -> Option<Segment> {
    let packet = frame.get(14..)?;
    let (from, to, tcp) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            let address = |at: usize| -> Option<IpAddr> {
                Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?).into())
            };
            // Segmentation offload makes packets whose length field is 0.
            let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
            (address(12)?, address(16)?, packet.get(header..end)?)
        }
        [0x86, 0xdd] => {
            let address = |at: usize| -> Option<IpAddr> {
                Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?).into())
            };
            let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
            let end = if length == 0 { packet.len() } else { (40 + length).min(packet.len()) };
            (address(8)?, address(24)?, packet.get(40..end)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        from: (from, port(0)?),
        to: (to, port(2)?),
        payload: tcp.get(header..).unwrap_or_default().to_vec(),
        flags: *tcp.get(13)?,
        at,
    })
}
