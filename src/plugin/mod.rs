//! `kubectl llmtune`: what a user asks of Webhooks at a command line. It uses the API alone, with the user's own rights: whatever it does,
//! kubectl can do with YAML.
//!
//! What is told apart, chosen, laid out and verified is pure, with time as an argument; [`run`] and the rooms of the single commands do the rest.

mod age;
pub mod cli;
mod connection;
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
mod verify;
mod webhooks;

use std::{ffi::OsString, process::ExitCode};

use clap::Parser;

use cli::{Cli, Command};
use failure::Failure;

/// Does what the command line says.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = Cli::parse_from(arguments);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::new(format!("cannot begin: {error}")).report(),
    };
    // Without it the first TLS connection would panic.
    let _ = rustls::crypto::ring::default_provider().install_default();
    runtime.block_on(run(cli)).unwrap_or_else(|failure| failure.report())
}

/// Does what a command line asks. The exit code is 0 where all went as asked, 1 where not.
pub async fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let Cli { cluster, command } = cli;
    match command {
        Command::Test(args) => test::run(&cluster, &args).await,
        Command::Deliveries(args) => deliveries::run(&cluster, &args).await,
        Command::Redeliver(args) => redeliver::run(&cluster, &args).await,
        Command::Status(args) => status::run(&cluster, &args).await,
        Command::Verify(args) => verify::run(&args),
        Command::Listen(args) => listen::run(&args).await,
    }
}
