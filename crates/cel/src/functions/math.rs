//! The `math` extension of cel-go, which the apiserver does not have.

use std::cmp::Ordering;

use super::{Work, arguments};
use crate::value::{Compared, Value, compare};
use crate::work::Fault;

pub(super) fn double(args: &[Value], of: fn(f64) -> f64) -> Result<Value, Fault> {
    arguments!(args, [Value::Double(double)] => Value::Double(of(*double)))
}

pub(super) fn is(args: &[Value], of: fn(f64) -> bool) -> Result<Value, Fault> {
    arguments!(args, [Value::Double(double)] => Value::Bool(of(*double)))
}

pub(super) fn sqrt(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args,
        [Value::Double(double)] => Value::Double(double.sqrt()),
        [Value::Int(int)] => Value::Double((*int as f64).sqrt()),
        [Value::Uint(uint)] => Value::Double((*uint as f64).sqrt()),
    )
}

pub(super) fn abs(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args,
        [Value::Double(double)] => Value::Double(double.abs()),
        [Value::Int(int)] => Value::Int(int.checked_abs().ok_or(Fault::Range)?),
        [Value::Uint(uint)] => Value::Uint(*uint),
    )
}

pub(super) fn sign(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args,
        [Value::Double(double)] if double.is_nan() || *double == 0.0 => Value::Double(*double),
        [Value::Double(double)] => Value::Double(double.signum()),
        [Value::Int(int)] => Value::Int(int.signum()),
        [Value::Uint(uint)] => Value::Uint(u64::from(*uint > 0)),
    )
}

pub(super) fn bits(args: &[Value], of: fn(u64, u64) -> u64) -> Result<Value, Fault> {
    arguments!(args,
        [Value::Int(left), Value::Int(right)] => Value::Int(of(left.cast_unsigned(), right.cast_unsigned()).cast_signed()),
        [Value::Uint(left), Value::Uint(right)] => Value::Uint(of(*left, *right)),
    )
}

pub(super) fn bit_not(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [Value::Int(int)] => Value::Int(!int), [Value::Uint(uint)] => Value::Uint(!uint))
}

/// A shift by more than 63 bits returns 0.
fn shift(args: &[Value], of: fn(u64, u32) -> Option<u64>) -> Result<Value, Fault> {
    let by = |by: &i64| u32::try_from(*by).or(if *by < 0 { Err(Fault::Range) } else { Ok(64) });
    arguments!(args,
        [Value::Int(int), Value::Int(bits)] => Value::Int(of(int.cast_unsigned(), by(bits)?).unwrap_or(0).cast_signed()),
        [Value::Uint(uint), Value::Int(bits)] => Value::Uint(of(*uint, by(bits)?).unwrap_or(0)),
    )
}

pub(super) fn shift_left(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    shift(args, u64::checked_shl)
}

pub(super) fn shift_right(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    shift(args, u64::checked_shr)
}

type Order = fn(&mut Work, &Value, &Value) -> Result<Ordering, Fault>;

/// The first smallest or largest value, depending on `wanted`.
pub(super) fn extreme(
    work: &mut Work,
    first: &Value,
    others: &[Value],
    wanted: Ordering,
    order: Order,
) -> Result<Value, Fault> {
    order(work, first, first)?;
    let mut best = first;
    for other in others {
        if order(work, other, best)? == wanted {
            best = other;
        }
    }
    Ok(best.clone())
}

fn number_order(work: &mut Work, left: &Value, right: &Value) -> Result<Ordering, Fault> {
    work.steps(1)?;
    let is_number = |value: &Value| matches!(value, Value::Int(_) | Value::Uint(_) | Value::Double(_));
    if !is_number(left) || !is_number(right) {
        return Err(Fault::Types);
    }
    Ok(match compare(work, left, right)? {
        Compared::Are(order) => order,
        _ => Ordering::Equal,
    })
}

fn extreme_of(work: &mut Work, args: &[Value], wanted: Ordering) -> Result<Value, Fault> {
    let numbers = match args {
        [Value::List(list)] => list.as_slice(),
        numbers => numbers,
    };
    let (first, others) = numbers.split_first().ok_or(Fault::Refused)?;
    extreme(work, first, others, wanted, number_order)
}

pub(super) fn greatest(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    extreme_of(work, args, Ordering::Greater)
}

pub(super) fn least(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    extreme_of(work, args, Ordering::Less)
}
