//! A process of a test in a namespace and a cgroup: this test program again, told what to do line by line. In: orders on
//! its standard input. Out: an answer each, behind a mark that libtest's own words do not have.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::LIMIT;

const ANSWER: &str = "@@ ";

/// This test program again, inside a namespace and a cgroup, told what to do line by line.
pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    answers: mpsc::Receiver<String>,
}

impl Process {
    pub(super) fn start(netns: &str, cgroup: Option<&Path>) -> Self {
        Self::start_in(&format!("/run/netns/{netns}"), cgroup)
    }

    /// `netns` is a path.
    pub(super) fn start_in(netns: &str, cgroup: Option<&Path>) -> Self {
        let enter = "if [ -n \"$1\" ]; then echo $$ > \"$1\"/cgroup.procs || exit 1; fi; shift; exec \"$@\"";
        let exe = std::env::current_exe().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", enter, "sh"])
            .arg(cgroup.unwrap_or(Path::new("")))
            .args(["nsenter", &format!("--net={netns}")])
            .arg(exe)
            .args(["--exact", "pod_process", "--ignored", "--nocapture", "--test-threads=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // libtest's own words may stand before an answer on the same line.
                if let Some((_, answer)) = line.split_once(ANSWER) {
                    let _test_over = sender.send(answer.to_owned());
                }
            }
        });
        let process = Self { child, stdin, answers };
        assert_eq!(process.answer(), "ready");
        process
    }

    /// Waits for the next answer.
    pub(crate) fn answer(&self) -> String {
        self.answers.recv_timeout(LIMIT).expect("an answer within the limit")
    }

    /// The next answer, if it is there already.
    pub(crate) fn heard(&self) -> Option<String> {
        self.answers.try_recv().ok()
    }

    /// Gives an order.
    pub(crate) fn tell(&mut self, order: &str) {
        writeln!(self.stdin, "{order}").unwrap();
    }

    /// Gives an order and waits for the answer.
    pub(crate) fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        self.answer()
    }

    /// Dials until nobody answers there any more. A listener that was closed is open for a moment longer where another test
    /// starts a process just then: until that has become the program that it is to run, it has the listener too.
    pub(crate) fn until_refused(&mut self, to: &str) {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let answer = self.ask(&format!("connect {to}"));
            if answer == "error=ConnectionRefused" {
                return;
            }
            assert!(answer.starts_with("peer=") && Instant::now() < until, "{answer}");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// The other side of [`Process`]: `connect ADDR`, `bound ADDR PORT`, `brief ADDR`, `hear ADDR`,
/// `storm ADDR COUNT`, `listen ADDR`, `spin ADDR COUNT`.
pub(crate) fn obey() {
    say("ready");
    let mut kept: Vec<TcpStream> = Vec::new();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["connect", dst] => kept.extend(connect(address(dst))),
            ["bound", dst, port] => kept.push(bound(address(dst), port.parse().unwrap())),
            ["brief", dst] => {
                let mut stream = TcpStream::connect(address(dst)).unwrap();
                stream.write_all(b"brief").unwrap();
                drop(stream);
                say("closed");
            }
            ["hear", dst] => hear(address(dst)),
            ["storm", dst, count] => storm(address(dst), count.parse().unwrap()),
            ["listen", at] => listen(address(at)),
            ["spin", at, count] => spin(address(at), count.parse().unwrap()),
            other => say(&format!("unknown order {other:?}")),
        }
    }
}

fn say(text: &str) {
    println!("{ANSWER}{text}");
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn connect(dst: SocketAddr) -> Option<TcpStream> {
    match TcpStream::connect_timeout(&dst, LIMIT / 2) {
        Ok(stream) => {
            say(&format!("peer={} local={}", stream.peer_addr().unwrap(), stream.local_addr().unwrap().ip()));
            Some(stream)
        }
        Err(error) => {
            say(&format!("error={:?}", error.kind()));
            None
        }
    }
}

/// Hears what the server says first, and says something itself.
fn hear(dst: SocketAddr) {
    let mut stream = TcpStream::connect(dst).unwrap();
    let mut text = [0; 5];
    stream.read_exact(&mut text).unwrap();
    stream.write_all(b"second").unwrap();
    say(&format!("heard={}", String::from_utf8_lossy(&text)));
}

/// Connects so many times, one after the other, each to its end.
fn storm(dst: SocketAddr, count: u32) {
    let start = Instant::now();
    let one = |_: &u32| {
        let mut stream = TcpStream::connect(dst)?;
        stream.read_to_end(&mut Vec::new())
    };
    let good = (0..count).filter(|turn| one(turn).is_ok()).count();
    say(&format!("good={good} each={:?}", start.elapsed() / count));
}

fn bound(dst: SocketAddr, port: u16) -> TcpStream {
    let any: IpAddr = if dst.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = Socket::new(Domain::for_address(dst), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(any, port).into()).unwrap();
    socket.connect(&dst.into()).unwrap();
    let stream = TcpStream::from(socket);
    say(&format!("peer={} local={}", stream.peer_addr().unwrap(), stream.local_addr().unwrap()));
    stream
}

fn listen(at: SocketAddr) {
    let listener = match TcpListener::bind(at) {
        Ok(listener) => listener,
        Err(error) => return say(&format!("error={:?}", error.kind())),
    };
    say("listening");
    thread::spawn(move || {
        let mut kept = Vec::new();
        while let Ok((stream, from)) = listener.accept() {
            let (peer, local) = (stream.peer_addr().unwrap(), stream.local_addr().unwrap());
            say(&format!("accept={from} peer={peer} local={local}"));
            kept.push(stream);
        }
    });
}

/// Accepts in a tight loop, and counts how often the peer looked local.
fn spin(at: SocketAddr, count: u32) {
    let listener = TcpListener::bind(at).unwrap();
    listener.set_nonblocking(true).unwrap();
    say("listening");
    let (mut seen, mut loopback) = (0, 0);
    while seen < count {
        if let Ok((_, from)) = listener.accept() {
            seen += 1;
            loopback += u32::from(from.ip().to_canonical().is_loopback());
        }
    }
    say(&format!("seen={seen} loopback={loopback}"));
}
