//! Tracks which kinds of Webhooks have been listed, and how long to wait for `ClusterWebhooks` that cannot be listed.

use std::time::Duration;

use tokio::time::Instant;

/// The progress of the first lists.
#[derive(Default)]
pub(super) struct Listing {
    /// When all Webhooks were listed.
    pub(super) webhooks: Option<Instant>,
    /// Whether `ClusterWebhooks` are listed, not served, or given up on.
    pub(super) cluster_webhooks: bool,
    /// Since when the list of `ClusterWebhooks` has been refused.
    pub(super) refused: Option<Instant>,
    /// Whether `WebhookChange::Listed` has been sent.
    pub(super) published: bool,
}

impl Listing {
    /// When to continue without `ClusterWebhooks`. `None` if they are listed or not refused.
    pub(super) fn give_up_at(&self, patience: Duration) -> Option<Instant> {
        let since = self.refused?.max(self.webhooks?);
        (!self.cluster_webhooks).then_some(since + patience)
    }
}
