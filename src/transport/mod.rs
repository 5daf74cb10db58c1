//! Requests over HTTP, answers back: over connections of our own, by whichever TLS, only to addresses that a guard lets through, and within
//! bounds.

pub mod address;
pub mod client;
pub mod clients;
mod connection;
pub mod connector;
mod pool;
pub mod resolver;
pub mod tls;
mod wire;
