//! Durations in specs.

use std::time::Duration;

/// Parses a Gateway API duration (GEP-2257): whole numbers with units, in any order and number; the result is their sum.
/// `None` if the text is not a valid duration.
#[must_use]
pub fn read(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let millis = match unit {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            _ => return None,
        };
        // GEP-2257 has at most five digits.
        let number: u64 = number.parse().ok().filter(|number| *number < 100_000)?;
        sum += Duration::from_millis(number * millis);
        rest = after;
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_gep_2257() {
        for (text, millis) in [
            ("30s", 30_000),
            ("1h30m", 5_400_000),
            ("10ms", 10),
            ("1m500ms", 60_500),
            ("00060m", 3_600_000),
            ("30m1h10s5s", 5_415_000),
        ] {
            assert_eq!(read(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "-5s", "5", "s", "soon", "1.5s", "1d", "5s ", "100000s", "99999999999999999999h"] {
            assert!(read(text).is_none(), "{text}");
        }
    }
}
