//! Remembers that the watches of a cluster fail, for as long as they do.

use std::time::{Duration, Instant};

use llmtune_client::error_chain::ErrorChain;

/// A failing watch retries more often than this (`default_backoff`), and a successful retry may report nothing. If no
/// failure follows within this time, the problem is over.
const OVER: Duration = Duration::from_secs(60);

/// The last failure, and when it occurred.
#[derive(Default)]
pub struct Trouble(Option<(String, Instant)>);

impl Trouble {
    /// Records that a watch failed. Returns the message.
    pub fn began(&mut self, error: &(dyn std::error::Error + 'static)) -> String {
        let message = format!("the cluster does not answer, trying again: {}", ErrorChain(error));
        self.0 = Some((message.clone(), Instant::now()));
        message
    }

    /// Records that a watch works.
    pub fn ended(&mut self) {
        self.0 = None;
    }

    /// The message, if the cluster does not answer.
    pub fn told(&self) -> Option<&str> {
        self.0.as_ref().filter(|(_, at)| at.elapsed() < OVER).map(|(message, _)| message.as_str())
    }
}
