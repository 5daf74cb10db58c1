//! Parses tokens into a syntax tree, and checks its names, functions and sizes.

mod calls;
mod types;

use super::LONGEST;
use super::error::{CompileError, Position};
use super::functions::{self, regex::Room};
use super::lexer::{Token, tokens};
use super::tree::{Kind, Node, Operator};
use super::types::Type;
use super::value::Value;

/// Maximum depth of the syntax tree. All operands of a chain of `&&` or `||` are on one level.
const DEEPEST: usize = 64;
/// Maximum nesting of brackets, calls and conditionals.
const NESTED: usize = 40;
/// Words that CEL reserves.
const RESERVED: [&str; 20] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "namespace",
    "package",
    "return",
    "var",
    "void",
    "while",
    "true",
    "false",
];

type Parsed = Result<Node, CompileError>;

pub(super) fn parse(text: &str, variables: &[(&'static str, Type)]) -> Parsed {
    if text.len() > LONGEST {
        return Err(CompileError::TooLong(text.len()));
    }
    let mut parser =
        Parser { text, tokens: tokens(text)?, next: 0, variables, elements: Vec::new(), nested: 0, room: Room::new() };
    if *parser.peek() == Token::End {
        return parser.error(0, "the expression is empty; write one, or omit the field");
    }
    let root = parser.expression()?;
    match parser.peek().clone() {
        Token::End => Ok(root),
        found => parser.error(parser.at(), Parser::instead_of_operator(&found)),
    }
}

struct Parser<'a> {
    text: &'a str,
    /// Ends with `Token::End`. Nothing reads beyond it.
    tokens: Vec<(usize, Token)>,
    next: usize,
    variables: &'a [(&'static str, Type)],
    /// The variables of the enclosing macros, outermost first.
    elements: Vec<(String, Type)>,
    nested: usize,
    room: Room,
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        &self.tokens[self.next].1
    }

    fn peek_second(&self) -> &Token {
        &self.tokens[(self.next + 1).min(self.tokens.len() - 1)].1
    }

    fn at(&self) -> usize {
        self.tokens[self.next].0
    }

    fn advance(&mut self) -> Token {
        let token = self.peek().clone();
        self.next = (self.next + 1).min(self.tokens.len() - 1);
        token
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(found) if *found == sign)
    }

    fn accept(&mut self, sign: &str) -> bool {
        let found = self.is(sign);
        if found {
            self.advance();
        }
        found
    }

    fn expect(&mut self, sign: &str, opened_at: usize) -> Result<(), CompileError> {
        if self.accept(sign) {
            return Ok(());
        }
        let opened = Position::of(self.text, opened_at);
        let found = self.peek().clone();
        let hint = match found {
            Token::Identifier(_) => format!("; {}", Self::instead_of_operator(&found)),
            _ => format!(", found {}", found.describe()),
        };
        self.error(self.at(), format!("expected `{sign}` to close the bracket at {opened}{hint}"))
    }

    fn error<T>(&self, at: usize, message: impl Into<String>) -> Result<T, CompileError> {
        Err(CompileError::Malformed { at: Position::of(self.text, at), message: message.into() })
    }

    fn instead_of_operator(found: &Token) -> String {
        match found {
            Token::Identifier(word) => match word.as_str() {
                "and" | "AND" => "use `&&` instead of `and`".to_owned(),
                "or" | "OR" => "use `||` instead of `or`".to_owned(),
                "is" | "eq" => format!("use `==` instead of `{word}`"),
                "not" => "use `!` before the operand instead of `not`, such as !(x in y)".to_owned(),
                "like" | "LIKE" => "use s.matches('pattern') or s.contains('part') instead of `like`".to_owned(),
                "if" => "use `condition ? this : that` instead of `if`".to_owned(),
                _ => format!("expected an operator before `{word}`"),
            },
            Token::Sign(")" | "]" | "}") => format!("{} has no matching opening bracket; remove it", found.describe()),
            Token::Sign(":") => "`:` is only valid after `condition ? this`".to_owned(),
            Token::Sign("{") => {
                "messages such as Name{field: value} are not supported; use a map, {'field': value}".to_owned()
            }
            other => format!("expected an operator before {}", other.describe()),
        }
    }

    fn node(&self, at: usize, of: Type, kind: Kind) -> Parsed {
        let mut node = Node { at, depth: 1, of, kind };
        node.depth += node.children().into_iter().map(|child| child.depth).max().unwrap_or(0);
        if node.depth > DEEPEST {
            return self
                .error(at, format!("operations are nested more than {DEEPEST} deep; write a flatter expression"));
        }
        Ok(node)
    }

    /// Parses `condition ? this : that`, or an operand of it. All recursion passes through this function.
    fn expression(&mut self) -> Parsed {
        self.nested += 1;
        if self.nested > NESTED {
            let message =
                format!("brackets and conditionals are nested more than {NESTED} deep; write a flatter expression");
            return self.error(self.at(), message);
        }
        let condition = self.or()?;
        let at = self.at();
        let whole = if self.accept("?") {
            let then = self.or()?;
            if !self.accept(":") {
                let found = self.peek().describe();
                return self.error(self.at(), format!("expected `:` and the other alternative, found {found}"));
            }
            let otherwise = self.expression()?;
            let of = self.conditional(at, &condition, &then, &otherwise)?;
            self.node(at, of, Kind::Conditional(Box::new([condition, then, otherwise])))?
        } else {
            condition
        };
        self.nested -= 1;
        Ok(whole)
    }

    fn or(&mut self) -> Parsed {
        self.joined("||", Self::and, Kind::Or)
    }

    fn and(&mut self) -> Parsed {
        self.joined("&&", Self::relation, Kind::And)
    }

    fn joined(&mut self, sign: &str, part: fn(&mut Self) -> Parsed, kind: fn(Vec<Node>) -> Kind) -> Parsed {
        let first = part(self)?;
        let at = self.at();
        if !self.is(sign) {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.accept(sign) {
            parts.push(part(self)?);
        }
        for part in &parts {
            self.truth(at, sign, part)?;
        }
        self.node(at, Type::Bool, kind(parts))
    }

    fn relation(&mut self) -> Parsed {
        self.binary(Self::sum, |token| match token {
            Token::Sign("==") => Some(Operator::Equal),
            Token::Sign("!=") => Some(Operator::NotEqual),
            Token::Sign("<") => Some(Operator::Less),
            Token::Sign("<=") => Some(Operator::LessOrEqual),
            Token::Sign(">") => Some(Operator::Greater),
            Token::Sign(">=") => Some(Operator::GreaterOrEqual),
            Token::Identifier(word) if word == "in" => Some(Operator::In),
            _ => None,
        })
    }

    fn sum(&mut self) -> Parsed {
        self.binary(Self::product, |token| match token {
            Token::Sign("+") => Some(Operator::Add),
            Token::Sign("-") => Some(Operator::Subtract),
            _ => None,
        })
    }

    fn product(&mut self) -> Parsed {
        self.binary(Self::unary, |token| match token {
            Token::Sign("*") => Some(Operator::Multiply),
            Token::Sign("/") => Some(Operator::Divide),
            Token::Sign("%") => Some(Operator::Remainder),
            _ => None,
        })
    }

    fn binary(&mut self, part: fn(&mut Self) -> Parsed, operator: fn(&Token) -> Option<Operator>) -> Parsed {
        let mut left = part(self)?;
        while let Some(operator) = operator(self.peek()) {
            let at = self.at();
            self.advance();
            let right = part(self)?;
            let of = self.operation(at, operator, &left, &right)?;
            left = self.node(at, of, Kind::Binary(operator, Box::new([left, right])))?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Parsed {
        let mut signs = Vec::new();
        while self.is("!") || self.is("-") {
            let negative = matches!(self.peek_second(), Token::Int(..) | Token::Double(_)) && self.is("-");
            if negative {
                break;
            }
            let not = self.is("!");
            if signs.last().is_some_and(|(_, other)| *other != not) {
                return self.error(self.at(), "`!` and `-` cannot follow each other; add parentheses, such as !(-x)");
            }
            signs.push((self.at(), not));
            self.advance();
        }
        let mut operand = self.member()?;
        for (at, not) in signs.into_iter().rev() {
            operand = if not {
                self.truth(at, "!", &operand)?;
                self.node(at, Type::Bool, Kind::Not(Box::new(operand)))?
            } else {
                let of = self.negation(at, &operand)?;
                self.node(at, of, Kind::Negate(Box::new(operand)))?
            };
        }
        Ok(operand)
    }

    /// Parses a primary expression, and the fields, indices and calls that follow.
    fn member(&mut self) -> Parsed {
        let mut operand = self.primary()?;
        loop {
            let at = self.at();
            if self.accept(".") {
                let optional = self.accept("?");
                let at = self.at();
                operand = match self.advance() {
                    Token::Identifier(name) if self.is("(") && !optional => self.method(at, operand, &name)?,
                    Token::Identifier(name) | Token::Quoted(name) => {
                        let of = self.field(at, &operand.of, &name)?;
                        if optional {
                            let of = if matches!(operand.of, Type::Optional(_)) { of } else { Type::optional(of) };
                            self.node(at, of, Kind::OptionalSelect(Box::new(operand), name))?
                        } else {
                            self.node(at, of, Kind::Select(Box::new(operand), name))?
                        }
                    }
                    found => {
                        let found = found.describe();
                        return self.error(
                            at,
                            format!("expected a field name after the dot, found {found}; for other names, use x['…']"),
                        );
                    }
                };
            } else if self.accept("[") {
                let optional = self.accept("?");
                let index = self.expression()?;
                self.expect("]", at)?;
                let of = self.element(at, &operand, &index)?;
                operand = if optional {
                    let of = if matches!(operand.of, Type::Optional(_)) { of } else { Type::optional(of) };
                    self.node(at, of, Kind::OptionalIndex(Box::new(operand), Box::new(index)))?
                } else {
                    self.node(at, of, Kind::Index(Box::new(operand), Box::new(index)))?
                };
            } else {
                return Ok(operand);
            }
        }
    }

    fn literal(&self, at: usize, value: Value) -> Parsed {
        let of = match &value {
            Value::Null => Type::Null,
            Value::Bool(_) => Type::Bool,
            Value::Int(_) => Type::Int,
            Value::Uint(_) => Type::Uint,
            Value::Double(_) => Type::Double,
            Value::String(_) => Type::String,
            Value::Bytes(_) => Type::Bytes,
            _ => Type::Type,
        };
        self.node(at, of, Kind::Literal(value))
    }

    fn primary(&mut self) -> Parsed {
        let at = self.at();
        match self.advance() {
            Token::String(string) => self.literal(at, string.into()),
            Token::Bytes(bytes) => self.literal(at, Value::Bytes(bytes.into())),
            Token::Double(double) => self.literal(at, Value::Double(double)),
            Token::Int(digits, base) => self.int(at, &digits, base),
            Token::Uint(digits, base) => match u64::from_str_radix(&digits, base) {
                Ok(uint) => self.literal(at, Value::Uint(uint)),
                Err(_) => self.error(at, "this number is too large for 64 bits; use a double, such as 1e20"),
            },
            Token::Sign("-") => match self.advance() {
                Token::Double(double) => self.literal(at, Value::Double(-double)),
                Token::Int(digits, base) => self.int(at, &format!("-{digits}"), base),
                found => self.error(at, format!("expected a value after `-`, found {}", found.describe())),
            },
            Token::Sign("(") => {
                let inner = self.expression()?;
                self.expect(")", at)?;
                Ok(inner)
            }
            Token::Sign("[") => self.list_literal(at),
            Token::Sign("{") => self.map(at),
            // After a leading dot, a name does not refer to a macro's variable.
            Token::Sign(".") => match self.advance() {
                Token::Identifier(name) => self.name(at, &name, true),
                found => self.error(at, format!("expected a name after the dot, found {}", found.describe())),
            },
            Token::Identifier(name) => self.name(at, &name, false),
            found => {
                let message = match (&found, at) {
                    (Token::End, _) => "expected a value, but the expression ends".to_owned(),
                    (Token::Quoted(_), _) => {
                        "backticks are only for field names after a dot; for a string, use '…'".to_owned()
                    }
                    (found, 0) => format!("an expression cannot begin with {}", found.describe()),
                    (found, _) => format!("expected a value, found {}", found.describe()),
                };
                self.error(at, message)
            }
        }
    }

    fn int(&self, at: usize, digits: &str, base: u32) -> Parsed {
        match i64::from_str_radix(digits, base) {
            Ok(int) => self.literal(at, Value::Int(int)),
            Err(_) => self.error(at, "this number is too large for 64 bits; use a double, such as 1e20"),
        }
    }

    /// Parses expressions that commas separate, up to the closing sign.
    fn list(&mut self, close: &str, opened_at: usize) -> Result<Vec<Node>, CompileError> {
        let mut elements = Vec::new();
        while !self.is(close) {
            elements.push(self.expression()?);
            if !self.accept(",") {
                break;
            }
        }
        self.expect(close, opened_at)?;
        Ok(elements)
    }

    /// Parses a list. A comma may follow the last element.
    fn list_literal(&mut self, at: usize) -> Parsed {
        let mut elements = Vec::new();
        let mut of: Option<Type> = None;
        while !self.is("]") {
            let element_at = self.at();
            let optional = self.accept("?");
            let element = self.expression()?;
            let element_of = self.optional_entry(element_at, optional, &element)?;
            // Unlike the apiserver, this crate allows elements of different types.
            of = Some(of.map_or_else(|| element_of.clone(), |of| of.joined(&element_of).unwrap_or(Type::Dyn)));
            elements.push((optional, element));
            if !self.accept(",") {
                break;
            }
        }
        self.expect("]", at)?;
        self.node(at, Type::list(of.unwrap_or(Type::Dyn)), Kind::List(elements))
    }

    fn map(&mut self, at: usize) -> Parsed {
        let mut entries = Vec::new();
        let mut of: Option<(Type, Type)> = None;
        while !self.is("}") {
            let entry_at = self.at();
            let optional = self.accept("?");
            let key = self.expression()?;
            self.key(&key)?;
            if !self.accept(":") {
                let found = self.peek().describe();
                return self.error(self.at(), format!("expected `:` and the value of the key, found {found}"));
            }
            let value = self.expression()?;
            let value_of = self.optional_entry(entry_at, optional, &value)?;
            of = Some(of.map_or_else(
                || (key.of.clone(), value_of.clone()),
                |(keys, values)| {
                    (keys.joined(&key.of).unwrap_or(Type::Dyn), values.joined(&value_of).unwrap_or(Type::Dyn))
                },
            ));
            entries.push((optional, [key, value]));
            if !self.accept(",") {
                break;
            }
        }
        self.expect("}", at)?;
        let (keys, values) = of.unwrap_or((Type::Dyn, Type::Dyn));
        self.node(at, Type::Map(Box::new(keys), Box::new(values)), Kind::Map(entries))
    }

    /// Parses a name without a dot before it: a literal, a variable, a function or the namespace of a function.
    fn name(&mut self, at: usize, name: &str, dotted: bool) -> Parsed {
        match name {
            "true" | "false" => return self.literal(at, Value::Bool(name == "true")),
            "null" => return self.literal(at, Value::Null),
            "not" => return self.error(at, "use `!` instead of `not`"),
            _ => {}
        }
        if self.is("(") {
            return self.function(at, name);
        }
        let element = self.elements.iter().rposition(|(element, _)| element == name);
        if let Some(depth) = element.filter(|_| !dotted) {
            return self.node(at, self.elements[depth].1.clone(), Kind::Element(depth));
        }
        // Variables may have dots in their names. The longest match counts.
        let variables = self.variables.iter().filter(|(variable, _)| self.follows(name, variable));
        if let Some((variable, of)) = variables.max_by_key(|(variable, _)| variable.len()) {
            self.next += 2 * variable.matches('.').count();
            return self.node(at, of.clone(), Kind::Variable(variable));
        }
        if let Some(name) = self.type_name(name) {
            return self.literal(at, Value::Type(name));
        }
        if self.is(".") && functions::is_namespace(name) {
            self.advance();
            let function = match self.advance() {
                Token::Identifier(function) if self.is("(") => function,
                _ => return self.error(at, format!("expected a function after `{name}`, such as {name}.…(x)")),
            };
            return self.function(at, &format!("{name}.{function}"));
        }
        if RESERVED.contains(&name) {
            return self.error(at, format!("`{name}` is a reserved word; {}", self.names()));
        }
        if self.is("{") {
            return self.error(at, Self::instead_of_operator(&Token::Sign("{")));
        }
        self.error(at, format!("unknown name `{name}`; {}", self.names()))
    }

    /// The type with this name. Consumes the other parts of a name with dots.
    fn type_name(&mut self, name: &str) -> Option<&'static str> {
        let simple = [
            "bool",
            "bytes",
            "double",
            "dyn",
            "int",
            "list",
            "map",
            "null_type",
            "optional_type",
            "string",
            "type",
            "uint",
        ];
        if let Some(simple) = simple.into_iter().find(|simple| *simple == name) {
            return Some(simple);
        }
        let long = ["google.protobuf.Timestamp", "google.protobuf.Duration", "net.IP", "net.CIDR"];
        let found = long.into_iter().find(|long| self.follows(name, long))?;
        self.next += 2 * found.matches('.').count();
        Some(found)
    }

    /// Whether `name` and the tokens that follow form the name `dotted`.
    fn follows(&self, name: &str, dotted: &str) -> bool {
        let mut words = dotted.split('.');
        let token = |at: usize| self.tokens.get(at).map(|(_, token)| token);
        let follow = |(index, word): (usize, &str)| {
            let at = self.next + 2 * index;
            matches!((token(at), token(at + 1)), (Some(Token::Sign(".")), Some(Token::Identifier(found))) if found == word)
        };
        words.next() == Some(name) && words.enumerate().all(follow)
    }

    fn names(&self) -> String {
        let variables = self.variables.iter().map(|(name, _)| *name);
        let known: Vec<&str> = variables.chain(self.elements.iter().map(|(name, _)| name.as_str())).collect();
        format!("use {}, or a string in quotes", known.join(", "))
    }
}
