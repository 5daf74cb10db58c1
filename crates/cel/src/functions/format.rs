//! `'…'.format([…])`, as in the strings extension of cel-go (version 2), with the locale English.

use super::numbers::{double_text, text};
use super::strings::go_quote;
use super::{Work, arguments};
use crate::value::{Key, Value};
use crate::work::Fault;

/// Maximum precision of a clause.
const MOST_DIGITS: usize = 99;

pub(super) fn format(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::String(format), Value::List(list)] = args else { return Err(Fault::Types) };
    work.allocation(2 * format.len())?;
    let mut printed = String::with_capacity(format.len());
    let mut values = list.iter();
    let mut rest = &**format;
    while let Some((before, after)) = rest.split_once('%') {
        printed.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            printed.push('%');
            rest = after;
            continue;
        }
        let value = values.next().ok_or(Fault::Refused)?;
        let (clause, digits, after) = clause(after).ok_or(Fault::Refused)?;
        printed.push_str(&print(work, clause, digits, value)?);
        rest = after;
    }
    printed.push_str(rest);
    work.allocation(printed.len())?;
    Ok(printed.into())
}

/// Parses a clause after a percent sign: the letter, the precision, and the rest of the text.
pub(crate) fn clause(text: &str) -> Option<(char, Option<usize>, &str)> {
    let (digits, rest) = match text.strip_prefix('.') {
        None => (None, text),
        Some(after) => {
            let length = after.bytes().take_while(u8::is_ascii_digit).count();
            let digits = after[..length].parse().ok().filter(|digits| *digits <= MOST_DIGITS)?;
            (Some(digits), &after[length..])
        }
    };
    let letter = rest.chars().next()?;
    "sdfebxXo".contains(letter).then_some((letter, digits, &rest[1..]))
}

fn print(work: &mut Work, clause: char, digits: Option<usize>, value: &Value) -> Result<String, Fault> {
    work.allocation(64 + 8 * value.bytes() + digits.unwrap_or(0))?;
    let digits = digits.unwrap_or(6);
    arguments!((clause, value),
        ('s', value) => string(work, value)?,
        ('d', Value::Int(int)) => int.to_string(),
        ('d', Value::Uint(uint)) => uint.to_string(),
        ('f', value) => fixed(number(value)?, digits),
        // cel-go uses the precision as the width.
        ('e', value) => format!("{:>digits$}", scientific(number(value)?)),
        ('b', Value::Bool(truth)) => u8::from(*truth).to_string(),
        ('b', Value::Int(int)) => signed(*int, format!("{:b}", int.unsigned_abs())),
        ('b', Value::Uint(uint)) => format!("{uint:b}"),
        ('o', Value::Int(int)) => signed(*int, format!("{:o}", int.unsigned_abs())),
        ('o', Value::Uint(uint)) => format!("{uint:o}"),
        ('x', Value::Int(int)) => signed(*int, format!("{:x}", int.unsigned_abs())),
        ('X', Value::Int(int)) => signed(*int, format!("{:X}", int.unsigned_abs())),
        ('x', Value::Uint(uint)) => format!("{uint:x}"),
        ('X', Value::Uint(uint)) => format!("{uint:X}"),
        ('x', Value::String(text)) => hex(text.as_bytes()),
        ('X', Value::String(text)) => hex(text.as_bytes()).to_ascii_uppercase(),
        ('x', Value::Bytes(bytes)) => hex(bytes),
        ('X', Value::Bytes(bytes)) => hex(bytes).to_ascii_uppercase(),
    )
}

fn signed(int: i64, digits: String) -> String {
    if int < 0 { format!("-{digits}") } else { digits }
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

fn number(value: &Value) -> Result<f64, Fault> {
    match value {
        // A zero is printed without a sign.
        Value::Double(double) => Ok(double + 0.0),
        Value::String(text) => match &**text {
            "NaN" => Ok(f64::NAN),
            "Infinity" => Ok(f64::INFINITY),
            "-Infinity" => Ok(f64::NEG_INFINITY),
            _ => Err(Fault::Types),
        },
        _ => Err(Fault::Types),
    }
}

/// The text of infinities and NaN.
fn special(double: f64) -> Option<&'static str> {
    if double.is_nan() {
        return Some("NaN");
    }
    double.is_infinite().then_some(if double > 0.0 { "∞" } else { "-∞" })
}

/// Formats a number with commas between thousands.
fn fixed(double: f64, digits: usize) -> String {
    if let Some(special) = special(double) {
        return special.to_owned();
    }
    let printed = format!("{double:.digits$}");
    let (sign, printed) = printed.strip_prefix('-').map_or(("", &*printed), |rest| ("-", rest));
    let (whole, fraction) = printed.split_at(printed.find('.').unwrap_or(printed.len()));
    let mut grouped = String::from(sign);
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

/// Formats a number as `1.500000×10⁰³`.
fn scientific(double: f64) -> String {
    if let Some(special) = special(double) {
        return special.to_owned();
    }
    let printed = format!("{double:.6e}");
    let (mantissa, exponent) = printed.split_once('e').unwrap_or((&printed, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { "⁻" } else { "" };
    let raised: String = format!("{:02}", exponent.abs())
        .bytes()
        .filter_map(|digit| "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth(usize::from(digit - b'0')))
        .collect();
    format!("{mantissa}×10{sign}{raised}")
}

/// Formats a value for `%s`.
fn string(work: &mut Work, value: &Value) -> Result<String, Fault> {
    match value {
        Value::List(_) | Value::Map(_) => literal(work, value),
        Value::Null => Ok("null".to_owned()),
        Value::Type(name) => Ok((*name).to_owned()),
        Value::Ip(_) | Value::Cidr(_) => Err(Fault::Types),
        Value::Bytes(bytes) => {
            work.allocation(2 * bytes.len())?;
            Ok(String::from_utf8_lossy(bytes).into_owned())
        }
        value => text(work, value),
    }
}

/// Formats an element of a list or map.
fn literal(work: &mut Work, value: &Value) -> Result<String, Fault> {
    work.allocation(64 + 8 * value.bytes())?;
    Ok(match value {
        Value::String(text) => go_quote(text),
        Value::Bytes(bytes) => format!("b{}", go_quote(&String::from_utf8_lossy(bytes))),
        Value::Timestamp(_) => format!("timestamp({})", go_quote(&text(work, value)?)),
        Value::Duration(_) => format!("duration({})", go_quote(&text(work, value)?)),
        Value::Double(double) if double.is_finite() => format!("{double:.6}"),
        Value::Double(double) => go_quote(&double_text(*double)),
        Value::List(list) => {
            let elements = list.iter().map(|element| literal(work, element)).collect::<Result<Vec<_>, _>>()?;
            format!("[{}]", elements.join(", "))
        }
        Value::Map(map) => {
            let mut members = Vec::with_capacity(map.len());
            for (key, value) in map.entries() {
                work.bytes(8 * key.bytes())?;
                let key = match key {
                    Key::String(text) => go_quote(text),
                    key => text(work, &key.value())?,
                };
                members.push((key, literal(work, value)?));
            }
            members.sort();
            let members: Vec<String> = members.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
            format!("{{{}}}", members.join(", "))
        }
        value => string(work, value)?,
    })
}
