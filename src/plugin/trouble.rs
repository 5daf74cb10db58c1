//! That the cluster does not answer those who watch it, for as long as that is so.

use std::time::{Duration, Instant};

use crate::error_chain::ErrorChain;

/// Watches that fail are begun anew more often than this (`default_backoff`), and say nothing where they succeed: what has not failed
/// again is over.
const OVER: Duration = Duration::from_secs(60);

/// What was heard last of a cluster that is watched.
#[derive(Default)]
pub struct Trouble(Option<(String, Instant)>);

impl Trouble {
    /// A watch has failed; tells in words why.
    pub fn began(&mut self, error: &(dyn std::error::Error + 'static)) -> String {
        let told = format!("the cluster does not answer, trying again: {}", ErrorChain(error));
        self.0 = Some((told.clone(), Instant::now()));
        told
    }

    /// A watch has told something.
    pub fn ended(&mut self) {
        self.0 = None;
    }

    /// Why the cluster does not answer, where that is so.
    pub fn told(&self) -> Option<&str> {
        self.0.as_ref().filter(|(_, at)| at.elapsed() < OVER).map(|(told, _)| told.as_str())
    }
}
