//! Executes attempts: the message, its signature, what the endpoint made of it, and when a failed one is repeated.

pub mod failure;
pub mod message;
pub mod send;
pub mod sign;
pub mod target;
