//! Webhooks resolved into a live index: who gets this event.

pub mod index;
pub mod resolve;
pub mod secret;
pub mod watch;
