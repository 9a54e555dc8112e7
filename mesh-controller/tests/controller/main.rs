//! The controller from outside: real files, real TLS on loopback, no root.

mod certificates;
mod common;
mod compile;
mod dir_source;
mod discovery;
