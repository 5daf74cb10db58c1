//! The command line. Every flag has an environment variable `LLMTUNE_WEBHOOKS_…`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{BoolishValueParser, NonEmptyStringValueParser},
};
use ipnet::IpNet;
use jiff::SignedDuration;

use crate::{source::usage::prometheus::Server, transport::address::parse_range};

/// Turns transitions of training jobs and model deployments into signed webhooks.
#[derive(Debug, Parser)]
#[command(name = "llmtune-webhooks", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator. It connects to the cluster of KUBECONFIG or of the pod's service account.
    Run(Box<RunArgs>),
    /// Print the custom resource definitions as YAML.
    Crds,
    /// Print the JSON Schema of bodies in the format `LLMTune`, for receivers.
    Schema,
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Namespace of the operator's Lease and ledger.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_NAMESPACE", default_value = "llmtune-system", value_parser = namespace, value_name = "NS")]
    pub namespace: String,
    /// Serve only this namespace. Can be repeated. Default: all namespaces.
    #[arg(
        long = "watch-namespace",
        env = "LLMTUNE_WEBHOOKS_WATCH_NAMESPACE",
        value_delimiter = ',',
        value_parser = watch_namespace,
        value_name = "NS"
    )]
    pub watch_namespaces: Vec<String>,
    /// Address of /metrics, /healthz and /readyz. `[::]` means all addresses, IPv4 included, or 0.0.0.0 if the host has
    /// no IPv6.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_LISTEN", default_value = "[::]:8080", value_parser = listen, value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// Name of the cluster. If set, every body contains it.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_CLUSTER_NAME", value_name = "NAME")]
    pub cluster_name: Option<String>,
    /// Send only to https URLs. A Webhook with another URL is Stalled.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_REQUIRE_HTTPS", value_parser = BoolishValueParser::new())]
    pub require_https: bool,
    /// Allow addresses in this range, such as 127.0.0.0/8. Can be repeated. The longest prefix decides.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_ALLOW_CIDR", value_delimiter = ',', value_parser = parse_range, value_name = "CIDR")]
    pub allow_cidr: Vec<IpNet>,
    /// Deny addresses in this range, such as 10.0.0.0/8. Can be repeated. The longest prefix decides.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_DENY_CIDR", value_delimiter = ',', value_parser = parse_range, value_name = "CIDR")]
    pub deny_cidr: Vec<IpNet>,
    /// URL of an HTTP proxy for deliveries. The environment variables `HTTP_PROXY` and `HTTPS_PROXY` are ignored.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_PROXY", hide_env_values = true, value_name = "URL")]
    pub proxy: Option<String>,
    /// Hosts that bypass the proxy: names with their subdomains, addresses and ranges, separated by commas.
    #[arg(
        long,
        env = "LLMTUNE_WEBHOOKS_NO_PROXY",
        requires = "proxy",
        default_value = "",
        hide_default_value = true,
        value_name = "HOSTS"
    )]
    pub no_proxy: String,
    /// PEM file with certificates to trust in addition to the system's.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// URL of a Prometheus that UsageThresholds may query, with its path prefix. Can be repeated. The first is the
    /// default.
    #[arg(
        long = "allow-prometheus",
        env = "LLMTUNE_WEBHOOKS_ALLOW_PROMETHEUS",
        value_delimiter = ',',
        value_parser = str::parse::<Server>,
        value_name = "URL"
    )]
    pub allow_prometheus: Vec<Server>,
    /// PEM file with certificates to trust for Prometheus in addition to the system's.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_PROMETHEUS_CA_FILE", value_name = "FILE")]
    pub prometheus_ca_file: Option<PathBuf>,
    /// File with the bearer token for all allowed Prometheus servers. It is read again for each query.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_PROMETHEUS_TOKEN_FILE", value_name = "FILE")]
    pub prometheus_token_file: Option<PathBuf>,
    /// Identity of the Lease holder [default: pod name and uid from `POD_NAME` and `POD_UID`, otherwise the host name].
    #[arg(long, env = "LLMTUNE_WEBHOOKS_IDENTITY", value_name = "ID")]
    pub identity: Option<String>,
    /// Time without a renewal after which another replica may take over, 3s to 5m.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_LEASE_DURATION", default_value = "15s", value_parser = lease_duration, value_name = "DURATION")]
    pub lease_duration: Duration,
    /// `ConfigMap` in the operator's namespace that owns the Lease and the ledger. They are deleted with it.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_OWNER", value_parser = NonEmptyStringValueParser::new(), value_name = "CONFIGMAP")]
    pub owner: Option<String>,
    /// Format of log lines.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

impl RunArgs {
    /// Returns the identity of the Lease holder. A restarted container has the same pod name and uid, and so keeps its
    /// Lease.
    pub fn identity(&self) -> Result<String, String> {
        if let Some(identity) = self.identity.clone().filter(|identity| !identity.is_empty()) {
            return Ok(identity);
        }
        if let (Ok(name), Ok(uid)) = (std::env::var("POD_NAME"), std::env::var("POD_UID")) {
            return Ok(format!("{name}_{uid}"));
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
        let host = host.map(|host| host.trim().to_owned()).filter(|host| !host.is_empty());
        host.ok_or_else(|| "this host has no name: set --identity".to_owned())
    }
}

fn namespace(text: &str) -> Result<String, String> {
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = !text.starts_with('-') && !text.ends_with('-');
    if (1..=63).contains(&text.len()) && edges && text.chars().all(inside) {
        Ok(text.to_owned())
    } else {
        Err("a namespace name has 1 to 63 lowercase letters, digits and '-', such as llmtune-system".to_owned())
    }
}

fn watch_namespace(text: &str) -> Result<String, String> {
    // An empty name must mean neither all namespaces nor none.
    if text.is_empty() {
        return Err("to serve all namespaces, omit the flag and its environment variable".to_owned());
    }
    namespace(text)
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "use an IP address and a port, such as [::]:8080, 0.0.0.0:8080 or 127.0.0.1:8080".to_owned())
}

fn lease_duration(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration = text.parse().map_err(|_| "use a duration such as 15s".to_owned())?;
    let duration = Duration::try_from(parsed).map_err(|_| "use a duration from 3s to 5m".to_owned())?;
    if (Duration::from_secs(3)..=Duration::from_secs(300)).contains(&duration) {
        Ok(duration)
    } else {
        Err("use a duration from 3s to 5m".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lease_duration_is_from_three_seconds_to_five_minutes() {
        assert_eq!(lease_duration("15s"), Ok(Duration::from_secs(15)));
        for text in ["2s", "6m", "-5s", "soon"] {
            assert!(lease_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn invalid_and_empty_namespaces_are_refused() {
        assert_eq!(namespace("team-a1"), Ok("team-a1".into()));
        for text in ["", "Bad Name", "-a", "a-", "a/b", &"a".repeat(64)] {
            assert!(namespace(text).unwrap_err().contains("such as"), "{text}");
        }
        assert!(watch_namespace("").unwrap_err().contains("omit the flag"));
    }
}
