//! Functions of strings. Indices count characters.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use super::{Work, arguments, lists};
use crate::value::Value;
use crate::work::Fault;

/// Charges for reading all arguments. A search reads both strings.
fn read(work: &mut Work, args: &[Value]) -> Result<(), Fault> {
    work.steps(2)?;
    work.bytes(3 * args.iter().map(Value::bytes).sum::<usize>())
}

pub(super) fn starts_with(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::String(text), Value::String(part)] = args else { return Err(Fault::Types) };
    work.bytes(part.len())?;
    Ok(Value::Bool(text.starts_with(&**part)))
}

pub(super) fn ends_with(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::String(text), Value::String(part)] = args else { return Err(Fault::Types) };
    work.bytes(part.len())?;
    Ok(Value::Bool(text.ends_with(&**part)))
}

pub(super) fn contains(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    read(work, args)?;
    arguments!(args, [Value::String(text), Value::String(part)] => Value::Bool(text.contains(&**part)))
}

/// The byte offset of a character, or of the end of the text.
fn offset(text: &str, index: i64) -> Result<usize, Fault> {
    let index = usize::try_from(index).map_err(|_| Fault::Range)?;
    let mut offsets = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    offsets.nth(index).ok_or(Fault::Range)
}

pub(super) fn char_at(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    read(work, args)?;
    let [Value::String(text), Value::Int(index)] = args else { return Err(Fault::Types) };
    let rest = &text[offset(text, *index)?..];
    Ok(rest.chars().next().map_or_else(|| "".into(), |c| c.to_string().into()))
}

fn characters(text: &str) -> i64 {
    text.chars().count() as i64
}

pub(super) fn index_of(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    read(work, args)?;
    let (text, part, from) = match args {
        [Value::List(list), wanted] => return lists::position(work, list, wanted, false),
        [Value::String(text), Value::String(part)] => (text, part, 0),
        [Value::String(text), Value::String(part), Value::Int(from)] => (text, part, *from),
        _ => return Err(Fault::Types),
    };
    if from < 0 {
        return Err(Fault::Range);
    }
    if part.is_empty() {
        return Ok(Value::Int(from.min(characters(text))));
    }
    let Ok(start) = offset(text, from) else { return Ok(Value::Int(-1)) };
    Ok(Value::Int(text[start..].find(&**part).map_or(-1, |at| from + characters(&text[start..start + at]))))
}

pub(super) fn last_index_of(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    read(work, args)?;
    let (text, part, from) = match args {
        [Value::List(list), wanted] => return lists::position(work, list, wanted, true),
        [Value::String(text), Value::String(part)] => (text, part, None),
        [Value::String(text), Value::String(part), Value::Int(from)] => (text, part, Some(*from)),
        _ => return Err(Fault::Types),
    };
    if from.is_some_and(|from| from < 0) {
        return Err(Fault::Range);
    }
    let length = characters(text);
    if part.is_empty() {
        return Ok(Value::Int(from.unwrap_or(length).min(length)));
    }
    let end = match from {
        None => text.len(),
        Some(from) if from >= length => return Ok(Value::Int(-1)),
        // A match that begins at `from` ends here at the latest.
        Some(from) => (offset(text, from)? + part.len()).min(text.len()),
    };
    // The end may be inside a character. No match ends there.
    let bytes = &text.as_bytes()[..end];
    let mut end = end;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let _ = bytes;
    Ok(Value::Int(text[..end].rfind(&**part).map_or(-1, |at| characters(&text[..at]))))
}

pub(super) fn lower_ascii(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    read(work, args)?;
    arguments!(args, [Value::String(text)] => text.to_ascii_lowercase().into())
}

pub(super) fn upper_ascii(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    read(work, args)?;
    arguments!(args, [Value::String(text)] => text.to_ascii_uppercase().into())
}

pub(super) fn trim(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    read(work, args)?;
    arguments!(args, [Value::String(text)] => text.trim().into())
}

pub(super) fn replace(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    read(work, args)?;
    let (text, old, new, limit) = match args {
        [Value::String(text), Value::String(old), Value::String(new)] => (text, old, new, -1),
        [Value::String(text), Value::String(old), Value::String(new), Value::Int(limit)] => (text, old, new, *limit),
        _ => return Err(Fault::Types),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    // Each replacement costs a step. Counting more than the steps that are left is not necessary.
    let count = text.matches(&**old).take(limit.min(work.left() as usize + 1)).count();
    work.steps(count as u64)?;
    work.allocation(text.len() + count.saturating_mul(new.len()))?;
    Ok(text.replacen(&**old, new, limit).into())
}

pub(super) fn split(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    read(work, args)?;
    let (text, separator, limit) = match args {
        [Value::String(text), Value::String(separator)] => (text, separator, -1),
        [Value::String(text), Value::String(separator), Value::Int(limit)] => (text, separator, *limit),
        _ => return Err(Fault::Types),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut parts: Vec<Value> = Vec::new();
    let mut push = |work: &mut Work, part: &str| {
        work.allocation(48 + part.len())?;
        parts.push(part.into());
        Ok(())
    };
    if separator.is_empty() {
        let mut rest = &**text;
        let mut left = limit;
        while let Some(c) = rest.chars().next().filter(|_| left > 0) {
            let part = if left == 1 { rest } else { &rest[..c.len_utf8()] };
            push(work, part)?;
            rest = &rest[part.len()..];
            left -= 1;
        }
    } else if limit > 0 {
        for part in text.splitn(limit, &**separator) {
            push(work, part)?;
        }
    }
    Ok(parts.into())
}

pub(super) fn substring(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    read(work, args)?;
    let (text, start, end) = match args {
        [Value::String(text), Value::Int(start)] => (text, offset(text, *start)?, text.len()),
        [Value::String(text), Value::Int(start), Value::Int(end)] => (text, offset(text, *start)?, offset(text, *end)?),
        _ => return Err(Fault::Types),
    };
    Ok(text.get(start..end).ok_or(Fault::Range)?.into())
}

pub(super) fn join(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let (list, separator) = match args {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::String(separator)] => (list, &**separator),
        _ => return Err(Fault::Types),
    };
    let mut joined = String::new();
    for (index, element) in list.iter().enumerate() {
        let Value::String(text) = element else { return Err(Fault::Types) };
        work.steps(1)?;
        work.bytes(text.len() + separator.len())?;
        if index > 0 {
            joined.push_str(separator);
        }
        joined.push_str(text);
    }
    work.allocation(joined.len())?;
    Ok(joined.into())
}

pub(super) fn reverse(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    read(work, args)?;
    arguments!(args,
        [Value::List(list)] => lists::reverse(work, list)?,
        [Value::String(text)] => text.chars().rev().collect::<String>().into(),
    )
}

pub(super) fn quote(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::String(text)] = args else { return Err(Fault::Types) };
    work.allocation(8 * text.len())?;
    Ok(quoted(text, |_| None).into())
}

/// Go's `%q`: escapes characters that are not printable.
pub(super) fn go_quote(text: &str) -> String {
    quoted(text, |c| match c {
        c if (c as u32) < 0x20 || c as u32 == 0x7f => Some(format!("\\x{:02x}", c as u32)),
        c if c.is_control() => Some(format!("\\u{:04x}", c as u32)),
        _ => None,
    })
}

/// Quotes a text with the escapes of Go that have a letter, and with `further` ones.
fn quoted(text: &str, further: impl Fn(char) -> Option<String>) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        let letter = match c {
            '\x07' => 'a',
            '\x08' => 'b',
            '\x0c' => 'f',
            '\n' => 'n',
            '\r' => 'r',
            '\t' => 't',
            '\x0b' => 'v',
            '\\' | '"' => c,
            c => {
                match further(c) {
                    Some(escaped) => out.push_str(&escaped),
                    None => out.push(c),
                }
                continue;
            }
        };
        out.extend(['\\', letter]);
    }
    out.push('"');
    out
}

pub(super) fn base64_encode(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.allocation(4 * args.iter().map(Value::bytes).sum::<usize>())?;
    arguments!(args, [Value::Bytes(bytes)] => STANDARD.encode(bytes).into())
}

pub(super) fn base64_decode(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.allocation(4 * args.iter().map(Value::bytes).sum::<usize>())?;
    let [Value::String(text)] = args else { return Err(Fault::Types) };
    let decoded = STANDARD.decode(&**text).or_else(|_| STANDARD_NO_PAD.decode(&**text));
    Ok(Value::Bytes(decoded.map_err(|_| Fault::Refused)?.into()))
}
