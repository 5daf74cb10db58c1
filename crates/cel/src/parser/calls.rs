//! Parses calls and macros, checks their arguments, and compiles patterns.

use super::{Parsed, Parser, RESERVED};
use crate::error::CompileError;
use crate::functions::regex::{LONGEST, Match, Pattern, Unusable};
use crate::functions::{self, Function};
use crate::lexer::Token;
use crate::tree::{Comprehension, Kind, Macro, Node};
use crate::types::Type;
use crate::value::Value;

/// The macros by name.
const MACROS: [(&str, Macro); 10] = [
    ("all", Macro::All),
    ("exists", Macro::Exists),
    ("exists_one", Macro::ExistsOne),
    ("existsOne", Macro::ExistsOne),
    ("map", Macro::Map),
    ("filter", Macro::Filter),
    ("transformList", Macro::Map),
    ("transformMap", Macro::TransformMap),
    ("transformMapEntry", Macro::TransformMapEntry),
    ("sortBy", Macro::SortBy),
];
const PATTERNS: [(&str, Match); 3] = [("matches", Match::Matches), ("find", Match::Find), ("findAll", Match::FindAll)];
/// Points to the list of functions.
const SEE: &str = "see https://kubernetes.io/docs/reference/using-api/cel/";

fn find_macro(name: &str) -> Option<Macro> {
    MACROS.into_iter().find(|(known, _)| *known == name).map(|(_, role)| role)
}

impl Parser<'_> {
    /// Parses a call that begins with the function's name. The bracket is next.
    pub(super) fn function(&mut self, at: usize, name: &str) -> Parsed {
        let open = self.at();
        if name == "has" {
            self.advance();
            let mut arguments = self.list(")", open)?;
            return match (arguments.pop(), arguments.pop()) {
                (Some(Node { kind: Kind::Select(operand, field), .. }), None) => {
                    self.node(at, Type::Bool, Kind::Has(operand, field))
                }
                _ => self.error(at, "has() takes one field, such as has(x.y); for a key, use 'key' in x"),
            };
        }
        let Some(function) = functions::find(name) else {
            let message = if find_macro(name).is_some() {
                format!("call `{name}` on a list or a map, such as xs.{name}(x, …)")
            } else {
                format!("unknown function `{name}`; {SEE}")
            };
            return self.error(at, message);
        };
        if function.signatures.iter().all(|signature| signature.receiver) {
            return self.error(at, format!("call `{name}` as a method, such as x.{name}(…)"));
        }
        self.advance();
        let arguments = self.list(")", open)?;
        self.call(at, function, false, arguments)
    }

    /// Parses a call after a dot. The bracket is next.
    pub(super) fn method(&mut self, at: usize, receiver: Node, name: &str) -> Parsed {
        let open = self.at();
        if let Some(role) = find_macro(name) {
            return self.comprehension(at, receiver, name, role);
        }
        match name {
            "optMap" | "optFlatMap" => return self.optional_map(at, receiver, name),
            "or" | "orValue" => return self.otherwise(at, receiver, name),
            _ => {}
        }
        let Some(function) = functions::find(name) else {
            return self.error(at, format!("unknown function `{name}`; {SEE}"));
        };
        if !function.signatures.iter().any(|signature| signature.receiver) {
            return self.error(at, format!("call `{name}` as a function, such as {name}(x)"));
        }
        self.advance();
        let mut arguments = vec![receiver];
        arguments.extend(self.list(")", open)?);
        self.call(at, function, true, arguments)
    }

    fn call(&mut self, at: usize, function: &'static Function, receiver: bool, arguments: Vec<Node>) -> Parsed {
        let name = function.name;
        let ways = || function.signatures.iter().filter(|signature| signature.receiver == receiver);
        let counts = || ways().map(|signature| signature.parameters.len() - usize::from(receiver));
        let given = arguments.len() - usize::from(receiver);
        if !counts().any(|count| count == given) {
            let (least, most) = (counts().min().unwrap_or(0), counts().max().unwrap_or(0));
            let range = if least == most { least.to_string() } else { format!("{least} to {most}") };
            let noun = if range == "1" { "argument" } else { "arguments" };
            return self.error(at, format!("`{name}` takes {range} {noun}, not {given}"));
        }
        let types: Vec<Type> = arguments.iter().map(|argument| argument.of.clone()).collect();
        let of = self.checked(at, name, ways(), &types)?;
        self.conversion(function, &arguments)?;
        if name == "format" {
            self.format(&arguments)?;
        }
        let role = PATTERNS.into_iter().find(|(known, _)| *known == name).map(|(_, role)| role);
        let kind = match (role, arguments.get(1)) {
            (Some(role), Some(Node { kind: Kind::Literal(Value::String(text)), at, .. })) => {
                let pattern = self.pattern(*at, role, text)?;
                Kind::Matches { role, pattern, arguments }
            }
            _ => Kind::Call { function, arguments },
        };
        self.node(at, of, kind)
    }

    fn pattern(&mut self, at: usize, role: Match, text: &str) -> Result<Pattern, CompileError> {
        if text.len() > LONGEST {
            return self.error(at, format!("the pattern is longer than {LONGEST} bytes; shorten it"));
        }
        match Pattern::compile(text, role, &mut self.room) {
            Ok(pattern) => Ok(pattern),
            Err(Unusable::TooLarge) => {
                self.error(at, "the patterns of this expression are too large; use fewer repetitions")
            }
            Err(Unusable::Malformed(reason)) => {
                self.error(at, format!("invalid regular expression (RE2 syntax): {reason}"))
            }
        }
    }

    /// Parses a variable of a macro. A comma must follow.
    fn element_name(&mut self, name: &str) -> Result<String, CompileError> {
        let at = self.at();
        let (Token::Identifier(element), true) = (self.advance(), self.is(",")) else {
            let message = format!("`{name}` takes a variable and an expression, such as xs.{name}(x, …)");
            return self.error(at, message);
        };
        if RESERVED.contains(&element.as_str()) || element == "null" {
            return self.error(at, format!("`{element}` is a reserved word; use another name"));
        }
        self.advance();
        Ok(element)
    }

    fn comprehension(&mut self, at: usize, range: Node, name: &str, role: Macro) -> Parsed {
        let open = self.at();
        self.advance();
        let (first_of, second_of) = self.members(at, name, &range)?;
        let first = self.element_name(name)?;
        // A name before a comma is the second variable. Some macros always have two variables.
        let always_two = matches!(role, Macro::TransformMap | Macro::TransformMapEntry) || name == "transformList";
        let may_be_two = matches!(role, Macro::All | Macro::Exists | Macro::ExistsOne);
        let is_name = matches!((self.peek(), self.peek_second()), (Token::Identifier(_), Token::Sign(",")));
        let two = always_two || may_be_two && is_name;
        let before = self.elements.len();
        if two {
            let second_at = self.at();
            let second = self.element_name(name)?;
            if first == second {
                return self.error(second_at, format!("`{second}` names two variables; use another name"));
            }
            self.elements.push((first, first_of));
            self.elements.push((second, second_of));
        } else {
            // If the range is a map, a single variable is the key.
            let of = if matches!(range.of, Type::Map(..)) { first_of } else { second_of };
            self.elements.push((first, of));
        }
        let arguments = self.list(")", open);
        self.elements.truncate(before);
        let mut arguments = arguments?;
        let filters = always_two || name == "map";
        let (body, condition) = match (arguments.pop(), arguments.pop(), arguments.is_empty()) {
            (Some(body), None, _) => (body, None),
            (Some(body), Some(condition), true) if filters => (body, Some(condition)),
            _ => {
                let most = if filters {
                    "a variable, an optional condition and an expression"
                } else {
                    "a variable and a condition"
                };
                return self.error(at, format!("`{name}` takes {most}, such as xs.{name}(x, …)"));
            }
        };
        if let Some(condition) = &condition {
            self.truth(condition.at, name, condition)?;
        }
        let of = match role {
            Macro::All | Macro::Exists | Macro::ExistsOne => {
                self.truth(body.at, name, &body)?;
                Type::Bool
            }
            Macro::Filter => {
                self.truth(body.at, name, &body)?;
                match &range.of {
                    Type::Map(key, _) => Type::List(key.clone()),
                    Type::Dyn => Type::list(Type::Dyn),
                    other => other.clone(),
                }
            }
            Macro::Map => Type::list(body.of.clone()),
            Macro::TransformMap => {
                let key = match &range.of {
                    Type::Map(key, _) => (**key).clone(),
                    Type::List(_) => Type::Int,
                    _ => Type::Dyn,
                };
                Type::Map(Box::new(key), Box::new(body.of.clone()))
            }
            Macro::TransformMapEntry => match &body.of {
                of @ (Type::Map(..) | Type::Dyn) => of.clone(),
                other => {
                    return self
                        .error(body.at, format!("`{name}` must return an entry, such as {{k: v}}, not {other}"));
                }
            },
            Macro::SortBy => {
                if matches!(
                    body.of,
                    Type::List(_) | Type::Map(..) | Type::Optional(_) | Type::Null | Type::Type | Type::Named(_)
                ) {
                    return self.error(body.at, format!("`{name}` cannot sort by {}", body.of));
                }
                if matches!(range.of, Type::Map(..)) {
                    return self.error(at, format!("`{name}` does not take a map"));
                }
                range.of.clone()
            }
        };
        self.node(at, of, Kind::Macro(Box::new(Comprehension { role, two, range, condition, body })))
    }

    fn optional_map(&mut self, at: usize, value: Node, name: &str) -> Parsed {
        let open = self.at();
        self.advance();
        let of = self.optional_of(at, name, &value)?;
        let element = self.element_name(name)?;
        self.elements.push((element, of));
        let arguments = self.list(")", open);
        self.elements.pop();
        let flat = name == "optFlatMap";
        let mut arguments = arguments?;
        let (Some(body), true) = (arguments.pop(), arguments.is_empty()) else {
            return self.error(at, format!("`{name}` takes a variable and an expression, such as x.?y.{name}(v, …)"));
        };
        let of = match &body.of {
            of if !flat => Type::optional(of.clone()),
            of @ (Type::Optional(_) | Type::Dyn) => of.clone(),
            other => return self.error(body.at, format!("`{name}` must return an optional, not {other}; use optMap")),
        };
        self.node(at, of, Kind::OptionalMap { flat, value: Box::new(value), body: Box::new(body) })
    }

    fn optional_of(&self, at: usize, name: &str, value: &Node) -> Result<Type, CompileError> {
        match &value.of {
            Type::Optional(inner) => Ok((**inner).clone()),
            Type::Dyn => Ok(Type::Dyn),
            other => self.error(at, format!("call `{name}` on an optional, such as x.?y, not on {other}")),
        }
    }

    fn otherwise(&mut self, at: usize, value: Node, name: &str) -> Parsed {
        let open = self.at();
        self.advance();
        let mut arguments = self.list(")", open)?;
        let (Some(other), true) = (arguments.pop(), arguments.is_empty()) else {
            return self.error(at, format!("`{name}` takes 1 argument"));
        };
        let optional = name == "or";
        let inner = self.optional_of(at, name, &value)?;
        let other_of = if optional { self.optional_of(other.at, name, &other)? } else { other.of.clone() };
        let of = self.one_type(at, name, &inner, &other_of)?;
        let of = if optional { Type::optional(of) } else { of };
        self.node(at, of, Kind::Otherwise { optional, parts: Box::new([value, other]) })
    }
}
