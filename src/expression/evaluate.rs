//! Evaluates an expression's tree on documents, within bounds of steps and sizes.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use kube_cel::cel::objects::{Key, KeyRef, Map};
use kube_cel::cel::{ExecutionError, Value};
use regex::Regex;

use super::document::Document;
use super::error::{EvaluationError, Position};
use super::functions::{self, Function, Work};
use super::tree::{Kind, Macro, Match, Node, Operator, Own};
use super::values::{Compared, byte_length, compare, has_an_order, type_name, type_names};

/// The steps that one evaluation may take: a node, an element, or this many bytes of a string that is made or searched.
const MOST_STEPS: u64 = 1_000_000;
const BYTES_A_STEP: usize = 16;
/// What a call of the library costs beside its arguments.
const CALL_STEPS: u64 = 16;
/// How many digits a format may ask for after the point.
const MOST_DIGITS: usize = 2;

/// Why a part has no value.
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

/// One evaluation: what its variables are, and what is left of its work.
pub(super) struct Evaluation<'a> {
    text: &'a str,
    scope: &'a [(&'static str, &'a Document)],
    /// What the macros around the current place have in hand, outermost first.
    elements: Vec<Value>,
    steps_left: u64,
}

impl<'a> Evaluation<'a> {
    pub fn new(text: &'a str, scope: &'a [(&'static str, &'a Document)]) -> Self {
        Self { text, scope, elements: Vec::new(), steps_left: MOST_STEPS }
    }

    /// The node's value; `None` where it is missing.
    pub fn outcome(&mut self, node: &Node) -> Result<Option<Value>, EvaluationError> {
        match self.evaluate(node) {
            Ok(value) => Ok(Some(value)),
            Err(Stop::Missing) => Ok(None),
            Err(Stop::Failed(error)) => Err(*error),
        }
    }

    /// A value as JSON.
    pub fn json(&mut self, value: &Value) -> Result<serde_json::Value, EvaluationError> {
        use serde_json::Value as Json;
        self.spend_on_bytes(0, byte_length(value))?;
        Ok(match value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::from(*value),
            Value::Int(value) => Json::from(*value),
            Value::UInt(value) => Json::from(*value),
            Value::Float(value) if value.is_nan() => Json::from("NaN"),
            Value::Float(value) if value.is_infinite() => {
                Json::from(if *value > 0.0 { "Infinity" } else { "-Infinity" })
            }
            Value::Float(value) => Json::from(*value),
            Value::String(value) => Json::from(value.as_str()),
            Value::List(list) => Json::Array(list.iter().map(|element| self.json(element)).collect::<Result<_, _>>()?),
            Value::Map(map) => {
                let mut members = serde_json::Map::new();
                for (key, value) in map.map.iter() {
                    members.insert(key.to_string(), self.json(value)?);
                }
                Json::Object(members)
            }
            Value::Timestamp(_) | Value::Duration(_) => match functions::text(value) {
                Some(Value::String(text)) => Json::from(text.as_str()),
                _ => return Err(EvaluationError::NotJson(type_name(value))),
            },
            other => return Err(EvaluationError::NotJson(type_name(other))),
        })
    }

    fn position(&self, at: usize) -> Position {
        Position::of(self.text, at)
    }

    fn spend(&mut self, at: usize, steps: u64) -> Result<(), EvaluationError> {
        match self.steps_left.checked_sub(steps) {
            Some(left) => {
                self.steps_left = left;
                Ok(())
            }
            None => Err(EvaluationError::Work { at: self.position(at) }),
        }
    }

    fn spend_on_bytes(&mut self, at: usize, bytes: usize) -> Result<(), EvaluationError> {
        self.spend(at, (bytes / BYTES_A_STEP) as u64 + 1)
    }

    fn wrong_types(&self, at: usize, operation: &str, operands: &[&Value]) -> Stop {
        let operation = operation.to_owned();
        EvaluationError::Types { at: self.position(at), operation, types: type_names(operands) }.into()
    }

    fn evaluate(&mut self, node: &Node) -> Evaluated {
        self.spend(node.at, 1)?;
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
            Kind::Has(operand, field) => {
                let found = match self.evaluate(operand) {
                    Ok(operand) => self.field(node.at, &operand, field).map(drop),
                    Err(stop) => Err(stop),
                };
                match found {
                    Ok(()) => Ok(Value::Bool(true)),
                    Err(Stop::Missing) => Ok(Value::Bool(false)),
                    Err(failed) => Err(failed),
                }
            }
            Kind::Index(operand, index) => {
                let operand = self.evaluate(operand)?;
                let index = self.evaluate(index)?;
                self.index(node.at, &operand, &index)
            }
            Kind::Not(operand) => match self.evaluate(operand)? {
                Value::Bool(truth) => Ok(Value::Bool(!truth)),
                other => Err(self.wrong_types(node.at, "!", &[&other])),
            },
            Kind::Negate(operand) => self.negate(node.at, operand),
            Kind::Or(parts) => self.logical(node.at, true, parts.iter()),
            Kind::And(parts) => self.logical(node.at, false, parts.iter()),
            Kind::Conditional(parts) => {
                let [condition, then, otherwise] = parts.as_ref();
                let branch = if self.decides(condition, "?")? { then } else { otherwise };
                self.evaluate(branch)
            }
            Kind::Binary(operator, operands) => {
                let left = self.evaluate(&operands[0])?;
                let right = self.evaluate(&operands[1])?;
                self.binary(node.at, *operator, left, right)
            }
            Kind::List(elements) => {
                let list = self.all(elements)?;
                Ok(Value::List(Arc::new(list)))
            }
            Kind::Map(entries) => self.map(node.at, entries),
            Kind::Macro { role, range, body } => self.comprehension(node.at, role, range, body),
            Kind::Matches { role, pattern, steps_a_byte, arguments } => {
                let text = self.evaluate(&arguments[0])?;
                self.matches(node.at, *role, pattern, *steps_a_byte, &text)
            }
            Kind::Own(own, arguments) => {
                let arguments = self.all(arguments)?;
                self.own(node.at, *own, &arguments)
            }
            Kind::Call { function, call, arguments } => {
                let arguments = self.all(arguments)?;
                self.charge(node.at, function, &arguments)?;
                functions::invoke(call, &arguments).ok_or_else(|| {
                    let types = type_names(&arguments.iter().collect::<Vec<_>>());
                    let function = function.name.to_owned();
                    EvaluationError::Function { at: self.position(node.at), function, types }.into()
                })
            }
        }
    }

    fn all(&mut self, nodes: &[Node]) -> Result<Vec<Value>, Stop> {
        nodes.iter().map(|node| self.evaluate(node)).collect()
    }

    /// Whether a condition that decides something is true; what is missing is not so.
    fn decides(&mut self, condition: &Node, operation: &str) -> Result<bool, Stop> {
        match self.evaluate(condition) {
            Ok(Value::Bool(truth)) => Ok(truth),
            Ok(other) => Err(self.wrong_types(condition.at, operation, &[&other])),
            Err(Stop::Missing) => Ok(false),
            Err(failed) => Err(failed),
        }
    }

    fn field(&self, at: usize, operand: &Value, field: &str) -> Evaluated {
        match operand {
            Value::Map(map) => map.get(&KeyRef::String(field)).cloned().ok_or(Stop::Missing),
            Value::Null => Err(Stop::Missing),
            other => {
                let field: String = field.chars().take(64).collect();
                Err(self.wrong_types(at, &format!(".{field}"), &[other]))
            }
        }
    }

    fn index(&self, at: usize, operand: &Value, index: &Value) -> Evaluated {
        match (operand, index) {
            (Value::List(list), Value::Int(index)) if *index >= 0 => {
                usize::try_from(*index).ok().and_then(|index| list.get(index)).cloned().ok_or(Stop::Missing)
            }
            (Value::List(list), Value::UInt(index)) => {
                usize::try_from(*index).ok().and_then(|index| list.get(index)).cloned().ok_or(Stop::Missing)
            }
            (Value::List(_), Value::Int(_)) => {
                Err(EvaluationError::Range { at: self.position(at), operation: "[]" }.into())
            }
            (Value::Map(map), index) => match KeyRef::try_from(index) {
                Ok(key) => map.get(&key).cloned().ok_or(Stop::Missing),
                Err(_) => Err(self.wrong_types(at, "[]", &[operand, index])),
            },
            (Value::Null, _) => Err(Stop::Missing),
            _ => Err(self.wrong_types(at, "[]", &[operand, index])),
        }
    }

    fn negate(&mut self, at: usize, operand: &Node) -> Evaluated {
        match self.evaluate(operand)? {
            Value::Int(int) => match int.checked_neg() {
                Some(int) => Ok(Value::Int(int)),
                None => Err(EvaluationError::Range { at: self.position(at), operation: "-" }.into()),
            },
            Value::Float(double) => Ok(Value::Float(-double)),
            other => Err(self.wrong_types(at, "-", &[&other])),
        }
    }

    /// `||` where `decisive` is true, `&&` where it is false: one decisive part decides, whatever becomes of the others. Else
    /// an error counts before what is missing.
    fn logical<'n>(&mut self, at: usize, decisive: bool, parts: impl Iterator<Item = &'n Node>) -> Evaluated {
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
            Ok(other) => self.wrong_types(at, if decisive { "||" } else { "&&" }, &[&other]),
            Err(stop) => stop,
        };
        if !matches!(undecided, Some(Stop::Failed(_))) {
            *undecided = Some(stop);
        }
        false
    }

    fn binary(&mut self, at: usize, operator: Operator, left: Value, right: Value) -> Evaluated {
        let ordered = |wanted: fn(Ordering) -> bool, evaluation: &Self| match compare(&left, &right) {
            Compared::Are(ordering) => Ok(Value::Bool(wanted(ordering))),
            Compared::NotANumber => Ok(Value::Bool(false)),
            Compared::NotOfOneKind => Err(evaluation.wrong_types(at, operator.sign(), &[&left, &right])),
        };
        match operator {
            Operator::Equal => Ok(Value::Bool(self.equal(at, &left, &right)?)),
            Operator::NotEqual => Ok(Value::Bool(!self.equal(at, &left, &right)?)),
            Operator::Less => ordered(Ordering::is_lt, self),
            Operator::LessOrEqual => ordered(Ordering::is_le, self),
            Operator::Greater => ordered(Ordering::is_gt, self),
            Operator::GreaterOrEqual => ordered(Ordering::is_ge, self),
            Operator::In => self.is_in(at, &left, &right),
            Operator::Add | Operator::Subtract | Operator::Multiply | Operator::Divide | Operator::Remainder => {
                self.arithmetic(at, operator, left, right)
            }
        }
    }

    fn arithmetic(&mut self, at: usize, operator: Operator, left: Value, right: Value) -> Evaluated {
        self.spend_on_bytes(at, byte_length(&left) + byte_length(&right))?;
        if let (Value::List(left), Value::List(right)) = (&left, &right) {
            self.spend(at, (left.len() + right.len()) as u64)?;
        }
        let types = type_names(&[&left, &right]);
        let result = match operator {
            Operator::Add => left + right,
            Operator::Subtract => left - right,
            Operator::Multiply => left * right,
            Operator::Divide => left / right,
            _ => left % right,
        };
        result.map_err(|error| {
            let at = self.position(at);
            match error {
                ExecutionError::Overflow(..) => EvaluationError::Range { at, operation: operator.sign() },
                ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
                    EvaluationError::DivisionByZero { at }
                }
                _ => EvaluationError::Types { at, operation: operator.sign().to_owned(), types },
            }
            .into()
        })
    }

    fn is_in(&mut self, at: usize, value: &Value, container: &Value) -> Evaluated {
        match container {
            Value::List(list) => {
                for element in list.iter() {
                    if self.equal(at, value, element)? {
                        return Ok(Value::Bool(true));
                    }
                }
                Ok(Value::Bool(false))
            }
            Value::Map(map) => Ok(Value::Bool(KeyRef::try_from(value).is_ok_and(|key| map.get(&key).is_some()))),
            _ => Err(self.wrong_types(at, "in", &[value, container])),
        }
    }

    /// Numbers by what they are worth, whatever their types; values of different types are unequal.
    fn equal(&mut self, at: usize, left: &Value, right: &Value) -> Result<bool, EvaluationError> {
        self.spend_on_bytes(at, byte_length(left).min(byte_length(right)))?;
        Ok(match (left, right) {
            (Value::List(left), Value::List(right)) => {
                if left.len() != right.len() {
                    return Ok(false);
                }
                for (left, right) in left.iter().zip(right.iter()) {
                    if !self.equal(at, left, right)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::Map(left), Value::Map(right)) => {
                if left.map.len() != right.map.len() {
                    return Ok(false);
                }
                for (key, left) in left.map.iter() {
                    match right.get(key) {
                        Some(right) if self.equal(at, left, right)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Value::Opaque(_) | Value::Bytes(_) | Value::Null, _) => left == right,
            _ => matches!(compare(left, right), Compared::Are(Ordering::Equal)),
        })
    }

    fn map(&mut self, at: usize, entries: &[[Node; 2]]) -> Evaluated {
        let mut map = HashMap::with_capacity(entries.len());
        for [key, value] in entries {
            let key = self.evaluate(key)?;
            let value = self.evaluate(value)?;
            let key = match key {
                Value::String(key) => Key::String(key),
                Value::Int(key) => Key::Int(key),
                Value::UInt(key) => Key::Uint(key),
                Value::Bool(key) => Key::Bool(key),
                other => return Err(self.wrong_types(at, "{}", &[&other])),
            };
            map.insert(key, value);
        }
        Ok(Value::Map(Map { map: Arc::new(map) }))
    }

    fn comprehension(&mut self, at: usize, role: &Macro, range: &Node, body: &Node) -> Evaluated {
        let range = match self.evaluate(range)? {
            Value::List(list) => list,
            Value::Map(map) => {
                // A map has no order of its own; the result must not depend on the run.
                self.spend(at, map.map.len() as u64 * 4)?;
                let mut keys: Vec<&Key> = map.map.keys().collect();
                keys.sort();
                Arc::new(keys.into_iter().map(Value::from).collect())
            }
            other => return Err(self.wrong_types(at, "all, exists, map or filter", &[&other])),
        };
        let depth = self.elements.len();
        self.elements.push(Value::Null);
        let result = self.each(at, role, &range, body, depth);
        self.elements.truncate(depth);
        result
    }

    fn each(&mut self, at: usize, role: &Macro, range: &[Value], body: &Node, depth: usize) -> Evaluated {
        let mut undecided = None;
        let mut kept = Vec::new();
        let mut count = 0_usize;
        for element in range {
            self.elements[depth] = element.clone();
            match role {
                Macro::All | Macro::Exists => {
                    let decisive = matches!(role, Macro::Exists);
                    let truth = self.evaluate(body);
                    if self.is_decisive(at, decisive, truth, &mut undecided) {
                        return Ok(Value::Bool(decisive));
                    }
                }
                Macro::ExistsOne => count += usize::from(self.decides(body, "exists_one")?),
                Macro::Filter => {
                    if self.decides(body, "filter")? {
                        kept.push(element.clone());
                    }
                }
                Macro::Map(condition) => {
                    let counts = match condition {
                        Some(condition) => self.decides(condition, "map")?,
                        None => true,
                    };
                    if counts {
                        kept.push(self.evaluate(body)?);
                    }
                }
            }
        }
        match (role, undecided) {
            (_, Some(stop)) => Err(stop),
            (Macro::All, None) => Ok(Value::Bool(true)),
            (Macro::Exists, None) => Ok(Value::Bool(false)),
            (Macro::ExistsOne, None) => Ok(Value::Bool(count == 1)),
            (Macro::Filter | Macro::Map(_), None) => Ok(Value::List(Arc::new(kept))),
        }
    }

    fn matches(&mut self, at: usize, role: Match, pattern: &Regex, steps_a_byte: u64, text: &Value) -> Evaluated {
        let Value::String(text) = text else {
            return Err(self.wrong_types(at, "matches, find or findAll", &[text]));
        };
        self.spend(at, text.len() as u64 * steps_a_byte + CALL_STEPS)?;
        let string = |found: &str| Value::String(Arc::new(found.to_owned()));
        Ok(match role {
            Match::Matches => Value::Bool(pattern.is_match(text)),
            Match::Find => string(pattern.find(text).map_or("", |found| found.as_str())),
            Match::FindAll => {
                let found: Vec<Value> = pattern.find_iter(text).map(|found| string(found.as_str())).collect();
                self.spend(at, found.len() as u64)?;
                Value::List(Arc::new(found))
            }
        })
    }

    fn own(&mut self, at: usize, own: Own, arguments: &[Value]) -> Evaluated {
        let bytes = arguments.iter().map(byte_length).sum();
        self.spend_on_bytes(at, bytes)?;
        match (own, arguments) {
            (Own::Size, [Value::String(text)]) => Ok(Value::Int(text.chars().count() as i64)),
            (Own::Size, [Value::Bytes(bytes)]) => Ok(Value::Int(bytes.len() as i64)),
            (Own::Size, [Value::List(list)]) => Ok(Value::Int(list.len() as i64)),
            (Own::Size, [Value::Map(map)]) => Ok(Value::Int(map.map.len() as i64)),
            (Own::StartsWith, [Value::String(text), Value::String(part)]) => {
                Ok(Value::Bool(text.starts_with(part.as_str())))
            }
            (Own::EndsWith, [Value::String(text), Value::String(part)]) => {
                Ok(Value::Bool(text.ends_with(part.as_str())))
            }
            (Own::Contains, [Value::String(text), Value::String(part)]) => {
                Ok(Value::Bool(text.contains(part.as_str())))
            }
            (Own::Join, [Value::List(list)]) => self.join(at, list, ""),
            (Own::Join, [Value::List(list), Value::String(separator)]) => self.join(at, list, separator),
            (Own::Sum, [Value::List(list)]) => match list.split_first() {
                None => Ok(Value::Int(0)),
                Some((first, others)) => others
                    .iter()
                    .try_fold(first.clone(), |sum, other| self.arithmetic(at, Operator::Add, sum, other.clone())),
            },
            (Own::Dyn, [value]) => Ok(value.clone()),
            (Own::String, [Value::Bool(truth)]) => Ok(Value::String(Arc::new(truth.to_string()))),
            (Own::String, [value]) => {
                self.spend(at, CALL_STEPS)?;
                functions::text(value).ok_or_else(|| self.wrong_types(at, own.name(), &[value]))
            }
            (_, arguments) => Err(self.wrong_types(at, own.name(), &arguments.iter().collect::<Vec<_>>())),
        }
    }

    fn join(&mut self, at: usize, list: &[Value], separator: &str) -> Evaluated {
        let mut joined = String::new();
        for (index, element) in list.iter().enumerate() {
            let Value::String(text) = element else {
                return Err(self.wrong_types(at, "join", &[element]));
            };
            self.spend_on_bytes(at, text.len() + separator.len())?;
            if index > 0 {
                joined.push_str(separator);
            }
            joined.push_str(text);
        }
        Ok(Value::String(Arc::new(joined)))
    }

    /// What a call of the library may cost, before it is made.
    fn charge(&mut self, at: usize, function: &Function, arguments: &[Value]) -> Result<(), Stop> {
        let mut sizes = [0_u64; 2];
        let mut all = 0;
        for (index, argument) in arguments.iter().enumerate() {
            let size = self.size(at, argument)?;
            all += size;
            if let Some(place) = sizes.get_mut(index) {
                *place = size;
            }
        }
        let refused = || self.wrong_types(at, function.name, &arguments.iter().collect::<Vec<_>>());
        let work = match function.work {
            Work::Linear => 0,
            Work::Product => sizes[0].saturating_mul(all - sizes[0]) / 4,
            Work::Square => sizes[0].saturating_mul(sizes[0]) / 4,
            Work::Number => match arguments {
                [Value::Int(number)] => u64::try_from(*number).unwrap_or(0),
                _ => return Err(refused()),
            },
            Work::Digits => match arguments {
                [Value::String(format), _] if asks_for_few_digits(format) => 0,
                _ => return Err(refused()),
            },
        };
        // A sort panics over what has no order.
        if matches!(function.name, "sort" | "min" | "max" | "isSorted") && !arguments.first().is_some_and(has_an_order)
        {
            return Err(refused());
        }
        self.spend(at, CALL_STEPS.saturating_add(all).saturating_add(work))?;
        Ok(())
    }

    /// The values and bytes of which a value consists; each costs a step, since the library copies them.
    fn size(&mut self, at: usize, value: &Value) -> Result<u64, Stop> {
        self.spend(at, 1)?;
        let mut size = 1 + byte_length(value) as u64;
        match value {
            Value::List(list) => {
                for element in list.iter() {
                    size += self.size(at, element)?;
                }
            }
            Value::Map(map) => {
                for (key, value) in map.map.iter() {
                    size += match key {
                        Key::String(key) => key.len() as u64,
                        _ => 1,
                    };
                    size += self.size(at, value)?;
                }
            }
            _ => {}
        }
        Ok(size)
    }
}

/// No `%.N` beyond [`MOST_DIGITS`] digits of N.
fn asks_for_few_digits(format: &str) -> bool {
    format.split("%.").skip(1).all(|rest| rest.chars().take_while(char::is_ascii_digit).count() <= MOST_DIGITS)
}
