//! Types that are known at compilation, and the signatures of functions.

use std::fmt;

/// A type as far as it is known at compilation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// Any type, known only at evaluation.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Box<Self>),
    Map(Box<Self>, Box<Self>),
    Optional(Box<Self>),
    Type,
    /// A type of the libraries.
    Named(&'static str),
    /// A type parameter of a signature. It has the same type wherever the letter occurs.
    Parameter(char),
}

impl Type {
    pub(super) fn list(element: Self) -> Self {
        Self::List(Box::new(element))
    }

    pub(super) fn optional(value: Self) -> Self {
        Self::Optional(Box::new(value))
    }

    /// The common type of two types. `None` if they are incompatible.
    pub(super) fn joined(&self, other: &Self) -> Option<Self> {
        if self == other {
            return Some(self.clone());
        }
        Some(match (self, other) {
            (Self::Dyn, _) | (_, Self::Dyn) => Self::Dyn,
            (Self::List(left), Self::List(right)) => Self::list(left.joined(right)?),
            (Self::Optional(left), Self::Optional(right)) => Self::optional(left.joined(right)?),
            (Self::Map(left_key, left), Self::Map(right_key, right)) => {
                Self::Map(Box::new(left_key.joined(right_key)?), Box::new(left.joined(right)?))
            }
            (Self::Null, other) | (other, Self::Null) if other.takes_null() => other.clone(),
            _ => return None,
        })
    }

    const fn takes_null(&self) -> bool {
        matches!(self, Self::Timestamp | Self::Duration | Self::Optional(_) | Self::Named(_))
    }

    /// Whether `wanted` accepts a value of this type. Records the types of the parameters in `letters`.
    fn fits(&self, wanted: &Self, letters: &mut Vec<(char, Self)>) -> bool {
        match (self, wanted) {
            (_, Self::Parameter(letter)) => {
                match letters.iter().position(|(known, _)| known == letter) {
                    None => letters.push((*letter, self.clone())),
                    Some(at) => match letters[at].1.joined(self) {
                        Some(joined) => letters[at].1 = joined,
                        None => return false,
                    },
                }
                true
            }
            (Self::Dyn, _) => {
                wanted.name_letters(letters);
                true
            }
            (_, Self::Dyn) => true,
            (Self::List(element), Self::List(wanted)) => element.fits(wanted, letters),
            (Self::Optional(value), Self::Optional(wanted)) => value.fits(wanted, letters),
            (Self::Map(key, value), Self::Map(wanted_key, wanted)) => {
                key.fits(wanted_key, letters) && value.fits(wanted, letters)
            }
            (Self::Null, wanted) if wanted.takes_null() => true,
            _ => self == wanted,
        }
    }

    /// Records all parameters of this type as `Dyn`.
    fn name_letters(&self, letters: &mut Vec<(char, Self)>) {
        match self {
            Self::Parameter(_) => {
                Self::Dyn.fits(self, letters);
            }
            Self::List(inner) | Self::Optional(inner) => inner.name_letters(letters),
            Self::Map(key, value) => {
                key.name_letters(letters);
                value.name_letters(letters);
            }
            _ => {}
        }
    }

    fn filled(&self, letters: &[(char, Self)]) -> Self {
        match self {
            Self::Parameter(letter) => {
                letters.iter().find(|(known, _)| known == letter).map_or(Self::Dyn, |(_, known)| known.clone())
            }
            Self::List(inner) => Self::list(inner.filled(letters)),
            Self::Optional(inner) => Self::optional(inner.filled(letters)),
            Self::Map(key, value) => Self::Map(Box::new(key.filled(letters)), Box::new(value.filled(letters))),
            other => other.clone(),
        }
    }

    fn parse(text: &str) -> Self {
        let inside = |name: &str| text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
        if let Some(element) = inside("list") {
            return Self::list(Self::parse(element));
        }
        if let Some(value) = inside("optional") {
            return Self::optional(Self::parse(value));
        }
        if let Some((key, value)) = inside("map").and_then(|entry| entry.split_once(", ")) {
            return Self::Map(Box::new(Self::parse(key)), Box::new(Self::parse(value)));
        }
        match text {
            "null" => Self::Null,
            "bool" => Self::Bool,
            "int" => Self::Int,
            "uint" => Self::Uint,
            "double" => Self::Double,
            "string" => Self::String,
            "bytes" => Self::Bytes,
            "timestamp" => Self::Timestamp,
            "duration" => Self::Duration,
            "type" => Self::Type,
            "URL" => Self::Named("URL"),
            "quantity" => Self::Named("quantity"),
            "IP" => Self::Named("IP address"),
            "CIDR" => Self::Named("CIDR"),
            "semver" => Self::Named("version"),
            "format" => Self::Named("format"),
            "A" => Self::Parameter('A'),
            "B" => Self::Parameter('B'),
            _ => Self::Dyn,
        }
    }
}

/// The name of the type in error messages.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dyn | Self::Parameter(_) => "a dyn",
            Self::Null => "null",
            Self::Bool => "a bool",
            Self::Int => "an int",
            Self::Uint => "a uint",
            Self::Double => "a double",
            Self::String => "a string",
            Self::Bytes => "bytes",
            Self::Timestamp => "a timestamp",
            Self::Duration => "a duration",
            Self::List(_) => "a list",
            Self::Map(..) => "a map",
            Self::Optional(_) => "an optional",
            Self::Type => "a type",
            Self::Named(name) => return write!(f, "{} {name}", if *name == "IP address" { "an" } else { "a" }),
        })
    }
}

/// One way to call a function.
#[derive(Debug)]
pub(super) struct Signature {
    /// Whether the first parameter is the receiver, before the dot.
    pub receiver: bool,
    pub parameters: Vec<Type>,
    pub result: Type,
}

impl Signature {
    /// Parses signatures, which ` | ` separates: `string.(int) string` with a receiver, `(int) string` without one.
    pub fn parse(text: &str) -> Vec<Self> {
        text.split(" | ").map(Self::parse_one).collect()
    }

    fn parse_one(text: &str) -> Self {
        let (receiver, rest) = match text.find(".(") {
            Some(dot) => (Some(Type::parse(&text[..dot])), &text[dot + 1..]),
            None => (None, text),
        };
        let mut depth = 0_usize;
        let mut parts = vec![String::new()];
        let mut result = "";
        for (at, c) in rest.char_indices() {
            match c {
                '(' if depth == 0 => depth = 1,
                ')' if depth == 1 => {
                    result = rest[at + 1..].trim_start();
                    break;
                }
                ',' if depth == 1 => parts.push(String::new()),
                c => {
                    depth = if c == '(' { depth + 1 } else { depth - usize::from(c == ')') };
                    if let Some(part) = parts.last_mut() {
                        part.push(c);
                    }
                }
            }
        }
        let parameters = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty()).map(Type::parse);
        Self {
            receiver: receiver.is_some(),
            parameters: receiver.clone().into_iter().chain(parameters).collect(),
            result: Type::parse(result),
        }
    }

    /// The result type of a call with these argument types. `None` if the signature does not accept them.
    pub fn result_of(&self, arguments: &[Type]) -> Option<Type> {
        if self.parameters.len() != arguments.len() {
            return None;
        }
        let mut letters = Vec::new();
        let fits = arguments.iter().zip(&self.parameters).all(|(have, want)| have.fits(want, &mut letters));
        fits.then(|| self.result.filled(&letters))
    }
}

/// The result type of a call with these argument types. `None` if no signature accepts them. If several do, and their
/// results differ, it is `Dyn`.
pub(super) fn result_of<'a>(signatures: impl IntoIterator<Item = &'a Signature>, arguments: &[Type]) -> Option<Type> {
    let mut results = signatures.into_iter().filter_map(|signature| signature.result_of(arguments));
    let first = results.next()?;
    Some(results.fold(first, |known, other| if known == other { known } else { Type::Dyn }))
}

/// The names of these types, for error messages.
pub(super) fn type_names(types: &[Type]) -> String {
    types.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_signatures() {
        let signatures = Signature::parse("map(A, B).(A, list(B)) optional(B) | () string");
        assert_eq!(signatures.len(), 2);
        assert!(signatures[0].receiver && !signatures[1].receiver);
        assert_eq!(signatures[0].parameters.len(), 3);
        let arguments = [Type::Map(Box::new(Type::String), Box::new(Type::Int)), Type::String, Type::list(Type::Int)];
        assert_eq!(signatures[0].result_of(&arguments), Some(Type::optional(Type::Int)));
        assert_eq!(signatures[0].result_of(&[Type::Dyn, Type::Dyn, Type::Dyn]), Some(Type::optional(Type::Dyn)));
        assert_eq!(signatures[0].result_of(&[Type::Int, Type::Dyn, Type::Dyn]), None);
        assert_eq!(signatures[1].result_of(&[]), Some(Type::String));
    }
}
