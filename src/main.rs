//! The operator's command line.

use std::process::ExitCode;

use clap::Parser;
use llmtune_webhooks::{
    api,
    operator::{
        self,
        config::{Cli, Command, LogFormat, RunArgs},
    },
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run(*args),
        Command::Crds => crds(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("llmtune-webhooks: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: RunArgs) -> Result<(), Box<dyn std::error::Error>> {
    // kube logs each failed request as an error; whoever made it logs what that means.
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(format!("kube_client::client::builder=off,{filter}"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    // Both HTTP clients use it; without it the first TLS connection would panic.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // As a task: what `block_on` itself runs is woken through the kernel, twice for each delivery.
    Ok(runtime.block_on(async { tokio::spawn(operator::run(args)).await })??)
}

fn crds() -> Result<(), Box<dyn std::error::Error>> {
    for definition in api::definitions()? {
        println!("---\n{}", serde_saphyr::to_string(&definition)?.trim_end());
    }
    Ok(())
}
