//! Functions of optional values.

use std::sync::Arc;

use super::{Work, arguments};
use crate::value::Value;
use crate::work::Fault;

pub(super) fn of(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [value] => Value::Optional(Some(Arc::new(value.clone()))))
}

pub(super) fn of_non_zero_value(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [value] => Value::Optional((!is_zero(value)).then(|| Arc::new(value.clone()))))
}

/// Whether a value is the zero value of its type, such as an empty string.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) | Value::Int(0) | Value::Uint(0) | Value::Duration(0) => true,
        Value::Double(double) => *double == 0.0,
        Value::String(_) | Value::Bytes(_) => value.bytes() == 0,
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.len() == 0,
        Value::Optional(value) => value.is_none(),
        _ => false,
    }
}

pub(super) fn none(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [] => Value::Optional(None))
}

pub(super) fn has_value(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [Value::Optional(value)] => Value::Bool(value.is_some()))
}

/// The value of an empty optional is missing.
pub(super) fn value(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [Value::Optional(value)] => value.as_deref().ok_or(Fault::Missing)?.clone())
}

/// The values of the optionals that are not empty.
pub(super) fn unwrap(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::List(list)] = args else { return Err(Fault::Types) };
    work.allocation(32 * list.len())?;
    let mut values = Vec::new();
    for element in list.iter() {
        let Value::Optional(value) = element else { return Err(Fault::Types) };
        values.extend(value.as_deref().cloned());
    }
    Ok(values.into())
}
