//! Tokens into a tree, whose names, functions and sizes are checked.

mod calls;

use std::sync::Arc;

use kube_cel::cel::Value;

use super::LONGEST;
use super::error::{CompileError, Position};
use super::functions;
use super::lexer::{Token, tokens};
use super::tree::{Kind, Node, Operator};

/// How many nodes may lie on the way from an expression to its innermost part; alternatives joined by `&&` or `||` count as one level.
const DEEPEST: usize = 64;
/// How many brackets, calls and conditionals may stand in one another.
const NESTED: usize = 32;
/// Words that CEL keeps for itself.
const RESERVED: [&str; 17] = [
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
];

type Parsed = Result<Node, CompileError>;

pub(super) fn parse(text: &str, variables: &[&'static str]) -> Parsed {
    if text.len() > LONGEST {
        return Err(CompileError::TooLong(text.len()));
    }
    let mut parser = Parser { text, tokens: tokens(text)?, next: 0, variables, elements: Vec::new(), nested: 0 };
    if *parser.peek() == Token::End {
        return parser.error(0, "it is empty; write an expression, or leave the field out");
    }
    let root = parser.expression()?;
    match parser.peek().clone() {
        Token::End => Ok(root),
        found => parser.error(parser.at(), Parser::instead_of_operator(&found)),
    }
}

struct Parser<'a> {
    text: &'a str,
    /// Ends with `Token::End`, past which nothing reads.
    tokens: Vec<(usize, Token)>,
    next: usize,
    variables: &'a [&'static str],
    /// The names that macros around the current place gave their elements, outermost first.
    elements: Vec<String>,
    nested: usize,
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
            _ => format!(" instead of {}", found.describe()),
        };
        self.error(self.at(), format!("write `{sign}` to close what opened at {opened}{hint}"))
    }

    fn error<T>(&self, at: usize, message: impl Into<String>) -> Result<T, CompileError> {
        Err(CompileError::Malformed { at: Position::of(self.text, at), message: message.into() })
    }

    fn instead_of_operator(found: &Token) -> String {
        match found {
            Token::Identifier(word) => match word.as_str() {
                "and" | "AND" => "write `&&` for `and`".to_owned(),
                "or" | "OR" => "write `||` for `or`".to_owned(),
                "is" | "eq" => format!("write `==` for `{word}`"),
                "not" => "write `!` for `not`, before what it negates; `!(x in y)` for `x not in y`".to_owned(),
                "like" | "LIKE" => "write s.matches('pattern') or s.contains('part') for `like`".to_owned(),
                "if" => "write `condition ? this : that` for `if`".to_owned(),
                _ => format!("an operator must stand before `{word}`"),
            },
            Token::Sign(")" | "]" | "}") => format!("{} closes nothing; leave it out", found.describe()),
            Token::Sign(":") => "`:` belongs after `condition ? this`".to_owned(),
            Token::Sign("{") => {
                "messages such as Name{field: value} are not supported; write a map, {'field': value}".to_owned()
            }
            other => format!("an operator must stand before {}", other.describe()),
        }
    }

    fn node(&self, at: usize, kind: Kind) -> Parsed {
        let mut node = Node { at, depth: 1, kind };
        node.depth += node.children().into_iter().map(|child| child.depth).max().unwrap_or(0);
        if node.depth > DEEPEST {
            return self
                .error(at, format!("its parts are nested more than {DEEPEST} deep; write a flatter expression"));
        }
        Ok(node)
    }

    /// `condition ? this : that`, or less. All recursion passes here.
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
                return self.error(self.at(), format!("write `:` and what holds otherwise, instead of {found}"));
            }
            let otherwise = self.expression()?;
            self.node(at, Kind::Conditional(Box::new([condition, then, otherwise])))?
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
        self.node(at, kind(parts))
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
            left = self.node(at, Kind::Binary(operator, Box::new([left, right])))?;
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
            signs.push((self.at(), self.is("!")));
            self.advance();
        }
        let mut operand = self.member()?;
        for (at, not) in signs.into_iter().rev() {
            let kind = if not { Kind::Not(Box::new(operand)) } else { Kind::Negate(Box::new(operand)) };
            operand = self.node(at, kind)?;
        }
        Ok(operand)
    }

    /// A primary with the fields, indices and calls after it.
    fn member(&mut self) -> Parsed {
        let mut operand = self.primary()?;
        loop {
            let at = self.at();
            if self.accept(".") {
                if self.is("?") {
                    return self.error(at, "optional fields are not supported; write has(x.y) ? x.y : …");
                }
                let at = self.at();
                operand = match self.advance() {
                    Token::Identifier(name) if self.is("(") => self.method(at, operand, &name)?,
                    Token::Identifier(name) | Token::Quoted(name) => {
                        self.node(at, Kind::Select(Box::new(operand), name))?
                    }
                    found => {
                        let found = found.describe();
                        return self.error(
                            at,
                            format!("a field's name must follow the dot, not {found}; write x['…'] for other names"),
                        );
                    }
                };
            } else if self.accept("[") {
                if self.is("?") {
                    return self.error(at, "optional indices are not supported; write 'key' in x ? x['key'] : …");
                }
                let index = self.expression()?;
                self.expect("]", at)?;
                operand = self.node(at, Kind::Index(Box::new(operand), Box::new(index)))?;
            } else {
                return Ok(operand);
            }
        }
    }

    fn primary(&mut self) -> Parsed {
        let at = self.at();
        match self.advance() {
            Token::String(string) => self.node(at, Kind::Literal(Value::String(Arc::new(string)))),
            Token::Bytes(bytes) => self.node(at, Kind::Literal(Value::Bytes(Arc::new(bytes)))),
            Token::Double(double) => self.node(at, Kind::Literal(Value::Float(double))),
            Token::Int(digits, base) => self.int(at, &digits, base),
            Token::Uint(digits, base) => match u64::from_str_radix(&digits, base) {
                Ok(uint) => self.node(at, Kind::Literal(Value::UInt(uint))),
                Err(_) => self.error(at, "this number is too large for an unsigned one of 64 bits"),
            },
            Token::Sign("-") => match self.advance() {
                Token::Double(double) => self.node(at, Kind::Literal(Value::Float(-double))),
                Token::Int(digits, base) => self.int(at, &format!("-{digits}"), base),
                found => self.error(at, format!("a value must follow `-`, not {}", found.describe())),
            },
            Token::Sign("(") => {
                let inner = self.expression()?;
                self.expect(")", at)?;
                Ok(inner)
            }
            Token::Sign("[") => {
                let elements = self.list("]", at)?;
                self.node(at, Kind::List(elements))
            }
            Token::Sign("{") => self.map(at),
            // A leading dot only says that the name is none of a namespace's.
            Token::Sign(".") => match self.advance() {
                Token::Identifier(name) => self.name(at, &name),
                found => self.error(at, format!("a name must follow the dot, not {}", found.describe())),
            },
            Token::Identifier(name) => self.name(at, &name),
            found => {
                let message = match (&found, at) {
                    (Token::End, _) => "a value must follow here; the expression ends too early".to_owned(),
                    (Token::Quoted(_), _) => "backticks are for fields, after a dot; write '…' for a string".to_owned(),
                    (found, 0) => format!("an expression cannot begin with {}", found.describe()),
                    (found, _) => format!("a value must stand here, not {}", found.describe()),
                };
                self.error(at, message)
            }
        }
    }

    fn int(&self, at: usize, digits: &str, base: u32) -> Parsed {
        match i64::from_str_radix(digits, base) {
            Ok(int) => self.node(at, Kind::Literal(Value::Int(int))),
            Err(_) => self.error(at, "this number is too large for 64 bits; write it as a double, such as 1e20"),
        }
    }

    /// Expressions with commas between them, up to the closing sign; a comma may follow the last.
    fn list(&mut self, close: &str, opened_at: usize) -> Result<Vec<Node>, CompileError> {
        let mut elements = Vec::new();
        while !self.is(close) {
            if self.is("?") {
                return self.error(self.at(), "optional elements are not supported; leave the `?` out");
            }
            elements.push(self.expression()?);
            if !self.accept(",") {
                break;
            }
        }
        self.expect(close, opened_at)?;
        Ok(elements)
    }

    fn map(&mut self, at: usize) -> Parsed {
        let mut entries = Vec::new();
        while !self.is("}") {
            if self.is("?") {
                return self.error(self.at(), "optional entries are not supported; leave the `?` out");
            }
            let key = self.expression()?;
            if !self.accept(":") {
                let found = self.peek().describe();
                return self.error(self.at(), format!("write `:` and the key's value, instead of {found}"));
            }
            entries.push([key, self.expression()?]);
            if !self.accept(",") {
                break;
            }
        }
        self.expect("}", at)?;
        self.node(at, Kind::Map(entries))
    }

    /// A word that no dot precedes: a literal, a variable, a function or a function's namespace.
    fn name(&mut self, at: usize, name: &str) -> Parsed {
        match name {
            "true" | "false" => return self.node(at, Kind::Literal(Value::Bool(name == "true"))),
            "null" => return self.node(at, Kind::Literal(Value::Null)),
            "not" => return self.error(at, "write `!` for `not`"),
            _ => {}
        }
        if self.is("(") {
            return self.function(at, name);
        }
        if let Some(depth) = self.elements.iter().rposition(|element| element == name) {
            return self.node(at, Kind::Element(depth));
        }
        if let Some(variable) = self.variables.iter().find(|variable| **variable == name) {
            return self.node(at, Kind::Variable(variable));
        }
        if self.is(".") && functions::is_namespace(name) {
            self.advance();
            let function = match self.advance() {
                Token::Identifier(function) if self.is("(") => function,
                _ => return self.error(at, format!("a function must follow, such as {name}.…(x)")),
            };
            return self.function(at, &format!("{name}.{function}"));
        }
        if RESERVED.contains(&name) {
            return self.error(at, format!("`{name}` is a word that CEL keeps for itself; {}", self.names()));
        }
        if self.is("{") {
            return self.error(at, Self::instead_of_operator(&Token::Sign("{")));
        }
        self.error(at, format!("there is no `{name}`; {}", self.names()))
    }

    fn names(&self) -> String {
        let known: Vec<&str> = self.variables.iter().copied().chain(self.elements.iter().map(String::as_str)).collect();
        format!("an expression here may use {}, and strings in quotes", known.join(", "))
    }
}
