//! An expression and a document: evaluation ends within its bounds, whatever they contain.

use std::time::{Duration, Instant};

use cel::{CompileError, Document, Expression};

/// The variables that expressions may use.
const VARIABLES: [&str; 3] = ["object", "data", "event"];
/// The maximum time, generous enough for a busy machine.
const LONGEST: Duration = Duration::from_secs(10);

/// An expression, a zero byte and a document as JSON. The expression is rejected at a position in its text, or
/// evaluation ends soon, with a value or with an error that contains nothing of the document.
pub fn expression(input: &[u8]) {
    let mut parts = input.splitn(2, |byte| *byte == 0);
    let Some(text) = parts.next().and_then(|text| str::from_utf8(text).ok()) else { return };
    let begun = Instant::now();
    match Expression::compile(text, &VARIABLES) {
        Err(CompileError::Malformed { at, message }) => {
            assert!(at.line <= text.matches('\n').count() + 1 && at.column <= text.chars().count() + 1, "{at}");
            assert!(!message.is_empty());
        }
        Err(CompileError::TooLong(length)) => assert_eq!(length, text.len()),
        Ok(expression) => {
            let document: Document = parts
                .next()
                .and_then(|json| serde_json::from_slice(json).ok())
                .unwrap_or_else(|| Document::from("training.completed"));
            let scope = VARIABLES.map(|name| (name, &document));
            let errors = [expression.holds(&scope).err(), expression.value(&scope).err()];
            for error in errors.into_iter().flatten() {
                let text = error.to_string();
                assert!(!text.is_empty() && text.chars().count() <= 256 && !text.contains('\n'), "{text}");
            }
            let _ = expression.reads("object", &["metadata", "annotations"]);
        }
    }
    assert!(begun.elapsed() < LONGEST, "{:?}", begun.elapsed());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seeds;

    proptest! {
        #![proptest_config(seeds::cases(3000))]

        #[test]
        fn mutated_expressions_end_with_a_value_or_error(input in seeds::mutated("expression")) {
            expression(&input);
        }
    }

    #[test]
    fn what_is_long_deep_or_laborious_ends_soon() {
        let nested = |open: &str, inside: &str, close: &str, depth| {
            format!("{}{inside}{}", open.repeat(depth), close.repeat(depth)).into_bytes()
        };
        let list = serde_json::to_vec(&vec!["aaaaaaaaaaaaaaaaaaaaaaaa"; 20_000]).unwrap();
        let over_list = |text: &str| [text.as_bytes(), b"\0", &list].concat();
        for input in [
            nested("(", "1", ")", 2000),
            nested("!", "true", "", 4000),
            nested("[", "1", "]", 2000),
            nested("true?", "1", ":1", 600),
            [nested("", "object", "[0]", 1000), vec![0], nested("[", "1", "]", 120)].concat(),
            [b"object\0".to_vec(), nested("[", "1", "]", 1_000_000)].concat(),
            over_list("object.map(x, object.map(y, x + y))"),
            over_list("object.all(x, object.exists(y, y.matches('(a|aa)+$')))"),
            over_list("object.map(x, x.matches('^(a*)*b'))"),
            over_list("object.join(object.join('')).size() > 0"),
            over_list("object.map(x, object.join(x)).map(x, x.split('')).size() > 0"),
            over_list("sets.equivalent(object, object) && object.distinct().size() > 0 && object.sort() == object"),
            over_list("object.map(x, x.replace('a', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'))"),
            over_list("'%s%s%s'.format([object, object, object]).size() > 0"),
        ] {
            expression(&input);
        }
    }
}
