//! What of the Webhooks has been listed, and how long `ClusterWebhooks` that cannot be are waited for.

use std::time::Duration;

use tokio::time::Instant;

/// What has been listed.
#[derive(Default)]
pub(super) struct Listing {
    /// When all Webhooks were.
    pub(super) webhooks: Option<Instant>,
    /// Also where it is believed that there are none.
    pub(super) cluster_webhooks: bool,
    /// Since when listing these has been refused.
    pub(super) refused: Option<Instant>,
    /// It has been told that all are listed.
    pub(super) told: bool,
}

impl Listing {
    /// When it is believed that there are no `ClusterWebhooks`; `None` where they are listed, or not refused.
    pub(super) fn resigned_at(&self, patience: Duration) -> Option<Instant> {
        let since = self.refused?.max(self.webhooks?);
        (!self.cluster_webhooks).then_some(since + patience)
    }
}
