use super::*;

/// What is written, where the mistake is told, and how.
const MALFORMED: &[(&str, (usize, usize), &str)] = &[
    ("", (1, 1), "it is empty; write an expression, or leave the field out"),
    ("   ", (1, 1), "it is empty; write an expression, or leave the field out"),
    ("object.", (1, 8), "a field's name must follow the dot, not the end; write x['…'] for other names"),
    ("object.a ==", (1, 12), "a value must follow here; the expression ends too early"),
    ("object.a = 1", (1, 10), "`=` is no part of CEL; write `==` to compare"),
    ("object.a & true", (1, 10), "`&` is no part of CEL; write `&&` for and"),
    ("object.a | true", (1, 10), "`|` is no part of CEL; write `||` for or"),
    ("object.a and object.b", (1, 10), "write `&&` for `and`"),
    ("object.a or object.b", (1, 10), "write `||` for `or`"),
    ("not object.a", (1, 1), "write `!` for `not`"),
    ("object.a not in [1]", (1, 10), "write `!` for `not`, before what it negates; `!(x in y)` for `x not in y`"),
    ("object.a like 'x'", (1, 10), "write s.matches('pattern') or s.contains('part') for `like`"),
    ("object.a is null", (1, 10), "write `==` for `is`"),
    ("object.a; object.b", (1, 9), "`;` is no part of CEL; an expression has no end sign: leave it out"),
    ("object.a == 'x", (1, 13), "this string does not end; close it with '"),
    ("object.a == \"x", (1, 13), "this string does not end; close it with \""),
    ("'''never closed", (1, 1), "this string does not end; close it with '''"),
    ("object.a == “x”", (1, 13), "`“` is no part of CEL; write plain quotes, `'` or `\"`, around a string"),
    ("object.a == 'a\\qb'", (1, 15), "`\\q` is no escape; write `\\\\` for a backslash, or r'…' around a pattern"),
    ("object.a == '\\x4'", (1, 14), "2 digits of a character's code must follow `\\x`"),
    ("object.a == '\\u12g4'", (1, 14), "4 digits of a character's code must follow `\\u`"),
    ("object.a == '\\ud800'", (1, 14), "4 digits of a character's code must follow `\\u`"),
    ("'\\400'", (1, 2), "`\\4` is no escape; write `\\\\` for a backslash, or r'…' around a pattern"),
    ("object.a == `x`", (1, 13), "backticks are for fields, after a dot; write '…' for a string"),
    ("object.`a b*`", (1, 8), "a name in backticks ends with a backtick, and has letters, digits and `_.-/ ` only"),
    ("$object.a", (1, 1), "`$` is no part of CEL; variables are written without a sign"),
    ("object.a ^ 2", (1, 10), "`^` is no part of CEL; there is no such operator: write math.bitXor(a, b)"),
    ("object.a =~ 'x'", (1, 10), "`=` is no part of CEL; write `==` to compare"),
    ("(object.a == 1", (1, 15), "write `)` to close what opened at line 1, column 1 instead of the end"),
    ("object.a == 1)", (1, 14), "`)` closes nothing; leave it out"),
    ("[1, 2", (1, 6), "write `]` to close what opened at line 1, column 1 instead of the end"),
    ("{'a': 1", (1, 8), "write `}` to close what opened at line 1, column 1 instead of the end"),
    ("{'a' 1}", (1, 6), "write `:` and the key's value, instead of a number"),
    ("{a: 1}", (1, 2), "there is no `a`; an expression here may use event, object, and strings in quotes"),
    ("object.a ? 1", (1, 13), "write `:` and what holds otherwise, instead of the end"),
    ("object.a ? 1 :", (1, 15), "a value must follow here; the expression ends too early"),
    ("object.a : 1", (1, 10), "`:` belongs after `condition ? this`"),
    ("object['a'", (1, 11), "write `]` to close what opened at line 1, column 7 instead of the end"),
    ("object[]", (1, 8), "a value must stand here, not `]`"),
    ("object.a.b..c", (1, 12), "a field's name must follow the dot, not `.`; write x['…'] for other names"),
    ("object.1", (1, 7), "an operator must stand before a number"),
    ("1abc", (1, 1), "a number ends at its last digit (or at `u`); a name cannot begin with a digit"),
    ("0x", (1, 1), "hexadecimal digits must follow `0x`"),
    ("99999999999999999999", (1, 1), "this number is too large for 64 bits; write it as a double, such as 1e20"),
    ("99999999999999999999u", (1, 1), "this number is too large for an unsigned one of 64 bits"),
    ("self.a", (1, 1), "there is no `self`; an expression here may use event, object, and strings in quotes"),
    (
        "status.phase == 'x'",
        (1, 1),
        "there is no `status`; an expression here may use event, object, and strings in quotes",
    ),
    ("objekt.a", (1, 1), "there is no `objekt`; an expression here may use event, object, and strings in quotes"),
    (
        "foo(object.a)",
        (1, 1),
        "there is no function `foo`; https://kubernetes.io/docs/reference/using-api/cel/ lists them",
    ),
    (
        "object.a.foo()",
        (1, 10),
        "there is no function `foo`; https://kubernetes.io/docs/reference/using-api/cel/ lists them",
    ),
    ("startsWith(object.a, 'x')", (1, 1), "`startsWith` follows what it is asked of, such as x.startsWith(…)"),
    ("object.a.startsWith()", (1, 10), "`startsWith` takes 1 argument, and is given 0"),
    ("object.a.startsWith('a', 'b')", (1, 10), "`startsWith` takes 1 argument, and is given 2"),
    ("size()", (1, 1), "`size` takes 1 argument, and is given 0"),
    ("size(object.a, 1)", (1, 1), "`size` takes 1 argument, and is given 2"),
    ("has(object)", (1, 1), "has() takes one field, such as has(x.y); for a key write 'key' in x"),
    ("has(object['a'])", (1, 1), "has() takes one field, such as has(x.y); for a key write 'key' in x"),
    ("has(object.a, object.b)", (1, 1), "has() takes one field, such as has(x.y); for a key write 'key' in x"),
    ("exists(object.a, x, true)", (1, 1), "`exists` follows what it goes over, such as xs.exists(x, …)"),
    (
        "object.a.exists(x)",
        (1, 17),
        "`exists` takes a name for an element and what is asked of it, such as xs.exists(x, …)",
    ),
    (
        "object.a.exists('x', true)",
        (1, 17),
        "`exists` takes a name for an element and what is asked of it, such as xs.exists(x, …)",
    ),
    (
        "object.a.all(x, true) && x",
        (1, 26),
        "there is no `x`; an expression here may use event, object, and strings in quotes",
    ),
    ("object.a.matches('(')", (1, 18), "this is no regular expression of RE2's syntax: unclosed group"),
    (
        "object.a.matches('(a{1000}){1000}')",
        (1, 18),
        "the patterns of this expression are too large up to here; repeat less",
    ),
    (
        "object.a.matches('a{1000}{1000}')",
        (1, 18),
        "this is no regular expression of RE2's syntax: a repetition follows another",
    ),
    (
        "object.a.matches('(?=x)')",
        (1, 18),
        "this is no regular expression of RE2's syntax: look-around, including look-ahead and look-behind, is not supported",
    ),
    ("object.?", (1, 9), "a field's name must follow the dot, not the end; write x['…'] for other names"),
    ("[?1]", (1, 2), "`?` stands before an optional, such as x.?y, not before an int"),
    ("Job{name: 'x'}", (1, 1), "messages such as Name{field: value} are not supported; write a map, {'field': value}"),
    (
        "object.Job{name: 'x'}",
        (1, 11),
        "messages such as Name{field: value} are not supported; write a map, {'field': value}",
    ),
    (
        "math.foo(1)",
        (1, 1),
        "there is no function `math.foo`; https://kubernetes.io/docs/reference/using-api/cel/ lists them",
    ),
    ("math", (1, 1), "there is no `math`; an expression here may use event, object, and strings in quotes"),
    ("int.x", (1, 5), "`.x` does not take a type"),
    ("-!object.a", (1, 2), "`!` and `-` do not follow each other; write brackets, such as !(-x)"),
    ("rb'a'", (1, 1), "there is no `rb`; an expression here may use event, object, and strings in quotes"),
    ("!", (1, 2), "a value must follow here; the expression ends too early"),
    ("-", (1, 2), "a value must follow here; the expression ends too early"),
    ("&& true", (1, 1), "an expression cannot begin with `&&`"),
    ("true false", (1, 6), "an operator must stand before `false`"),
    ("true true", (1, 6), "an operator must stand before `true`"),
    (
        "in [1]",
        (1, 1),
        "`in` is a word that CEL keeps for itself; an expression here may use event, object, and strings in quotes",
    ),
    (
        "if",
        (1, 1),
        "`if` is a word that CEL keeps for itself; an expression here may use event, object, and strings in quotes",
    ),
    (
        "object.a().b",
        (1, 8),
        "there is no function `a`; https://kubernetes.io/docs/reference/using-api/cel/ lists them",
    ),
    (
        "optional.some(1)",
        (1, 1),
        "there is no function `optional.some`; https://kubernetes.io/docs/reference/using-api/cel/ lists them",
    ),
    (
        "object.metadata.annotations[llmtune.io/base-model]",
        (1, 29),
        "there is no `llmtune`; an expression here may use event, object, and strings in quotes",
    ),
    ("object.name == 'x' object", (1, 20), "an operator must stand before `object`"),
    (" \"a\" + 'b' +", (1, 13), "a value must follow here; the expression ends too early"),
    ("  && object.b =", (1, 15), "`=` is no part of CEL; write `==` to compare"),
    ("a", (1, 1), "there is no `a`; an expression here may use event, object, and strings in quotes"),
    ("object.a == 1\n  && object.b = 2", (2, 15), "`=` is no part of CEL; write `==` to compare"),
    (
        "['é', 'ö'].exists(x, x == y)",
        (1, 27),
        "there is no `y`; an expression here may use event, object, x, and strings in quotes",
    ),
];

#[test]
fn what_is_malformed_is_told_with_its_place_and_what_to_write_instead() {
    for (text, (line, column), expected) in MALFORMED {
        let error = Expression::compile(text, &["event", "object"]).unwrap_err();
        let at = Position { line: *line, column: *column };
        assert_eq!(error, CompileError::Malformed { at, message: (*expected).to_owned() }, "{text}");
        assert_eq!(error.to_string(), format!("line {line}, column {column}: {expected}"));
    }
}

/// What the apiserver refuses for its types and literals, with `event` a string.
const MISTYPED: &[(&str, (usize, usize), &str)] = &[
    ("event == 1", (1, 7), "`==` does not take a string and an int"),
    ("event != null", (1, 7), "`!=` does not take a string and null"),
    ("event in [1, 2]", (1, 7), "`in` does not take a string and a list"),
    ("event < 1", (1, 7), "`<` does not take a string and an int"),
    ("1 == 1.0", (1, 3), "`==` does not take an int and a double"),
    ("1 + 1.5 == 2.5", (1, 3), "`+` does not take an int and a double"),
    ("event && true", (1, 7), "`&&` does not take a string"),
    ("!event", (1, 1), "`!` does not take a string"),
    ("-event == ''", (1, 1), "`-` does not take a string"),
    ("event ? 1 : 2", (1, 7), "`?` does not take a string"),
    (
        "true ? 1 : 'a'",
        (1, 6),
        "both sides of `:` must have one type, not an int and a string; write dyn(…) around one",
    ),
    ("event.name == ''", (1, 7), "`.name` does not take a string"),
    ("has(event.name)", (1, 11), "`.name` does not take a string"),
    ("event[0] == 'a'", (1, 6), "`[]` does not take a string and an int"),
    ("[1][1u] == 1", (1, 4), "`[]` does not take a list and a uint"),
    ("{1.5: 'x'} == {}", (1, 2), "the key of a map is a string, a number without a fraction or a bool, not a double"),
    ("1.startsWith('a')", (1, 3), "`startsWith` does not take an int and a string"),
    ("event.startsWith(1)", (1, 7), "`startsWith` does not take a string and an int"),
    ("size(1) == 1", (1, 1), "`size` does not take an int"),
    ("event.all(c, c == 'a')", (1, 7), "`all` goes over a list or a map, not a string"),
    ("[1].all(x, x)", (1, 12), "`all` does not take an int"),
    ("[1].map(x, x + 'a') == []", (1, 14), "`+` does not take an int and a string"),
    ("[[1]].sortBy(x, x) == []", (1, 17), "`sortBy` does not sort by a list"),
    (
        "duration('1d') == duration('24h')",
        (1, 10),
        "this is no duration; write hours, minutes and seconds, such as '36h' or '1h30m'",
    ),
    (
        "timestamp('2025-11-08') < timestamp(object.a)",
        (1, 11),
        "this is no timestamp; write it as RFC 3339 does, such as '2025-11-08T14:00:00Z', of the years 1 to 9999",
    ),
    ("object.a == int('x')", (1, 17), "this is no int; write a whole number of 64 bits, such as '42'"),
    ("uint(-1) == 0u", (1, 6), "this is no uint; write a whole number of 64 bits that is not negative, such as '42'"),
    ("double('a') == 0.5", (1, 8), "this is no double; write a number, such as '0.5'"),
    ("bool('yes')", (1, 6), "this is no bool; write 'true' or 'false'"),
    ("'%d'.format([1.5]) == ''", (1, 14), "`%d` does not take a double"),
    ("'%s %s'.format([1]) == ''", (1, 1), "`%s` is given no value; write one for each `%` into the list"),
    ("'%y'.format([1]) == ''", (1, 1), "after `%` stands one of s, d, f, e, b, o, x, X, or another `%`"),
    ("'%.999999d'.format([1]) == ''", (1, 1), "after `%` stands one of s, d, f, e, b, o, x, X, or another `%`"),
    ("event.orValue('a') == ''", (1, 7), "`orValue` follows an optional, such as x.?y, not a string"),
    (
        "optional.of(1).orValue('a') == 1",
        (1, 16),
        "both sides of `orValue` must have one type, not an int and a string; write dyn(…) around one",
    ),
    ("object.all(x, x, x)", (1, 15), "`x` names two things; take another name"),
    ("event", (1, 1), "it yields a string, not a bool: compare it with something"),
    ("size(object)", (1, 1), "it yields an int, not a bool: compare it with something"),
];

#[test]
fn what_the_apiserver_refuses_when_it_compiles_is_refused_here() {
    for (text, (line, column), expected) in MISTYPED {
        let variables = [("event", Type::String), ("object", Type::Dyn)];
        let error = Expression::compile_condition(text, &variables).unwrap_err();
        let at = Position { line: *line, column: *column };
        assert_eq!(error, CompileError::Malformed { at, message: (*expected).to_owned() }, "{text}");
    }
}
