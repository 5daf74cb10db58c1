//! Prints the API reference of the definitions on standard input.

use std::io::{Read, Write, stdin, stdout};

use llmtune_webhooks_harness::reference::markdown;

fn main() -> std::io::Result<()> {
    let mut definitions = String::new();
    stdin().read_to_string(&mut definitions)?;
    stdout().write_all(markdown(&definitions).as_bytes())
}
