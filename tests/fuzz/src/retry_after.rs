//! The `Retry-After` header of an answer.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use jiff::Timestamp;

use llmtune_core::schedule::Backoff;
use llmtune_webhooks::delivery::send;

/// The value of a `Retry-After` header. Whatever the value and the clock, the wait is at most `backoff.max` and at
/// least the wait without the header.
pub fn retry_after(value: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    let digits = value.to_str().ok().map(str::trim).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let seconds = digits.filter(|text| !text.is_empty()).map(|text| text.parse().unwrap_or(u64::MAX));
    let headers = HeaderMap::from_iter([(header::RETRY_AFTER, value)]);
    let backoff = Backoff { initial: Duration::from_secs(5), factor: 10, max: Duration::from_hours(24) };
    for now in [Timestamp::MIN, Timestamp::UNIX_EPOCH, super::operator::now(), Timestamp::MAX] {
        let wish = send::retry_after(&headers, now);
        if let Some(seconds) = seconds {
            assert_eq!(wish, Some(Duration::from_secs(seconds)));
        }
        for retry in [1, 20, u32::MAX] {
            let wait = backoff.wait(retry, 0.5, wish);
            assert!(wait <= backoff.max && wait >= backoff.wait(retry, 0.5, None), "{wait:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seeds;

    proptest! {
        #![proptest_config(seeds::cases(5000))]

        #[test]
        fn arbitrary_retry_after_stays_within_bounds(
            value in prop_oneof![
                "[ \t]{0,3}[0-9]{0,40}[ \t]{0,3}",
                "(Sun|Mon|day)[a-z]{0,6},? [0-9]{1,3}[ -][A-Z][a-z]{2}[ -][0-9]{1,6} [0-9]{1,3}:[0-9]{1,3}:[0-9]{1,3}( GMT)?",
                "(Sun|Wed) [A-Z][a-z]{2} [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} [0-9]{1,6}",
            ],
        ) {
            retry_after(value.as_bytes());
        }

        #[test]
        fn so_it_does_where_what_it_asks_for_is_garbled(value in seeds::mutated("retry_after")) {
            retry_after(&value);
        }
    }
}
