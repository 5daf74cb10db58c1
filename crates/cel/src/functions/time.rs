//! Timestamps and durations, as Go's `time` parses and formats them.

use std::cmp::Ordering;

use super::{Work, arguments};
use crate::value::Value;
use crate::work::Fault;

/// The years 1 to 9999, in seconds since 1970.
const YEARS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
const NANOS: i64 = 1_000_000_000;
/// Cost of looking up a time zone. Time zones are cached.
const ZONE_STEPS: u64 = 200;

/// A point in time, with the offset of its text. The offset only affects formatting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timestamp {
    seconds: i64,
    nanos: u32,
    /// Seconds east of UTC.
    offset: i32,
}

/// Calendar fields of a point in time.
struct Civil {
    year: i64,
    /// Starts at 1.
    month: i64,
    day: i64,
    /// Starts at 0.
    day_of_year: i64,
    /// Starts at 0, which is Sunday.
    weekday: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Timestamp {
    pub fn new(seconds: i64, nanos: u32, offset: i32) -> Option<Self> {
        YEARS.contains(&seconds).then_some(Self { seconds, nanos, offset })
    }

    pub fn order(self, other: Self) -> Ordering {
        (self.seconds, self.nanos).cmp(&(other.seconds, other.nanos))
    }

    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// The same point in time in UTC.
    #[cfg(test)]
    pub fn utc(self) -> Self {
        Self { offset: 0, ..self }
    }

    fn plus(self, nanos: i64) -> Result<Self, Fault> {
        let nanos = i64::from(self.nanos) + nanos % NANOS + NANOS;
        let seconds = self.seconds + (nanos / NANOS - 1);
        Self::new(seconds, (nanos % NANOS) as u32, self.offset).ok_or(Fault::Range)
    }

    /// Adds two durations, in nanoseconds.
    pub fn add(self, duration: i64) -> Result<Self, Fault> {
        let whole = Self::new(self.seconds.saturating_add(duration / NANOS), self.nanos, self.offset);
        whole.ok_or(Fault::Range)?.plus(duration % NANOS)
    }

    pub fn since(self, other: Self) -> Result<i64, Fault> {
        let nanos = i128::from(self.seconds - other.seconds) * i128::from(NANOS) + i128::from(self.nanos)
            - i128::from(other.nanos);
        i64::try_from(nanos).map_err(|_| Fault::Range)
    }

    /// Parses RFC 3339, as Go does.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let number = |from: usize, length: usize| -> Option<i64> {
            let digits = bytes.get(from..from + length)?;
            digits.iter().all(u8::is_ascii_digit).then_some(())?;
            text.get(from..from + length)?.parse().ok()
        };
        let is = |at: usize, wanted: u8| bytes.get(at) == Some(&wanted);
        let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
        (is(4, b'-') && is(7, b'-') && is(10, b'T')).then_some(())?;
        // Go accepts an hour of one digit.
        let short = usize::from(is(12, b':'));
        let at = 13 - short;
        let hour = number(11, 2 - short)?;
        let (minute, second) = (number(at + 1, 2)?, number(at + 4, 2)?);
        (is(at, b':') && is(at + 3, b':')).then_some(())?;
        let mut rest = text.get(at + 6..)?;
        let mut nanos = 0;
        if let Some(fraction) = rest.strip_prefix(['.', ',']) {
            let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
            (digits > 0).then_some(())?;
            nanos = format!("{:0<9}", &fraction[..digits.min(9)]).parse().ok()?;
            rest = &fraction[digits..];
        }
        let offset = if rest == "Z" {
            0
        } else {
            let sign = if rest.starts_with('+') { 1 } else { -1 };
            let (hours, minutes) = rest.strip_prefix(['+', '-'])?.split_once(':')?;
            let two = |digits: &str| {
                (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse::<i32>().ok())
            };
            let (hours, minutes) = (two(hours)??, two(minutes)??);
            (hours <= 24 && minutes < 60).then_some(())?;
            sign * (hours * 3600 + minutes * 60)
        };
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let length = match month {
            2 => 28 + i64::from(leap),
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        ((1..=length).contains(&day) && hour < 24 && minute < 60 && second < 60).then_some(())?;
        let seconds = days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - i64::from(offset);
        Self::new(seconds, nanos, offset)
    }

    fn civil(self, offset: i64) -> Civil {
        let seconds = self.seconds + offset;
        let (day_number, second) = (seconds.div_euclid(86400), seconds.rem_euclid(86400));
        // Howard Hinnant's algorithm. It uses eras of 400 years that begin in March.
        let shifted = day_number + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        Civil {
            year,
            month,
            day,
            day_of_year: day_number - days(year, 1, 1),
            weekday: (day_number + 4).rem_euclid(7),
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
        }
    }

    /// Formats as RFC 3339, with as many fractional digits as necessary.
    pub fn text(self) -> String {
        let Civil { year, month, day, hour, minute, second, .. } = self.civil(i64::from(self.offset));
        let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
        if self.nanos > 0 {
            text += format!(".{:09}", self.nanos).trim_end_matches('0');
        }
        if self.offset == 0 {
            return text + "Z";
        }
        let minutes = self.offset.abs() / 60;
        text + &format!("{}{:02}:{:02}", if self.offset < 0 { '-' } else { '+' }, minutes / 60, minutes % 60)
    }
}

/// Days since 1970-01-01.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Parses a duration, as Go's `time.ParseDuration`. Returns nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0_u64;
    while !rest.is_empty() {
        let whole = rest.bytes().take_while(u8::is_ascii_digit).count();
        let value = if whole == 0 { 0 } else { rest[..whole].parse::<u64>().ok().filter(|value| *value <= 1 << 63)? };
        rest = &rest[whole..];
        let mut fraction = "";
        if let Some(after) = rest.strip_prefix('.') {
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            fraction = &after[..digits];
            rest = &after[digits..];
        }
        if whole == 0 && fraction.is_empty() {
            return None;
        }
        let unit = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        let nanos: u64 = match &rest[..unit] {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        rest = &rest[unit..];
        let mut part = value.checked_mul(nanos).filter(|part| *part <= 1 << 63)?;
        let (mut scaled, mut scale) = (0_u64, 1.0_f64);
        for digit in fraction.bytes() {
            if scaled > (u64::MAX >> 1) / 10 {
                break;
            }
            let next = scaled * 10 + u64::from(digit - b'0');
            if next > 1 << 63 {
                break;
            }
            scaled = next;
            scale *= 10.0;
        }
        if scaled > 0 {
            part += (scaled as f64 * (nanos as f64 / scale)) as u64;
        }
        total = total.checked_add(part).filter(|total| *total <= 1 << 63)?;
    }
    if negative { Some((total as i64).wrapping_neg()) } else { i64::try_from(total).ok() }
}

/// Formats a duration as the apiserver does, in seconds.
pub(crate) fn duration_text(nanos: i64) -> String {
    let seconds = (nanos / NANOS) as f64 + (nanos % NANOS) as f64 / 1e9;
    format!("{seconds}s")
}

pub(super) fn duration(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [Value::Duration(nanos)] => Value::Duration(*nanos), [Value::String(text)] => {
        work.allocation(4 * text.len())?;
        Value::Duration(parse_duration(text).ok_or(Fault::Refused)?)
    })
}

pub(super) fn timestamp(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args,
        [Value::Timestamp(timestamp)] => Value::Timestamp(*timestamp),
        [Value::Int(seconds)] => Value::Timestamp(Timestamp::new(*seconds, 0, 0).ok_or(Fault::Range)?),
        [Value::String(text)] => {
            work.allocation(4 * text.len())?;
            Value::Timestamp(Timestamp::parse(text).ok_or(Fault::Refused)?)
        }
    )
}

/// A part of a timestamp, or the number of units in a duration.
fn get(
    work: &mut Work,
    args: &[Value],
    part: fn(Civil, Timestamp) -> i64,
    of_duration: Option<i64>,
) -> Result<Value, Fault> {
    work.steps(4)?;
    let (timestamp, offset) = match (args, of_duration) {
        // As in Go's Duration.Minutes, the division may round up.
        ([Value::Duration(nanos)], Some(unit)) if unit >= NANOS => {
            let whole = (nanos / unit) as f64 + (nanos % unit) as f64 / unit as f64;
            return Ok(Value::Int(whole as i64));
        }
        ([Value::Duration(nanos)], Some(unit)) => return Ok(Value::Int(nanos / unit)),
        ([Value::Timestamp(timestamp)], _) => (*timestamp, 0),
        ([Value::Timestamp(timestamp), Value::String(zone)], _) => (*timestamp, offset(work, zone, *timestamp)?),
        _ => return Err(Fault::Types),
    };
    Ok(Value::Int(part(timestamp.civil(offset), timestamp)))
}

/// The offset of a time zone at a point in time, in seconds. A zone is `+02:00`, `02:00`, or an IANA name.
fn offset(work: &mut Work, zone: &str, at: Timestamp) -> Result<i64, Fault> {
    work.bytes(zone.len())?;
    if let Some((hours, minutes)) = zone.split_once(':') {
        let number = |text: &str| text.parse::<i64>().ok().filter(|number| number.abs() < 1000);
        let (hours, minutes) = (number(hours).ok_or(Fault::Refused)?, number(minutes).ok_or(Fault::Refused)?);
        if !(0..60).contains(&minutes) {
            return Err(Fault::Refused);
        }
        let minutes = if zone.starts_with('-') { hours * 60 - minutes } else { hours * 60 + minutes };
        return Ok(minutes * 60);
    }
    if matches!(zone, "" | "UTC") {
        return Ok(0);
    }
    work.steps(ZONE_STEPS)?;
    if zone.len() > 64 {
        return Err(Fault::Refused);
    }
    let found = jiff::tz::TimeZone::get(zone).map_err(|_| Fault::Refused)?;
    if found.iana_name() != Some(zone) {
        return Err(Fault::Refused);
    }
    // jiff does not support the last day of the year 9999. No offset changes on that day.
    let second = at.seconds.min(jiff::Timestamp::MAX.as_second());
    let instant = jiff::Timestamp::from_second(second).map_err(|_| Fault::Range)?;
    Ok(i64::from(found.to_offset(instant).seconds()))
}

pub(super) fn full_year(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    get(work, args, |civil, _| civil.year, None)
}

pub(super) fn month(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    get(work, args, |civil, _| civil.month - 1, None)
}

pub(super) fn day_of_year(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    get(work, args, |civil, _| civil.day_of_year, None)
}

pub(super) fn day_of_month(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    get(work, args, |civil, _| civil.day - 1, None)
}

pub(super) fn date(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    get(work, args, |civil, _| civil.day, None)
}

pub(super) fn day_of_week(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    get(work, args, |civil, _| civil.weekday, None)
}

pub(super) fn hours(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    get(work, args, |civil, _| civil.hour, Some(3600 * NANOS))
}

pub(super) fn minutes(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    get(work, args, |civil, _| civil.minute, Some(60 * NANOS))
}

pub(super) fn seconds(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    get(work, args, |civil, _| civil.second, Some(NANOS))
}

pub(super) fn milliseconds(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    get(work, args, |_, timestamp| i64::from(timestamp.nanos) / 1_000_000, Some(1_000_000))
}
