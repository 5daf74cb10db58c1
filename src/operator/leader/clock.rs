//! The leader's time.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// A wall clock that does not jump: it was right when the process began, and runs evenly from there.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall: Timestamp,
    origin: Instant,
}

impl Clock {
    pub fn new() -> Self {
        Self { wall: Timestamp::now(), origin: Instant::now() }
    }

    pub fn now(&self) -> Timestamp {
        self.wall.checked_add(self.origin.elapsed()).unwrap_or(Timestamp::MAX)
    }

    pub fn instant(&self, at: Timestamp) -> Instant {
        self.origin + Duration::try_from(at.duration_since(self.wall)).unwrap_or_default()
    }
}
