//! What CEL's values are to each other, and how they are told of.

use std::cmp::Ordering;

use kube_cel::cel::Value;

/// What two values are to each other.
pub(super) enum Compared {
    Are(Ordering),
    /// One of them is NaN.
    NotANumber,
    NotOfOneKind,
}

/// Compares two values, of which numbers of any types are of one kind.
pub(super) fn compare(left: &Value, right: &Value) -> Compared {
    let ordering = match (left, right) {
        (Value::Int(left), Value::Int(right)) => left.cmp(right),
        (Value::UInt(left), Value::UInt(right)) => left.cmp(right),
        (Value::Int(left), Value::UInt(right)) => i128::from(*left).cmp(&i128::from(*right)),
        (Value::UInt(left), Value::Int(right)) => i128::from(*left).cmp(&i128::from(*right)),
        (Value::Float(left), Value::Float(right)) => return left.partial_cmp(right).into(),
        (Value::Float(left), Value::Int(right)) => return compare_double(*left, i128::from(*right)).into(),
        (Value::Float(left), Value::UInt(right)) => return compare_double(*left, i128::from(*right)).into(),
        (Value::Int(left), Value::Float(right)) => {
            return compare_double(*right, i128::from(*left)).map(Ordering::reverse).into();
        }
        (Value::UInt(left), Value::Float(right)) => {
            return compare_double(*right, i128::from(*left)).map(Ordering::reverse).into();
        }
        (Value::String(left), Value::String(right)) => left.cmp(right),
        (Value::Bytes(left), Value::Bytes(right)) => left.cmp(right),
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (Value::Timestamp(left), Value::Timestamp(right)) => left.cmp(right),
        (Value::Duration(left), Value::Duration(right)) => left.cmp(right),
        _ => return Compared::NotOfOneKind,
    };
    Compared::Are(ordering)
}

impl From<Option<Ordering>> for Compared {
    fn from(ordering: Option<Ordering>) -> Self {
        ordering.map_or(Self::NotANumber, Self::Are)
    }
}

/// A double against an integer of 64 bits, exactly.
fn compare_double(double: f64, integer: i128) -> Option<Ordering> {
    if double.is_nan() {
        return None;
    }
    // Beyond 2^127 the conversion saturates, which keeps the order.
    let whole = double.trunc() as i128;
    Some(whole.cmp(&integer).then_with(|| double.fract().partial_cmp(&0.0).unwrap_or(Ordering::Equal)))
}

/// Whether this is a list of elements of one kind, and no NaN among them.
pub(super) fn has_an_order(list: &Value) -> bool {
    let Value::List(list) = list else { return false };
    let Some(first) = list.first() else { return true };
    list.iter().all(|element| {
        std::mem::discriminant(element) == std::mem::discriminant(first)
            && matches!(compare(element, element), Compared::Are(_))
    })
}

/// How many bytes a string has, or bytes have.
pub(super) fn byte_length(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        _ => 0,
    }
}

/// The types of these, for an error.
pub(super) fn type_names(values: &[&Value]) -> String {
    let names: Vec<&str> = values.iter().map(|value| type_name(value)).collect();
    names.join(" and ")
}

/// A value's type, for an error.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::List(_) => "a list",
        Value::Map(_) => "a map",
        Value::Int(_) => "an int",
        Value::UInt(_) => "a uint",
        Value::Float(_) => "a double",
        Value::String(_) => "a string",
        Value::Bytes(_) => "bytes",
        Value::Bool(_) => "a bool",
        Value::Duration(_) => "a duration",
        Value::Timestamp(_) => "a timestamp",
        Value::Null => "null",
        Value::Opaque(_) | Value::Function(..) => "a value of a library",
    }
}
