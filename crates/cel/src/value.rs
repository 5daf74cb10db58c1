//! The values of expressions, their comparison, and its cost.

use std::cmp::Ordering;
use std::sync::Arc;

use super::functions::{formats::Format, network::Cidr, quantity::Quantity, time::Timestamp, url::Url};
use super::work::{Fault, Work};

/// A value; cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    Timestamp(Timestamp),
    /// In nanoseconds.
    Duration(i64),
    List(Arc<Vec<Self>>),
    Map(Arc<Map>),
    Optional(Option<Arc<Self>>),
    /// A type, represented by its name.
    Type(&'static str),
    Url(Arc<Url>),
    Quantity(Arc<Quantity>),
    Ip(std::net::IpAddr),
    Cidr(Cidr),
    Semver(Arc<semver::Version>),
    Format(&'static Format),
}

/// The key of a map. An int and a uint with the same numeric value are the same key.
#[derive(Clone, Debug)]
pub(super) enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Arc<str>),
}

/// A map, sorted by key, so that results are reproducible.
#[derive(Clone, Debug, Default)]
pub(super) struct Map(Vec<(Key, Value)>);

impl Key {
    pub fn order(&self, other: &Self) -> Ordering {
        let rank = |key: &Self| match key {
            Self::Bool(_) => 0,
            Self::Int(_) | Self::Uint(_) => 1,
            Self::String(_) => 2,
        };
        let number = |key: &Self| match key {
            Self::Bool(truth) => i128::from(*truth),
            Self::Int(int) => i128::from(*int),
            Self::Uint(uint) => i128::from(*uint),
            Self::String(_) => 0,
        };
        match (self, other) {
            (Self::String(left), Self::String(right)) => left.cmp(right),
            _ => rank(self).cmp(&rank(other)).then_with(|| number(self).cmp(&number(other))),
        }
    }

    /// Converts a value to a key. `None` if it has another type; [`Map::find`] also accepts doubles.
    pub fn of(value: &Value) -> Option<Self> {
        Some(match value {
            Value::Bool(truth) => Self::Bool(*truth),
            Value::Int(int) => Self::Int(*int),
            Value::Uint(uint) => Self::Uint(*uint),
            Value::String(text) => Self::String(text.clone()),
            _ => return None,
        })
    }

    pub fn bytes(&self) -> usize {
        match self {
            Self::String(text) => text.len(),
            _ => 8,
        }
    }

    pub fn value(&self) -> Value {
        match self {
            Self::Bool(truth) => Value::Bool(*truth),
            Self::Int(int) => Value::Int(*int),
            Self::Uint(uint) => Value::Uint(*uint),
            Self::String(text) => Value::String(text.clone()),
        }
    }
}

impl Map {
    /// If several entries have the same key, the last one counts.
    pub fn new(mut entries: Vec<(Key, Value)>) -> Self {
        entries.reverse();
        entries.sort_by(|left, right| left.0.order(&right.0));
        entries.dedup_by(|later, earlier| later.0.order(&earlier.0).is_eq());
        Self(entries)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn entries(&self) -> &[(Key, Value)] {
        &self.0
    }

    /// The value of a field whose name is part of the expression.
    pub fn field(&self, work: &mut Work, name: &str) -> Result<Option<&Value>, Fault> {
        work.bytes(name.len() * self.depth())?;
        let found = self.0.binary_search_by(|(key, _)| match key {
            Key::String(key) => (**key).cmp(name),
            _ => Ordering::Less,
        });
        Ok(found.ok().map(|at| &self.0[at].1))
    }

    pub fn get(&self, work: &mut Work, key: &Key) -> Result<Option<&Value>, Fault> {
        work.bytes(key.bytes() * self.depth())?;
        Ok(self.0.binary_search_by(|(other, _)| other.order(key)).ok().map(|at| &self.0[at].1))
    }

    /// The value for a key of any type. `Fault::Types` if the type cannot be a key. An integral double is a key.
    pub fn find(&self, work: &mut Work, key: &Value) -> Result<Option<&Value>, Fault> {
        match key {
            Value::Double(double) => {
                // Outside these ranges, a conversion would saturate.
                let whole = double.fract() == 0.0;
                if whole && (i64::MIN as f64..i64::MAX as f64).contains(double) {
                    self.get(work, &Key::Int(*double as i64))
                } else if whole && (0.0..u64::MAX as f64).contains(double) {
                    self.get(work, &Key::Uint(*double as u64))
                } else {
                    Ok(None)
                }
            }
            _ => self.get(work, &Key::of(key).ok_or(Fault::Types)?),
        }
    }

    /// Number of keys that a binary search compares.
    fn depth(&self) -> usize {
        (usize::BITS - self.0.len().leading_zeros()) as usize + 1
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text.into())
    }
}

impl From<Vec<Self>> for Value {
    fn from(list: Vec<Self>) -> Self {
        Self::List(Arc::new(list))
    }
}

impl From<Map> for Value {
    fn from(map: Map) -> Self {
        Self::Map(Arc::new(map))
    }
}

impl Value {
    /// The length of a string or of bytes; 0 for other types.
    pub fn bytes(&self) -> usize {
        match self {
            Self::String(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            _ => 0,
        }
    }

    /// The name of the type, as `type()` returns it.
    pub fn type_of(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Url(_) => "kubernetes.URL",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
        }
    }

    /// The name of the type in error messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a bool",
            Self::Int(_) => "an int",
            Self::Uint(_) => "a uint",
            Self::Double(_) => "a double",
            Self::String(_) => "a string",
            Self::Bytes(_) => "bytes",
            Self::Timestamp(_) => "a timestamp",
            Self::Duration(_) => "a duration",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
            Self::Optional(_) => "an optional",
            Self::Type(_) => "a type",
            Self::Url(_) => "a URL",
            Self::Quantity(_) => "a quantity",
            Self::Ip(_) => "an IP address",
            Self::Cidr(_) => "a CIDR",
            Self::Semver(_) => "a version",
            Self::Format(_) => "a format",
        }
    }
}

/// The types of these values, for error messages.
pub(super) fn type_names<'a>(values: impl IntoIterator<Item = &'a Value>) -> String {
    values.into_iter().map(Value::type_name).collect::<Vec<_>>().join(" and ")
}

/// The result of a comparison.
pub(super) enum Compared {
    Are(Ordering),
    /// One of them is NaN.
    NotANumber,
    NotOfOneKind,
}

impl From<Option<Ordering>> for Compared {
    fn from(ordering: Option<Ordering>) -> Self {
        ordering.map_or(Self::NotANumber, Self::Are)
    }
}

/// Compares two values. Numbers of different types are comparable.
pub(super) fn compare(work: &mut Work, left: &Value, right: &Value) -> Result<Compared, Fault> {
    let ordering = match (left, right) {
        (Value::Int(left), Value::Int(right)) | (Value::Duration(left), Value::Duration(right)) => left.cmp(right),
        (Value::Uint(left), Value::Uint(right)) => left.cmp(right),
        (Value::Int(left), Value::Uint(right)) => i128::from(*left).cmp(&i128::from(*right)),
        (Value::Uint(left), Value::Int(right)) => i128::from(*left).cmp(&i128::from(*right)),
        (Value::Double(left), Value::Double(right)) => return Ok(left.partial_cmp(right).into()),
        (Value::Double(left), Value::Int(right)) => return Ok(compare_double(*left, i128::from(*right)).into()),
        (Value::Double(left), Value::Uint(right)) => return Ok(compare_double(*left, i128::from(*right)).into()),
        (Value::Int(left), Value::Double(right)) => {
            return Ok(compare_double(*right, i128::from(*left)).map(Ordering::reverse).into());
        }
        (Value::Uint(left), Value::Double(right)) => {
            return Ok(compare_double(*right, i128::from(*left)).map(Ordering::reverse).into());
        }
        (Value::String(left), Value::String(right)) => {
            work.bytes(left.len().min(right.len()))?;
            left.cmp(right)
        }
        (Value::Bytes(left), Value::Bytes(right)) => {
            work.bytes(left.len().min(right.len()))?;
            left.cmp(right)
        }
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (Value::Timestamp(left), Value::Timestamp(right)) => left.order(*right),
        _ => return Ok(Compared::NotOfOneKind),
    };
    Ok(Compared::Are(ordering))
}

/// Compares a double with a 64-bit integer. As in the apiserver, the integer is first rounded to a double.
fn compare_double(double: f64, integer: i128) -> Option<Ordering> {
    double.partial_cmp(&(integer as f64))
}

/// Numbers of different types are equal if their values are. Other values of different types are not equal.
pub(super) fn equal(work: &mut Work, left: &Value, right: &Value) -> Result<bool, Fault> {
    work.steps(1)?;
    Ok(match (left, right) {
        (Value::String(left), Value::String(right)) => {
            if left.len() != right.len() {
                return Ok(false);
            }
            work.bytes(left.len())?;
            left == right
        }
        (Value::Bytes(left), Value::Bytes(right)) => {
            work.bytes(left.len().min(right.len()))?;
            left == right
        }
        (Value::List(left), Value::List(right)) => {
            if left.len() != right.len() {
                return Ok(false);
            }
            for (left, right) in left.iter().zip(right.iter()) {
                if !equal(work, left, right)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Map(left), Value::Map(right)) => {
            if left.len() != right.len() {
                return Ok(false);
            }
            // Both are sorted.
            for ((left_key, left), (right_key, right)) in left.entries().iter().zip(right.entries()) {
                work.bytes(left_key.bytes().min(right_key.bytes()))?;
                if left_key.order(right_key).is_ne() || !equal(work, left, right)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Null, Value::Null) | (Value::Optional(None), Value::Optional(None)) => true,
        (Value::Optional(Some(left)), Value::Optional(Some(right))) => equal(work, left, right)?,
        (Value::Type(left), Value::Type(right)) => left == right,
        (Value::Url(left), Value::Url(right)) => {
            work.bytes(left.bytes())?;
            left == right
        }
        (Value::Quantity(left), Value::Quantity(right)) => left.order(right).is_eq(),
        (Value::Ip(left), Value::Ip(right)) => left == right,
        (Value::Cidr(left), Value::Cidr(right)) => left == right,
        (Value::Semver(left), Value::Semver(right)) => {
            work.bytes(left.pre.len())?;
            left.cmp_precedence(right).is_eq()
        }
        (Value::Format(left), Value::Format(right)) => left.name == right.name,
        _ => matches!(compare(work, left, right)?, Compared::Are(Ordering::Equal)),
    })
}
