//! Compares results with CEL in the environment of the apiserver: for the conformance suite, and for generated
//! expressions.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value as Json;

use super::super::value::{Key, Map, Value};
use super::generator::{DOCUMENT, Random};
use super::*;

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

fn oracle() -> String {
    let built =
        Command::new(Path::new(CRATE).join("../../tests/control-plane/build")).arg("cel-oracle").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    String::from_utf8(built.stdout).unwrap().trim().to_owned()
}

/// The folder of the Go module with the cases of the conformance suite.
fn cases() -> String {
    let module = Path::new(CRATE).join("../../tests/control-plane/cel-oracle");
    let found =
        Command::new("go").args(["mod", "download", "-json", "cel.dev/expr"]).current_dir(module).output().unwrap();
    let found: Json = serde_json::from_slice(&found.stdout).unwrap();
    format!("{}/tests/simple/testdata", found["Dir"].as_str().unwrap())
}

/// A value as the oracle prints it, with its type.
fn typed(value: &Value) -> Json {
    match value {
        Value::Null => json!({"null": true}),
        Value::Bool(truth) => json!({"bool": truth}),
        Value::Int(int) => json!({"int": int.to_string()}),
        Value::Uint(uint) => json!({"uint": uint.to_string()}),
        Value::Double(double) if double.is_nan() => json!({"double": "NaN"}),
        Value::Double(double) => json!({"double": format!("{:016x}", double.to_bits())}),
        Value::String(text) => json!({"string": &**text}),
        Value::Bytes(bytes) => {
            use base64::Engine as _;
            json!({"bytes": base64::engine::general_purpose::STANDARD.encode(bytes)})
        }
        Value::Timestamp(timestamp) => json!({"timestamp": timestamp.utc().text()}),
        Value::Duration(nanos) => json!({"duration": nanos.to_string()}),
        Value::List(list) => json!({"list": list.iter().map(typed).collect::<Vec<_>>()}),
        Value::Map(map) => {
            let members = map.entries().iter().map(|(key, value)| json!([typed(&key.value()), typed(value)]));
            json!({"map": members.collect::<Vec<_>>()})
        }
        Value::Optional(value) => json!({"optional": value.iter().map(|value| typed(value)).collect::<Vec<_>>()}),
        Value::Type(name) => json!({"type": name}),
        other => json!({"other": other.type_of()}),
    }
}

/// Sorts the members of maps that the oracle printed, and removes the texts of values without a JSON form.
fn normalized(value: &Json) -> Json {
    let Some((kind, inner)) = value.as_object().and_then(|object| object.iter().find(|(kind, _)| *kind != "text"))
    else {
        return value.clone();
    };
    match (kind.as_str(), inner) {
        ("list" | "optional", Json::Array(elements)) => {
            json!({kind: elements.iter().map(normalized).collect::<Vec<_>>()})
        }
        ("map", Json::Array(members)) => {
            let mut members: Vec<Json> =
                members.iter().map(|member| json!([normalized(&member[0]), normalized(&member[1])])).collect();
            members.sort_by_key(ToString::to_string);
            json!({ "map": members })
        }
        (kind, inner) => json!({ kind: inner }),
    }
}

fn same(ours: &Value, theirs: &Json) -> bool {
    normalized(&typed(ours)) == normalized(theirs)
}

/// Converts a value that the oracle printed with its type. `None` if this crate does not have the type.
fn read(value: &Json) -> Option<Value> {
    let (kind, inner) = value.as_object()?.iter().next()?;
    let number = || inner.as_str();
    Some(match kind.as_str() {
        "null" => Value::Null,
        "bool" => Value::Bool(inner.as_bool()?),
        "int" => Value::Int(number()?.parse().ok()?),
        "uint" => Value::Uint(number()?.parse().ok()?),
        "double" if inner == "NaN" => Value::Double(f64::NAN),
        "double" => Value::Double(f64::from_bits(u64::from_str_radix(number()?, 16).ok()?)),
        "string" => inner.as_str()?.into(),
        "bytes" => {
            use base64::Engine as _;
            Value::Bytes(base64::engine::general_purpose::STANDARD.decode(inner.as_str()?).ok()?.into())
        }
        "timestamp" => Value::Timestamp(functions::time::Timestamp::parse(inner.as_str()?)?),
        "duration" => Value::Duration(number()?.parse().ok()?),
        "list" => inner.as_array()?.iter().map(read).collect::<Option<Vec<_>>>()?.into(),
        "map" => {
            let member = |member: &Json| Some((Key::of(&read(&member[0])?)?, read(&member[1])?));
            Map::new(inner.as_array()?.iter().map(member).collect::<Option<_>>()?).into()
        }
        _ => return None,
    })
}

/// A declared type of the suite, such as `primitive:INT64`.
fn declared(text: &str) -> Type {
    match text.split_whitespace().collect::<String>().as_str() {
        "primitive:INT64" => Type::Int,
        "primitive:UINT64" => Type::Uint,
        "primitive:BOOL" => Type::Bool,
        "primitive:DOUBLE" => Type::Double,
        "primitive:STRING" => Type::String,
        "primitive:BYTES" => Type::Bytes,
        _ => Type::Dyn,
    }
}

fn leaked(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

/// Reads the file of expected failures. A line has the name of a case, two spaces and the reason.
fn expected_failures() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(Path::new(CRATE).join("tests/expected-failures")).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, reason) = line.split_once("  ").unwrap_or_else(|| panic!("{line}: a reason is missing"));
            (name.to_owned(), reason.trim().to_owned())
        })
        .collect()
}

#[test]
fn passes_conformance_cases_that_the_apiserver_passes() {
    let output = Command::new(oracle()).args(["conformance", &cases()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut out: BTreeMap<String, usize> = BTreeMap::new();
    let (mut passed, mut failed) = (0, BTreeMap::new());
    let expected = expected_failures();
    let mut unexpected_passes = BTreeSet::new();
    for line in output.stdout.lines() {
        let case: Json = serde_json::from_str(&line.unwrap()).unwrap();
        if let Some(reason) = case["out"].as_str() {
            *out.entry(reason.to_owned()).or_default() += 1;
            continue;
        }
        if case["passes"] != true {
            *out.entry("the apiserver does not pass it".to_owned()).or_default() += 1;
            continue;
        }
        let (name, text) = (case["name"].as_str().unwrap(), case["expr"].as_str().unwrap());
        let variables: Vec<(&'static str, Type)> = case["variables"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, of)| (leaked(name), declared(of.as_str().unwrap())))
            .collect();
        let documents: Vec<(&'static str, Document)> = case["bindings"]
            .as_object()
            .unwrap()
            .iter()
            .filter_map(|(name, value)| Some((leaked(name), Document(read(value)?))))
            .collect();
        let scope: Vec<_> = documents.iter().map(|(name, document)| (*name, document)).collect();
        let ours =
            Expression::compile_typed(text, &variables).map_err(|error| error.to_string()).and_then(|expression| {
                expression.evaluate(&scope).map(|(_, value)| value).map_err(|error| error.to_string())
            });
        let passes = match (case.get("value"), &ours) {
            (Some(theirs), Ok(Some(ours))) => same(ours, theirs),
            // An error in the apiserver may be a missing value here.
            (None, Ok(None) | Err(_)) => true,
            _ => false,
        };
        if passes {
            passed += 1;
            if expected.contains_key(name) {
                unexpected_passes.insert(name.to_owned());
            }
        } else {
            let ours = ours.map(|value| value.map(|value| typed(&value).to_string()));
            failed.insert(name.to_owned(), format!("{text}\n    wanted {}\n    got {ours:?}", case["value"]));
        }
    }
    println!("{passed} of {} conformance cases pass, {} are expected to fail", passed + failed.len(), expected.len());
    println!("not run: {out:#?}");
    let unlisted: Vec<String> = failed
        .iter()
        .filter(|(name, _)| !expected.contains_key(*name))
        .map(|(name, why)| format!("{name}: {why}"))
        .collect();
    assert!(unlisted.is_empty(), "{} fail that are not listed:\n{}", unlisted.len(), unlisted.join("\n"));
    assert!(unexpected_passes.is_empty(), "these pass; remove them from the list: {unexpected_passes:?}");
    let unknown: Vec<_> = expected.keys().filter(|name| !failed.contains_key(*name)).collect();
    assert!(unknown.is_empty(), "unknown cases: {unknown:?}");
    assert!(passed > 1500, "only {passed} cases were run");
}

/// Number of generated expressions.
const GENERATED: usize = 10_000;

/// Errors of the apiserver for values that are missing here. A missing condition counts as false.
const MISSING: [&str; 6] = [
    "no such key",
    "index out of bounds",
    "no such attribute",
    "optional.none() dereference",
    "no such field",
    "unsupported index value",
];

/// Functions that return the type of an element. If the type is unknown, the apiserver's checker chooses one.
const OF_ELEMENTS: [&str; 12] = [
    "[]",
    "[?",
    ".reverse()",
    ".sort()",
    ".sortBy(",
    ".distinct()",
    ".slice(",
    ".first()",
    ".last()",
    ".max()",
    ".min()",
    "optional.none()",
];

/// The difference in docs/expressions.md that explains a different result.
fn documented(text: &str, theirs: &Json, refused_here: bool) -> Option<&'static str> {
    let (error, refused) = (theirs["error"].as_str().unwrap_or(""), theirs["refused"].as_str().unwrap_or(""));
    let contains = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    let chosen_type = contains(&["dyn(", "object", "[]", "optional.none()"]) && contains(&OF_ELEMENTS);
    let of_types = ["found no matching overload", "error during formatting"].iter().any(|part| refused.contains(part))
        || error.starts_with("no such overload: ");
    if MISSING.iter().any(|part| error.contains(part)) {
        Some("missing is false")
    } else if refused.contains("expected type") {
        Some("lists and maps of several types")
    } else if chosen_type && (of_types || refused_here) {
        Some("a type that the checker chooses")
    } else if text.contains(".sum()") && theirs.get("value").is_some() {
        Some("the sum of an empty list")
    } else if refused.contains("was given optional_type") {
        Some("'%s' of a list with an optional element")
    } else if theirs["constant"] == true {
        Some("a constant that is never reached")
    } else if contains(&["quantity('1e400')", "-9223372036854775808"]) && text.contains("quantity") {
        Some("the bounds of quantities")
    } else if error == "no such overload" && contains(&[".add(", ".sub("]) && text.contains("quantity") {
        Some("== of a quantity and the sum of a quantity and an int")
    } else if contains(&[".sort()", ".sortBy("]) && text.contains("double('nan')") {
        Some("the position of NaN in a sorted list")
    } else if text.contains(" in []") {
        Some("in []")
    } else if error.contains("panic: runtime error") || error.contains("internal error: ") {
        Some("a crash of the apiserver's library")
    } else {
        None
    }
}

#[test]
fn generated_expressions_match_the_apiserver() {
    let seed: u64 = std::env::var("CEL_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("CEL_SEED={seed}");
    let mut random = Random::new(seed);
    let texts: Vec<String> = (0..GENERATED).map(|_| random.expression()).collect();
    let compact: Json = serde_json::from_str(DOCUMENT).unwrap();
    let requests: String = texts
        .iter()
        .flat_map(|text| [json!({"expr": text, "document": compact}).to_string(), "\n".to_owned()])
        .collect();
    let mut child =
        Command::new(oracle()).arg("evaluate").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(requests.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    let answers: Vec<Json> = output.stdout.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert_eq!(answers.len(), texts.len());

    let object: Document = serde_json::from_str(DOCUMENT).unwrap();
    let event = Document::from("training.completed");
    let scope = [("event", &event), ("data", &object), ("object", &object)];
    let variables = [("event", Type::String), ("data", Type::Dyn), ("object", Type::Dyn)];
    let (mut values, mut refused, mut errors) = (0, 0, 0);
    let mut excused: BTreeMap<&str, usize> = BTreeMap::new();
    let mut differences = Vec::new();
    for (text, theirs) in texts.iter().zip(&answers) {
        let compiled = Expression::compile_typed(text, &variables);
        let ours = compiled.as_ref().map_err(ToString::to_string).and_then(|expression| {
            expression.evaluate(&scope).map(|(_, value)| value).map_err(|error| error.to_string())
        });
        let same = match (theirs.get("value"), theirs.get("refused"), &ours) {
            (Some(theirs), _, Ok(Some(ours))) => {
                values += 1;
                same(ours, theirs)
            }
            (Some(_), ..) => false,
            (None, Some(_), _) => {
                refused += 1;
                compiled.is_err()
            }
            (None, None, _) => {
                errors += 1;
                !matches!(ours, Ok(Some(_)))
            }
        };
        if same {
            continue;
        }
        let reason = documented(text, theirs, compiled.is_err());
        if let Some(reason) = reason {
            *excused.entry(reason).or_insert(0) += 1;
            if std::env::var("SHOW").is_ok_and(|s| s == reason) {
                println!("{text}\n    theirs {theirs}\n    ours {ours:?}");
            }
        } else {
            let ours = ours.map(|value| value.map(|value| typed(&value).to_string()));
            differences.push(format!("{text}\n    theirs {theirs}\n    ours {ours:?}"));
        }
    }
    println!("{values} values, {refused} refused, {errors} errors; {excused:?} documented differences");
    assert!(differences.is_empty(), "CEL_SEED={seed}: {} differ:\n{}", differences.len(), differences.join("\n"));
    assert!(values > GENERATED / 3, "only {values} yield a value");
}
