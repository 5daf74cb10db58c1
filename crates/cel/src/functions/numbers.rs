//! Conversions, as in Go's `strconv` and `fmt`.

use std::borrow::Cow;

use super::{Work, arguments, time};
use crate::value::Value;
use crate::work::Fault;

pub(super) fn bool(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.bytes(args.iter().map(Value::bytes).sum())?;
    arguments!(args, [Value::Bool(truth)] => Value::Bool(*truth), [Value::String(text)] => match &**text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Value::Bool(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Value::Bool(false),
        _ => return Err(Fault::Refused),
    })
}

pub(super) fn int(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.bytes(args.iter().map(Value::bytes).sum())?;
    arguments!(args,
        [Value::Int(int)] => Value::Int(*int),
        [Value::Uint(uint)] => Value::Int(i64::try_from(*uint).map_err(|_| Fault::Range)?),
        [Value::Double(double)] => {
            // As in Go, both bounds are excluded.
            let fits = *double > -9_223_372_036_854_775_808.0 && *double < 9_223_372_036_854_775_808.0;
            if !fits { return Err(Fault::Range) }
            Value::Int(*double as i64)
        },
        [Value::String(text)] => Value::Int(text.parse().map_err(|_| Fault::Refused)?),
        [Value::Timestamp(timestamp)] => Value::Int(timestamp.seconds()),
        [Value::Duration(nanos)] => Value::Int(*nanos),
    )
}

pub(super) fn uint(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.bytes(args.iter().map(Value::bytes).sum())?;
    arguments!(args,
        [Value::Uint(uint)] => Value::Uint(*uint),
        [Value::Int(int)] => Value::Uint(u64::try_from(*int).map_err(|_| Fault::Range)?),
        [Value::Double(double)] => {
            if !(*double >= 0.0 && *double < 18_446_744_073_709_551_616.0) { return Err(Fault::Range) }
            Value::Uint(*double as u64)
        },
        // Go does not accept a sign.
        [Value::String(text)] => {
            let digits = Some(text).filter(|text| !text.starts_with('+')).ok_or(Fault::Refused)?;
            Value::Uint(digits.parse().map_err(|_| Fault::Refused)?)
        }
    )
}

pub(super) fn double(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.bytes(8 * args.iter().map(Value::bytes).sum::<usize>())?;
    arguments!(args,
        [Value::Double(double)] => Value::Double(*double),
        [Value::Int(int)] => Value::Double(*int as f64),
        [Value::Uint(uint)] => Value::Double(*uint as f64),
        [Value::String(text)] => {
            let double: f64 = without_underscores(text).ok_or(Fault::Refused)?.parse().map_err(|_| Fault::Refused)?;
            let named = || text.to_ascii_lowercase().contains("inf");
            if double.is_infinite() && !named() { return Err(Fault::Range) }
            Value::Double(double)
        },
    )
}

/// Removes underscores between digits, which Go accepts.
fn without_underscores(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('_') {
        return Some(Cow::Borrowed(text));
    }
    let bytes = text.as_bytes();
    let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let between = |at: usize| digit(at.checked_sub(1)) && digit(Some(at + 1));
    bytes.iter().enumerate().all(|(at, b)| *b != b'_' || between(at)).then(|| Cow::Owned(text.replace('_', "")))
}

pub(super) fn bytes(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.allocation(args.iter().map(Value::bytes).sum())?;
    arguments!(args,
        [Value::Bytes(bytes)] => Value::Bytes(bytes.clone()),
        [Value::String(text)] => Value::Bytes(text.as_bytes().into()),
    )
}

pub(super) fn string(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [value] = args else { return Err(Fault::Types) };
    if let Value::String(text) = value {
        return Ok(Value::String(text.clone()));
    }
    text(work, value).map(Value::from)
}

/// `string(value)`
pub(crate) fn text(work: &mut Work, value: &Value) -> Result<String, Fault> {
    work.allocation(32 + value.bytes())?;
    Ok(match value {
        Value::String(text) => text.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::Int(int) => int.to_string(),
        Value::Uint(uint) => uint.to_string(),
        Value::Double(double) => double_text(*double),
        Value::Bytes(bytes) => str::from_utf8(bytes).map_err(|_| Fault::Refused)?.to_owned(),
        Value::Timestamp(timestamp) => timestamp.text(),
        Value::Duration(nanos) => time::duration_text(*nanos),
        Value::Ip(address) => address.to_string(),
        Value::Cidr(cidr) => cidr.to_string(),
        _ => return Err(Fault::Types),
    })
}

/// Go's `%g`.
pub(crate) fn double_text(double: f64) -> String {
    if !double.is_finite() {
        return if double.is_nan() {
            "NaN"
        } else if double > 0.0 {
            "+Inf"
        } else {
            "-Inf"
        }
        .to_owned();
    }
    let scientific = format!("{double:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    format!("{double}")
}
