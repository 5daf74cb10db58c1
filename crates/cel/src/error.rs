//! Errors of compilation, with a position in the text, and of evaluation, with messages of bounded length.

use std::fmt;

/// A position in an expression's text. Lines and columns start at 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl Position {
    /// The position of the byte at `offset`, which is at most the length of the text.
    pub(super) fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Why a text does not compile: the position, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("the expression has {0} bytes; the maximum is {most}", most = super::LONGEST)]
    TooLong(usize),
    #[error("{at}: {message}")]
    Malformed { at: Position, message: String },
}

/// Why an evaluation fails. A message has at most 256 characters. Of a document's content, it contains only types and
/// the names of keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    #[error("the expression returns {0}, not a bool; compare it with a value")]
    NotBool(&'static str),
    #[error("the expression returns {0}, which JSON cannot represent; return a string or a number")]
    NotJson(&'static str),
    #[error("{at}: `{operation}` does not take {types}")]
    Types { at: Position, operation: String, types: String },
    #[error("{at}: `{function}` failed: an argument has an invalid value ({types})")]
    Function { at: Position, function: String, types: String },
    #[error("{at}: the result of `{operation}` is out of range")]
    Range { at: Position, operation: &'static str },
    #[error("{at}: division by zero; check the divisor first")]
    DivisionByZero { at: Position },
    #[error("{at}: `{operation}` cannot compare NaN with a number")]
    NotANumber { at: Position, operation: &'static str },
    #[error("the evaluation failed because of a bug in this release; please report it with the expression")]
    Panicked,
    #[error("{at}: the evaluation takes too much work; iterate over fewer elements, or compare shorter strings")]
    Work { at: Position },
}
