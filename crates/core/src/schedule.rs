//! When a failed attempt is retried: a pure function of the retry's number, a random number and `Retry-After`.

use std::time::Duration;

/// Exponential backoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The wait before the first retry.
    pub initial: Duration,
    /// The factor from one wait to the next, at least 1.
    pub factor: u32,
    /// The maximum wait, also for `Retry-After`.
    pub max: Duration,
}

impl Backoff {
    /// Returns the wait before a retry, counted from 1. `random` in [0, 1) varies the wait by up to 20% in both
    /// directions. A `Retry-After` (RFC 9110, 10.2.3) makes it longer. It never exceeds `max`.
    #[must_use]
    pub fn wait(&self, retry: u32, random: f64, retry_after: Option<Duration>) -> Duration {
        let mut wait = self.initial;
        for _ in 1..retry {
            if wait >= self.max {
                break;
            }
            wait = wait.saturating_mul(self.factor);
        }
        let varied = wait.min(self.max).mul_f64(0.8 + 0.4 * random.clamp(0.0, 1.0));
        varied.max(retry_after.unwrap_or_default()).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::schedule::*;

    const DEFAULT: Backoff = Backoff { initial: Duration::from_secs(5), factor: 5, max: Duration::from_secs(3600) };

    #[test]
    fn default_waits_five_seconds_times_five_up_to_an_hour() {
        let waits = (1..=6).map(|retry| DEFAULT.wait(retry, 0.5, None).as_secs());
        assert_eq!(waits.collect::<Vec<_>>(), [5, 25, 125, 625, 3125, 3600]);
    }

    #[test]
    fn retry_after_only_lengthens_the_wait_up_to_the_maximum() {
        assert_eq!(DEFAULT.wait(1, 0.5, Some(Duration::from_secs(90))).as_secs(), 90);
        assert_eq!(DEFAULT.wait(1, 0.5, Some(Duration::from_secs(90_000))).as_secs(), 3600);
        assert_eq!(DEFAULT.wait(2, 0.5, Some(Duration::from_secs(1))).as_secs(), 25);
    }

    proptest! {
        #[test]
        fn wait_varies_by_a_fifth_up_to_the_maximum(
            retry in 1_u32..=20, random in 0.0..1.0_f64, initial in 10_u64..100_000, factor in 1_u32..=10,
        ) {
            let backoff = Backoff { initial: Duration::from_millis(initial), factor, max: Duration::from_secs(86_400) };
            let middle = (initial as f64 / 1e3 * f64::from(factor).powi(retry as i32 - 1)).min(86_400.0);
            let wait = backoff.wait(retry, random, None).as_secs_f64();
            prop_assert!(wait >= middle * 0.799 && wait <= (middle * 1.201).min(86_400.0));
        }
    }
}
