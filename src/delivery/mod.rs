//! Executes attempts: signing, sending, where to, and when a failed one is repeated.

pub mod address;
pub mod clients;
mod failure;
pub mod resolver;
pub mod schedule;
pub mod send;
pub mod sign;
pub mod tls;
