//! Expressions that users write over JSON documents, in the apiserver's own dialect of CEL.
//!
//! Text → [`Expression::compile`] → [`Expression::holds`] or [`Expression::value`] on [`Document`]s. Everything is bounded:
//! the text, its depth, the nesting of macros, its patterns, and the work of an evaluation, which is counted step by step.
//!
//! **What is missing** is neither true nor false, as NULL in SQL. Missing are: a field or key that a map lacks, any field of
//! `null`, an index beyond a list's end. It passes through operators, functions and `!`; `missing || true` is true and
//! `missing && false` is false, also among a list's elements under `exists` and `all`. Where a truth decides, missing
//! counts as not so: as the whole expression, before `?`, and for an element under `filter`, `map` and `exists_one`. So neither
//! `a.b == 'x'` nor `a.b != 'x'` holds where `b` is missing; `!has(a.b)` does. `has` is false where any part of its path is missing.
//!
//! **Errors** are what no document makes true, such as comparing a string with a number by `<`. They are told rather than taken as
//! false, unless `||` or `&&` is decided without them.
//!
//! Beyond CEL's operators, macros and conversions there are the apiserver's functions of strings, lists, sets, numbers, regular
//! expressions (with a literal pattern), URLs, IP addresses, CIDRs, quantities, versions and base64. There are no optional
//! values, no messages and no types as values. Fields are named as in the document; what is no identifier is written in
//! brackets and quotes.

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

/// The most bytes that an expression's text may have.
pub const LONGEST: usize = 4096;

/// An expression that has been read and found well formed; cheap to clone.
#[derive(Clone)]
pub struct Expression(Arc<Compiled>);

struct Compiled {
    text: String,
    root: Node,
}

impl Expression {
    /// Reads an expression. `variables` are the names that it may use; any other is an error that lists them. Nothing is known
    /// of their types.
    pub fn compile(text: &str, variables: &[&'static str]) -> Result<Self, CompileError> {
        let variables: Vec<_> = variables.iter().map(|name| (*name, Type::Dyn)).collect();
        Self::compile_typed(text, &variables)
    }

    /// As [`Self::compile`], with what is known of the variables' types.
    pub fn compile_typed(text: &str, variables: &[(&'static str, Type)]) -> Result<Self, CompileError> {
        let root = parser::parse(text, variables)?;
        Ok(Self(Arc::new(Compiled { text: text.to_owned(), root })))
    }

    /// As [`Self::compile_typed`], for [`Self::holds`]: what can be no bool is refused.
    pub fn compile_condition(text: &str, variables: &[(&'static str, Type)]) -> Result<Self, CompileError> {
        let expression = Self::compile_typed(text, variables)?;
        match &expression.0.root.of {
            Type::Bool | Type::Dyn => Ok(expression),
            other => {
                let message = format!("it yields {other}, not a bool: compare it with something");
                Err(CompileError::Malformed { at: Position { line: 1, column: 1 }, message })
            }
        }
    }

    /// What was compiled.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// Whether it is true, with these documents as its variables; a variable that is not there is missing. What is missing is
    /// not so: false. A value that is no bool is an error.
    pub fn holds(&self, scope: &[(&'static str, &Document)]) -> Result<bool, EvaluationError> {
        match self.evaluate(scope)?.1 {
            None => Ok(false),
            Some(Value::Bool(truth)) => Ok(truth),
            Some(other) => Err(EvaluationError::NotBool(other.type_name())),
        }
    }

    /// Its value as JSON; `None` where it is missing or null. Timestamps and durations become strings, as `string()` makes
    /// them; what JSON cannot say of doubles becomes `"NaN"`, `"Infinity"` or `"-Infinity"`. Bytes and the values of the
    /// libraries, such as a quantity, are an error.
    pub fn value(&self, scope: &[(&'static str, &Document)]) -> Result<Option<serde_json::Value>, EvaluationError> {
        let (mut evaluation, value) = self.evaluate(scope)?;
        match value {
            None | Some(Value::Null) => Ok(None),
            Some(value) => evaluation.json(&value),
        }
    }

    /// Whether it reads what is at `path` of a variable, or something above or below it. True where that cannot be told, such
    /// as for a variable that is passed on whole or indexed by what is computed.
    pub fn reads(&self, variable: &str, path: &[&str]) -> bool {
        self.0.root.reads(variable, path)
    }

    fn evaluate<'a>(
        &'a self,
        scope: &'a [(&'static str, &'a Document)],
    ) -> Result<(Evaluation<'a>, Option<Value>), EvaluationError> {
        let mut evaluation = Evaluation::new(&self.0.text, scope);
        // The last guard: a panic of a library over some argument must cost this evaluation, not the process.
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

/// By text.
impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl Eq for Expression {}
