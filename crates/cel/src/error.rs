//! What is wrong with an expression: at compilation with its place, at evaluation in bounded words.

use std::fmt;

/// Where in an expression's text something begins; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl Position {
    /// Of the byte at `offset`, which is at most the text's length.
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

/// Why a text is no expression: where, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("the expression has {0} bytes; write one of at most {most}", most = super::LONGEST)]
    TooLong(usize),
    #[error("{at}: {message}")]
    Malformed { at: Position, message: String },
}

/// Why an expression has no value on these documents. One sentence of at most 256 characters; nothing of a document's content
/// but types and the names of keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    #[error("it yields {0}, not a bool: compare it with something")]
    NotBool(&'static str),
    #[error("it yields {0}, which JSON has no form for: yield a string or a number")]
    NotJson(&'static str),
    #[error("{at}: `{operation}` does not take {types}")]
    Types { at: Position, operation: String, types: String },
    #[error("{at}: `{function}` cannot make anything of what it is given here ({types})")]
    Function { at: Position, function: String, types: String },
    #[error("{at}: the result of `{operation}` is out of range")]
    Range { at: Position, operation: &'static str },
    #[error("{at}: division by zero: ask whether the divisor is 0 before")]
    DivisionByZero { at: Position },
    #[error("{at}: `{operation}` has no answer for NaN, which is neither less nor greater than a number")]
    NotANumber { at: Position, operation: &'static str },
    #[error("it met a bug of this release on this object: please report it with the expression")]
    Panicked,
    #[error(
        "{at}: it takes more work than an expression may on an object of this size: iterate over less, or compare shorter strings"
    )]
    Work { at: Position },
}
