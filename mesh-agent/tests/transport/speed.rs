//! A quick look at throughput, latency and connection rate on loopback; run by hand:
//! `cargo test --release -p mesh-agent --test transport -- --ignored --nocapture speed`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_agent::authorize::Cut;
use mesh_agent::transport::{Watch, plain};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use crate::world::{BOTH, World, run};

const BULK: usize = 1 << 30;

async fn bulk(client: TcpStream, mut app: TcpStream) -> f64 {
    let start = Instant::now();
    let sender = std::thread::spawn({
        let client = client.into_std().unwrap();
        client.set_nonblocking(false).unwrap();
        move || {
            use std::io::Write;
            let block = vec![1; 1 << 18];
            for _ in 0..BULK / block.len() {
                (&client).write_all(&block).unwrap();
            }
            client
        }
    });
    let mut buf = vec![0; 1 << 18];
    let mut got = 0;
    while got < BULK {
        got += app.read(&mut buf).await.unwrap();
    }
    let client = tokio::task::spawn_blocking(move || sender.join().unwrap()).await.unwrap();
    let client = TcpStream::from_std(client).unwrap();
    drop(client);
    BULK as f64 * 8e-9 / start.elapsed().as_secs_f64()
}

async fn ping(client: &mut TcpStream, app: TcpStream) -> Duration {
    let app = app.into_std().unwrap();
    app.set_nonblocking(false).unwrap();
    let echo = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let mut byte = [0];
        while (&app).read(&mut byte).unwrap() > 0 {
            (&app).write_all(&byte).unwrap();
        }
    });
    let mut times = Vec::new();
    for _ in 0..20_000 {
        let start = Instant::now();
        client.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        times.push(start.elapsed());
    }
    client.shutdown().await.unwrap();
    tokio::task::spawn_blocking(move || echo.join().unwrap()).await.unwrap();
    times.sort();
    times[times.len() / 2]
}

#[test]
#[ignore = "a measurement, not a test"]
fn speed_of_both_transports() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let (client, app, relay) = world.pair().await;
            let gbits = bulk(client, app).await;
            relay.await.unwrap();
            let (mut client, app, relay) = world.pair().await;
            let p50 = ping(&mut client, app).await;
            relay.await.unwrap();
            let start = Instant::now();
            const CONNECTIONS: u32 = 5000;
            for _ in 0..CONNECTIONS {
                let (mut client, mut app, relay) = world.pair().await;
                client.write_all(b"x").await.unwrap();
                app.read_exact(&mut [0]).await.unwrap();
                client.shutdown().await.unwrap();
                drop(app);
                assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
                relay.await.unwrap();
            }
            let rate = f64::from(CONNECTIONS) / start.elapsed().as_secs_f64();
            println!("{preference:?}: {gbits:.2} Gbit/s, ping-pong p50 {p50:?}, {rate:.0} connections/s");
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).await.unwrap();
        let near = listener.accept().await.unwrap().0;
        let far = TcpStream::connect(address).await.unwrap();
        let app = listener.accept().await.unwrap().0;
        spawn_local(plain::relay(near, far, Bytes::new(), Watch::uncounted(Cut::pair().1)));
        println!("one plain hop: {:.2} Gbit/s", bulk(client, app).await);
    });
}
