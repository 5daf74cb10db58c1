//! The leader's clock.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// The wall clock counts as set if it differs this much from the expected time.
const STEP: SignedDuration = SignedDuration::from_millis(500);

/// The wall clock as last read, continued by the monotonic clock, so that timers take their time. If the wall clock is
/// set, [`Self::follow`] returns the step, and timers must be moved by it.
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
        self.at(Instant::now())
    }

    fn at(&self, instant: Instant) -> Timestamp {
        self.wall.checked_add(instant.duration_since(self.origin)).unwrap_or(Timestamp::MAX)
    }

    pub fn instant(&self, at: Timestamp) -> Instant {
        self.origin + Duration::try_from(at.duration_since(self.wall)).unwrap_or_default()
    }

    /// Reads the wall clock. Returns the step if it was set since the last reading.
    pub fn follow(&mut self) -> Option<SignedDuration> {
        self.read(Timestamp::now(), Instant::now())
    }

    /// Records the time of the wall clock at an instant.
    fn read(&mut self, wall: Timestamp, instant: Instant) -> Option<SignedDuration> {
        let step = wall.duration_since(self.at(instant));
        if step.abs() < STEP {
            return None;
        }
        *self = Self { wall, origin: instant };
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_clock_steps_are_followed_and_reported_once() {
        let origin = Instant::now();
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        let after = |seconds| origin + Duration::from_secs(seconds);
        let mut clock = Clock { wall: at(0), origin };
        assert_eq!(clock.read(at(10), after(10)), None);
        assert_eq!(clock.read(at(20) + Duration::from_millis(499), after(20)), None, "it is corrected slowly");
        let retry = clock.instant(at(60));
        assert_eq!(retry, after(60));

        // The clock was an hour behind.
        assert_eq!(clock.read(at(3630), after(30)), Some(SignedDuration::from_secs(3600)));
        assert_eq!(clock.at(after(30)), at(3630));
        assert_eq!(clock.read(at(3640), after(40)), None);
        assert_eq!(
            clock.instant(at(60) + SignedDuration::from_secs(3600)),
            retry,
            "a moved timer ends when it would have"
        );

        assert_eq!(clock.read(at(-10), after(50)), Some(SignedDuration::from_secs(-3660)));
        assert_eq!((clock.at(after(51)), clock.instant(at(0))), (at(-9), after(60)));
        assert_eq!(clock.instant(at(-3600)), after(50), "past times are due");
    }
}
