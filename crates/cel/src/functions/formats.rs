//! The named formats of Kubernetes' CEL library. The error texts are those of Kubernetes.

use std::sync::Arc;

use super::{Work, arguments, time::Timestamp, url};
use crate::value::Value;
use crate::work::Fault;

/// A format and its name in Kubernetes.
#[derive(Debug)]
pub(crate) struct Format {
    pub name: &'static str,
    validate: fn(&str) -> Vec<String>,
}

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const KEY_ERROR: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

const FORMATS: &[Format] = &[
    Format { name: "dns1123Label", validate: dns1123_label },
    Format { name: "dns1123Subdomain", validate: dns1123_subdomain },
    Format { name: "dns1035Label", validate: dns1035_label },
    Format { name: "qualifiedName", validate: qualified_name },
    Format { name: "dns1123LabelPrefix", validate: |text| dns1123_label(&masked(text)) },
    Format { name: "dns1123SubdomainPrefix", validate: |text| dns1123_subdomain(&masked(text)) },
    Format { name: "dns1035LabelPrefix", validate: |text| dns1035_label(&masked(text)) },
    Format { name: "labelValue", validate: label_value },
    Format { name: "uri", validate: |text| one(url::is_request_uri(text), "invalid URI for request") },
    Format { name: "uuid", validate: |text| one(is_uuid(text), "does not match the UUID format") },
    Format { name: "byte", validate: |text| one(is_base64(text), "invalid base64") },
    Format { name: "date", validate: |text| one(is_date(text), "invalid date") },
    Format { name: "datetime", validate: |text| one(is_datetime(text), "invalid datetime") },
];

fn find(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.name == name)
}

/// The result of `format.dns1123Label()` and similar functions.
pub(super) fn value(name: &str) -> Result<Value, Fault> {
    find(name).map(Value::Format).ok_or(Fault::Refused)
}

pub(super) fn named(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.steps(1)?;
    arguments!(args, [Value::String(name)] => Value::Optional(find(name).map(|format| Arc::new(Value::Format(format)))))
}

pub(super) fn validate(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::Format(format), Value::String(text)] = args else { return Err(Fault::Types) };
    work.allocation(768 + 8 * text.len())?;
    let errors: Vec<Value> = (format.validate)(text).into_iter().map(Value::from).collect();
    Ok(Value::Optional((!errors.is_empty()).then(|| Arc::new(errors.into()))))
}

fn one(valid: bool, error: &str) -> Vec<String> {
    if valid { Vec::new() } else { vec![error.to_owned()] }
}

/// A prefix may end with a dash.
fn masked(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => {
            let mut characters = rest.chars();
            characters.next_back();
            format!("{}a", characters.as_str())
        }
        _ => text.to_owned(),
    }
}

fn too_long(text: &str, most: usize) -> Vec<String> {
    one(text.len() <= most, &format!("must be no more than {most} characters"))
}

fn mismatch(message: &str, pattern: &str, examples: &[&str]) -> String {
    let examples = examples.iter().map(|example| format!("'{example}'")).collect::<Vec<_>>().join(",  or ");
    format!("{message} (e.g. {examples}, regex used for validation is '{pattern}')")
}

/// Whether a text begins and ends with an alphanumeric, and has alphanumerics or `between` elsewhere.
fn is_name(text: &str, alphanumeric: fn(u8) -> bool, between: &[u8]) -> bool {
    let bytes = text.as_bytes();
    bytes.first().copied().is_some_and(alphanumeric)
        && bytes.last().copied().is_some_and(alphanumeric)
        && bytes.iter().all(|b| alphanumeric(*b) || between.contains(b))
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    is_name(text, lower, b"-")
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn dns1123_label(text: &str) -> Vec<String> {
    let mut errors = too_long(text, 63);
    if !is_label(text) {
        errors.push(if is_subdomain(text) {
            "must not contain dots".to_owned()
        } else {
            let message = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
            mismatch(message, LABEL, &["my-name", "123-abc"])
        });
    }
    errors
}

fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut errors = too_long(text, 253);
    if !is_subdomain(text) {
        let message = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
        errors.push(mismatch(message, &format!("{LABEL}(\\.{LABEL})*"), &["example.com"]));
    }
    errors
}

fn dns1035_label(text: &str) -> Vec<String> {
    let mut errors = too_long(text, 63);
    if !is_label(text) || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        let message = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
        errors.push(mismatch(message, "[a-z]([-a-z0-9]*[a-z0-9])?", &["my-name", "abc-123"]));
    }
    errors
}

fn is_key(text: &str) -> bool {
    is_name(text, |b| b.is_ascii_alphanumeric(), b"-_.")
}

fn qualified_name(text: &str) -> Vec<String> {
    let examples = &["MyName", "my.name", "123-abc"];
    let parts: Vec<&str> = text.split('/').collect();
    let (mut errors, name) = match parts[..] {
        [name] => (Vec::new(), name),
        ["", name] => (vec!["prefix part must be non-empty".to_owned()], name),
        [prefix, name] => {
            (dns1123_subdomain(prefix).into_iter().map(|error| format!("prefix part {error}")).collect(), name)
        }
        _ => {
            return vec![format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                mismatch(KEY_ERROR, KEY, examples)
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else {
        errors.extend(too_long(name, 63).into_iter().map(|error| format!("name part {error}")));
    }
    if !is_key(name) {
        errors.push(format!("name part {}", mismatch(KEY_ERROR, KEY, examples)));
    }
    errors
}

fn label_value(text: &str) -> Vec<String> {
    let mut errors = too_long(text, 63);
    if !text.is_empty() && !is_key(text) {
        let message =
            format!("a valid label must be an empty string or consist of{}", &KEY_ERROR["must consist of".len()..]);
        errors.push(mismatch(&message, &format!("({KEY})?"), &["MyValue", "my_value", "12345"]));
    }
    errors
}

/// Dashes are optional.
fn is_uuid(text: &str) -> bool {
    let mut rest = text;
    for (index, length) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if index > 0 {
            rest = rest.strip_prefix('-').unwrap_or(rest);
        }
        let Some((part, after)) = rest.split_at_checked(length) else { return false };
        if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return false;
        }
        rest = after;
    }
    rest.is_empty()
}

fn is_base64(text: &str) -> bool {
    let data = text.strip_suffix("==").or_else(|| text.strip_suffix('=')).unwrap_or(text);
    !data.is_empty()
        && text.len().is_multiple_of(4)
        && data.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && Timestamp::parse(&format!("{text}T00:00:00Z")).is_some()
        || text.starts_with("0000-") && text.len() == 10
}

fn is_datetime(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let mut parts = lower.split('t');
    let (Some(date), Some(time)) = (parts.next(), parts.next()) else { return false };
    let digits = |from: usize| time.get(from..from + 2).filter(|two| two.bytes().all(|b| b.is_ascii_digit()));
    let (Some(hour), Some(minute), Some(second)) = (digits(0), digits(3), digits(6)) else { return false };
    let (Some(":"), Some(":")) = (time.get(2..3), time.get(5..6)) else { return false };
    let mut rest = &time[8..];
    // As in Kubernetes, any character can be in the place of the point.
    let fraction =
        rest.chars().next().filter(|c| *c != 'z' && *c != '+' && *c != '-' || rest[c.len_utf8()..].len() > 5);
    if let Some(point) = fraction {
        let after = &rest[point.len_utf8()..];
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return false;
        }
        rest = &after[digits..];
    }
    let offset = rest.strip_prefix(['+', '-']).is_some_and(|offset| {
        let bytes = offset.as_bytes();
        bytes.len() == 5 && bytes[2] == b':' && [0, 1, 3, 4].iter().all(|at| bytes[*at].is_ascii_digit())
    });
    is_date(date) && hour <= "23" && minute <= "59" && second <= "59" && (rest == "z" || offset)
}
