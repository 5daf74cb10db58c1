//! The white space of JSON texts. Members keep their order, and numbers and texts their characters. Pure.

/// Removes the white space between tokens, as the operator writes JSON. Returns `None` for bytes that are not JSON.
pub fn compact(text: &[u8]) -> Option<String> {
    lay_out(text, |_, _| {}, ":")
}

/// Writes each member and element on its own line, indented by two spaces. Returns `None` for bytes that are not JSON.
pub fn indented(text: &[u8]) -> Option<String> {
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    lay_out(text, line, ": ").map(|text| text + "\n")
}

fn lay_out(text: &[u8], line: impl Fn(&mut String, usize), colon: &str) -> Option<String> {
    serde_json::from_slice::<serde::de::IgnoredAny>(text).ok()?;
    let mut out = String::with_capacity(text.len());
    let (mut depth, mut in_string, mut escaped, mut opened) = (0_usize, false, false, false);
    for letter in std::str::from_utf8(text).ok()?.chars() {
        if in_string {
            in_string = escaped || letter != '"';
            escaped = !escaped && letter == '\\';
            out.push(letter);
            continue;
        }
        if letter.is_ascii_whitespace() {
            continue;
        }
        let closes = matches!(letter, '}' | ']');
        depth = depth.saturating_sub(usize::from(closes));
        if opened != closes {
            line(&mut out, depth);
        }
        opened = matches!(letter, '{' | '[');
        depth += usize::from(opened);
        in_string = letter == '"';
        match letter {
            ':' => out.push_str(colon),
            ',' => {
                out.push(',');
                line(&mut out, depth);
            }
            _ => out.push(letter),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPACT: &str = r#"{"a":[1,"x, \"{y}\" ",{}],"b":{"c":1.50,"d":[]}}"#;
    const INDENTED: &str = r#"{
  "a": [
    1,
    "x, \"{y}\" ",
    {}
  ],
  "b": {
    "c": 1.50,
    "d": []
  }
}
"#;

    #[test]
    fn only_white_space_between_tokens_changes() {
        for text in [COMPACT, INDENTED] {
            assert_eq!(compact(text.as_bytes()).as_deref(), Some(COMPACT));
            assert_eq!(indented(text.as_bytes()).as_deref(), Some(INDENTED));
        }
        for (text, pretty) in [("7", "7\n"), (" \"a b\" ", "\"a b\"\n"), ("[ ]", "[]\n")] {
            assert_eq!(indented(text.as_bytes()).as_deref(), Some(pretty));
        }
        assert_eq!(compact(b"{\"a\":}"), None);
        assert_eq!(compact(b"\"\xff\""), None);
    }
}
