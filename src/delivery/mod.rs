//! Makes attempts: builds and signs the message, sends it, and classifies the response.

pub mod failure;
pub mod message;
pub mod send;
pub mod sign;
pub mod target;
