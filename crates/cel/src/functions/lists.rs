//! Functions of lists and sets.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Work, arguments, math};
use crate::evaluate::add;
use crate::value::{Compared, Value, compare, equal};
use crate::work::Fault;

/// Size of a list element, in bytes.
const ELEMENT: usize = size_of::<Value>();

pub(super) fn size(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.bytes(args.iter().map(Value::bytes).sum())?;
    arguments!(args,
        [Value::String(text)] => Value::Int(text.chars().count() as i64),
        [Value::Bytes(bytes)] => Value::Int(bytes.len() as i64),
        [Value::List(list)] => Value::Int(list.len() as i64),
        [Value::Map(map)] => Value::Int(map.len() as i64),
    )
}

/// Compares two elements. Numbers of different types are comparable.
fn order(work: &mut Work, left: &Value, right: &Value) -> Result<Ordering, Fault> {
    work.steps(1)?;
    match compare(work, left, right)? {
        Compared::Are(order) => Ok(order),
        Compared::NotANumber => Ok(Ordering::Equal),
        Compared::NotOfOneKind => Err(Fault::Types),
    }
}

pub(super) fn is_sorted(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::List(list)] = args else { return Err(Fault::Types) };
    for pair in list.windows(2) {
        if order(work, &pair[0], &pair[1])?.is_gt() {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

pub(super) fn sum(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::List(list)] = args else { return Err(Fault::Types) };
    let summable =
        |value: &Value| matches!(value, Value::Int(_) | Value::Uint(_) | Value::Double(_) | Value::Duration(_));
    let Some((first, others)) = list.split_first() else { return Ok(Value::Int(0)) };
    let mut sum = first.clone();
    if !summable(first) {
        return Err(Fault::Types);
    }
    for other in others {
        work.steps(1)?;
        sum = add(work, &sum, other)?;
    }
    Ok(sum)
}

/// The first smallest or largest element, depending on `wanted`. An empty list has no such element.
fn extreme(work: &mut Work, args: &[Value], wanted: Ordering) -> Result<Value, Fault> {
    let [Value::List(list)] = args else { return Err(Fault::Types) };
    let (first, others) = list.split_first().ok_or(Fault::Refused)?;
    math::extreme(work, first, others, wanted, order)
}

pub(super) fn min(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    extreme(work, args, Ordering::Less)
}

pub(super) fn max(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    extreme(work, args, Ordering::Greater)
}

pub(super) fn position(work: &mut Work, list: &[Value], wanted: &Value, last: bool) -> Result<Value, Fault> {
    let mut indices = 0..list.len();
    while let Some(index) = if last { indices.next_back() } else { indices.next() } {
        if equal(work, &list[index], wanted)? {
            return Ok(Value::Int(index as i64));
        }
    }
    Ok(Value::Int(-1))
}

pub(super) fn includes(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args,
        [Value::List(list), wanted] => Value::Bool(contains(work, list, wanted)?),
        [value, wanted] => Value::Bool(equal(work, value, wanted)?),
    )
}

pub(super) fn contains(work: &mut Work, list: &[Value], wanted: &Value) -> Result<bool, Fault> {
    for element in list {
        if equal(work, element, wanted)? {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn first(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [Value::List(list)] => Value::Optional(list.first().cloned().map(Arc::new)))
}

pub(super) fn last(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [Value::List(list)] => Value::Optional(list.last().cloned().map(Arc::new)))
}

pub(super) fn sort(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::List(list)] = args else { return Err(Fault::Types) };
    sort_by_keys(work, list, list)
}

/// Compares two values of one type. NaN comes after all other numbers.
fn total_order(left: &Value, right: &Value) -> Ordering {
    if let (Value::Double(left), Value::Double(right)) = (left, right) {
        return left.partial_cmp(right).unwrap_or_else(|| left.is_nan().cmp(&right.is_nan()));
    }
    match compare(&mut Work::new(u64::MAX), left, right) {
        Ok(Compared::Are(order)) => order,
        _ => Ordering::Equal,
    }
}

/// Sorts a list by the keys of its elements, which must have one comparable type.
pub(crate) fn sort_by_keys(work: &mut Work, list: &[Value], keys: &[Value]) -> Result<Value, Fault> {
    let Some(first) = keys.first() else { return Ok(Vec::new().into()) };
    for key in keys {
        let ordered = matches!(
            key,
            Value::Int(_)
                | Value::Uint(_)
                | Value::Double(_)
                | Value::Bool(_)
                | Value::Duration(_)
                | Value::Timestamp(_)
                | Value::String(_)
                | Value::Bytes(_)
        );
        if !ordered || std::mem::discriminant(key) != std::mem::discriminant(first) {
            return Err(Fault::Types);
        }
    }
    // The maximum cost of sorting is charged first, because the comparison function cannot fail.
    let comparisons = (usize::BITS - list.len().leading_zeros()) as usize;
    work.steps((list.len() * comparisons) as u64)?;
    work.bytes(keys.iter().map(Value::bytes).sum::<usize>() * comparisons)?;
    work.allocation(ELEMENT * list.len())?;
    let mut indices: Vec<usize> = (0..list.len()).collect();
    indices.sort_by(|left, right| total_order(&keys[*left], &keys[*right]));
    Ok(indices.into_iter().map(|index| list[index].clone()).collect::<Vec<_>>().into())
}

pub(super) fn distinct(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::List(list)] = args else { return Err(Fault::Types) };
    let mut distinct: Vec<Value> = Vec::new();
    for element in list.iter() {
        work.allocation(ELEMENT)?;
        if !contains(work, &distinct, element)? {
            distinct.push(element.clone());
        }
    }
    Ok(distinct.into())
}

pub(super) fn slice(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::List(list), Value::Int(start), Value::Int(end)] = args else { return Err(Fault::Types) };
    let index = |index: &i64| usize::try_from(*index).map_err(|_| Fault::Range);
    let slice = list.get(index(start)?..index(end)?).ok_or(Fault::Range)?;
    work.allocation(ELEMENT * slice.len())?;
    Ok(slice.to_vec().into())
}

pub(super) fn reverse(work: &mut Work, list: &[Value]) -> Result<Value, Fault> {
    work.allocation(ELEMENT * list.len())?;
    Ok(list.iter().rev().cloned().collect::<Vec<_>>().into())
}

pub(super) fn flatten(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let (list, depth) = match args {
        [Value::List(list)] => (list, 1),
        [Value::List(list), Value::Int(depth)] => (list, u64::try_from(*depth).map_err(|_| Fault::Range)?),
        _ => return Err(Fault::Types),
    };
    let mut flat = Vec::new();
    flatten_into(work, list, depth, &mut flat)?;
    Ok(flat.into())
}

fn flatten_into(work: &mut Work, list: &[Value], depth: u64, flat: &mut Vec<Value>) -> Result<(), Fault> {
    for element in list {
        work.allocation(ELEMENT)?;
        match element {
            Value::List(nested) if depth > 0 => flatten_into(work, nested, depth - 1, flat)?,
            other => flat.push(other.clone()),
        }
    }
    Ok(())
}

pub(super) fn range(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::Int(end)] = args else { return Err(Fault::Types) };
    let length = usize::try_from(*end).map_err(|_| Fault::Range)?;
    work.allocation(length.saturating_mul(ELEMENT))?;
    Ok((0..*end).map(Value::Int).collect::<Vec<_>>().into())
}

pub(super) fn sets_contains(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::List(list), Value::List(sub)] = args else { return Err(Fault::Types) };
    Ok(Value::Bool(contains_all(work, list, sub)?))
}

fn contains_all(work: &mut Work, list: &[Value], sub: &[Value]) -> Result<bool, Fault> {
    for element in sub {
        if !contains(work, list, element)? {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn sets_equivalent(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::List(left), Value::List(right)] = args else { return Err(Fault::Types) };
    Ok(Value::Bool(contains_all(work, left, right)? && contains_all(work, right, left)?))
}

pub(super) fn sets_intersects(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::List(left), Value::List(right)] = args else { return Err(Fault::Types) };
    for element in left.iter() {
        if contains(work, right, element)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}
