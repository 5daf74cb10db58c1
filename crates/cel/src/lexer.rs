//! Splits an expression's text into tokens with positions.

use super::error::{CompileError, Position};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Identifier(String),
    /// A field's name in backticks.
    Quoted(String),
    String(String),
    Bytes(Vec<u8>),
    /// Its digits, and their base.
    Int(String, u32),
    Uint(String, u32),
    Double(f64),
    /// An operator or a bracket.
    Sign(&'static str),
    End,
}

impl Token {
    /// The name of the token in error messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Identifier(name) => format!("`{name}`"),
            Self::Quoted(_) => "a name in backticks".to_owned(),
            Self::String(_) => "a string".to_owned(),
            Self::Bytes(_) => "bytes".to_owned(),
            Self::Int(..) | Self::Uint(..) | Self::Double(_) => "a number".to_owned(),
            Self::Sign(sign) => format!("`{sign}`"),
            Self::End => "the end".to_owned(),
        }
    }
}

/// All signs; longer ones come before their prefixes.
const SIGNS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")", "[", "]",
    "{", "}",
];

/// The tokens of a text, each with its byte offset. The last token is the end.
pub(super) fn tokens(text: &str) -> Result<Vec<(usize, Token)>, CompileError> {
    let mut lexer = Lexer { text, at: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blanks();
        let at = lexer.at;
        let token = lexer.next()?;
        let end = token == Token::End;
        tokens.push((at, token));
        if end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn error<T>(&self, at: usize, message: impl Into<String>) -> Result<T, CompileError> {
        Err(CompileError::Malformed { at: Position::of(self.text, at), message: message.into() })
    }

    /// Skips white space and comments.
    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest().trim_start_matches([' ', '\t', '\n', '\r', '\x0c']);
            self.at = self.text.len() - rest.len();
            if !rest.starts_with("//") {
                return;
            }
            self.at += rest.find('\n').unwrap_or(rest.len());
        }
    }

    fn take_while(&mut self, holds: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let taken = &rest[..rest.find(|c| !holds(c)).unwrap_or(rest.len())];
        self.at += taken.len();
        taken
    }

    fn next(&mut self) -> Result<Token, CompileError> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        let second = rest[first.len_utf8()..].chars().next().unwrap_or(' ');
        if let Some(string) = self.string()? {
            return Ok(string);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            return Ok(Token::Identifier(self.take_while(|c| c.is_ascii_alphanumeric() || c == '_').to_owned()));
        }
        if first.is_ascii_digit() || first == '.' && second.is_ascii_digit() {
            return self.number();
        }
        if first == '`' {
            return self.quoted_name();
        }
        if let Some(sign) = SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
            self.at += sign.len();
            return Ok(Token::Sign(sign));
        }
        let advice = match first {
            '=' => "use `==` to compare",
            '&' => "use `&&`",
            '|' => "use `||`",
            ';' => "remove it",
            '“' | '”' | '‘' | '’' | '„' => "use the quotes `'` or `\"` for strings",
            '$' | '@' | '#' => "write names without a prefix",
            '^' => "use math.bitXor(a, b)",
            '~' => "use s.matches('pattern') or math.bitNot(a)",
            _ => "outside strings, use only CEL operators, ASCII names and numbers",
        };
        self.error(self.at, format!("`{first}` is not valid in CEL; {advice}"))
    }

    fn quoted_name(&mut self) -> Result<Token, CompileError> {
        let at = self.at;
        self.at += 1;
        let name = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/' | ' '));
        if name.is_empty() || !self.rest().starts_with('`') {
            return self.error(
                at,
                "a name in backticks must contain only letters, digits and `_.-/ `, and end with a backtick",
            );
        }
        self.at += 1;
        Ok(Token::Quoted(name.to_owned()))
    }

    fn number(&mut self) -> Result<Token, CompileError> {
        let at = self.at;
        let is_digit = |c: char| c.is_ascii_digit();
        let token = if let Some(hex) = self.rest().strip_prefix("0x").or_else(|| self.rest().strip_prefix("0X")) {
            self.at = self.text.len() - hex.len();
            let digits = self.take_while(|c| c.is_ascii_hexdigit()).to_owned();
            if digits.is_empty() {
                return self.error(at, "expected hexadecimal digits after `0x`");
            }
            self.integer(digits, 16)
        } else {
            let digits = self.take_while(is_digit).to_owned();
            let fraction = self.rest().starts_with('.') && self.rest()[1..].starts_with(is_digit);
            if fraction {
                self.at += 1;
                self.take_while(is_digit);
            }
            let exponent = self.rest().strip_prefix(['e', 'E']);
            let exponent = exponent.filter(|rest| rest.strip_prefix(['+', '-']).unwrap_or(rest).starts_with(is_digit));
            if let Some(digits) = exponent {
                self.at = self.text.len() - digits.strip_prefix(['+', '-']).unwrap_or(digits).len();
                self.take_while(is_digit);
            }
            if fraction || exponent.is_some() {
                match self.text[at..self.at].parse() {
                    Ok(double) => Token::Double(double),
                    Err(_) => return self.error(at, "invalid number"),
                }
            } else {
                self.integer(digits, 10)
            }
        };
        if self.rest().starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
            return self.error(at, "a letter cannot follow a number, and a name cannot begin with a digit");
        }
        Ok(token)
    }

    fn integer(&mut self, digits: String, base: u32) -> Token {
        if self.rest().starts_with(['u', 'U']) {
            self.at += 1;
            Token::Uint(digits, base)
        } else {
            Token::Int(digits, base)
        }
    }

    /// Reads a string or bytes. `None` if the text does not continue with one.
    fn string(&mut self) -> Result<Option<Token>, CompileError> {
        let at = self.at;
        let unprefixed = self.rest().trim_start_matches(['r', 'R', 'b', 'B']);
        let prefix = self.rest()[..self.rest().len() - unprefixed.len()].to_ascii_lowercase();
        if !unprefixed.starts_with(['\'', '"']) || !matches!(&*prefix, "" | "r" | "b" | "br") {
            return Ok(None);
        }
        let quote = ["'''", "\"\"\"", "'", "\""].into_iter().find(|quote| unprefixed.starts_with(quote)).unwrap_or("'");
        self.at = self.text.len() - unprefixed.len() + quote.len();
        let (raw, bytes) = (prefix.contains('r'), prefix.contains('b'));
        let mut content = Vec::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(quote) {
                self.at += quote.len();
                break;
            }
            match rest.chars().next() {
                None => return self.error(at, format!("unterminated string; close it with {quote}")),
                Some('\n' | '\r') if quote.len() == 1 => {
                    let triple = quote.repeat(3);
                    return self.error(
                        at,
                        format!(
                            "unterminated string; close it with {quote} on the same line, or use {triple} for several lines"
                        ),
                    );
                }
                Some('\\') if !raw => self.escape(bytes, &mut content)?,
                Some(c) => {
                    self.at += c.len_utf8();
                    content.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
        if bytes {
            return Ok(Some(Token::Bytes(content)));
        }
        match String::from_utf8(content) {
            Ok(string) => Ok(Some(Token::String(string))),
            Err(_) => self.error(at, "this string is not valid UTF-8"),
        }
    }

    /// Reads one escape sequence. `\x` and octal sequences are bytes in bytes, and code points in strings.
    fn escape(&mut self, bytes: bool, content: &mut Vec<u8>) -> Result<(), CompileError> {
        let at = self.at;
        let after = &self.rest()[1..];
        let Some(kind) = after.chars().next() else { return self.error(at, "unterminated string") };
        let simple = match kind {
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0c,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0b,
            '\\' | '?' | '"' | '\'' | '`' => kind as u8,
            _ => 0,
        };
        if simple != 0 {
            content.push(simple);
            self.at += 2;
            return Ok(());
        }
        let (from, length, base) = match kind {
            'x' | 'X' => (1, 2, 16),
            'u' if !bytes => (1, 4, 16),
            'U' if !bytes => (1, 8, 16),
            '0'..='3' => (0, 3, 8),
            _ => {
                return self.error(
                    at,
                    format!("`\\{kind}` is not an escape sequence; use `\\\\` for a backslash, or r'…' for a pattern"),
                );
            }
        };
        let digits = after.get(from..from + length).filter(|digits| digits.chars().all(|c| c.is_digit(base)));
        let code = digits.and_then(|digits| u32::from_str_radix(digits, base).ok());
        match code.map(|code| (u8::try_from(code), char::from_u32(code))) {
            Some((Ok(byte), _)) if bytes => content.push(byte),
            Some((_, Some(c))) if !bytes => content.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            _ => return self.error(at, format!("expected {length} digits of a valid character code after `\\{kind}`")),
        }
        self.at += 1 + from + length;
        Ok(())
    }
}
