//! The operator's command line.

use std::process::ExitCode;

use clap::Parser;
use llmtune_core::event;
use llmtune_webhooks::operator::{
    self,
    config::{Cli, Command, LogFormat, RunArgs},
};
use tracing::error;
use tracing_subscriber::EnvFilter;

/// What the log omits unless `RUST_LOG` names it. kube logs each failed request with a dump of the response; the caller
/// logs what the failure means. HTTP clients log headers and paths below `info`, which may contain secrets. The DNS
/// client logs hosts of URLs, which may be secrets.
const QUIET: &str = "kube_client=off,kube_runtime=off,h2=info,hyper=info,hyper_util=info,hickory_resolver=error,hickory_net=error,hickory_proto=error";

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run(*args),
        Command::Crds => crds(),
        Command::Schema => schema(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("llmtune-webhooks: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: RunArgs) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(format!("{QUIET},{filter}"))
        .map_err(|error| format!("RUST_LOG cannot be used: {error}; set a level such as info or debug"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log_format = args.log_format;
    match log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    // Without it, kube's first TLS connection panics.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // In a task, because the kernel would wake what `block_on` itself runs, twice for each delivery.
    let result = runtime.block_on(async { tokio::spawn(operator::run(args)).await })?;
    if let (Err(error), LogFormat::Json) = (&result, log_format) {
        // Consumers of the log expect only JSON.
        error!("{error}");
        return Ok(ExitCode::FAILURE);
    }
    result?;
    Ok(ExitCode::SUCCESS)
}

fn schema() -> Result<ExitCode, Box<dyn std::error::Error>> {
    println!("{}", serde_json::to_string_pretty(&event::schema::schema())?);
    Ok(ExitCode::SUCCESS)
}

fn crds() -> Result<ExitCode, Box<dyn std::error::Error>> {
    for definition in llmtune_api::definitions()? {
        println!("---\n{}", serde_saphyr::to_string(&definition)?.trim_end());
    }
    Ok(ExitCode::SUCCESS)
}
