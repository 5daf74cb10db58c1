//! Formats ages and durations as kubectl does.

use std::time::Duration;

use jiff::Timestamp;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const YEAR: u64 = 365 * DAY;

/// The age of `then`, in the format of kubectl's columns (apimachinery, `duration.HumanDuration`). Up to one second in
/// the future counts as now.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs();
    if seconds < -1 {
        return "<invalid>".into();
    }
    human(seconds.try_into().unwrap_or_default())
}

fn human(seconds: u64) -> String {
    let two = |large: u64, unit: &str, small: u64, of: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{of}") }
    };
    let (minutes, hours, days) = (seconds / MINUTE, seconds / HOUR, seconds / DAY);
    match seconds {
        _ if seconds < 2 * MINUTE => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, "m", seconds % MINUTE, "s"),
        _ if minutes < 3 * 60 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 8 * 24 => two(days, "d", hours % 24, "h"),
        _ if hours < 2 * 365 * 24 => format!("{days}d"),
        _ if hours < 8 * 365 * 24 => two(seconds / YEAR, "y", days % 365, "d"),
        _ => format!("{}y", seconds / YEAR),
    }
}

/// A duration, with about three significant digits.
pub fn took(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds < 10.0 => format!("{seconds:.2}s"),
        seconds if seconds < 120.0 => format!("{seconds:.1}s"),
        seconds => human(seconds as u64),
    }
}

/// Parses the duration of a flag. It must be greater than 0.
pub fn read(text: &str) -> Result<Duration, String> {
    let read = llmtune_api::duration::read(text).filter(|duration| !duration.is_zero());
    read.ok_or_else(|| "use whole numbers with the units h, m and s, such as 2h, 90s or 1h30m".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_ages_as_kubectl_does() {
        // The cases of apimachinery's own test.
        for (seconds, expected) in [
            (0, "0s"),
            (70, "70s"),
            (119, "119s"),
            (190, "3m10s"),
            (600, "10m"),
            (70 * 60, "70m"),
            (3 * HOUR + 10 * MINUTE, "3h10m"),
            (7 * HOUR, "7h"),
            (47 * HOUR, "47h"),
            (48 * HOUR, "2d"),
            (57 * HOUR, "2d9h"),
            (8 * DAY, "8d"),
            (50 * DAY, "50d"),
            (2 * YEAR + 25 * DAY, "2y25d"),
            (9 * YEAR, "9y"),
        ] {
            assert_eq!(human(seconds), expected);
        }
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let at = |seconds: i64| Timestamp::from_second(1_700_000_000 + seconds).unwrap();
        assert_eq!(age(at(-5), now), "5s");
        // Clocks may differ slightly.
        assert_eq!(age(at(1), now), "0s");
        assert_eq!(age(at(60), now), "<invalid>");
    }

    #[test]
    fn long_durations_have_fewer_digits() {
        for (millis, expected) in [(38, "0.04s"), (3_456, "3.46s"), (34_560, "34.6s"), (200_000, "3m20s")] {
            assert_eq!(took(Duration::from_millis(millis)), expected);
        }
    }

    #[test]
    fn flag_duration_must_be_positive() {
        assert_eq!(read("1h30m"), Ok(Duration::from_secs(5400)));
        for text in ["", "0s", "2 hours", "-1h", "yesterday"] {
            assert!(read(text).unwrap_err().contains("such as 2h"), "{text}");
        }
    }
}
