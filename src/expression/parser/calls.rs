//! Calls and macros: what they are, how many arguments they have, and the patterns that they compile.

use kube_cel::cel::Value;
use regex::{Regex, RegexBuilder};

use super::{Parsed, Parser, RESERVED};
use crate::expression::functions::{self, Form};
use crate::expression::lexer::Token;
use crate::expression::tree::{Kind, Macro, Match, Node, Own};

/// How many macros may stand in one another: the work grows by a power with each.
const NESTED_MACROS: usize = 2;
/// Bytes that a compiled pattern may take; the first of these that suffices tells how slow it may be.
const PATTERN_SIZES: [usize; 4] = [1 << 12, 1 << 14, 1 << 16, 1 << 18];
/// Of these bytes a step of the worst search looks at one.
const PATTERN_BYTES_A_STEP: usize = 1 << 11;
const LONGEST_PATTERN: usize = 256;

const MACROS: [&str; 6] = ["all", "exists", "exists_one", "existsOne", "map", "filter"];
const OWN: [(&str, Own, Form, (usize, usize)); 8] = [
    ("size", Own::Size, Form::Either, (0, 0)),
    ("startsWith", Own::StartsWith, Form::Method, (1, 1)),
    ("endsWith", Own::EndsWith, Form::Method, (1, 1)),
    ("contains", Own::Contains, Form::Method, (1, 1)),
    ("join", Own::Join, Form::Method, (0, 1)),
    ("sum", Own::Sum, Form::Method, (0, 0)),
    ("string", Own::String, Form::Either, (0, 0)),
    ("dyn", Own::Dyn, Form::Global, (1, 1)),
];
const PATTERNS: [(&str, Match); 3] = [("matches", Match::Matches), ("find", Match::Find), ("findAll", Match::FindAll)];
/// Where functions are described.
const SEE: &str = "https://kubernetes.io/docs/reference/using-api/cel/ lists them";

impl Parser<'_> {
    /// A call that begins with the function's name; the bracket is next.
    pub(super) fn function(&mut self, at: usize, name: &str) -> Parsed {
        let open = self.at();
        if name == "has" {
            self.advance();
            let mut arguments = self.list(")", open)?;
            return match (arguments.pop(), arguments.pop()) {
                (Some(Node { kind: Kind::Select(operand, field), .. }), None) => {
                    self.node(at, Kind::Has(operand, field))
                }
                _ => self.error(at, "has() takes one field, such as has(x.y); for a key write 'key' in x"),
            };
        }
        let Some((form, callee)) = Callee::find(name) else {
            let message = if MACROS.contains(&name) {
                format!("`{name}` follows what it goes over, such as xs.{name}(x, …)")
            } else {
                format!("there is no function `{name}`; {SEE}")
            };
            return self.error(at, message);
        };
        if form == Form::Method {
            return self.error(at, format!("`{name}` follows what it is asked of, such as x.{name}(…)"));
        }
        self.advance();
        let arguments = self.list(")", open)?;
        self.call(at, name, &callee, false, arguments)
    }

    /// A call after a dot; the bracket is next.
    pub(super) fn method(&mut self, at: usize, receiver: Node, name: &str) -> Parsed {
        let open = self.at();
        if MACROS.contains(&name) {
            return self.comprehension(at, receiver, name);
        }
        let Some((form, callee)) = Callee::find(name) else {
            return self.error(at, format!("there is no function `{name}`; {SEE}"));
        };
        if form == Form::Global {
            return self.error(at, format!("`{name}` is written before what it takes, such as {name}(x)"));
        }
        self.advance();
        let mut arguments = vec![receiver];
        arguments.extend(self.list(")", open)?);
        self.call(at, name, &callee, true, arguments)
    }

    fn call(&self, at: usize, name: &str, callee: &Callee, receiver: bool, arguments: Vec<Node>) -> Parsed {
        let (least, most) = callee.arguments();
        // Of what may be written either way, the first argument stands for the receiver.
        let either = usize::from(callee.form() == Form::Either || receiver);
        if !(least + either..=most + either).contains(&arguments.len()) {
            let given = arguments.len() - usize::from(receiver);
            let (least, most) = (least + either - usize::from(receiver), most + either - usize::from(receiver));
            let range = if least == most { least.to_string() } else { format!("{least} to {most}") };
            let noun = if range == "1" { "argument" } else { "arguments" };
            return self.error(at, format!("`{name}` takes {range} {noun}, and is given {given}"));
        }
        let kind = match callee {
            Callee::Own(own, ..) => Kind::Own(*own, arguments),
            Callee::Library(function) => {
                let call = Box::new(functions::call(function, receiver, arguments.len()));
                Kind::Call { function, call, arguments }
            }
            Callee::Pattern(role) => {
                let Some(Node { kind: Kind::Literal(Value::String(pattern)), at: pattern_at, .. }) = arguments.get(1)
                else {
                    return self.error(at, format!("`{name}` takes a pattern in quotes, such as x.{name}('^a.*z$')"));
                };
                if pattern.len() > LONGEST_PATTERN {
                    return self.error(*pattern_at, format!("this pattern is longer than {LONGEST_PATTERN} bytes"));
                }
                match sized(pattern) {
                    Ok((pattern, size)) => {
                        let steps_a_byte = (size / PATTERN_BYTES_A_STEP) as u64;
                        Kind::Matches { role: *role, pattern, steps_a_byte, arguments }
                    }
                    Err(regex::Error::CompiledTooBig(_)) => {
                        return self
                            .error(*pattern_at, "this pattern is too large; repeat less, and [0-9] rather than \\d");
                    }
                    Err(error) => {
                        let error = error.to_string();
                        let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                        return self
                            .error(*pattern_at, format!("this is no regular expression of RE2's syntax: {reason}"));
                    }
                }
            }
        };
        self.node(at, kind)
    }

    fn comprehension(&mut self, at: usize, range: Node, name: &str) -> Parsed {
        let open = self.at();
        self.advance();
        let element_at = self.at();
        let (Token::Identifier(element), true) = (self.advance(), self.is(",")) else {
            let message =
                format!("`{name}` takes a name for an element and what is asked of it, such as xs.{name}(x, …)");
            return self.error(element_at, message);
        };
        if RESERVED.contains(&element.as_str()) || matches!(element.as_str(), "true" | "false" | "null") {
            return self
                .error(element_at, format!("`{element}` is a word that CEL keeps for itself; take another name"));
        }
        if self.elements.len() == NESTED_MACROS {
            let message = format!("all, exists, map and filter may be nested {NESTED_MACROS} deep, not deeper");
            return self.error(at, message);
        }
        self.advance();
        self.elements.push(element);
        let arguments = self.list(")", open);
        self.elements.pop();
        let mut arguments = arguments?;
        let (body, condition) = match (arguments.pop(), arguments.pop(), arguments.is_empty()) {
            (Some(body), None, _) => (body, None),
            (Some(body), Some(condition), true) if name == "map" => (body, Some(Box::new(condition))),
            _ => {
                let most = if name == "map" {
                    "a name, a condition if need be, and an expression"
                } else {
                    "a name and a condition"
                };
                return self.error(at, format!("`{name}` takes {most}, such as xs.{name}(x, …)"));
            }
        };
        let role = match name {
            "all" => Macro::All,
            "exists" => Macro::Exists,
            "map" => Macro::Map(condition),
            "filter" => Macro::Filter,
            _ => Macro::ExistsOne,
        };
        self.node(at, Kind::Macro { role, range: Box::new(range), body: Box::new(body) })
    }
}

/// A pattern, compiled within the least bound that suffices.
fn sized(pattern: &str) -> Result<(Regex, usize), regex::Error> {
    let mut too_big = regex::Error::CompiledTooBig(0);
    for size in PATTERN_SIZES {
        match RegexBuilder::new(pattern).size_limit(size).build() {
            Ok(pattern) => return Ok((pattern, size)),
            Err(error @ regex::Error::CompiledTooBig(_)) => too_big = error,
            Err(error) => return Err(error),
        }
    }
    Err(too_big)
}

enum Callee {
    Own(Own, Form, (usize, usize)),
    Pattern(Match),
    Library(&'static functions::Function),
}

impl Callee {
    fn find(name: &str) -> Option<(Form, Self)> {
        let own =
            OWN.into_iter().find(|(own, ..)| *own == name).map(|(_, own, form, range)| Self::Own(own, form, range));
        let pattern = || PATTERNS.into_iter().find(|(own, _)| *own == name).map(|(_, role)| Self::Pattern(role));
        let callee = own.or_else(pattern).or_else(|| functions::find(name).map(Self::Library))?;
        Some((callee.form(), callee))
    }

    fn form(&self) -> Form {
        match self {
            Self::Own(_, form, _) => *form,
            Self::Pattern(_) => Form::Method,
            Self::Library(function) => function.form,
        }
    }

    fn arguments(&self) -> (usize, usize) {
        match self {
            Self::Own(_, _, range) => *range,
            Self::Pattern(_) => (1, 1),
            Self::Library(function) => function.arguments,
        }
    }
}
