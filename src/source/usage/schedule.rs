//! Schedules measurements. Figures with the same interval are spread over it by the uids of their objects. Pure: times
//! are durations since the start of the task.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

use llmtune_core::event::object::Uid;

/// The time at which each figure is due. The newest time that was set counts.
#[derive(Debug, Default)]
pub struct Schedule {
    due: HashMap<Uid, Duration>,
    queue: BinaryHeap<Reverse<(Duration, Uid)>>,
}

impl Schedule {
    /// Sets the only time at which the figure is due.
    pub fn set(&mut self, uid: Uid, at: Duration) {
        if self.due.insert(uid, at) != Some(at) {
            self.queue.push(Reverse((at, uid)));
        }
    }

    /// Removes the figure.
    pub fn remove(&mut self, uid: Uid) {
        self.due.remove(&uid);
    }

    /// When the next figure is due.
    pub fn next(&mut self) -> Option<Duration> {
        while let Some(Reverse((at, uid))) = self.queue.peek() {
            if self.due.get(uid) == Some(at) {
                return Some(*at);
            }
            self.queue.pop();
        }
        None
    }

    /// Removes and returns a figure that is due.
    pub fn pop(&mut self, now: Duration) -> Option<Uid> {
        self.next().filter(|at| *at <= now)?;
        let Reverse((_, uid)) = self.queue.pop()?;
        self.due.remove(&uid);
        Some(uid)
    }
}

/// The offset of a figure within its interval.
pub fn place(uid: Uid, interval: Duration) -> Duration {
    const PLACES: usize = 1 << 20;
    // Uids are random (RFC 9562, version 4); `shard` uses their last digits.
    interval.mul_f64(uid.shard(PLACES) as f64 / PLACES as f64)
}

/// The next time after `now` at which the figure is measured.
pub fn turn_after(now: Duration, uid: Uid, interval: Duration) -> Duration {
    let (now, interval, place) = (now.as_nanos(), interval.as_nanos().max(1), place(uid, interval).as_nanos());
    let turn = if now < place { place } else { place + ((now - place) / interval + 1) * interval };
    Duration::from_nanos(turn as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn newest_time_counts_and_each_figure_is_due_once() {
        let mut schedule = Schedule::default();
        let uids = [1, 2, 3].map(Uid::from_u128);
        for uid in uids {
            schedule.set(uid, secs(10));
        }
        schedule.set(uids[0], secs(20));
        schedule.set(uids[1], secs(5));
        schedule.set(uids[1], secs(5));
        schedule.remove(uids[2]);
        assert_eq!(schedule.next(), Some(secs(5)));
        assert_eq!(schedule.pop(secs(4)), None);
        assert_eq!(schedule.pop(secs(30)), Some(uids[1]));
        assert_eq!(schedule.pop(secs(19)), None);
        assert_eq!(schedule.pop(secs(20)), Some(uids[0]));
        assert_eq!((schedule.pop(secs(99)), schedule.next()), (None, None));
    }

    #[test]
    fn thousand_figures_are_spread_over_their_interval() {
        let mut tenths = [0; 10];
        for number in 0..1000_u128 {
            // Pseudorandom, like the uids of the apiserver.
            let uid = Uid::from_u128(number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
            let turn = turn_after(secs(600), uid, secs(60));
            assert!(turn > secs(600) && turn <= secs(660));
            tenths[((turn.as_millis() - 600_000) / 6001) as usize] += 1;
        }
        assert!(tenths.iter().all(|tenth| (60..140).contains(tenth)), "{tenths:?}");
    }

    proptest! {
        #[test]
        fn turns_are_one_interval_apart(uid in any::<u128>(), now in 0..10_000_000_u64, interval in 1000..86_400_000_u64) {
            let (uid, now, interval) = (Uid::from_u128(uid), Duration::from_millis(now), Duration::from_millis(interval));
            let turn = turn_after(now, uid, interval);
            prop_assert!(turn > now && turn <= now + interval);
            prop_assert_eq!(turn_after(turn, uid, interval), turn + interval);
        }
    }
}
