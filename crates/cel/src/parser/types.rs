//! Checks types at compilation, as the apiserver does.

use std::slice;
use std::sync::LazyLock;

use super::{CompileError, Node, Parser};
use crate::functions::{Function, format};
use crate::tree::{Kind, Operator};
use crate::types::{self, Signature, Type};
use crate::value::Value;
use crate::work::{MOST_STEPS, Work};

macro_rules! signatures {
    ($($name:ident $text:literal;)+) => {
        $(static $name: LazyLock<Vec<Signature>> = LazyLock::new(|| Signature::parse($text));)+
    };
}

signatures! {
    EQUALITY "(A, A) bool";
    ORDER "(bool, bool) bool | (int, int) bool | (int, uint) bool | (int, double) bool | (uint, int) bool | (uint, uint) bool | (uint, double) bool | (double, int) bool | (double, uint) bool | (double, double) bool | (string, string) bool | (bytes, bytes) bool | (timestamp, timestamp) bool | (duration, duration) bool";
    IN "(A, list(A)) bool | (A, map(A, B)) bool";
    ADD "(int, int) int | (uint, uint) uint | (double, double) double | (string, string) string | (bytes, bytes) bytes | (list(A), list(A)) list(A) | (timestamp, duration) timestamp | (duration, timestamp) timestamp | (duration, duration) duration";
    SUBTRACT "(int, int) int | (uint, uint) uint | (double, double) double | (timestamp, timestamp) duration | (timestamp, duration) timestamp | (duration, duration) duration";
    MULTIPLY "(int, int) int | (uint, uint) uint | (double, double) double";
    REMAINDER "(int, int) int | (uint, uint) uint";
    NEGATE "(int) int | (double) double";
    INDEX "(list(A), int) A | (map(A, B), A) B | (optional(list(A)), int) optional(A) | (optional(map(A, B)), A) optional(B)";
}

type Checked = Result<Type, CompileError>;

impl Parser<'_> {
    /// The result type of a call with these argument types. `name` is for the error.
    pub(super) fn checked<'s>(
        &self,
        at: usize,
        name: &str,
        signatures: impl IntoIterator<Item = &'s Signature>,
        arguments: &[Type],
    ) -> Checked {
        match types::result_of(signatures, arguments) {
            Some(of) => Ok(of),
            None => self.error(at, format!("`{name}` does not take {}", types::type_names(arguments))),
        }
    }

    /// Checks that the type of a condition can be bool.
    pub(super) fn truth(&self, at: usize, name: &str, part: &Node) -> Result<(), CompileError> {
        match part.of {
            Type::Bool | Type::Dyn => Ok(()),
            ref other => self.error(at, format!("`{name}` does not take {other}")),
        }
    }

    pub(super) fn conditional(&self, at: usize, condition: &Node, then: &Node, otherwise: &Node) -> Checked {
        self.truth(at, "?", condition)?;
        self.one_type(at, ":", &then.of, &otherwise.of)
    }

    /// The common type of two alternatives.
    pub(super) fn one_type(&self, at: usize, name: &str, left: &Type, right: &Type) -> Checked {
        let message =
            || format!("both sides of `{name}` must have the same type, not {left} and {right}; wrap one in dyn(…)");
        left.joined(right).map_or_else(|| self.error(at, message()), Ok)
    }

    pub(super) fn operation(&self, at: usize, operator: Operator, left: &Node, right: &Node) -> Checked {
        let signatures = match operator {
            Operator::Equal | Operator::NotEqual => &EQUALITY,
            Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual => &ORDER,
            Operator::In => &IN,
            Operator::Add => &ADD,
            Operator::Subtract => &SUBTRACT,
            Operator::Multiply | Operator::Divide => &MULTIPLY,
            Operator::Remainder => &REMAINDER,
        };
        self.checked(at, operator.sign(), signatures.iter(), &[left.of.clone(), right.of.clone()])
    }

    pub(super) fn negation(&self, at: usize, operand: &Node) -> Checked {
        self.checked(at, "-", NEGATE.iter(), slice::from_ref(&operand.of))
    }

    pub(super) fn field(&self, at: usize, of: &Type, name: &str) -> Checked {
        match of {
            Type::Dyn => Ok(Type::Dyn),
            Type::Map(key, value) if matches!(**key, Type::String | Type::Dyn) => Ok((**value).clone()),
            Type::Optional(inner) => Ok(Type::optional(self.field(at, inner, name)?)),
            other => {
                let name: String = name.chars().take(64).collect();
                self.error(at, format!("`.{name}` does not take {other}"))
            }
        }
    }

    pub(super) fn element(&self, at: usize, operand: &Node, index: &Node) -> Checked {
        self.checked(at, "[]", INDEX.iter(), &[operand.of.clone(), index.of.clone()])
    }

    /// The type of an element of a literal. With `?`, it is the type inside the optional.
    pub(super) fn optional_entry(&self, at: usize, optional: bool, value: &Node) -> Checked {
        match &value.of {
            of if !optional => Ok(of.clone()),
            Type::Dyn => Ok(Type::Dyn),
            Type::Optional(inner) => Ok((**inner).clone()),
            other => self.error(at, format!("`?` must precede an optional, such as x.?y, not {other}")),
        }
    }

    pub(super) fn key(&self, key: &Node) -> Result<(), CompileError> {
        match key.of {
            Type::Dyn | Type::Bool | Type::Int | Type::Uint | Type::String => Ok(()),
            ref other => {
                self.error(key.at, format!("a map key must be a string, an int, a uint or a bool, not {other}"))
            }
        }
    }

    /// The types of the variables of a macro: index or key, and value.
    pub(super) fn members(&self, at: usize, name: &str, range: &Node) -> Result<(Type, Type), CompileError> {
        match &range.of {
            Type::Dyn => Ok((Type::Dyn, Type::Dyn)),
            Type::List(element) => Ok((Type::Int, (**element).clone())),
            Type::Map(key, value) => Ok(((**key).clone(), (**value).clone())),
            other => self.error(at, format!("`{name}` iterates over a list or a map, not {other}")),
        }
    }

    /// Checks a call of `format` whose text and list of values are literals.
    pub(super) fn format(&self, arguments: &[Node]) -> Result<(), CompileError> {
        let [Node { kind: Kind::Literal(Value::String(text)), at, .. }, Node { kind: Kind::List(values), .. }] =
            arguments
        else {
            return Ok(());
        };
        let mut values = values.iter().map(|(_, value)| value);
        let mut rest = &**text;
        while let Some((_, after)) = rest.split_once('%') {
            if let Some(after) = after.strip_prefix('%') {
                rest = after;
                continue;
            }
            let Some((letter, _, after)) = format::clause(after) else {
                return self.error(*at, "`%` must be followed by s, d, f, e, b, o, x, X or another `%`");
            };
            let Some(value) = values.next() else {
                return self.error(*at, format!("`%{letter}` has no value; add one to the list for each `%`"));
            };
            let fits = match (&value.of, letter) {
                (Type::Dyn, _) => true,
                (Type::Int | Type::Uint, letter) => "sdbxXo".contains(letter),
                (Type::Double, letter) => "sfe".contains(letter),
                (Type::Bool, letter) => "sb".contains(letter),
                (Type::String, 'f' | 'e') => {
                    matches!(&value.kind, Kind::Literal(Value::String(text)) if matches!(&**text, "NaN" | "Infinity" | "-Infinity"))
                }
                (Type::String | Type::Bytes, letter) => "sxX".contains(letter),
                (Type::Optional(_) | Type::Named(_), _) => false,
                (_, letter) => letter == 's',
            };
            if !fits {
                return self.error(value.at, format!("`%{letter}` does not take {}", value.of));
            }
            rest = after;
        }
        Ok(())
    }

    /// Checks the conversion of a literal. If it fails now, it fails at each evaluation.
    pub(super) fn conversion(&self, function: &Function, arguments: &[Node]) -> Result<(), CompileError> {
        let [Node { kind: Kind::Literal(literal), at, .. }] = arguments else { return Ok(()) };
        let expected = match function.name {
            "duration" => "duration; use hours, minutes and seconds, such as '36h' or '1h30m'",
            "timestamp" => "timestamp; use RFC 3339 with a year from 1 to 9999, such as '2025-11-08T14:00:00Z'",
            "int" => "int; use a whole number of 64 bits, such as '42'",
            "uint" => "uint; use a whole number of 64 bits that is not negative, such as '42'",
            "double" => "double; use a number, such as '0.5'",
            "bool" => "bool; use 'true' or 'false'",
            _ => return Ok(()),
        };
        match (function.call)(&mut Work::new(MOST_STEPS), slice::from_ref(literal)) {
            Ok(_) => Ok(()),
            Err(_) => self.error(*at, format!("invalid {expected}")),
        }
    }
}
