//! Cases in which other libraries differ from the apiserver. The expected results are those of the oracle; these tests
//! do not need Go.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::super::functions::regex::{Match, Pattern, Room};
use super::super::value::Value;
use super::super::work::Work;
use super::*;

#[test]
fn supports_optionals_two_variables_and_nested_macros() {
    let object = json!({"a": {"b": 1}, "xs": [{"k": "a", "v": 2}, {"k": "b"}], "m": {"x": 1, "y": 2}});
    for text in [
        "object.?a.?b.orValue(7) == 1 && object.?a.?c.orValue(7) == 7 && object.?z.?c.orValue(7) == 7",
        "object.xs[?0].?v.orValue(0) == 2 && object.xs[?9].?v.orValue(0) == 0",
        "object.?a.?b.optMap(b, b + 1).orValue(0) == 2 && !object.?z.optMap(b, b + 1).hasValue()",
        "object.?a.optFlatMap(a, a.?b).value() == 1 && object.?z.or(object.?a).hasValue()",
        "[?object.?a.?b, ?object.?z] == [1] && {?'b': object.?a.?b, ?'z': object.?z} == {'b': 1}",
        "optional.none().hasValue() == false && optional.ofNonZeroValue('').hasValue() == false",
        "object.m.all(k, v, v > 0) && object.m.exists(k, v, k == 'y' && v == 2) && object.m.existsOne(k, v, v == 1)",
        "object.xs.exists(i, x, i == 0 && x.k == 'a') && [3, 4].transformList(i, x, i + x) == [3, 5]",
        "object.m.transformMap(k, v, v * 2) == {'x': 2, 'y': 4} && object.m.transformMap(k, v, v > 1, v) == {'y': 2}",
        "object.m.transformMapEntry(k, v, {k + '!': v}) == {'x!': 1, 'y!': 2}",
        "[[[1]]].all(x, x.all(y, y.all(z, [z].exists(a, a == 1))))",
        "object.xs.sortBy(x, x.k == 'a')[0].k == 'b' && [3, 1, 2].sortBy(x, -x) == [3, 2, 1]",
        "[1, 2].first().value() == 1 && [1, 2].last().value() == 2 && ![].first().hasValue() && [1, 2].includes(2)",
        "type(1) == int && type('a') == string && type([]) == list && type(type(1)) == type && type(null) == null_type",
        "type(timestamp(0)) == google.protobuf.Timestamp && type(object.?a) == optional_type",
    ] {
        assert_eq!(holds(text, &object), Ok(true), "{text}");
    }
    assert_eq!(value("object.?z.?c", &object), None, "an optional without a value is missing");
    assert_eq!(value("object.?a", &object), Some(json!({"b": 1})));
}

#[test]
fn conversions_and_times_match_the_apiserver() {
    for text in [
        "bool('true') && !bool('F') && int(timestamp('1970-01-01T00:01:00Z')) == 60 && timestamp(60) == timestamp('1970-01-01T00:01:00Z')",
        "string(timestamp('2025-11-08T14:00:00Z')) == '2025-11-08T14:00:00Z' && string(timestamp('2025-11-08T14:00:00.500+02:00')) == '2025-11-08T14:00:00.5+02:00'",
        "timestamp('2025-11-08T23:30:00-02:00').getDate() == 9 && timestamp('2025-11-08T23:30:00-02:00').getHours() == 1",
        "timestamp('2025-07-01T12:00:00Z').getHours('Europe/Berlin') == 14 && timestamp('2025-07-01T12:00:00Z').getMinutes('-05:30') == 30",
        "timestamp('9999-12-31T23:59:59.999999999Z').getFullYear() == 9999 && timestamp('0001-01-01T00:00:00Z').getDayOfWeek() == 1",
        "string(duration('90m')) == '5400s' && string(duration('1.5s')) == '1.5s' && int(duration('1s')) == 1000000000",
        "duration('90061.5s').getHours() == 25 && duration('1.5s').getMilliseconds() == 1500",
        "string(1e6) == '1e+06' && string(0.1) == '0.1' && string(100000.0) == '100000' && string(-0.0) == '-0' && string(1.0 / 0.0) == '+Inf'",
        "string(b'abc') == 'abc' && double('1e3') == 1000.0 && uint('7') == 7u && int('-7') == -7",
        "'%s'.format([timestamp('2025-11-08T14:00:00Z')]) == '2025-11-08T14:00:00Z'",
        "'%s'.format([{'b': 1, 'a': [1.0, 'x'], 'c': duration('1m')}]) == '{\"a\":[1.000000, \"x\"], \"b\":1, \"c\":duration(\"60s\")}'",
        "'%f %.0f %e'.format([1234567.5, 2.5, 1234.5]) == '1,234,567.500000 2 1.234500×10⁰³' && '%x %X %b %o'.format([255, 'a', 5, 8]) == 'ff 61 101 10'",
        "[1.0, 0.97].min() == 0.97 && [dyn(1), dyn(0.97)].min() == 0.97",
    ] {
        assert_eq!(holds(text, &json!({})), Ok(true), "{text}");
    }
}

#[test]
fn strings_and_urls_match_go() {
    for text in [
        "'abc'.split('') == ['a', 'b', 'c'] && ''.split('') == [] && ''.split(',') == [''] && 'a,b,c'.split(',', 2) == ['a', 'b,c'] && 'a'.split(',', 0) == []",
        "'aaa'.replace('a', 'b', -1) == 'bbb' && 'aaa'.replace('a', 'b', 2) == 'bba' && 'ab'.replace('', '-') == '-a-b-'",
        "'héllo'.indexOf('l', 3) == 3 && 'héllo'.lastIndexOf('l', 2) == 2 && 'abc'.indexOf('', 9) == 3 && 'abc'.charAt(3) == ''",
        "strings.quote('a\"\\n') == '\"a\\\\\"\\\\n\"'",
        "url('HTTPS://u@A.example:80/a%20b/../c?x=1&x=2#f').getHost() == 'A.example:80'",
        "url('https://a.example/a/../b').getEscapedPath() == '/a/../b' && url('https://a.example').getEscapedPath() == ''",
        "url('https://a.example/?x=1&x=%202').getQuery() == {'x': ['1', ' 2']} && url('http://[::1]:8/').getHostname() == '::1'",
        "isURL('/a') && !isURL('a') && !isURL('http://a b/') && !isURL('../x')",
        "ip.isCanonical('::1') && !isIP('::ffff:1.2.3.4') && !isIP('01.2.3.4') && cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8')",
        "!isCIDR('10.0.0.0/08') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && string(cidr('10.0.0.0/8')) == '10.0.0.0/8'",
        "quantity('1Gi').compareTo(quantity('1073741824')) == 0 && quantity('500m').asApproximateFloat() == 0.5 && !quantity('500m').isInteger()",
        "quantity('1k').asInteger() == 1000 && quantity('1').add(2).asInteger() == 3 && sign(quantity('-1')) == -1 && !isQuantity('1.2.3')",
        "semver('v1.2', true) == semver('1.2.0') && !isSemver('1.2') && isSemver('01.02', true) && semver('1.0.0-rc.1').isLessThan(semver('1.0.0'))",
        "!format.dns1123Label().validate('a-b').hasValue() && format.dns1123Label().validate('A').hasValue() && format.named('nothing') == optional.none()",
        "format.dns1123Label().validate('a.b').value() == ['must not contain dots']",
    ] {
        assert_eq!(holds(text, &json!({})), Ok(true), "{text}");
    }
}

#[test]
fn patterns_match_re2() {
    let object = json!({"p": "^a+$", "text": "aaa"});
    for text in [
        r"'abc_1'.matches(r'^\w{1,63}$') && !'é'.matches(r'\w') && 'é'.matches(r'^\W$') && '٣'.find(r'\d') == ''",
        r"'é a'.find(r'\ba') == 'a' && 'éa'.find(r'\ba') == 'a' && 'x\u00a0y'.find(r'\s') == ''",
        r"'a{b'.matches('a{b') && 'a{,2}'.matches('^a{,2}$') && 'a[b'.matches('[[]') && 'a&&b'.find('[&&]') == '&'",
        r"'É'.matches('(?i)é') && 'a.b'.matches(r'^\Qa.b\E$') && 'A'.matches(r'\101') && 'x-y'.find(r'[\w-]+') == 'x-y'",
        "object.text.matches(object.p) && matches('ab', 'b$') && 'a1b22'.findAll('[0-9]+', 1) == ['1'] && 'baaa'.findAll('a*') == ['', 'aaa']",
        "'abab'.findAll('') == ['', '', '', '', ''] && 'é'.findAll('.') == ['é'] && 'ab'.findAll('a|ab') == ['a']",
    ] {
        assert_eq!(holds(text, &object), Ok(true), "{text}");
    }
    for pattern in [r"\h", "(?=a)", "(?<!a)b", "a**", "(", r"\1", "a{2000}", "(?x)a", r"\u0041", "[b-a]", "*a", r"\Z"] {
        assert!(Pattern::compile(pattern, Match::FindAll, &mut Room::new()).is_err(), "{pattern}");
    }
}

#[test]
fn map_equality_ignores_the_order_of_keys() {
    assert_eq!(
        holds(
            "{'a': 1, 'b': {1: 'x'}} == {'b': {1: 'x'}, 'a': 1} && {1: 'a'}[dyn(1u)] == 'a' && dyn(1.0) in {1: 'a'}",
            &json!({})
        ),
        Ok(true)
    );
}

/// Values that are likely to break arithmetic, parsing or slicing.
fn edge_cases() -> Vec<Value> {
    let texts = [
        "",
        "a",
        "äö",
        "1",
        "-1",
        "1.5e400",
        "9999999999999999999h",
        "-9223372036854775808ns",
        "106751991167300d",
        "1h",
        "h",
        ".h",
        "2025-11-08T14:00:00Z",
        "9999-12-31T23:59:59+23:59",
        "0001-01-01T00:00:00-23:59",
        "1Gi",
        "9e99999",
        "1e-99999",
        "0.000000000001Ei",
        "%",
        "%s",
        "%d",
        "%.99f",
        "%.",
        "%x",
        "%%%",
        "1.2.3",
        "18446744073709551616.0.0",
        "10.0.0.1",
        "::1",
        "10.0.0.0/33",
        "::/128",
        "https://[::1]:99999/",
        "http://%zz/",
        "http://a/%",
        "YQ==",
        "Y",
        "Europe/Berlin",
        "+99:99",
        ":",
        "\\",
        "[",
        "(a{9}){9}",
        "a\u{301}-",
    ];
    let mut values: Vec<Value> = texts.into_iter().map(Value::from).collect();
    values.extend([i64::MIN, -1, 0, 1, 63, 64, 70, i64::MAX].map(Value::Int));
    values.extend([0, 1, u64::MAX].map(Value::Uint));
    values.extend([f64::NAN, f64::INFINITY, f64::MIN, -0.5, 0.0, 1e19].map(Value::Double));
    values.extend([
        Value::Null,
        Value::Bool(true),
        Value::Bytes(b"\xff".as_slice().into()),
        Value::Optional(None),
        Value::Type("int"),
    ]);
    values.extend([i64::MIN, -1, i64::MAX].map(Value::Duration));
    values.push(Vec::new().into());
    values.push(vec![Value::Int(i64::MAX), Value::Int(i64::MAX)].into());
    values.push(vec!["b".into(), "a".into()].into());
    values.push(vec![Value::Double(f64::NAN), Value::Double(1.0), Value::Double(f64::NAN)].into());
    for (function, text) in [
        ("timestamp", "9999-12-31T23:59:59Z"),
        ("timestamp", "0001-01-01T00:00:00Z"),
        ("quantity", "1Gi"),
        ("semver", "1.2.3"),
        ("cidr", "10.0.0.0/8"),
        ("cidr", "::/0"),
        ("ip", "::1"),
        ("url", "https://[::1]:80/a?b=c&d"),
    ] {
        let function = functions::find(function).unwrap();
        values.push((function.call)(&mut Work::new(10_000), &[text.into()]).unwrap());
    }
    values.push(functions::find("format.uuid").map(|format| (format.call)(&mut Work::new(100), &[]).unwrap()).unwrap());
    values
}

#[test]
fn no_function_panics() {
    let values = edge_cases();
    for function in functions::all() {
        for count in 0..=4 {
            for index in 0..values.len().pow(count.min(2) as u32) {
                let others = [&values[index % 7], &values[(index + 3) % values.len()]];
                let arguments =
                    [&values[index % values.len()], &values[index / values.len() % values.len()], others[0], others[1]];
                let arguments: Vec<Value> = arguments.into_iter().take(count).cloned().collect();
                let outcome = catch_unwind(AssertUnwindSafe(|| (function.call)(&mut Work::new(20_000), &arguments)));
                assert!(outcome.is_ok(), "{} of {arguments:?}", function.name);
            }
        }
    }
}
