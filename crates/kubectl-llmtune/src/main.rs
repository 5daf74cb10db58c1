//! The kubectl plugin, `kubectl llmtune`. It uses only the Kubernetes API, with the user's own rights: kubectl and YAML
//! can do all that it does.
//!
//! Selection, layout and verification are pure, with time as an argument. [`run`] and the modules of the commands do
//! the I/O.

mod age;
mod cli;
mod complete;
mod connection;
mod create;
mod dashboard;
mod deliveries;
mod failure;
mod listen;
mod live;
mod nearest;
mod objects;
mod output;
mod redeliver;
mod selection;
mod status;
mod table;
mod target;
mod test;
mod trouble;
mod verify;
mod webhooks;

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::Parser;

use cli::{Cli, Command};
use failure::Failure;

/// Under the name of kubectl's completion helper the program completes a command line; under any other
/// name it is the plugin.
fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.first().and_then(|name| Path::new(name).file_stem()).is_some_and(|name| name == complete::HELPER) {
        arguments.insert(1, complete::COMMAND.into());
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::new(format!("cannot start the runtime: {error}")).report(),
    };
    // Without a default provider the first TLS connection panics.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // clap would parse the words to complete as its own flags.
    let result = if arguments.get(1).is_some_and(|name| name == complete::COMMAND) {
        runtime.block_on(complete::complete(&arguments[2..]))
    } else {
        runtime.block_on(run(Cli::parse_from(arguments)))
    };
    result.unwrap_or_else(|failure| failure.report())
}

/// Runs a command. The exit code is 0 on success, otherwise 1.
async fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let Cli { cluster, command } = cli;
    match command {
        Command::Test(args) => test::run(&cluster, &args).await,
        Command::Deliveries(args) => deliveries::run(&cluster, &args).await,
        Command::Redeliver(args) => redeliver::run(&cluster, &args).await,
        Command::Status(args) => status::run(&cluster, &args).await,
        Command::Dashboard(args) => dashboard::run(&cluster, &args).await,
        Command::Verify(args) => verify::run(&args),
        Command::Listen(args) => listen::run(&args).await,
        Command::Create(args) => create::run(&cluster, &args),
        Command::Completion(args) => complete::script(args.shell),
    }
}
