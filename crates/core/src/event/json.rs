//! JSON exactly as ECMAScript's `JSON.stringify` writes it. A receiver that verifies the signature over
//! `JSON.stringify(JSON.parse(body))` gets the bytes that were signed.
//!
//! Source of the rules: ECMA-262, `Number::toString`, `QuoteJSONString`, `OrdinaryOwnPropertyKeys`.

use std::fmt::Write as _;

/// Appends a string in quotes.
pub fn write_string(out: &mut String, text: &str) {
    out.push('"');
    let mut plain_from = 0;
    for (index, byte) in text.bytes().enumerate() {
        let escape = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            0x08 => "\\b",
            0x09 => "\\t",
            0x0a => "\\n",
            0x0c => "\\f",
            0x0d => "\\r",
            0..0x20 => "",
            _ => continue,
        };
        out.push_str(&text[plain_from..index]);
        if escape.is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\u{byte:04x}");
        } else {
            out.push_str(escape);
        }
        plain_from = index + 1;
    }
    out.push_str(&text[plain_from..]);
    out.push('"');
}

/// Appends a number as a double; `null` for values that JSON does not have (NaN, infinities).
pub fn write_number(out: &mut String, number: f64) {
    if number.is_finite() {
        out.push_str(ryu_js::Buffer::new().format_finite(number));
    } else {
        out.push_str("null");
    }
}

/// Returns the double that ECMAScript reads for an integer, if it prints all digits of the integer. Returns `None` if
/// the receiver would get another number, which happens only beyond 2^53.
#[must_use]
pub fn exact_double(integer: i128) -> Option<f64> {
    let double = integer as f64;
    let printed = ryu_js::Buffer::new().format_finite(double).parse::<i128>();
    (printed == Ok(integer)).then_some(double)
}

/// Appends an object with distinct keys: integer-like keys first, ascending, then the others in the given order. Skips
/// `__proto__`, which an assignment in JavaScript would drop.
pub fn write_object<'a, V>(
    out: &mut String,
    members: impl IntoIterator<Item = (&'a str, V)>,
    write_value: impl Fn(&mut String, V),
) {
    let mut indexed = Vec::new();
    let mut named: Vec<(&str, V)> = Vec::new();
    for (key, value) in members {
        match array_index(key) {
            Some(index) => indexed.push((index, key, value)),
            None if key == "__proto__" => {}
            None => named.push((key, value)),
        }
    }
    indexed.sort_by_key(|(index, _, _)| *index);
    out.push('{');
    let ordered = indexed.into_iter().map(|(_, key, value)| (key, value)).chain(named);
    for (position, (key, value)) in ordered.enumerate() {
        if position > 0 {
            out.push(',');
        }
        write_string(out, key);
        out.push(':');
        write_value(out, value);
    }
    out.push('}');
}

/// ECMA-262 6.1.7: a canonical numeric string from 0 to 2^32 - 2 is an array index. Such keys come first.
fn array_index(key: &str) -> Option<u32> {
    let canonical = key == "0" || (!key.starts_with('0') && !key.is_empty() && key.len() <= 10);
    if !canonical || !key.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    key.parse::<u32>().ok().filter(|index| *index != u32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Appends any JSON value. Numbers become the doubles that a JavaScript receiver reads.
    fn write_value(out: &mut String, value: &Value) {
        match value {
            Value::Null => out.push_str("null"),
            Value::Bool(true) => out.push_str("true"),
            Value::Bool(false) => out.push_str("false"),
            Value::Number(number) => write_number(out, number.as_f64().unwrap_or(f64::NAN)),
            Value::String(text) => write_string(out, text),
            Value::Array(items) => {
                out.push('[');
                for (position, item) in items.iter().enumerate() {
                    if position > 0 {
                        out.push(',');
                    }
                    write_value(out, item);
                }
                out.push(']');
            }
            Value::Object(members) => {
                write_object(out, members.iter().map(|(key, value)| (key.as_str(), value)), write_value);
            }
        }
    }

    fn written(value: &Value) -> String {
        let mut out = String::new();
        write_value(&mut out, value);
        out
    }

    #[test]
    fn numbers_are_printed_as_ecmascript_prints_them() {
        for (number, expected) in [
            (1.0, "1"),
            (-0.0, "0"),
            (0.1, "0.1"),
            (1e21, "1e+21"),
            (123_456_789_012_345_680_000.0, "123456789012345680000"),
            (1e-7, "1e-7"),
            (0.000_001, "0.000001"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::NAN, "null"),
            (f64::INFINITY, "null"),
        ] {
            let mut out = String::new();
            write_number(&mut out, number);
            assert_eq!(out, expected);
        }
        assert_eq!(written(&serde_json::json!(9_007_199_254_740_993_i64)), "9007199254740992");
        assert_eq!(written(&serde_json::json!(u64::MAX)), "18446744073709552000");
    }

    #[test]
    fn an_integer_is_exact_where_ecmascript_prints_all_its_digits() {
        const LIMIT: i128 = 1 << 53;
        for exact in
            [0, 1, -1, LIMIT - 1, LIMIT, -LIMIT, LIMIT + 2, 1_000_000_000_000_000_000, 9_223_372_036_854_775_000]
        {
            let double = exact_double(exact).unwrap_or_else(|| panic!("{exact}"));
            let mut out = String::new();
            write_number(&mut out, double);
            assert_eq!(out, exact.to_string());
        }
        for rounded in
            [LIMIT + 1, -LIMIT - 1, 1 << 60, i128::from(i64::MAX), i128::from(i64::MIN), i128::from(u64::MAX)]
        {
            assert_eq!(exact_double(rounded), None, "{rounded}");
        }
    }

    #[test]
    fn integer_keys_come_first_and_proto_is_dropped() {
        let mut out = String::new();
        let keys = ["b", "10", "__proto__", "9", "01", "4294967295", "4294967294", "-1", "a"];
        write_object(&mut out, keys.map(|key| (key, ())), |out, ()| out.push('1'));
        assert_eq!(out, r#"{"9":1,"10":1,"4294967294":1,"b":1,"01":1,"4294967295":1,"-1":1,"a":1}"#);
    }

    #[test]
    fn strings_are_escaped_as_json_stringify_escapes_them() {
        let mut out = String::new();
        write_string(&mut out, "a\"\\\u{8}\t\n\u{c}\r\u{1}\u{1f}\u{7f}\u{2028}é😀");
        assert_eq!(out, "\"a\\\"\\\\\\b\\t\\n\\f\\r\\u0001\\u001f\u{7f}\u{2028}é😀\"");
    }
}
