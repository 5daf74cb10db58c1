use super::*;

const VARIABLES: [&str; 3] = ["event", "data", "object"];

fn json_document() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        (-3..3_i64).prop_map(serde_json::Value::from),
        any::<u64>().prop_map(serde_json::Value::from),
        any::<f64>().prop_map(|double| json!(double)),
        "[a-c]{0,3}".prop_map(serde_json::Value::from),
        prop_oneof!["2025-11-08T14:00:00Z", "9{1,20}h", "-?[0-9]{1,19}(ns|s|h)", "[0-9]{1,3}(Gi|m|e99)", ".{0,8}"]
            .prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::btree_map("[abc]", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

/// Expressions over the document's fields `a`, `b` and `c`, most of them well formed.
fn expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        prop::sample::select(vec!["object", "object.a", "object.b.c", "data", "event", "true", "false", "null", "x"])
            .prop_map(str::to_owned),
        (-3..3_i64).prop_map(|int| int.to_string()),
        prop::sample::select(vec![
            "9223372036854775807",
            "-9223372036854775808",
            "18446744073709551615u",
            "1e308",
            "0.0",
            "'a'",
            "''",
            "b'a'",
            "'2025-11-08T14:00:00Z'",
            "'9999999999999h'",
            "'1Gi'",
            "'%d'",
            "'%.99e'",
            "[]",
            "{}",
        ])
        .prop_map(str::to_owned),
    ];
    let names = |receiver: bool| -> Vec<&'static str> {
        let of = |function: &&functions::Function| function.signatures.iter().any(|way| way.receiver == receiver);
        functions::all().filter(of).map(|function| function.name).collect()
    };
    let (methods, globals) = (names(true), names(false));
    leaf.prop_recursive(4, 24, 3, move |inner| {
        let pair = (inner.clone(), inner.clone());
        let operators = vec!["&&", "||", "==", "!=", "<", "<=", ">", ">=", "in", "+", "-", "*", "/", "%"];
        prop_oneof![
            (pair.clone(), prop::sample::select(operators)).prop_map(|((a, b), sign)| format!("({a} {sign} {b})")),
            (pair.clone(), prop::sample::select(vec!["all", "exists", "exists_one", "map", "filter"]))
                .prop_map(|((a, b), name)| format!("{a}.{name}(x, {b})")),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            pair.clone().prop_map(|(a, b)| format!("{a}[{b}]")),
            pair.clone().prop_map(|(a, b)| format!("[{a}, {b}]")),
            pair.clone().prop_map(|(a, b)| format!("{{{a}: {b}}}")),
            inner.clone().prop_map(|a| format!("!{a}")),
            inner.clone().prop_map(|a| format!("-{a}")),
            inner.clone().prop_map(|a| format!("{a}.b")),
            inner.clone().prop_map(|a| format!("size({a})")),
            (prop::sample::select(methods.clone()), prop::collection::vec(inner.clone(), 0..3), inner.clone())
                .prop_map(|(name, arguments, a)| format!("{a}.{name}({})", arguments.join(", "))),
            (prop::sample::select(globals.clone()), prop::collection::vec(inner, 1..3))
                .prop_map(|(name, arguments)| format!("{name}({})", arguments.join(", "))),
        ]
    })
}

fn is_one_bounded_line(error: &dyn std::error::Error) -> bool {
    let text = error.to_string();
    !text.is_empty() && text.chars().count() <= 256 && !text.contains('\n')
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn any_text_compiles_or_fails(text in "\\PC{0,80}") {
        if let Err(error) = Expression::compile(&text, &VARIABLES) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn any_tokens_compile_or_fail_at_a_valid_position(
        tokens in prop::collection::vec(prop::sample::select(vec![
            "object", "x", ".", "a", "(", ")", "[", "]", "{", "}", ",", ":", "?", "!", "-", "1", "'a'", "b'\\xff'", "==", "&&", "||", "in",
            "has", "all", "map", "exists", "true", "null", "+", "math", "greatest", "`a`", "1.5", "2u", "\n", "//", "'", "\\", "é",
        ]), 0..40)
    ) {
        let text = tokens.join(" ");
        if let Err(CompileError::Malformed { at, .. }) = Expression::compile(&text, &VARIABLES) {
            prop_assert!(at.line <= text.matches('\n').count() + 1);
            prop_assert!(at.column <= text.chars().count() + 1);
        }
    }

    #[test]
    fn any_evaluation_returns_a_result_or_a_bounded_error(text in expression(), object in json_document()) {
        if let Ok(expression) = Expression::compile(&text, &VARIABLES) {
            let (object, event) = (document(&object), Document::from("training.completed"));
            let scope = [("object", &object), ("event", &event)];
            if let Err(error) = expression.holds(&scope) {
                prop_assert!(is_one_bounded_line(&error), "{text}: {error}");
            }
            if let Err(error) = expression.value(&scope) {
                prop_assert!(is_one_bounded_line(&error), "{text}: {error}");
            }
            let _ = expression.reads("object", &["a"]);
        }
    }

    #[test]
    fn documents_round_trip_to_json(object in json_document()) {
        let text = object.to_string();
        let back = compile("object").value(&[("object", &serde_json::from_str(&text).unwrap())]).unwrap();
        prop_assert_eq!(back.unwrap_or_default(), serde_json::from_str::<serde_json::Value>(&text).unwrap());
    }
}
