//! How connections end, played out between a server and a client; each tells what it saw, so that a run over the mesh
//! can be compared with one over plain TCP.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use socket2::SockRef;

use crate::wire::{drain, listen, name_of};

/// Long enough for what was sent to arrive at the other side.
const SETTLE: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(5);

/// What is played.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Scene {
    /// The server closes while bytes of the client are unread.
    CloseUnread,
    /// The client resets in the middle of its stream.
    ClientReset,
    /// The server resets in the middle of its stream.
    ServerReset,
    /// The client writes after the server has closed in full.
    WriteAfterClose,
    /// The client sends an out-of-band byte to a server that reads such bytes in line.
    OutOfBand,
    /// The client ends its direction first, the server answers after that.
    ClientHalfClose,
    /// The server ends its direction first, the client goes on.
    ServerHalfClose,
    /// Both close in order.
    Orderly,
}

pub(crate) fn serve(at: SocketAddr, scene: Scene) -> Result<Value> {
    let (mut stream, _) = listen(at)?.accept()?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(match scene {
        Scene::CloseUnread => {
            stream.read_exact(&mut [0; 1])?;
            thread::sleep(SETTLE);
            drop(stream);
            json!("closed with unread bytes")
        }
        Scene::ClientReset | Scene::ClientHalfClose => {
            let (got, end) = drain(&mut stream, usize::MAX);
            let answer = said(stream.write_all(b"late answer"));
            json!({ "got": got.len(), "end": end, "answer": answer })
        }
        Scene::ServerReset => {
            stream.read_exact(&mut [0; 1])?;
            stream.write_all(b"half of it")?;
            thread::sleep(SETTLE);
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            json!("reset")
        }
        Scene::WriteAfterClose => {
            stream.read_exact(&mut [0; 1])?;
            drop(stream);
            json!("closed")
        }
        Scene::OutOfBand => {
            SockRef::from(&stream).set_out_of_band_inline(true)?;
            let (got, end) = drain(&mut stream, usize::MAX);
            json!({ "got": String::from_utf8_lossy(&got), "end": end })
        }
        Scene::ServerHalfClose => {
            stream.write_all(b"all there is")?;
            stream.shutdown(Shutdown::Write)?;
            let (got, end) = drain(&mut stream, usize::MAX);
            json!({ "got": got.len(), "end": end })
        }
        Scene::Orderly => {
            let (got, end) = drain(&mut stream, usize::MAX);
            stream.write_all(&got)?;
            json!({ "got": got.len(), "end": end })
        }
    })
}

pub(crate) fn play(to: SocketAddr, scene: Scene) -> Result<Value> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(match scene {
        Scene::CloseUnread => {
            stream.write_all(b"x and more that nobody reads")?;
            let (got, end) = drain(&mut stream, usize::MAX);
            json!({ "got": got.len(), "end": end })
        }
        Scene::ClientReset => {
            stream.write_all(&[7; 1000])?;
            thread::sleep(SETTLE);
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            json!("reset")
        }
        Scene::ServerReset => {
            stream.write_all(b"x")?;
            let (got, end) = drain(&mut stream, usize::MAX);
            json!({ "got": String::from_utf8_lossy(&got), "end": end })
        }
        Scene::WriteAfterClose => write_after_close(&mut stream)?,
        Scene::OutOfBand => {
            stream.write_all(b"a")?;
            thread::sleep(SETTLE);
            SockRef::from(&stream).send_out_of_band(b"!")?;
            thread::sleep(SETTLE);
            stream.write_all(b"b")?;
            stream.shutdown(Shutdown::Write)?;
            let (_, end) = drain(&mut stream, usize::MAX);
            json!({ "end": end })
        }
        Scene::ClientHalfClose | Scene::Orderly => {
            stream.write_all(&[7; 1000])?;
            stream.shutdown(Shutdown::Write)?;
            let (got, end) = drain(&mut stream, usize::MAX);
            json!({ "got": got.len(), "end": end })
        }
        Scene::ServerHalfClose => {
            let (got, end) = drain(&mut stream, usize::MAX);
            thread::sleep(SETTLE);
            let answer = said(stream.write_all(&[7; 1000]));
            json!({ "got": String::from_utf8_lossy(&got), "end": end, "answer": answer })
        }
    })
}

/// The first write finds out by a reset, the second is refused.
fn write_after_close(stream: &mut TcpStream) -> Result<Value> {
    stream.write_all(b"x")?;
    let (_, end) = drain(stream, usize::MAX);
    let first = said(stream.write_all(b"one"));
    thread::sleep(SETTLE);
    let second = said(stream.write_all(b"two"));
    Ok(json!({ "end": end, "first": first, "second": second }))
}

fn said(result: std::io::Result<()>) -> String {
    result.map_or_else(|error| name_of(&error), |()| "ok".to_owned())
}
