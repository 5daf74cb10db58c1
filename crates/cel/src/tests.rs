use proptest::prelude::*;
use serde_json::json;

use super::*;

mod functions_of_the_apiserver;
mod generator;
mod malformed;
mod oracle;
mod properties;

fn document(json: &serde_json::Value) -> Document {
    serde_json::from_str(&json.to_string()).unwrap()
}

fn compile(text: &str) -> Expression {
    Expression::compile(text, &["event", "data", "object"]).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn holds(text: &str, object: &serde_json::Value) -> Result<bool, EvaluationError> {
    compile(text).holds(&[("object", &document(object)), ("event", &Document::from("training.completed"))])
}

fn value(text: &str, object: &serde_json::Value) -> Option<serde_json::Value> {
    compile(text).value(&[("object", &document(object))]).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn a_job() -> serde_json::Value {
    json!({
        "metadata": {"name": "a", "labels": {"team": "research", "llmtune.io/tier": "gold"}},
        "spec": {"replicas": 3, "rate": 0.5, "huge": 18_446_744_073_709_551_615_u64, "suspend": null},
        "status": {"phase": "Running", "startedAt": "2025-11-08T14:00:00Z", "conditions": [
            {"type": "Scheduled", "status": "True"},
            {"type": "Complete", "status": "True", "reason": "JobFinished"},
        ]},
    })
}

#[test]
fn operators_macros_and_functions_match_the_apiserver() {
    for text in [
        "object.spec.replicas == 3 && object.spec.replicas == 3.0 && 3u == object.spec.replicas",
        "object.spec.huge > 9223372036854775807 && object.spec.rate < 1",
        "object.spec.replicas in [1, 3.0] && 'team' in object.metadata.labels && !('x' in object.metadata.labels)",
        "object.metadata.labels['llmtune.io/tier'] == 'gold' && object.metadata.labels.`llmtune.io/tier` == 'gold'",
        "object.status.conditions.exists(c, c.type == 'Complete' && c.status == 'True')",
        "object.status.conditions.all(c, c.status == 'True') && [].all(x, false) && ![].exists(x, true)",
        "object.status.conditions.exists_one(c, c.type == 'Complete')",
        "object.status.conditions.map(c, c.type) == ['Scheduled', 'Complete']",
        "object.status.conditions.map(c, has(c.reason), c.reason) == ['JobFinished']",
        "object.status.conditions.filter(c, has(c.reason)).size() == 1",
        "object.metadata.labels.map(k, k) == ['llmtune.io/tier', 'team']",
        "[[1, 2], [3]].exists(xs, xs.all(x, x > 2))",
        "(object.spec.replicas > 2 ? 'many' : 'few') == 'many'",
        "1 + 2 * 3 - 4 / 2 % 3 == 5 && -(1) == -1 && 7 % -2 == 1 && 1.5 * 2.0 == 3.0",
        "'a' + 'b' == 'ab' && [1] + [2] == [1, 2] && {'a': [1]} == {'a': [dyn(1.0)]}",
        "object.status.phase.startsWith('Run') && object.status.phase.endsWith('ing') && object.status.phase.contains('nn')",
        r"object.status.phase.matches('^R.*g$') && 'a1b22'.find('[0-9]+') == '1' && 'a1b22'.findAll(r'[0-9]+') == ['1', '22']",
        "'ABC'.lowerAscii() == 'abc' && 'a,b'.split(',') == ['a', 'b'] && ['a', 'b'].join('-') == 'a-b' && ' x '.trim() == 'x'",
        "'abc'.substring(1, 2) == 'b' && 'abc'.replace('b', 'd') == 'adc' && 'abc'.indexOf('c') == 2 && 'abc'.charAt(0) == 'a'",
        "size('äö') == 2 && 'äö'.size() == 2 && size({'a': 1}) == 1",
        "string(1) == '1' && string(true) == 'true' && int('7') == 7 && double('0.5') == 0.5 && int(2.9) == 2 && dyn(1) == 1",
        "[3, 1, 2].sort() == [1, 2, 3] && [1, 2].sum() == 3 && [1, 2].max() == 2 && [1, 1].distinct() == [1] && lists.range(2) == [0, 1]",
        "sets.contains([1, 2], [1]) && math.greatest(1, 2, 3) == 3 && math.abs(-2) == 2",
        "'%s is %d, %.1f'.format(['a', 1, 2.5]) == 'a is 1, 2.5'",
        "timestamp(object.status.startedAt) + duration('1h') == timestamp('2025-11-08T15:00:00Z')",
        "timestamp(object.status.startedAt).getFullYear() == 2025 && duration('90m').getHours() == 1",
        "quantity('1Gi').isGreaterThan(quantity('500Mi')) && semver('1.2.3').isLessThan(semver('1.10.0'))",
        "url('https://a.example/x').getHost() == 'a.example' && ip('10.0.0.1').family() == 4 && cidr('10.0.0.0/8').containsIP('10.1.2.3')",
        "'''a\nb''' == 'a\\nb' && r'\\d' == '\\\\d' && '\\x41\\u00e9\\U0001F600\\101' == 'Aé😀A' && b'\\xff' != b'a'",
        "0x1F == 31 && -9223372036854775808 < 0 && 1e3 == 1000.0 && .5 == 0.5",
        "// a comment\nobject.status.phase == 'Running' // another",
        "null == null && object.spec.suspend == null && object.spec != null && dyn(1) != '1' && dyn([1]) != 1",
        "true || false && false",
        "!!true && --1 == 1",
    ] {
        assert_eq!(holds(text, &a_job()), Ok(true), "{text}");
    }
}

#[test]
fn missing_is_neither_true_nor_false() {
    for text in [
        "object.status.reason == 'x'",
        "object.status.reason != 'x'",
        "!(object.status.reason == 'x')",
        "!object.status.paused",
        "object.status.a.b.c",
        "object.spec.suspend.deeper == 1",
        "object.metadata.labels['none'] == 'x'",
        "object.status.conditions[9].type == 'x'",
        "object.none.exists(x, true)",
        "!object.none.exists(x, true)",
        "'a' in object.none",
        "size(object.none) == 0",
        "object.none.startsWith('a')",
        "object.none && true",
        "false || object.none",
        "object.status.conditions.all(c, c.reason == 'JobFinished')",
        "data.x == 1",
    ] {
        assert_eq!(holds(text, &a_job()), Ok(false), "{text}");
        assert_ne!(holds(&format!("!({text})"), &a_job()), Ok(true), "!({text})");
        assert_eq!(value(text, &a_job()), None, "{text}");
    }
}

#[test]
fn missing_operand_does_not_hide_decisive_operand() {
    for text in [
        "true || object.none",
        "object.none || true",
        "object.none || object.none || true",
        "!(false && object.none)",
        "!(object.none && false)",
        "object.status.conditions.exists(c, c.reason == 'JobFinished')",
        "!object.status.conditions.all(c, c.reason == 'x')",
        "object.status.conditions.filter(c, c.reason == 'JobFinished').size() == 1",
        "object.status.conditions.map(c, c.reason == 'JobFinished', c.type) == ['Complete']",
        "object.status.conditions.exists_one(c, c.reason == 'JobFinished')",
        "(object.none ? 'a' : 'b') == 'b'",
        "!has(object.none) && !has(object.none.deeper) && !has(object.spec.suspend.deeper) && has(object.spec.suspend)",
        "!has(object.status.reason) || object.status.reason != 'x'",
    ] {
        assert_eq!(holds(text, &a_job()), Ok(true), "{text}");
    }
}

#[test]
fn errors_show_position_and_types_but_no_content() {
    for (text, message) in [
        ("object.status.phase", "the expression returns a string, not a bool; compare it with a value"),
        ("object.status.phase < 1", "line 1, column 21: `<` does not take a string and an int"),
        ("object.status.phase.x == 1", "line 1, column 21: `.x` does not take a string"),
        ("1 == 1 &&\n  !object.status.phase", "line 2, column 3: `!` does not take a string"),
        ("object.spec.replicas + 1.5 == 2.0", "line 1, column 22: `+` does not take an int and a double"),
        ("object.spec.replicas.startsWith('a')", "line 1, column 22: `startsWith` does not take an int and a string"),
        ("object.spec.exists(x, x)", "line 1, column 13: `||` does not take a string"),
        (
            "object.status.phase.exists(x, true)",
            "line 1, column 21: `all, exists, map or filter` does not take a string",
        ),
        ("object.none || object.status.phase < 1", "line 1, column 36: `<` does not take a string and an int"),
        (
            "timestamp(object.status.phase) > timestamp('2025-11-08T14:00:00Z')",
            "line 1, column 1: `timestamp` failed: an argument has an invalid value (a string)",
        ),
        ("object.spec.replicas / 0 == 1", "line 1, column 22: division by zero; check the divisor first"),
        ("9223372036854775807 + 1 > 0", "line 1, column 21: the result of `+` is out of range"),
        ("-(-9223372036854775808) > 0", "line 1, column 1: the result of `-` is out of range"),
        ("object.status.conditions[-1] == 1", "line 1, column 25: the result of `[]` is out of range"),
        ("[1, 'a'].sort() == []", "line 1, column 10: `sort` does not take a list"),
        ("{object.spec.rate: 'x'} == {}", "line 1, column 1: `{}` does not take a double"),
        (
            "event.matches(object.status.phase + '[')",
            "line 1, column 7: `matches` failed: an argument has an invalid value (a string and a string)",
        ),
    ] {
        assert_eq!(holds(text, &a_job()).unwrap_err().to_string(), message, "{text}");
    }
}

#[test]
fn errors_have_at_most_256_characters() {
    let text = format!("object.status.phase.{} == 1", "x".repeat(3000));
    assert!(holds(&text, &a_job()).unwrap_err().to_string().chars().count() <= 256);
}

#[test]
fn a_value_becomes_json_and_null_becomes_none() {
    assert_eq!(value("object.spec.suspend", &a_job()), None);
    assert_eq!(value("object.spec.replicas", &a_job()), Some(json!(3)));
    assert_eq!(value("object.spec.huge", &a_job()), Some(json!(18_446_744_073_709_551_615_u64)));
    assert_eq!(value("object.spec", &a_job()), Some(a_job()["spec"].clone()));
    assert_eq!(value("[1.5, 'a', {1: true}]", &a_job()), Some(json!([1.5, "a", {"1": true}])));
    assert_eq!(value("[0.0 / 0.0, 1.0 / 0.0]", &a_job()), Some(json!(["NaN", "Infinity"])));
    assert_eq!(value("duration('90m')", &a_job()), Some(json!("5400s")));
    assert_eq!(value("timestamp('2025-11-08T14:00:00Z')", &a_job()), Some(json!("2025-11-08T14:00:00Z")));
    let error = compile("quantity('1Gi')").value(&[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the expression returns a quantity, which JSON cannot represent; return a string or a number"
    );
}

#[test]
fn integers_are_compared_exactly_beyond_double_precision() {
    let object = json!({"a": 9_007_199_254_740_993_i64, "b": 9_007_199_254_740_992_i64, "c": 9_007_199_254_740_992.0});
    assert_eq!(holds("object.a > object.b && object.a != object.b && object.b < object.a", &object), Ok(true));
    // As in the apiserver, an integer is rounded to a double before it is compared with one.
    assert_eq!(holds("object.a == object.c && object.a >= object.c && !(object.a > object.c)", &object), Ok(true));
    assert_eq!(holds("0.0 / 0.0 == 0.0 / 0.0", &object), Ok(false));
    let error = holds("0.0 / 0.0 < 1", &object).unwrap_err().to_string();
    assert_eq!(error, "line 1, column 11: `<` cannot compare NaN with a number");
}

#[test]
fn expression_knows_the_paths_that_it_reads() {
    let annotations = |text: &str| compile(text).reads("object", &["metadata", "annotations"]);
    for text in [
        "object.metadata.annotations['a'] == 'b'",
        "has(object.metadata.annotations)",
        "'a' in object.metadata.annotations",
        "object['metadata'].annotations.exists(k, k == 'a')",
        "object.metadata == {}",
        "size(object) == 1",
        "object[event] == 1",
        "[1].exists(x, object.metadata.annotations.a == 'b')",
        "object.metadata.map(k, object.metadata[k]) == []",
    ] {
        assert!(annotations(text), "{text}");
    }
    for text in [
        "object.metadata.name == 'a'",
        "object.metadata.labels.annotations == 'a'",
        "data.metadata.annotations == 1",
        "event == 'a'",
    ] {
        assert!(!annotations(text), "{text}");
    }
}

#[test]
fn length_and_nesting_are_bounded() {
    let refused = |text: &str| Expression::compile(text, &["object"]).unwrap_err().to_string();
    assert_eq!(refused(&"a".repeat(4097)), "the expression has 4097 bytes; the maximum is 4096");
    for (before, after) in
        [("(", ")"), ("[", "]"), ("{1: ", "}"), ("object[", "]"), ("size(", ")"), ("true ? 1 : ", "")]
    {
        let text = format!("{}1{}", before.repeat(300), after.repeat(300));
        assert!(refused(&text).contains("nested more than 40 deep"), "{text}");
    }
    for part in [".a", "[0]", " + 1", " == dyn(1)", " * 2", ".trim()"] {
        let text = format!("object{}", part.repeat(300));
        assert!(refused(&text).contains("nested more than 64 deep"), "{text}");
    }
    for sign in ["!", "-"] {
        assert!(refused(&format!("{}object", sign.repeat(3000))).contains("nested more than 64 deep"));
    }
    let wide = vec!["object.a == 1"; 200].join(" || ");
    assert!(Expression::compile(&wide, &["object"]).is_ok(), "alternatives are on one level");
}

/// Random letters, in which no pattern matches early.
fn random() -> String {
    (0..4000_u64).map(|n| if (n * n * 2_654_435_761) >> 7 & 1 == 0 { 'a' } else { 'b' }).collect()
}

#[test]
fn work_is_bounded() {
    let keys: serde_json::Map<String, serde_json::Value> =
        (0..40).map(|n| (format!("{}{n}", "k".repeat(5000)), json!("v"))).collect();
    let big = json!({
        "random": random(), "list": vec![1; 5000], "text": "ab".repeat(50_000), "words": vec!["word"; 5000],
        "n": 1_000_000_000_i64, "keys": keys, "key": format!("{}0", "k".repeat(5000)), "long": "k".repeat(200_000),
        "longs": vec!["k".repeat(2000); 400],
    });
    for text in [
        "object.list.all(x, object.list.all(y, x == y))",
        "lists.range(1000).all(x, lists.range(1000).all(y, lists.range(1000).all(z, x + y + z >= 0)))",
        "object.list.map(x, object.list).map(x, object.list + x).size() > 0",
        "lists.range(object.n).size() > 0",
        "object.text.replace('a', object.text).size() > 0",
        "object.text.replace('', object.text).size() > 0",
        "object.words.exists(x, object.text.indexOf(object.text + 'x') > 0)",
        "object.words.map(x, object.text.split('')).size() > 0",
        "object.list.map(x, object.text.replace('a', 'b')).size() > 0",
        "object.list.map(x, object.text + object.text).size() > 0",
        "sets.equivalent(lists.range(2000), lists.range(2000).reverse())",
        "lists.range(5000).distinct().size() > 0",
        "lists.range(5000).map(x, x * 7919 % 5003).sort().size() > 0",
        "object.words.map(x, object.text).join('').size() > 0",
        "object.words.exists(x, object.text.matches('(a|b|ab)*c'))",
        "object.words.exists(x, object.random.matches('[ab]*a[ab]{200}c'))",
        "object.words.exists(x, object.random.matches('([ab]?){200}[ab]{200}c'))",
        "object.words.exists(x, object.random.findAll('[ab]*a[ab]{200}c').size() > 0)",
        "object.random.findAll('a|b[ab]*c').size() > 0",
        "object.words.exists(x, x.matches(x + 'y'))",
        // Lookups, comparisons and insertions of long keys.
        "lists.range(400).all(x, lists.range(400).all(y, !(object.key + 'x' in object.keys)))",
        "object.words.all(x, object.keys[object.key] == 'v')",
        "object.words.all(x, object.keys == object.keys)",
        "object.words.map(x, {object.key: x}).size() > 0",
        "object.words.all(x, object.keys.transformMap(k, v, v).size() > 0)",
        "object.words.all(x, object.long <= object.long)",
        "object.words.all(x, object.long == object.long)",
        "object.words.all(x, object.longs.sort() != [])",
        "object.words.all(x, !(object.long in object.longs))",
        "object.words.all(x, '%s %s'.format([object.keys, object.longs]) != '')",
        "object.words.all(x, url('http://a/' + object.long).getQuery() == {})",
        "object.words.all(x, object.long.lowerAscii().trim() != '')",
        "object.words.all(x, format.dns1123Label().validate(object.long).hasValue())",
        "object.words.all(x, !isQuantity(object.long) && size(object.long) > 1)",
        "object.words.all(x, isQuantity('123456789.5Gi'))",
        "object.words.all(x, object.long.charAt(199999) == 'k')",
        "object.words.all(x, base64.encode(bytes(object.long)) != '')",
        "[object.text]~.size() == 0",
    ] {
        let text = text.replace('~', &".map(x, x + x)".repeat(25));
        let started = std::time::Instant::now();
        let Err(error) = holds(&text, &big) else { panic!("{text}: it returned a value") };
        assert!(matches!(error, EvaluationError::Work { .. }), "{text}: {error}");
        assert!(started.elapsed() < std::time::Duration::from_secs(1), "{text} took {:?}", started.elapsed());
    }
}

#[test]
fn panic_ends_only_its_evaluation() {
    let error = holds("object.a == 1 && test.panic()", &json!({"a": 1})).unwrap_err();
    assert!(error.to_string().contains("please report"), "{error}");
    assert_eq!(holds("object.a == 2 && test.panic()", &json!({"a": 1})), Ok(false));
}

#[test]
fn patterns_of_an_expression_share_a_size_limit() {
    let patterns = |count| vec![r"object.text.matches(r'^(\pL|[^x]){9}$')"; count].join(" || ");
    assert!(Expression::compile(&patterns(2), &["object"]).is_ok());
    let error = Expression::compile(&patterns(90), &["object"]).unwrap_err();
    assert!(error.to_string().contains("the patterns of this expression are too large"), "{error}");
    let small = vec!["object.text.matches('^a.*b$')"; 40].join(" || ");
    assert!(Expression::compile(&small, &["object"]).is_ok());
}

/// The cost of a simulation depends on the characters of the text, not on the number of paths through a class.
#[test]
fn classes_of_many_characters_are_searched_in_long_texts() {
    let object = json!({"text": "é ".repeat(400)});
    assert_eq!(holds(r"object.text.matches(r'\pL \pL') && !object.text.matches(r'\pL{2}')", &object), Ok(true));
}

#[test]
fn keys_count_towards_the_size_of_a_result() {
    let annotations: serde_json::Map<String, serde_json::Value> =
        (0..100).map(|n| (format!("{}{n}", "a".repeat(200)), json!("v"))).collect();
    let object = document(&json!({"annotations": annotations}));
    for text in
        ["lists.range(2000).map(x, object.annotations)", "[object.annotations].map(x, lists.range(2000).map(y, x))"]
    {
        let error = compile(text).value(&[("object", &object)]).unwrap_err();
        assert!(matches!(error, EvaluationError::Work { .. }), "{text}: {error}");
    }
    let result = compile("object.annotations").value(&[("object", &object)]).unwrap().unwrap();
    assert_eq!(result.as_object().unwrap().len(), 100);
}

#[test]
fn usual_expressions_stay_far_below_the_limit() {
    let conditions: Vec<_> =
        (0..100).map(|n| json!({"type": format!("Type{n}"), "status": "False", "message": "m".repeat(200)})).collect();
    let object = document(&json!({"conditions": conditions, "labels": {"team": "nlp"}}));
    for text in [
        "object.conditions.exists(c, c.type == 'Complete' && c.status == 'True')",
        "object.conditions.exists(c, c.message.matches('^[a-z]+ failed: .*$'))",
        "object.conditions.map(c, c.type).join(',').size() > 0 && object.labels.team in ['nlp', 'vision']",
        "object.conditions.filter(c, c.status != 'True').sortBy(c, c.type).size() == 100",
    ] {
        let expression = compile(text);
        let scope = [("object", &object)];
        let (evaluation, _) = expression.evaluate(&scope).unwrap();
        assert!(evaluation.spent() < work::MOST_STEPS / 4, "{text}: {}", evaluation.spent());
    }
}

#[test]
fn expressions_with_the_same_text_are_equal() {
    assert_eq!(compile("true"), compile("true"));
    assert_ne!(compile("true"), compile("true "));
}
