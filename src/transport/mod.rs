//! HTTP requests over the operator's own connections, with any TLS configuration, only to addresses that the guard
//! allows, and within bounds.

pub mod address;
pub mod client;
pub mod clients;
mod connection;
pub mod connector;
mod pool;
pub mod resolver;
pub mod tls;
mod wire;
