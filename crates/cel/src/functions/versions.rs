//! Semantic versions (semver.org), and the comparison functions of versions and quantities.

use std::cmp::Ordering;
use std::sync::Arc;

use ::semver::Version;

use super::{Work, arguments};
use crate::value::Value;
use crate::work::Fault;

fn order(work: &mut Work, args: &[Value]) -> Result<Ordering, Fault> {
    match args {
        [Value::Quantity(left), Value::Quantity(right)] => Ok(left.order(right)),
        [Value::Semver(left), Value::Semver(right)] => {
            work.bytes(left.pre.len() + right.pre.len())?;
            Ok(left.cmp_precedence(right))
        }
        _ => Err(Fault::Types),
    }
}

pub(super) fn is_greater_than(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    order(work, args).map(|order| Value::Bool(order.is_gt()))
}

pub(super) fn is_less_than(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    order(work, args).map(|order| Value::Bool(order.is_lt()))
}

pub(super) fn compare_to(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    order(work, args).map(|order| Value::Int(order as i64))
}

fn parse(work: &mut Work, args: &[Value]) -> Result<Option<Version>, Fault> {
    let (text, normalize) = match args {
        [Value::String(text)] => (text, false),
        [Value::String(text), Value::Bool(normalize)] => (text, *normalize),
        _ => return Err(Fault::Types),
    };
    work.allocation(4 * text.len())?;
    if !normalize {
        return Ok(Version::parse(text).ok());
    }
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut parts: Vec<String> = text.splitn(3, '.').map(without_zeros).collect();
    if parts.len() < 3 && parts.last().is_some_and(|last| last.contains(['+', '-'])) {
        return Ok(None);
    }
    parts.resize(3, "0".to_owned());
    Ok(Version::parse(&parts.join(".")).ok())
}

fn without_zeros(part: &str) -> String {
    if part.len() < 2 {
        return part.to_owned();
    }
    let trimmed = part.trim_start_matches('0');
    let zero = if trimmed.starts_with(|c: char| c.is_ascii_digit()) { "" } else { "0" };
    format!("{zero}{trimmed}")
}

pub(super) fn semver(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    parse(work, args)?.map(|version| Value::Semver(Arc::new(version))).ok_or(Fault::Refused)
}

pub(super) fn is_semver(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    parse(work, args).map(|version| Value::Bool(version.is_some()))
}

pub(super) fn major(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [Value::Semver(version)] => Value::Int(version.major.cast_signed()))
}

pub(super) fn minor(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [Value::Semver(version)] => Value::Int(version.minor.cast_signed()))
}

pub(super) fn patch(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [Value::Semver(version)] => Value::Int(version.patch.cast_signed()))
}
