//! The helper that runs inside pods: small servers and clients that say exactly what they saw.
//!
//! In: a subcommand. Out: one JSON object on standard output when it ends (servers: none, they run until killed). The
//! subcommand `run` is how programs get into a pod: it joins a cgroup and a network namespace, then becomes the program.

mod clients;
mod datagrams;
mod load;
mod run;
mod scenes;
mod servers;
mod wire;

use std::net::SocketAddr;

use clap::{Parser, Subcommand};

/// Small servers and clients for the scenarios and the bench.
#[derive(Parser)]
#[command(name = "peer")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Joins a cgroup and a network namespace, then becomes the program.
    Run(run::Run),
    /// Sends back what it receives; ends a connection when the client ends it.
    Echo {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Sends back datagrams.
    UdpEcho {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Sends datagrams and counts what became of them.
    Datagrams(datagrams::Datagrams),
    /// Speaks first, then echoes.
    Banner {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long, default_value = "220 mail ready\r\n")]
        text: String,
    },
    /// Answers each connection with the addresses that it sees, as JSON.
    Names {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Accepts in a tight loop, sends one byte, closes; counts the peers' addresses.
    AcceptLoop {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        count: u64,
        /// Threads that accept side by side.
        #[arg(long, default_value_t = 1)]
        threads: usize,
    },
    /// Checks the bytes that `exact` sends, and sends as many back after the client's end.
    ExactServer {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Reads one byte, answers one, and closes.
    Once {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Reads and forgets.
    Sink {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Connects, talks, and tells how each step went.
    Talk(clients::Talk),
    /// Sends bytes that are known beforehand, half-closes, and checks the answer.
    Exact {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        bytes: u64,
    },
    /// Opens many connections at once, talks on each, holds them all.
    Hold {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        count: usize,
    },
    /// Opens as many connections as it can get, says nothing, and holds them, for ever.
    Hog {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        count: usize,
        /// Send the first bytes of a TLS record on each, and open another for each that was closed.
        #[arg(long)]
        half_handshake: bool,
    },
    /// Many short connections, one after the other, on some threads.
    Storm {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        count: u64,
        #[arg(long, default_value_t = 8)]
        threads: u64,
        /// Ask an echo server for one byte and reset the connection (else: read one byte, and the server's end).
        #[arg(long)]
        reset: bool,
    },
    /// One side of a scene about how connections end; the server plays it once.
    SceneServer {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        scene: scenes::Scene,
    },
    /// The other side.
    SceneClient {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        scene: scenes::Scene,
    },
    /// Measures round trips of one byte.
    Pingpong {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        seconds: f64,
    },
    /// Measures one stream.
    Bulk {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        seconds: f64,
    },
    /// One connection that asks an echo server for a byte every so often; tells how it ended.
    Pulse {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        seconds: u64,
        #[arg(long, default_value_t = 20)]
        every_ms: u64,
    },
    /// Measures new connections a second to `once`: connect, one byte each way, close.
    Rate {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        seconds: f64,
        #[arg(long, default_value_t = 16)]
        threads: u64,
    },
    /// Makes a new connection every so often, for ever, and prints a line for each.
    Ticker {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        text: String,
        #[arg(long, default_value_t = 100)]
        every_ms: u64,
    },
}

fn main() -> anyhow::Result<()> {
    let answer = match Arguments::parse().command {
        Task::Run(task) => return task.run(),
        Task::Echo { listen } => return servers::echo(listen),
        Task::UdpEcho { listen } => return datagrams::echo(listen),
        Task::Banner { listen, text } => return servers::banner(listen, &text),
        Task::Names { listen } => return servers::names(listen),
        Task::ExactServer { listen } => return servers::exact(listen),
        Task::Once { listen } => return servers::once(listen),
        Task::Sink { listen } => return servers::sink(listen),
        Task::Hog { to, count, half_handshake } => return load::hog(to, count, half_handshake),
        Task::Ticker { to, text, every_ms } => return clients::ticker(to, &text, every_ms),
        Task::Pulse { to, seconds, every_ms } => clients::pulse(to, seconds, every_ms)?,
        Task::AcceptLoop { listen, count, threads } => servers::accept_loop(listen, count, threads)?,
        Task::Talk(talk) => talk.run()?,
        Task::Datagrams(datagrams) => datagrams.run()?,
        Task::Exact { to, bytes } => clients::exact(to, bytes)?,
        Task::Hold { to, count } => clients::hold(to, count)?,
        Task::Storm { to, count, threads, reset } => clients::storm(to, count, threads, reset)?,
        Task::SceneServer { listen, scene } => scenes::serve(listen, scene)?,
        Task::SceneClient { to, scene } => scenes::play(to, scene)?,
        Task::Pingpong { to, seconds } => load::pingpong(to, seconds)?,
        Task::Bulk { to, seconds } => load::bulk(to, seconds)?,
        Task::Rate { to, seconds, threads } => load::rate(to, seconds, threads)?,
    };
    println!("{answer}");
    Ok(())
}
