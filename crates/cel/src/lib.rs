//! Evaluates expressions over JSON documents, in the apiserver's dialect of CEL.
//!
//! [`Expression::compile`] compiles a text. [`Expression::holds`] and [`Expression::value`] evaluate it on
//! [`Document`]s. Everything is bounded: the text, its depth, the nesting of macros, its patterns, and the work of an
//! evaluation, which is counted step by step.
//!
//! **Missing values** are neither true nor false, as NULL in SQL. Missing are: a field or key that a map does not have,
//! any field of `null`, an index beyond the end of a list, and the value of an empty optional. A missing operand makes
//! the result of an operator or function missing. `missing || true` is true and `missing && false` is false, also among
//! the elements of a list under `exists` and `all`. A condition that is missing counts as false: the whole expression,
//! the condition before `?`, and the condition of an element under `filter`, `map` and `exists_one`. So neither
//! `a.b == 'x'` nor `a.b != 'x'` is true if `b` is missing; `!has(a.b)` is. `has` is false if any part of its path is
//! missing.
//!
//! **Errors** are mistakes in the expression, such as comparing a string with a number by `<`. An error is reported,
//! and does not count as false. `||` and `&&` ignore an error if another operand decides the result.
//!
//! Besides the operators, macros and conversions of CEL, expressions may use the apiserver's functions for strings,
//! lists, sets, regular expressions, URLs, IP addresses, CIDRs, quantities, versions and formats, and the `math` and
//! `base64` functions of cel-go. Messages are not supported.

mod document;
mod error;
mod evaluate;
mod functions;
mod lexer;
mod parser;
mod tree;
mod types;
mod value;
mod work;

#[cfg(test)]
mod tests;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

pub use document::Document;
pub use error::{CompileError, EvaluationError, Position};
pub use types::Type;

use evaluate::Evaluation;
use tree::Node;
use value::Value;

/// Maximum length of an expression, in bytes.
pub const LONGEST: usize = 4096;

/// A compiled expression; cheap to clone.
#[derive(Clone)]
pub struct Expression(Arc<Compiled>);

struct Compiled {
    text: String,
    root: Node,
}

impl Expression {
    /// Compiles an expression that may use these variables, of unknown types. The error for another name lists them.
    pub fn compile(text: &str, variables: &[&'static str]) -> Result<Self, CompileError> {
        let variables: Vec<_> = variables.iter().map(|name| (*name, Type::Dyn)).collect();
        Self::compile_typed(text, &variables)
    }

    /// Like [`Self::compile`], with the types of the variables.
    pub fn compile_typed(text: &str, variables: &[(&'static str, Type)]) -> Result<Self, CompileError> {
        let root = parser::parse(text, variables)?;
        Ok(Self(Arc::new(Compiled { text: text.to_owned(), root })))
    }

    /// Like [`Self::compile_typed`], for [`Self::holds`]: refuses an expression whose type is known and is not bool.
    pub fn compile_condition(text: &str, variables: &[(&'static str, Type)]) -> Result<Self, CompileError> {
        let expression = Self::compile_typed(text, variables)?;
        match &expression.0.root.of {
            Type::Bool | Type::Dyn => Ok(expression),
            other => {
                let message = format!("the expression returns {other}, not a bool; compare it with a value");
                Err(CompileError::Malformed { at: Position { line: 1, column: 1 }, message })
            }
        }
    }

    /// The text of the expression.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// Whether the expression is true, with these documents as variables. A variable without a document is missing. A
    /// missing result counts as false. A result that is not a bool is an error.
    pub fn holds(&self, scope: &[(&'static str, &Document)]) -> Result<bool, EvaluationError> {
        match self.evaluate(scope)?.1 {
            None => Ok(false),
            Some(Value::Bool(truth)) => Ok(truth),
            Some(other) => Err(EvaluationError::NotBool(other.type_name())),
        }
    }

    /// The result as JSON; `None` if it is missing or null. Timestamps and durations become strings, as `string()`
    /// formats them. Doubles that JSON cannot represent become `"NaN"`, `"Infinity"` or `"-Infinity"`. Bytes, types and
    /// values of the libraries, such as quantities, are an error.
    pub fn value(&self, scope: &[(&'static str, &Document)]) -> Result<Option<serde_json::Value>, EvaluationError> {
        let (mut evaluation, value) = self.evaluate(scope)?;
        match value {
            None | Some(Value::Null) => Ok(None),
            Some(value) => evaluation.json(&value),
        }
    }

    /// Whether the expression reads the value at `path` of a variable, or a value above or below it. True if that is
    /// not known, for example if the variable is passed to a function, or indexed by a computed value.
    pub fn reads(&self, variable: &str, path: &[&str]) -> bool {
        self.0.root.reads(variable, path)
    }

    fn evaluate<'a>(
        &'a self,
        scope: &'a [(&'static str, &'a Document)],
    ) -> Result<(Evaluation<'a>, Option<Value>), EvaluationError> {
        let mut evaluation = Evaluation::new(&self.0.text, scope);
        // A library may panic on unusual arguments. That must end only this evaluation, not the process.
        let outcome = catch_unwind(AssertUnwindSafe(|| evaluation.outcome(&self.0.root)));
        let value = outcome.unwrap_or(Err(EvaluationError::Panicked))?;
        Ok((evaluation, value))
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.0.text).finish()
    }
}

/// Compares the texts.
impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl Eq for Expression {}
