use super::*;

fn document(json: &str) -> Document {
    serde_json::from_str(json).unwrap()
}
fn holds(text: &str, object: &str) -> Result<bool, EvaluationError> {
    Expression::compile(text, &["object"]).unwrap().holds(&[("object", &document(object))])
}

#[test]
fn operators_macros_and_functions_are_evaluated() {
    for text in [
        "object.a == 1",
        "object.a == 1.0 && true",
        "object.list.exists(x, x.y == 2)",
        "'a/b' in object.m",
        "object.s.startsWith('he')",
        "object.s.matches('^h.*o$')",
        "object.list.map(x, has(x.y), x.y) == [2]",
        "math.greatest(1, 2, 3) == 3",
        "'%s-%d'.format(['a', 1]) == 'a-1'",
        "timestamp('2024-01-01T00:00:00Z') + duration('1h') > timestamp('2024-01-01T00:00:00Z')",
        "size(object.list) == 2 && object.list.size() == 2",
        "quantity('1Gi').isGreaterThan(quantity('500Mi'))",
        "'a,b'.split(',') == ['a','b']",
        "true || object.x.y",
        "object.x.y || true",
        "!has(object.x.y)",
        "(object.x ? 1 : 2) == 2",
        "ip('10.0.0.1').family() == 4",
    ] {
        assert_eq!(holds(text, r#"{"a":1,"s":"hello","m":{"a/b":"c"},"list":[{},{"y":2}]}"#), Ok(true), "{text}");
    }
    for text in ["object.x.y", "!object.x.y", "object.x != 1"] {
        assert_eq!(holds(text, "{}"), Ok(false), "{text}");
    }
}
