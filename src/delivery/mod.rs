//! Executes attempts: signing, sending, where to, and when a failed one is repeated.

pub mod address;
pub mod attempt;
pub mod client;
pub mod clients;
mod connector;
pub mod failure;
pub mod message;
pub mod resolver;
pub mod schedule;
pub mod send;
pub mod sign;
pub mod tls;
mod wire;
