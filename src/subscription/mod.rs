//! Webhooks and `ClusterWebhooks` in, [`index::Subscription`]s for the engine and [`resolve::Resolved`] ones for their attempts out.

pub mod cached_target;
pub mod credentials;
mod entry;
pub mod header;
pub mod owner;
pub mod reader;
pub mod reference;
pub mod resolve;
pub mod secret;
mod sharing;
pub mod target;
pub mod tls;
pub mod url;
pub mod watch;
