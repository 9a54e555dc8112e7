//! A plain HTTP request, as a probe or a scraper makes it: an address and a path in, the whole answer out.

use std::io::{Read, Write};
use std::time::Duration;

use anyhow::Result;

/// Asks from the calling thread's namespace.
pub(crate) fn get(address: std::net::SocketAddr, path: &str) -> Result<String> {
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
