//! Usage: the engine gets its watches with the others, and a background task measures.

use std::sync::Arc;

use super::Leader;
use crate::{
    operator::MAX_NAMESPACES,
    source::usage::{self, Usage},
    subscription::reader::Reader,
};
use llmtune_core::event::object::WatchId;

/// No other watch has this id or a higher one.
pub const FIRST_ID: u16 = u16::MAX - MAX_NAMESPACES as u16;

impl Leader {
    /// Returns the watch of each served namespace, or of all.
    fn usage_scopes(&self) -> Vec<(WatchId, Option<String>)> {
        (FIRST_ID..).map(WatchId).zip(self.scopes()).collect()
    }

    /// Registers the watches with the engine.
    pub(super) fn add_usage_watches(&mut self) {
        for (id, namespace) in self.usage_scopes() {
            self.engine.add_measured_watch(id, usage::NAME, &usage::watch_name(namespace.as_deref()));
        }
    }

    /// Starts to measure.
    pub(super) fn start_usage(&mut self) {
        let metrics = &self.context.metrics;
        let usage = Usage {
            client: self.context.watching.clone(),
            scopes: self.usage_scopes(),
            prometheus: Arc::clone(&self.context.prometheus),
            reader: Arc::new(Reader::new(self.context.client.clone())),
            observations: self.sources.observe.clone(),
            namespaces: self.sources.namespaces.clone(),
            updates: self.usage_updates.clone(),
            evaluations: metrics.usage_evaluations.clone(),
            query_duration: metrics.usage_query_duration.clone(),
        };
        self.sources.tasks.spawn(usage.run());
    }
}
