//! Prints objects and messages.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use console::Term;
use kube::api::DynamicObject;
use serde::Serialize;
use serde_json::{Value, json, ser::PrettyFormatter};

use super::{failure::Failure, table::Paint};

/// Output format, named as in kubectl's `-o`. `Wide` is a table with more columns; `Name` prints only kind and name,
/// for use in other kubectl commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Wide,
    Json,
    Yaml,
    Name,
}

/// Properties of standard output.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    pub paint: Paint,
    /// Columns and lines of the terminal. `None` if standard output is not a terminal.
    pub size: Option<(usize, usize)>,
}

impl Screen {
    /// Colors are for terminals only, and only if `NO_COLOR` (no-color.org) is not set.
    pub fn of_stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let paint = Paint(terminal && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb"));
        let (lines, columns) = Term::stdout().size();
        Self { paint, size: terminal.then(|| (usize::from(columns), usize::from(lines))) }
    }

    pub fn width(self) -> Option<usize> {
        self.size.map(|(columns, _)| columns)
    }
}

/// Prints a text without changes.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| Failure::unprinted(&error))
}

/// Prints a note to standard error.
pub fn note(text: &str) {
    eprintln!("{text}");
}

/// Formats a list of objects as kubectl does. `format` is not [`Format::Wide`].
pub fn list(objects: &[DynamicObject], format: Format) -> Result<String, Failure> {
    if format == Format::Name {
        return Ok(objects.iter().map(|object| name(object) + "\n").collect());
    }
    let items = objects.iter().map(tidied).collect::<Result<Vec<_>, _>>()?;
    text(&json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items}), format)
}

/// Formats one object.
pub fn object(object: &DynamicObject, format: Format) -> Result<String, Failure> {
    if format == Format::Name { Ok(name(object) + "\n") } else { text(&tidied(object)?, format) }
}

fn name(object: &DynamicObject) -> String {
    let kind = object.types.as_ref().map(|types| types.kind.to_lowercase()).unwrap_or_default();
    format!("{kind}.llmtune.io/{}", object.metadata.name.as_deref().unwrap_or_default())
}

/// Removes `managedFields`, as kubectl does.
fn tidied(object: &DynamicObject) -> Result<Value, Failure> {
    let mut value = serde_json::to_value(object).map_err(unwritable)?;
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    Ok(value)
}

fn text(value: &Value, format: Format) -> Result<String, Failure> {
    if format == Format::Yaml { yaml(value) } else { json_text(value, b"    ") }
}

/// YAML that `kubectl apply` accepts.
pub fn yaml(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_saphyr::to_string(value).map_err(unwritable)?;
    Ok(format!("{}\n", text.trim_end()))
}

/// Indented JSON.
pub fn json_text(value: &impl Serialize, indent: &[u8]) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(indent));
    value.serialize(&mut serializer).map_err(unwritable)?;
    bytes.push(b'\n');
    String::from_utf8(bytes).map_err(unwritable)
}

fn unwritable(error: impl std::fmt::Display) -> Failure {
    Failure::new(format!("cannot serialize the output: {error}"))
}
