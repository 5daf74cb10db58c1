//! Evaluates a syntax tree on documents, with bounded work.

use std::cmp::Ordering;
use std::sync::Arc;

use super::document::Document;
use super::error::{EvaluationError, Position};
use super::functions;
use super::tree::{Comprehension, Kind, Macro, Node, Operator};
use super::value::{Compared, Key, Map, Value, compare, equal, type_names};
use super::work::{Fault, MOST_STEPS, Work};

/// Why the evaluation of a node has no value.
enum Stop {
    Missing,
    Failed(Box<EvaluationError>),
}

impl From<EvaluationError> for Stop {
    fn from(error: EvaluationError) -> Self {
        Self::Failed(Box::new(error))
    }
}

type Evaluated = Result<Value, Stop>;

/// One evaluation: its variables, and the work that is left.
pub(super) struct Evaluation<'a> {
    text: &'a str,
    scope: &'a [(&'static str, &'a Document)],
    /// The current values of the variables of the enclosing macros, outermost first.
    elements: Vec<Value>,
    work: Work,
}

impl<'a> Evaluation<'a> {
    pub fn new(text: &'a str, scope: &'a [(&'static str, &'a Document)]) -> Self {
        Self { text, scope, elements: Vec::new(), work: Work::new(MOST_STEPS) }
    }

    /// The number of steps so far.
    #[cfg(test)]
    pub const fn spent(&self) -> u64 {
        MOST_STEPS - self.work.left()
    }

    /// The value of a node; `None` if it is missing.
    pub fn outcome(&mut self, node: &Node) -> Result<Option<Value>, EvaluationError> {
        match self.evaluate(node) {
            Ok(value) => Ok(Some(value)),
            Err(Stop::Missing) => Ok(None),
            Err(Stop::Failed(error)) => Err(*error),
        }
    }

    /// A value as JSON; `None` for an optional without a value.
    pub fn json(&mut self, value: &Value) -> Result<Option<serde_json::Value>, EvaluationError> {
        use serde_json::Value as Json;
        let charged = self.work.allocation(32 + value.bytes());
        charged.map_err(|_| EvaluationError::Work { at: self.position(0) })?;
        Ok(Some(match value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::from(*value),
            Value::Int(value) => Json::from(*value),
            Value::Uint(value) => Json::from(*value),
            Value::Double(value) if value.is_nan() => Json::from("NaN"),
            Value::Double(value) if value.is_infinite() => {
                Json::from(if *value > 0.0 { "Infinity" } else { "-Infinity" })
            }
            Value::Double(value) => Json::from(*value),
            Value::String(value) => Json::from(&**value),
            Value::List(list) => {
                let elements = list.iter().map(|element| Ok(self.json(element)?.unwrap_or_default()));
                Json::Array(elements.collect::<Result<_, EvaluationError>>()?)
            }
            Value::Map(map) => {
                let mut members = serde_json::Map::new();
                for (key, value) in map.entries() {
                    let charged = self.work.allocation(64 + key.bytes());
                    charged.map_err(|_| EvaluationError::Work { at: self.position(0) })?;
                    let key = match key {
                        Key::String(text) => text.to_string(),
                        Key::Bool(truth) => truth.to_string(),
                        Key::Int(int) => int.to_string(),
                        Key::Uint(uint) => uint.to_string(),
                    };
                    if let Some(value) = self.json(value)? {
                        members.insert(key, value);
                    }
                }
                Json::Object(members)
            }
            Value::Timestamp(timestamp) => Json::from(timestamp.text()),
            Value::Duration(nanos) => Json::from(functions::time::duration_text(*nanos)),
            Value::Optional(None) => return Ok(None),
            Value::Optional(Some(value)) => return self.json(value),
            other => return Err(EvaluationError::NotJson(other.type_name())),
        }))
    }

    fn position(&self, at: usize) -> Position {
        Position::of(self.text, at)
    }

    fn wrong_types<'v>(&self, at: usize, operation: &str, operands: impl IntoIterator<Item = &'v Value>) -> Stop {
        let operation = operation.to_owned();
        EvaluationError::Types { at: self.position(at), operation, types: type_names(operands) }.into()
    }

    /// Converts a fault of `operation` on these values.
    fn stop(&self, at: usize, operation: &'static str, fault: &Fault, values: &[Value]) -> Stop {
        let position = self.position(at);
        match fault {
            Fault::Missing => Stop::Missing,
            Fault::Types => self.wrong_types(at, operation, values),
            Fault::Refused => {
                let types = type_names(values);
                EvaluationError::Function { at: position, function: operation.to_owned(), types }.into()
            }
            Fault::Range => EvaluationError::Range { at: position, operation }.into(),
            Fault::DivisionByZero => EvaluationError::DivisionByZero { at: position }.into(),
            Fault::NotANumber => EvaluationError::NotANumber { at: position, operation }.into(),
            Fault::Work => EvaluationError::Work { at: position }.into(),
        }
    }

    /// Converts the result of charging for a node.
    fn charged<T>(&self, at: usize, outcome: Result<T, Fault>) -> Result<T, Stop> {
        outcome.map_err(|fault| self.stop(at, "", &fault, &[]))
    }

    fn evaluate(&mut self, node: &Node) -> Evaluated {
        let charged = self.work.steps(1);
        self.charged(node.at, charged)?;
        match &node.kind {
            Kind::Literal(value) => Ok(value.clone()),
            Kind::Variable(name) => {
                let found = self.scope.iter().find(|(variable, _)| variable == name);
                found.map(|(_, document)| document.0.clone()).ok_or(Stop::Missing)
            }
            Kind::Element(depth) => self.elements.get(*depth).cloned().ok_or(Stop::Missing),
            Kind::Select(operand, field) => {
                let operand = self.evaluate(operand)?;
                self.field(node.at, &operand, field)
            }
            Kind::OptionalSelect(operand, field) => {
                let found = self.evaluate(operand).and_then(|operand| self.present_field(node.at, &operand, field));
                Ok(Value::Optional(Self::present(found)?.map(Arc::new)))
            }
            Kind::Has(operand, field) => {
                let found = self.evaluate(operand).and_then(|operand| self.present_field(node.at, &operand, field));
                Ok(Value::Bool(Self::present(found)?.is_some()))
            }
            Kind::Index(operand, index) => {
                let operand = self.evaluate(operand)?;
                let index = self.evaluate(index)?;
                self.index(node.at, &operand, &index)
            }
            Kind::OptionalIndex(operand, index) => {
                let operand = self.evaluate(operand);
                let index = self.evaluate(index)?;
                let found = operand.and_then(|operand| match (&operand, &index) {
                    (Value::Optional(None), _) | (Value::List(_), Value::Int(..0)) => Err(Stop::Missing),
                    (Value::Optional(Some(inner)), _) => self.index(node.at, inner, &index),
                    _ => self.index(node.at, &operand, &index),
                });
                Ok(Value::Optional(Self::present(found)?.map(Arc::new)))
            }
            Kind::Not(operand) => match self.evaluate(operand)? {
                Value::Bool(truth) => Ok(Value::Bool(!truth)),
                other => Err(self.wrong_types(node.at, "!", [&other])),
            },
            Kind::Negate(operand) => match self.evaluate(operand)? {
                Value::Int(int) => match int.checked_neg() {
                    Some(int) => Ok(Value::Int(int)),
                    None => Err(self.stop(node.at, "-", &Fault::Range, &[])),
                },
                Value::Double(double) => Ok(Value::Double(-double)),
                other => Err(self.wrong_types(node.at, "-", [&other])),
            },
            Kind::Or(parts) => self.logical(node.at, true, parts),
            Kind::And(parts) => self.logical(node.at, false, parts),
            Kind::Conditional(parts) => {
                let [condition, then, otherwise] = parts.as_ref();
                let branch = if self.decides(condition, "?")? { then } else { otherwise };
                self.evaluate(branch)
            }
            Kind::Binary(operator, operands) => {
                let left = self.evaluate(&operands[0])?;
                let right = self.evaluate(&operands[1])?;
                let result = binary(&mut self.work, *operator, &left, &right);
                result.map_err(|fault| self.stop(node.at, operator.sign(), &fault, &[left, right]))
            }
            Kind::List(elements) => self.list(node.at, elements),
            Kind::Map(entries) => self.map(node.at, entries),
            Kind::Macro(comprehension) => self.comprehension(node.at, comprehension),
            Kind::OptionalMap { flat, value, body } => self.optional_map(node.at, *flat, value, body),
            Kind::Otherwise { optional, parts } => match self.evaluate(&parts[0])? {
                Value::Optional(None) => self.evaluate(&parts[1]),
                some @ Value::Optional(_) if *optional => Ok(some),
                Value::Optional(Some(value)) => Ok((*value).clone()),
                other => Err(self.wrong_types(node.at, if *optional { "or" } else { "orValue" }, [&other])),
            },
            Kind::Matches { role, pattern, arguments } => {
                let arguments = self.all(arguments)?;
                let result = match (&arguments[..], role) {
                    ([Value::String(text), _], _) => pattern.apply(&mut self.work, *role, text, -1),
                    ([Value::String(text), _, Value::Int(limit)], _) => {
                        pattern.apply(&mut self.work, *role, text, *limit)
                    }
                    _ => Err(Fault::Types),
                };
                result.map_err(|fault| self.stop(node.at, "matches, find or findAll", &fault, &arguments))
            }
            Kind::Call { function, arguments } => {
                let arguments = self.all(arguments)?;
                let charged = self.work.steps(1);
                self.charged(node.at, charged)?;
                let result = (function.call)(&mut self.work, &arguments);
                result.map_err(|fault| self.stop(node.at, function.name, &fault, &arguments))
            }
        }
    }

    fn optional_map(&mut self, at: usize, flat: bool, value: &Node, body: &Node) -> Evaluated {
        let name = if flat { "optFlatMap" } else { "optMap" };
        let inner = match self.evaluate(value)? {
            Value::Optional(Some(inner)) => inner,
            none @ Value::Optional(None) => return Ok(none),
            other => return Err(self.wrong_types(at, name, [&other])),
        };
        self.elements.push((*inner).clone());
        let mapped = self.evaluate(body);
        self.elements.pop();
        match mapped? {
            mapped if !flat => Ok(Value::Optional(Some(Arc::new(mapped)))),
            mapped @ Value::Optional(_) => Ok(mapped),
            other => Err(self.wrong_types(at, name, [&other])),
        }
    }

    fn all(&mut self, nodes: &[Node]) -> Result<Vec<Value>, Stop> {
        nodes.iter().map(|node| self.evaluate(node)).collect()
    }

    /// Converts a missing value to `None`.
    fn present(found: Evaluated) -> Result<Option<Value>, Stop> {
        match found {
            Ok(value) => Ok(Some(value)),
            Err(Stop::Missing) => Ok(None),
            Err(failed) => Err(failed),
        }
    }

    /// Whether a condition is true. A missing condition counts as false.
    fn decides(&mut self, condition: &Node, operation: &str) -> Result<bool, Stop> {
        match self.evaluate(condition) {
            Ok(Value::Bool(truth)) => Ok(truth),
            Ok(other) => Err(self.wrong_types(condition.at, operation, [&other])),
            Err(Stop::Missing) => Ok(false),
            Err(failed) => Err(failed),
        }
    }

    fn field(&mut self, at: usize, operand: &Value, field: &str) -> Evaluated {
        match operand {
            Value::Map(map) => {
                let found = map.field(&mut self.work, field).map(Option::<&Value>::cloned);
                self.charged(at, found)?.ok_or(Stop::Missing)
            }
            Value::Null => Err(Stop::Missing),
            Value::Optional(None) => Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => {
                let found = self.present_field(at, inner, field);
                Ok(Value::Optional(Self::present(found)?.map(Arc::new)))
            }
            other => {
                let field: String = field.chars().take(64).collect();
                Err(self.wrong_types(at, &format!(".{field}"), [other]))
            }
        }
    }

    /// A field for `has` and `.?`. It is missing if the operand has no fields at all.
    fn present_field(&mut self, at: usize, operand: &Value, field: &str) -> Evaluated {
        match operand {
            Value::Optional(Some(inner)) => self.present_field(at, inner, field),
            Value::Map(_) => self.field(at, operand, field),
            _ => Err(Stop::Missing),
        }
    }

    fn index(&mut self, at: usize, operand: &Value, index: &Value) -> Evaluated {
        let of_list = |list: &[Value], index: Option<usize>| {
            index.and_then(|index| list.get(index)).cloned().ok_or(Stop::Missing)
        };
        match (operand, index) {
            (Value::List(_), Value::Int(..0)) => Err(self.stop(at, "[]", &Fault::Range, &[])),
            (Value::List(list), Value::Int(index)) => of_list(list, usize::try_from(*index).ok()),
            (Value::List(list), Value::Uint(index)) => of_list(list, usize::try_from(*index).ok()),
            (Value::List(list), Value::Double(index)) if index.fract() == 0.0 && *index >= 0.0 => {
                of_list(list, Some(*index as usize))
            }
            (Value::Map(map), index) => {
                let found = map.find(&mut self.work, index).map(Option::<&Value>::cloned);
                found
                    .map_err(|fault| self.stop(at, "[]", &fault, &[operand.clone(), index.clone()]))?
                    .ok_or(Stop::Missing)
            }
            (Value::Null, _) => Err(Stop::Missing),
            (Value::Optional(None), _) => Ok(Value::Optional(None)),
            (Value::Optional(Some(inner)), _) => {
                let found = self.index(at, inner, index);
                Ok(Value::Optional(Self::present(found)?.map(Arc::new)))
            }
            _ => Err(self.wrong_types(at, "[]", [operand, index])),
        }
    }

    /// `||` if `decisive` is true, `&&` if it is false. One operand with the decisive value decides, even if others are
    /// errors or missing. Otherwise an error takes precedence over a missing operand.
    fn logical(&mut self, at: usize, decisive: bool, parts: &[Node]) -> Evaluated {
        let mut undecided = None;
        for part in parts {
            let truth = self.evaluate(part);
            if self.is_decisive(at, decisive, truth, &mut undecided) {
                return Ok(Value::Bool(decisive));
            }
        }
        undecided.map_or(Ok(Value::Bool(!decisive)), Err)
    }

    fn is_decisive(&self, at: usize, decisive: bool, truth: Evaluated, undecided: &mut Option<Stop>) -> bool {
        let stop = match truth {
            Ok(Value::Bool(truth)) if truth == decisive => return true,
            Ok(Value::Bool(_)) => return false,
            Ok(other) => self.wrong_types(at, if decisive { "||" } else { "&&" }, [&other]),
            Err(stop) => stop,
        };
        if !matches!(undecided, Some(Stop::Failed(_))) {
            *undecided = Some(stop);
        }
        false
    }

    fn list(&mut self, at: usize, elements: &[(bool, Node)]) -> Evaluated {
        let charged = self.work.allocation(size_of::<Value>() * elements.len());
        self.charged(at, charged)?;
        let mut list = Vec::with_capacity(elements.len());
        for (optional, element) in elements {
            let value = self.evaluate(element)?;
            list.extend(self.entry(at, *optional, value)?);
        }
        Ok(list.into())
    }

    /// An element of a literal. `None` for an empty optional after `?`.
    fn entry(&self, at: usize, optional: bool, value: Value) -> Result<Option<Value>, Stop> {
        match value {
            value if !optional => Ok(Some(value)),
            Value::Optional(value) => Ok(value.map(|value| (*value).clone())),
            other => Err(self.wrong_types(at, "?", [&other])),
        }
    }

    fn map(&mut self, at: usize, entries: &[(bool, [Node; 2])]) -> Evaluated {
        let mut members = Vec::with_capacity(entries.len());
        for (optional, [key, value]) in entries {
            let key = self.evaluate(key)?;
            let value = self.evaluate(value)?;
            let key = Key::of(&key).ok_or_else(|| self.wrong_types(at, "{}", [&key]))?;
            if let Some(value) = self.entry(at, *optional, value)? {
                members.push((key, value));
            }
        }
        self.map_of(at, members)
    }

    /// Creates a map. Charges for comparing the keys.
    fn map_of(&mut self, at: usize, members: Vec<(Key, Value)>) -> Evaluated {
        let rounds = (usize::BITS - members.len().leading_zeros()) as usize + 1;
        let keys: usize = members.iter().map(|(key, _)| key.bytes()).sum();
        let charged = self.work.allocation(rounds * (keys + 8 * members.len()));
        self.charged(at, charged)?;
        Ok(Map::new(members).into())
    }

    fn comprehension(&mut self, at: usize, comprehension: &Comprehension) -> Evaluated {
        let range = self.evaluate(&comprehension.range)?;
        let (indices, values) = match (&range, comprehension.two) {
            (Value::List(list), false) => (None, list.clone()),
            (Value::List(list), true) => {
                let charged = self.work.allocation(size_of::<Value>() * list.len());
                self.charged(at, charged)?;
                (Some((0..list.len() as i64).map(Value::Int).collect()), list.clone())
            }
            (Value::Map(map), two) => {
                let charged = self.work.allocation(2 * size_of::<Value>() * map.len());
                self.charged(at, charged)?;
                let keys: Vec<Value> = map.entries().iter().map(|(key, _)| key.value()).collect();
                if two {
                    (Some(keys), Arc::new(map.entries().iter().map(|(_, value)| value.clone()).collect()))
                } else {
                    (None, Arc::new(keys))
                }
            }
            _ => return Err(self.wrong_types(at, "all, exists, map or filter", [&range])),
        };
        let depth = self.elements.len();
        let result = self.each(at, comprehension, indices.as_deref(), &values, depth);
        self.elements.truncate(depth);
        result
    }

    fn each(
        &mut self,
        at: usize,
        comprehension: &Comprehension,
        indices: Option<&[Value]>,
        values: &[Value],
        depth: usize,
    ) -> Evaluated {
        let Comprehension { role, condition, body, .. } = comprehension;
        let mut undecided = None;
        let mut kept = Vec::new();
        let mut members: Vec<(Key, Value)> = Vec::new();
        let mut count = 0_usize;
        for (number, value) in values.iter().enumerate() {
            let charged = self.work.steps(1);
            self.charged(at, charged)?;
            self.elements.truncate(depth);
            self.elements.extend(indices.map(|indices| indices[number].clone()));
            self.elements.push(value.clone());
            if let Some(condition) = condition
                && !self.decides(condition, "map")?
            {
                continue;
            }
            match role {
                Macro::All | Macro::Exists => {
                    let decisive = *role == Macro::Exists;
                    let truth = self.evaluate(body);
                    if self.is_decisive(at, decisive, truth, &mut undecided) {
                        return Ok(Value::Bool(decisive));
                    }
                }
                Macro::ExistsOne => count += usize::from(self.decides(body, "exists_one")?),
                Macro::Filter => {
                    if self.decides(body, "filter")? {
                        let charged = self.work.steps(2);
                        self.charged(at, charged)?;
                        kept.push(value.clone());
                    }
                }
                Macro::Map | Macro::SortBy => {
                    let charged = self.work.steps(2);
                    self.charged(at, charged)?;
                    kept.push(self.evaluate(body)?);
                }
                Macro::TransformMap => {
                    let key = indices.and_then(|indices| Key::of(&indices[number]));
                    let value = self.evaluate(body)?;
                    members.extend(key.map(|key| (key, value)));
                }
                Macro::TransformMapEntry => match self.evaluate(body)? {
                    Value::Map(entry) => {
                        let charged = self.work.allocation(64 * entry.len());
                        self.charged(at, charged)?;
                        members.extend_from_slice(entry.entries());
                    }
                    other => return Err(self.wrong_types(at, "transformMapEntry", [&other])),
                },
            }
        }
        match (role, undecided) {
            (_, Some(stop)) => Err(stop),
            (Macro::All, None) => Ok(Value::Bool(true)),
            (Macro::Exists, None) => Ok(Value::Bool(false)),
            (Macro::ExistsOne, None) => Ok(Value::Bool(count == 1)),
            (Macro::Filter | Macro::Map, None) => Ok(kept.into()),
            (Macro::SortBy, None) => {
                let sorted = functions::sort_by_keys(&mut self.work, values, &kept);
                sorted.map_err(|fault| self.stop(at, "sortBy", &fault, &kept[..1]))
            }
            (Macro::TransformMap, None) => self.map_of(at, members),
            (Macro::TransformMapEntry, None) => {
                let all = members.len();
                let map = self.map_of(at, members)?;
                match &map {
                    // A key must not occur twice.
                    Value::Map(map) if map.len() < all => Err(self.stop(at, "transformMapEntry", &Fault::Refused, &[])),
                    _ => Ok(map),
                }
            }
        }
    }
}

fn binary(work: &mut Work, operator: Operator, left: &Value, right: &Value) -> Result<Value, Fault> {
    let mut ordered = |wanted: fn(Ordering) -> bool| match compare(work, left, right)? {
        Compared::Are(ordering) => Ok(Value::Bool(wanted(ordering))),
        Compared::NotANumber => Err(Fault::NotANumber),
        Compared::NotOfOneKind => Err(Fault::Types),
    };
    match operator {
        Operator::Equal => Ok(Value::Bool(equal(work, left, right)?)),
        Operator::NotEqual => Ok(Value::Bool(!equal(work, left, right)?)),
        Operator::Less => ordered(Ordering::is_lt),
        Operator::LessOrEqual => ordered(Ordering::is_le),
        Operator::Greater => ordered(Ordering::is_gt),
        Operator::GreaterOrEqual => ordered(Ordering::is_ge),
        Operator::In => is_in(work, left, right),
        Operator::Add => add(work, left, right),
        _ => arithmetic(operator, left, right),
    }
}

fn is_in(work: &mut Work, value: &Value, container: &Value) -> Result<Value, Fault> {
    match container {
        Value::List(list) => {
            for element in list.iter() {
                if equal(work, value, element)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        Value::Map(map) => match map.find(work, value) {
            Ok(found) => Ok(Value::Bool(found.is_some())),
            // A value that cannot be a key is not in the map.
            Err(Fault::Types) => Ok(Value::Bool(false)),
            Err(fault) => Err(fault),
        },
        _ => Err(Fault::Types),
    }
}

/// `left + right`
pub(super) fn add(work: &mut Work, left: &Value, right: &Value) -> Result<Value, Fault> {
    Ok(match (left, right) {
        (Value::Int(left), Value::Int(right)) => Value::Int(left.checked_add(*right).ok_or(Fault::Range)?),
        (Value::Uint(left), Value::Uint(right)) => Value::Uint(left.checked_add(*right).ok_or(Fault::Range)?),
        (Value::Double(left), Value::Double(right)) => Value::Double(left + right),
        (Value::Duration(left), Value::Duration(right)) => {
            Value::Duration(left.checked_add(*right).ok_or(Fault::Range)?)
        }
        (Value::Timestamp(timestamp), Value::Duration(nanos))
        | (Value::Duration(nanos), Value::Timestamp(timestamp)) => Value::Timestamp(timestamp.add(*nanos)?),
        (Value::String(left), Value::String(right)) => {
            work.allocation(left.len() + right.len())?;
            [&**left, &**right].concat().into()
        }
        (Value::Bytes(left), Value::Bytes(right)) => {
            work.allocation(left.len() + right.len())?;
            Value::Bytes([&**left, &**right].concat().into())
        }
        (Value::List(left), Value::List(right)) => {
            work.allocation(size_of::<Value>() * (left.len() + right.len()))?;
            [&***left, &***right].concat().into()
        }
        _ => return Err(Fault::Types),
    })
}

fn arithmetic(operator: Operator, left: &Value, right: &Value) -> Result<Value, Fault> {
    type Of<T> = fn(T, T) -> Option<T>;
    let (ints, uints, doubles): (Of<i64>, Of<u64>, Of<f64>) = match operator {
        Operator::Subtract => (i64::checked_sub, u64::checked_sub, |left, right| Some(left - right)),
        Operator::Multiply => (i64::checked_mul, u64::checked_mul, |left, right| Some(left * right)),
        Operator::Divide => (i64::checked_div, u64::checked_div, |left, right| Some(left / right)),
        _ => (i64::checked_rem, u64::checked_rem, |_, _| None),
    };
    let divides = matches!(operator, Operator::Divide | Operator::Remainder);
    match (left, right) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) if divides => Err(Fault::DivisionByZero),
        (Value::Int(left), Value::Int(right)) => ints(*left, *right).map(Value::Int).ok_or(Fault::Range),
        (Value::Uint(left), Value::Uint(right)) => uints(*left, *right).map(Value::Uint).ok_or(Fault::Range),
        (Value::Double(left), Value::Double(right)) => doubles(*left, *right).map(Value::Double).ok_or(Fault::Types),
        (Value::Timestamp(left), Value::Timestamp(right)) if operator == Operator::Subtract => {
            Ok(Value::Duration(left.since(*right)?))
        }
        (Value::Timestamp(timestamp), Value::Duration(nanos)) if operator == Operator::Subtract => {
            Ok(Value::Timestamp(timestamp.add(nanos.checked_neg().ok_or(Fault::Range)?)?))
        }
        (Value::Duration(left), Value::Duration(right)) if operator == Operator::Subtract => {
            Ok(Value::Duration(left.checked_sub(*right).ok_or(Fault::Range)?))
        }
        _ => Err(Fault::Types),
    }
}
