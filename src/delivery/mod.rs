//! Executes attempts: signing, sending, and when a failed one is repeated.

pub mod schedule;
pub mod send;
pub mod sign;
