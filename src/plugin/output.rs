//! What is printed, where to, and as what.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use console::Term;
use kube::api::DynamicObject;
use serde::Serialize;
use serde_json::{Value, json, ser::PrettyFormatter};

use super::{failure::Failure, table::Paint};

/// How objects are printed, as kubectl's `-o` names it: `Wide` is a table with more columns, `Name` kind and name alone, as other commands of
/// kubectl take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Wide,
    Json,
    Yaml,
    Name,
}

/// Where standard output goes.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    pub paint: Paint,
    /// How many columns and lines the terminal has; `None`: it is none.
    pub size: Option<(usize, usize)>,
}

impl Screen {
    /// Colours are for terminals, where `NO_COLOR` (no-color.org) does not say otherwise.
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

/// Prints a text as it is.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| Failure::unprinted(&error))
}

/// Tells something beside what was asked for, on standard error.
pub fn note(text: &str) {
    eprintln!("{text}");
}

/// These objects, as kubectl prints a list of them; `format` is not [`Format::Wide`].
pub fn list(objects: &[DynamicObject], format: Format) -> Result<String, Failure> {
    if format == Format::Name {
        return Ok(objects.iter().map(|object| name(object) + "\n").collect());
    }
    let items = objects.iter().map(tidied).collect::<Result<Vec<_>, _>>()?;
    text(&json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items}), format)
}

/// This object alone.
pub fn object(object: &DynamicObject, format: Format) -> Result<String, Failure> {
    if format == Format::Name { Ok(name(object) + "\n") } else { text(&tidied(object)?, format) }
}

fn name(object: &DynamicObject) -> String {
    let kind = object.types.as_ref().map(|types| types.kind.to_lowercase()).unwrap_or_default();
    format!("{kind}.llmtune.io/{}", object.metadata.name.as_deref().unwrap_or_default())
}

/// Who manages which field is not shown, as kubectl does not.
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

/// YAML, as `kubectl apply` reads it.
pub fn yaml(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_saphyr::to_string(value).map_err(unwritable)?;
    Ok(format!("{}\n", text.trim_end()))
}

/// JSON over several lines.
pub fn json_text(value: &impl Serialize, indent: &[u8]) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(indent));
    value.serialize(&mut serializer).map_err(unwritable)?;
    bytes.push(b'\n');
    String::from_utf8(bytes).map_err(unwritable)
}

fn unwritable(error: impl std::fmt::Display) -> Failure {
    Failure::new(format!("cannot be written: {error}"))
}
