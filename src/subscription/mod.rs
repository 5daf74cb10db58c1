//! Webhooks and `ClusterWebhooks` in, [`index::Subscription`]s for the engine and [`resolve::Resolved`] ones for their attempts out.

mod entry;
pub mod filter;
pub mod index;
pub mod namespaces;
pub mod reference;
pub mod resolve;
pub mod secret;
pub mod tls;
pub mod watch;
