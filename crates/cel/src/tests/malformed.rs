use super::*;

/// Expressions, each with the position and the message of its error.
const MALFORMED: &[(&str, (usize, usize), &str)] = &[
    ("", (1, 1), "the expression is empty; write one, or omit the field"),
    ("   ", (1, 1), "the expression is empty; write one, or omit the field"),
    ("object.", (1, 8), "expected a field name after the dot, found the end; for other names, use x['…']"),
    ("object.a ==", (1, 12), "expected a value, but the expression ends"),
    ("object.a = 1", (1, 10), "`=` is not valid in CEL; use `==` to compare"),
    ("object.a & true", (1, 10), "`&` is not valid in CEL; use `&&`"),
    ("object.a | true", (1, 10), "`|` is not valid in CEL; use `||`"),
    ("object.a and object.b", (1, 10), "use `&&` instead of `and`"),
    ("object.a or object.b", (1, 10), "use `||` instead of `or`"),
    ("not object.a", (1, 1), "use `!` instead of `not`"),
    ("object.a not in [1]", (1, 10), "use `!` before the operand instead of `not`, such as !(x in y)"),
    ("object.a like 'x'", (1, 10), "use s.matches('pattern') or s.contains('part') instead of `like`"),
    ("object.a is null", (1, 10), "use `==` instead of `is`"),
    ("object.a; object.b", (1, 9), "`;` is not valid in CEL; remove it"),
    ("object.a == 'x", (1, 13), "unterminated string; close it with '"),
    ("object.a == \"x", (1, 13), "unterminated string; close it with \""),
    ("'''never closed", (1, 1), "unterminated string; close it with '''"),
    ("object.a == “x”", (1, 13), "`“` is not valid in CEL; use the quotes `'` or `\"` for strings"),
    (
        "object.a == 'a\\qb'",
        (1, 15),
        "`\\q` is not an escape sequence; use `\\\\` for a backslash, or r'…' for a pattern",
    ),
    ("object.a == '\\x4'", (1, 14), "expected 2 digits of a valid character code after `\\x`"),
    ("object.a == '\\u12g4'", (1, 14), "expected 4 digits of a valid character code after `\\u`"),
    ("object.a == '\\ud800'", (1, 14), "expected 4 digits of a valid character code after `\\u`"),
    ("'\\400'", (1, 2), "`\\4` is not an escape sequence; use `\\\\` for a backslash, or r'…' for a pattern"),
    ("object.a == `x`", (1, 13), "backticks are only for field names after a dot; for a string, use '…'"),
    (
        "object.`a b*`",
        (1, 8),
        "a name in backticks must contain only letters, digits and `_.-/ `, and end with a backtick",
    ),
    ("$object.a", (1, 1), "`$` is not valid in CEL; write names without a prefix"),
    ("object.a ^ 2", (1, 10), "`^` is not valid in CEL; use math.bitXor(a, b)"),
    ("object.a =~ 'x'", (1, 10), "`=` is not valid in CEL; use `==` to compare"),
    ("(object.a == 1", (1, 15), "expected `)` to close the bracket at line 1, column 1, found the end"),
    ("object.a == 1)", (1, 14), "`)` has no matching opening bracket; remove it"),
    ("[1, 2", (1, 6), "expected `]` to close the bracket at line 1, column 1, found the end"),
    ("{'a': 1", (1, 8), "expected `}` to close the bracket at line 1, column 1, found the end"),
    ("{'a' 1}", (1, 6), "expected `:` and the value of the key, found a number"),
    ("{a: 1}", (1, 2), "unknown name `a`; use event, object, or a string in quotes"),
    ("object.a ? 1", (1, 13), "expected `:` and the other alternative, found the end"),
    ("object.a ? 1 :", (1, 15), "expected a value, but the expression ends"),
    ("object.a : 1", (1, 10), "`:` is only valid after `condition ? this`"),
    ("object['a'", (1, 11), "expected `]` to close the bracket at line 1, column 7, found the end"),
    ("object[]", (1, 8), "expected a value, found `]`"),
    ("object.a.b..c", (1, 12), "expected a field name after the dot, found `.`; for other names, use x['…']"),
    ("object.1", (1, 7), "expected an operator before a number"),
    ("1abc", (1, 1), "a letter cannot follow a number, and a name cannot begin with a digit"),
    ("0x", (1, 1), "expected hexadecimal digits after `0x`"),
    ("99999999999999999999", (1, 1), "this number is too large for 64 bits; use a double, such as 1e20"),
    ("99999999999999999999u", (1, 1), "this number is too large for 64 bits; use a double, such as 1e20"),
    ("self.a", (1, 1), "unknown name `self`; use event, object, or a string in quotes"),
    ("status.phase == 'x'", (1, 1), "unknown name `status`; use event, object, or a string in quotes"),
    ("objekt.a", (1, 1), "unknown name `objekt`; use event, object, or a string in quotes"),
    ("foo(object.a)", (1, 1), "unknown function `foo`; see https://kubernetes.io/docs/reference/using-api/cel/"),
    ("object.a.foo()", (1, 10), "unknown function `foo`; see https://kubernetes.io/docs/reference/using-api/cel/"),
    ("startsWith(object.a, 'x')", (1, 1), "call `startsWith` as a method, such as x.startsWith(…)"),
    ("object.a.startsWith()", (1, 10), "`startsWith` takes 1 argument, not 0"),
    ("object.a.startsWith('a', 'b')", (1, 10), "`startsWith` takes 1 argument, not 2"),
    ("size()", (1, 1), "`size` takes 1 argument, not 0"),
    ("size(object.a, 1)", (1, 1), "`size` takes 1 argument, not 2"),
    ("has(object)", (1, 1), "has() takes one field, such as has(x.y); for a key, use 'key' in x"),
    ("has(object['a'])", (1, 1), "has() takes one field, such as has(x.y); for a key, use 'key' in x"),
    ("has(object.a, object.b)", (1, 1), "has() takes one field, such as has(x.y); for a key, use 'key' in x"),
    ("exists(object.a, x, true)", (1, 1), "call `exists` on a list or a map, such as xs.exists(x, …)"),
    ("object.a.exists(x)", (1, 17), "`exists` takes a variable and an expression, such as xs.exists(x, …)"),
    ("object.a.exists('x', true)", (1, 17), "`exists` takes a variable and an expression, such as xs.exists(x, …)"),
    ("object.a.all(x, true) && x", (1, 26), "unknown name `x`; use event, object, or a string in quotes"),
    ("object.a.matches('(')", (1, 18), "invalid regular expression (RE2 syntax): unclosed group"),
    (
        "object.a.matches('(a{1000}){1000}')",
        (1, 18),
        "the patterns of this expression are too large; use fewer repetitions",
    ),
    (
        "object.a.matches('a{1000}{1000}')",
        (1, 18),
        "invalid regular expression (RE2 syntax): a repetition cannot follow another",
    ),
    (
        "object.a.matches('(?=x)')",
        (1, 18),
        "invalid regular expression (RE2 syntax): look-around, including look-ahead and look-behind, is not supported",
    ),
    ("object.?", (1, 9), "expected a field name after the dot, found the end; for other names, use x['…']"),
    ("[?1]", (1, 2), "`?` must precede an optional, such as x.?y, not an int"),
    ("Job{name: 'x'}", (1, 1), "messages such as Name{field: value} are not supported; use a map, {'field': value}"),
    (
        "object.Job{name: 'x'}",
        (1, 11),
        "messages such as Name{field: value} are not supported; use a map, {'field': value}",
    ),
    ("math.foo(1)", (1, 1), "unknown function `math.foo`; see https://kubernetes.io/docs/reference/using-api/cel/"),
    ("math", (1, 1), "unknown name `math`; use event, object, or a string in quotes"),
    ("int.x", (1, 5), "`.x` does not take a type"),
    ("-!object.a", (1, 2), "`!` and `-` cannot follow each other; add parentheses, such as !(-x)"),
    ("rb'a'", (1, 1), "unknown name `rb`; use event, object, or a string in quotes"),
    ("!", (1, 2), "expected a value, but the expression ends"),
    ("-", (1, 2), "expected a value, but the expression ends"),
    ("&& true", (1, 1), "an expression cannot begin with `&&`"),
    ("true false", (1, 6), "expected an operator before `false`"),
    ("true true", (1, 6), "expected an operator before `true`"),
    ("in [1]", (1, 1), "`in` is a reserved word; use event, object, or a string in quotes"),
    ("if", (1, 1), "`if` is a reserved word; use event, object, or a string in quotes"),
    ("object.a().b", (1, 8), "unknown function `a`; see https://kubernetes.io/docs/reference/using-api/cel/"),
    (
        "optional.some(1)",
        (1, 1),
        "unknown function `optional.some`; see https://kubernetes.io/docs/reference/using-api/cel/",
    ),
    (
        "object.metadata.annotations[llmtune.io/base-model]",
        (1, 29),
        "unknown name `llmtune`; use event, object, or a string in quotes",
    ),
    ("object.name == 'x' object", (1, 20), "expected an operator before `object`"),
    (" \"a\" + 'b' +", (1, 13), "expected a value, but the expression ends"),
    ("  && object.b =", (1, 15), "`=` is not valid in CEL; use `==` to compare"),
    ("a", (1, 1), "unknown name `a`; use event, object, or a string in quotes"),
    ("object.a == 1\n  && object.b = 2", (2, 15), "`=` is not valid in CEL; use `==` to compare"),
    ("['é', 'ö'].exists(x, x == y)", (1, 27), "unknown name `y`; use event, object, x, or a string in quotes"),
];

#[test]
fn malformed_expressions_are_refused_with_position_and_advice() {
    for (text, (line, column), expected) in MALFORMED {
        let error = Expression::compile(text, &["event", "object"]).unwrap_err();
        let at = Position { line: *line, column: *column };
        assert_eq!(error, CompileError::Malformed { at, message: (*expected).to_owned() }, "{text}");
        assert_eq!(error.to_string(), format!("line {line}, column {column}: {expected}"));
    }
}

/// Expressions whose types or literals the apiserver refuses. `event` is a string.
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
        "both sides of `:` must have the same type, not an int and a string; wrap one in dyn(…)",
    ),
    ("event.name == ''", (1, 7), "`.name` does not take a string"),
    ("has(event.name)", (1, 11), "`.name` does not take a string"),
    ("event[0] == 'a'", (1, 6), "`[]` does not take a string and an int"),
    ("[1][1u] == 1", (1, 4), "`[]` does not take a list and a uint"),
    ("{1.5: 'x'} == {}", (1, 2), "a map key must be a string, an int, a uint or a bool, not a double"),
    ("1.startsWith('a')", (1, 3), "`startsWith` does not take an int and a string"),
    ("event.startsWith(1)", (1, 7), "`startsWith` does not take a string and an int"),
    ("size(1) == 1", (1, 1), "`size` does not take an int"),
    ("event.all(c, c == 'a')", (1, 7), "`all` iterates over a list or a map, not a string"),
    ("[1].all(x, x)", (1, 12), "`all` does not take an int"),
    ("[1].map(x, x + 'a') == []", (1, 14), "`+` does not take an int and a string"),
    ("[[1]].sortBy(x, x) == []", (1, 17), "`sortBy` cannot sort by a list"),
    (
        "duration('1d') == duration('24h')",
        (1, 10),
        "invalid duration; use hours, minutes and seconds, such as '36h' or '1h30m'",
    ),
    (
        "timestamp('2025-11-08') < timestamp(object.a)",
        (1, 11),
        "invalid timestamp; use RFC 3339 with a year from 1 to 9999, such as '2025-11-08T14:00:00Z'",
    ),
    ("object.a == int('x')", (1, 17), "invalid int; use a whole number of 64 bits, such as '42'"),
    ("uint(-1) == 0u", (1, 6), "invalid uint; use a whole number of 64 bits that is not negative, such as '42'"),
    ("double('a') == 0.5", (1, 8), "invalid double; use a number, such as '0.5'"),
    ("bool('yes')", (1, 6), "invalid bool; use 'true' or 'false'"),
    ("'%d'.format([1.5]) == ''", (1, 14), "`%d` does not take a double"),
    ("'%s %s'.format([1]) == ''", (1, 1), "`%s` has no value; add one to the list for each `%`"),
    ("'%y'.format([1]) == ''", (1, 1), "`%` must be followed by s, d, f, e, b, o, x, X or another `%`"),
    ("'%.999999d'.format([1]) == ''", (1, 1), "`%` must be followed by s, d, f, e, b, o, x, X or another `%`"),
    ("event.orValue('a') == ''", (1, 7), "call `orValue` on an optional, such as x.?y, not on a string"),
    (
        "optional.of(1).orValue('a') == 1",
        (1, 16),
        "both sides of `orValue` must have the same type, not an int and a string; wrap one in dyn(…)",
    ),
    ("object.all(x, x, x)", (1, 15), "`x` names two variables; use another name"),
    ("event", (1, 1), "the expression returns a string, not a bool; compare it with a value"),
    ("size(object)", (1, 1), "the expression returns an int, not a bool; compare it with a value"),
];

#[test]
fn mistyped_expressions_are_refused_at_compilation() {
    for (text, (line, column), expected) in MISTYPED {
        let variables = [("event", Type::String), ("object", Type::Dyn)];
        let error = Expression::compile_condition(text, &variables).unwrap_err();
        let at = Position { line: *line, column: *column };
        assert_eq!(error, CompileError::Malformed { at, message: (*expected).to_owned() }, "{text}");
    }
}
