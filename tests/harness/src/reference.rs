//! Generates the API reference, in Markdown, from custom resource definitions.

use std::fmt::Write;

use serde_json::Value;

const HEAD: &str = "# API reference

Written by `make generate` from `crds/llmtune.io.yaml`. `kubectl explain webhook.spec --recursive` shows the same for a cluster.

Required fields are marked with *. The apiserver checks the rules when an object is applied. The message of a rule says what to write instead.
";

/// The reference of these definitions, given as a stream of YAML documents.
///
/// # Panics
///
/// If the input is not a stream of definitions.
#[must_use]
pub fn markdown(definitions: &str) -> String {
    let mut text = HEAD.to_owned();
    let definitions: Vec<Value> = definitions
        .split("\n---\n")
        .map(|document| serde_saphyr::from_str(document.trim_start_matches("---\n")).expect("a definition"))
        .collect();
    text.push('\n');
    for definition in &definitions {
        let names = &definition["spec"]["names"];
        let kind = string(&names["kind"]);
        let _ = writeln!(text, "- [{kind}](#{})", kind.to_lowercase());
    }
    for definition in &definitions {
        kind(&mut text, definition);
    }
    text
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn kind(text: &mut String, definition: &Value) {
    let (spec, version) = (&definition["spec"], &definition["spec"]["versions"][0]);
    let (names, schema) = (&spec["names"], &version["schema"]["openAPIV3Schema"]);
    let short = names["shortNames"].as_array().into_iter().flatten().map(string).collect::<Vec<_>>().join(", ");
    let _ = write!(
        text,
        "\n## {}\n\n{}\n\n`apiVersion: {}/{}`, {}, short name `{short}`. ",
        string(&names["kind"]),
        string(&schema["description"]),
        string(&spec["group"]),
        string(&version["name"]),
        if spec["scope"] == "Namespaced" { "in a namespace" } else { "of the cluster" },
    );
    let columns = version["additionalPrinterColumns"].as_array().into_iter().flatten();
    let shown: Vec<&str> =
        columns.filter(|column| column["priority"].is_null()).map(|column| string(&column["name"])).collect();
    let _ = writeln!(text, "`kubectl get {}` shows {}.", string(&names["plural"]), shown.join(", "));
    rules(text, schema);
    for part in ["spec", "status"] {
        let schema = &schema["properties"][part];
        if schema["properties"].is_object() {
            let _ = writeln!(text, "\n### {} `{part}`", string(&names["kind"]));
            rules(text, schema);
            text.push_str("\n| field | type | default | what it is |\n|---|---|---|---|\n");
            fields(text, schema, "");
        }
    }
}

/// The validation rules of an object as a whole.
fn rules(text: &mut String, schema: &Value) {
    for (at, message) in messages(schema).iter().enumerate() {
        let _ = writeln!(text, "{}- {message}", if at == 0 { "\n" } else { "" });
    }
}

fn messages(schema: &Value) -> Vec<String> {
    let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    rules.map(|rule| string(&rule["message"]).to_owned()).filter(|message| !message.is_empty()).collect()
}

fn fields(text: &mut String, schema: &Value, path: &str) {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().map(string).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let star = if required.contains(&name.as_str()) { "*" } else { "" };
        let default = match &field["default"] {
            // The default of an object consists of its fields' defaults.
            Value::Null | Value::Object(_) => String::new(),
            Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        };
        let about: Vec<String> = [string(&field["description"]).to_owned()]
            .into_iter()
            .chain(messages(field))
            .filter(|text| !text.is_empty())
            .collect();
        let about = about.join(" ").replace('|', "\\|").replace('\n', " ");
        let _ = writeln!(text, "| `{path}{name}`{star} | {} | {default} | {about} |", kind_of(field));
        let inner = if field["type"] == "array" { (&field["items"], "[]") } else { (field, "") };
        fields(text, inner.0, &format!("{path}{name}{}.", inner.1));
    }
}

fn kind_of(field: &Value) -> String {
    if let Some(values) = field["enum"].as_array() {
        return values.iter().map(|value| format!("`{}`", string(value))).collect::<Vec<_>>().join(", ");
    }
    if field["x-kubernetes-int-or-string"] == true {
        return "integer or string".into();
    }
    match string(&field["type"]) {
        "array" => format!("list of {}", kind_of(&field["items"])),
        "object" if field["additionalProperties"].is_object() => {
            format!("map of {}", kind_of(&field["additionalProperties"]))
        }
        "string" if field["format"] == "date-time" => "time".into(),
        "" => "any".into(),
        other => other.to_owned(),
    }
}
