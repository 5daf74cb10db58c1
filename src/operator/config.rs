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

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator; the cluster comes from KUBECONFIG or the pod's service account.
    Run(Box<RunArgs>),
    /// Print the custom resource definitions as YAML.
    Crds,
    /// Print the JSON Schema of the bodies in the format `LLMTune`, for receivers.
    Schema,
}

/// How to run the operator.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The namespace that holds the operator's Lease and its ledger.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_NAMESPACE", default_value = "llmtune-system", value_parser = namespace, value_name = "NS")]
    pub namespace: String,
    /// Serve this namespace only; may be given several times. All namespaces where absent.
    #[arg(
        long = "watch-namespace",
        env = "LLMTUNE_WEBHOOKS_WATCH_NAMESPACE",
        value_delimiter = ',',
        value_parser = watch_namespace,
        value_name = "NS"
    )]
    pub watch_namespaces: Vec<String>,
    /// Where to serve /metrics, /healthz and /readyz; `[::]` is every address, of IPv4 too, and 0.0.0.0 where the host has no IPv6.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_LISTEN", default_value = "[::]:8080", value_parser = listen, value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// The cluster's name, told in every body where it is set.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_CLUSTER_NAME", value_name = "NAME")]
    pub cluster_name: Option<String>,
    /// Send to https addresses only: a Webhook with another is Stalled.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_REQUIRE_HTTPS", value_parser = BoolishValueParser::new())]
    pub require_https: bool,
    /// Send to addresses of this range too, such as 127.0.0.0/8; may be given several times. The longest prefix decides.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_ALLOW_CIDR", value_delimiter = ',', value_parser = parse_range, value_name = "CIDR")]
    pub allow_cidr: Vec<IpNet>,
    /// Send nothing to addresses of this range, such as 10.0.0.0/8; may be given several times. The longest prefix decides.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_DENY_CIDR", value_delimiter = ',', value_parser = parse_range, value_name = "CIDR")]
    pub deny_cidr: Vec<IpNet>,
    /// The URL of the HTTP proxy to send by; none is taken from the environment's other variables.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_PROXY", hide_env_values = true, value_name = "URL")]
    pub proxy: Option<String>,
    /// Hosts to send to past the proxy: names, each with its subdomains, addresses and ranges, comma-separated.
    #[arg(
        long,
        env = "LLMTUNE_WEBHOOKS_NO_PROXY",
        requires = "proxy",
        default_value = "",
        hide_default_value = true,
        value_name = "HOSTS"
    )]
    pub no_proxy: String,
    /// PEM certificates to trust beside the system's.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// A Prometheus that UsageThresholds may query, with its path prefix; may be given several times. The first is the default.
    #[arg(
        long = "allow-prometheus",
        env = "LLMTUNE_WEBHOOKS_ALLOW_PROMETHEUS",
        value_delimiter = ',',
        value_parser = str::parse::<Server>,
        value_name = "URL"
    )]
    pub allow_prometheus: Vec<Server>,
    /// PEM certificates to trust beside the system's, for Prometheus.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_PROMETHEUS_CA_FILE", value_name = "FILE")]
    pub prometheus_ca_file: Option<PathBuf>,
    /// A file with the bearer token for every Prometheus that is allowed; it is read anew for each query.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_PROMETHEUS_TOKEN_FILE", value_name = "FILE")]
    pub prometheus_token_file: Option<PathBuf>,
    /// Who holds the Lease [default: pod name and uid, from `POD_NAME` and `POD_UID`, else the host's name].
    #[arg(long, env = "LLMTUNE_WEBHOOKS_IDENTITY", value_name = "ID")]
    pub identity: Option<String>,
    /// After how long without a renewal another replica may take over, 3s to 5m.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_LEASE_DURATION", default_value = "15s", value_parser = lease_duration, value_name = "DURATION")]
    pub lease_duration: Duration,
    /// A `ConfigMap` in the operator's namespace that its Lease and its ledger belong to: they are deleted with it.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_OWNER", value_parser = NonEmptyStringValueParser::new(), value_name = "CONFIGMAP")]
    pub owner: Option<String>,
    /// The form of log lines.
    #[arg(long, env = "LLMTUNE_WEBHOOKS_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

impl RunArgs {
    /// Who holds the Lease. A restarted container has its pod's name and uid again, and so its Lease.
    pub fn identity(&self) -> Result<String, String> {
        if let Some(identity) = self.identity.clone().filter(|identity| !identity.is_empty()) {
            return Ok(identity);
        }
        if let (Ok(name), Ok(uid)) = (std::env::var("POD_NAME"), std::env::var("POD_UID")) {
            return Ok(format!("{name}_{uid}"));
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
        let host = host.map(|host| host.trim().to_owned()).filter(|host| !host.is_empty());
        host.ok_or_else(|| "this host has no name: say who holds the Lease with --identity".to_owned())
    }
}

fn namespace(text: &str) -> Result<String, String> {
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = !text.starts_with('-') && !text.ends_with('-');
    if (1..=63).contains(&text.len()) && edges && text.chars().all(inside) {
        Ok(text.to_owned())
    } else {
        Err("a namespace's name is 1 to 63 lower-case letters, digits and '-', such as llmtune-system".to_owned())
    }
}

fn watch_namespace(text: &str) -> Result<String, String> {
    // It must not come to mean all namespaces, nor none.
    if text.is_empty() {
        return Err("to serve all namespaces, leave the flag and its environment variable out".to_owned());
    }
    namespace(text)
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write an IP address and a port, such as [::]:8080, 0.0.0.0:8080 or 127.0.0.1:8080".to_owned())
}

fn lease_duration(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration = text.parse().map_err(|_| "write a duration such as 15s".to_owned())?;
    let duration = Duration::try_from(parsed).map_err(|_| "write a duration from 3s to 5m".to_owned())?;
    if (Duration::from_secs(3)..=Duration::from_secs(300)).contains(&duration) {
        Ok(duration)
    } else {
        Err("write a duration from 3s to 5m".to_owned())
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
    fn a_lease_lasts_from_three_seconds_to_five_minutes() {
        assert_eq!(lease_duration("15s"), Ok(Duration::from_secs(15)));
        for text in ["2s", "6m", "-5s", "soon"] {
            assert!(lease_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_namespace_that_cannot_be_is_refused_and_an_empty_one_does_not_mean_all() {
        assert_eq!(namespace("team-a1"), Ok("team-a1".into()));
        for text in ["", "Bad Name", "-a", "a-", "a/b", &"a".repeat(64)] {
            assert!(namespace(text).unwrap_err().contains("such as"), "{text}");
        }
        assert!(watch_namespace("").unwrap_err().contains("leave the flag"));
    }
}
