//! `kubectl llmtune`: what a user asks of Webhooks at a command line. It uses the API alone, with the user's own rights: whatever it does,
//! kubectl can do with YAML.
//!
//! What is told apart, chosen, laid out and verified is pure, with time as an argument; [`run`] and the rooms of the single commands do the rest.

mod age;
pub mod cli;
mod complete;
mod connection;
mod create;
mod dashboard;
mod deliveries;
pub mod failure;
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

/// Does what the command line says: by the name of kubectl's helper for completion it completes one, by any other it is the plugin.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    if arguments.first().and_then(|name| Path::new(name).file_stem()).is_some_and(|name| name == complete::HELPER) {
        arguments.insert(1, complete::COMMAND.into());
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::new(format!("cannot begin: {error}")).report(),
    };
    // Without it the first TLS connection would panic.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // clap would take what is yet to be completed for flags of its own.
    let result = if arguments.get(1).is_some_and(|name| name == complete::COMMAND) {
        runtime.block_on(complete::complete(&arguments[2..]))
    } else {
        runtime.block_on(run(Cli::parse_from(arguments)))
    };
    result.unwrap_or_else(|failure| failure.report())
}

/// Does what a command line asks. The exit code is 0 where all went as asked, 1 where not.
pub async fn run(cli: Cli) -> Result<ExitCode, Failure> {
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
