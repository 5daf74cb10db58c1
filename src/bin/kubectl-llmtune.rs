//! `kubectl llmtune`, as kubectl finds it in PATH.

use std::process::ExitCode;

fn main() -> ExitCode {
    llmtune_webhooks::plugin::main(std::env::args_os())
}
