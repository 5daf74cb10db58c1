//! Follows Webhooks and `ClusterWebhooks` and reads the objects that they reference. Produces an
//! [`index::Subscription`] for the engine and a [`resolve::Resolved`] Webhook for attempts.

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
