//! Translates patterns from the syntax of RE2, which Kubernetes' CEL uses, to the syntax of `regex-syntax`.

/// Translates a pattern. In RE2, `\d`, `\w`, `\s` and `\b` are ASCII. A brace outside a repetition, and a bracket
/// inside a class, are literals.
pub(super) fn translate(pattern: &str) -> Result<String, &'static str> {
    let mut translated = String::with_capacity(2 * pattern.len());
    let mut rest = pattern;
    let mut class = false;
    let mut class_begins = false;
    let mut repeated = false;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let mut taken = c.len_utf8();
        let was_repeated = std::mem::replace(&mut repeated, false);
        let begins = std::mem::replace(&mut class_begins, false);
        match c {
            '\\' => taken += escape(after, class, &mut translated)?,
            '[' if class => match after.strip_prefix(':').and_then(|name| name.split_once(":]")) {
                Some((name, _)) => {
                    translated.extend(["[:", name, ":]"]);
                    taken += name.len() + 3;
                }
                None => translated.push_str("\\["),
            },
            '[' => {
                class = true;
                translated.push('[');
                if after.starts_with('^') {
                    translated.push('^');
                    taken += 1;
                }
                class_begins = true;
            }
            ']' if class && begins => translated.push_str("\\]"),
            ']' if class => {
                class = false;
                translated.push(']');
            }
            '&' | '~' if class => {
                translated.push('\\');
                translated.push(c);
            }
            '-' if class && after.starts_with('-') => translated.push_str("\\-"),
            c if class => translated.push(c),
            '{' => match repetition(after) {
                Some((least, most, length)) => {
                    if was_repeated {
                        return Err("a repetition cannot follow another");
                    }
                    if least > 1000 || most.is_some_and(|most| most > 1000 || most < least) {
                        return Err("the bounds of a repetition must be ascending and at most 1000");
                    }
                    translated.push('{');
                    translated.push_str(&after[..length]);
                    taken += length;
                    repeated = true;
                    if rest[taken..].starts_with('?') {
                        translated.push('?');
                        taken += 1;
                    }
                }
                None => translated.push_str("\\{"),
            },
            '}' => translated.push_str("\\}"),
            '*' | '+' | '?' => {
                if was_repeated {
                    return Err("a repetition cannot follow another");
                }
                translated.push(c);
                repeated = true;
                if after.starts_with('?') {
                    translated.push('?');
                    taken += 1;
                }
            }
            '(' if after.starts_with('?') => {
                let flags = &after[1..];
                let named = flags.starts_with("P<") || flags.starts_with('<');
                let end = flags.find([':', ')']).unwrap_or(flags.len());
                if !named && !flags[..end].chars().all(|flag| matches!(flag, 'i' | 'm' | 's' | 'U' | '-')) {
                    return Err("look-around, including look-ahead and look-behind, is not supported");
                }
                translated.push_str("(?");
                taken += 1;
            }
            c => translated.push(c),
        }
        rest = &rest[taken..];
    }
    Ok(translated)
}

/// Translates an escape sequence. `after` begins after the backslash. Returns the number of bytes that it consumes.
fn escape(after: &str, class: bool, translated: &mut String) -> Result<usize, &'static str> {
    let kind = after.chars().next().ok_or("the pattern ends with a backslash")?;
    let rest = &after[kind.len_utf8()..];
    let set = match kind.to_ascii_lowercase() {
        'd' => "0-9",
        'w' => "0-9A-Za-z_",
        's' => "\\t\\n\\x0C\\r ",
        _ => "",
    };
    match kind {
        'd' | 'w' | 's' if class => translated.push_str(set),
        'd' | 'w' | 's' => translated.extend(["(?-i:[", set, "])"]),
        'D' | 'W' | 'S' if class => translated.extend(["[^", set, "]"]),
        'D' | 'W' | 'S' => translated.extend(["(?-i:[^", set, "])"]),
        'b' if !class => translated.push_str("(?-u:\\b)"),
        'B' if !class => translated.push_str("(?-u:\\B)"),
        'A' if !class => translated.push_str("\\A"),
        'z' if !class => translated.push_str("\\z"),
        'Q' => {
            let (literal, end) = rest.split_once("\\E").map_or((rest, 0), |(literal, _)| (literal, 2));
            translated.push_str(&regex_syntax::escape(literal));
            return Ok(1 + literal.len() + end);
        }
        '0'..='7' => {
            let digits = after.bytes().take(3).take_while(|b| (b'0'..=b'7').contains(b)).count();
            if kind != '0' && digits < 2 {
                return Err("backreferences are not supported");
            }
            let code = u32::from_str_radix(&after[..digits], 8).map_err(|_| "invalid octal code")?;
            translated.extend(["\\x{", &format!("{code:X}"), "}"]);
            return Ok(digits);
        }
        'a' | 'f' | 't' | 'n' | 'r' | 'v' | 'x' | 'p' | 'P' => {
            translated.extend(['\\', kind]);
            // Braces after these are not a repetition.
            if let Some((name, _)) = rest.strip_prefix('{').and_then(|name| name.split_once('}')) {
                translated.extend(["{", name, "}"]);
                return Ok(3 + name.len());
            }
        }
        kind if kind.is_ascii_punctuation() => {
            translated.push_str(&regex_syntax::escape(kind.encode_utf8(&mut [0; 4])));
        }
        _ => return Err("unknown escape sequence"),
    }
    Ok(kind.len_utf8())
}

/// Parses `{2}`, `{2,}` or `{2,3}`. Returns the bounds, and the length after the opening brace.
fn repetition(after: &str) -> Option<(u32, Option<u32>, usize)> {
    let (inside, _) = after.split_once('}')?;
    let number = |text: &str| {
        (text.len() < 9 && !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
    };
    let (least, most) = match inside.split_once(',') {
        None => (number(inside)?, number(inside)),
        Some((least, "")) => (number(least)?, None),
        Some((least, most)) => (number(least)?, Some(number(most)?)),
    };
    Some((least, most, inside.len() + 1))
}
