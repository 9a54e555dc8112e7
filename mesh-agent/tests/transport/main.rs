//! Both transports on loopback, in process: what arrives, what is refused, how connections end, what is used again.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod ends;
mod fin;
mod identity;
mod lifetime;
mod pki;
mod plain;
mod pool;
mod speed;
mod world;
