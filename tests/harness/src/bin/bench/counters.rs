//! Reads the counters of the operator, the apiserver and etcd, and their increase over a period.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use llmtune_webhooks_harness::{control_plane::ControlPlane, operator::metric};

use crate::subject;

const FLUSHES: &str = "llmtune_webhooks_ledger_flush_duration_seconds";
const TO_ETCD: &str = "etcd_network_client_grpc_received_bytes_total";
/// Resources that only the operator writes, so that the apiserver's count must match the operator's. Leases are not
/// among them: the apiserver has its own.
const OURS: [&str; 3] = ["ledgersegments", "webhooks/status", "webhookdeliveries"];

/// All counters at one moment.
pub struct Counters {
    at: Instant,
    /// The operator's own count of its writes, by resource; empty without an operator.
    writes: BTreeMap<String, u64>,
    /// The apiserver's count of all writes, by resource.
    served: BTreeMap<String, u64>,
    etcd_bytes: f64,
    flushes: Flushes,
}

/// The increase between two readings.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    pub elapsed: Duration,
    pub writes: BTreeMap<String, u64>,
    pub served: BTreeMap<String, u64>,
    /// Bytes that etcd received from its client, the apiserver.
    pub etcd_bytes: f64,
    pub flushes: Flushes,
}

/// The ledger's flushes.
#[derive(Clone, Debug, Default)]
pub struct Flushes {
    pub count: f64,
    seconds: f64,
    /// Cumulative number of flushes up to this many seconds.
    buckets: Vec<(f64, f64)>,
}

impl Counters {
    /// `metrics` is the operator's, if there is one.
    pub async fn read(plane: &ControlPlane, metrics: Option<String>) -> Result<Self, String> {
        let etcd = plane.etcd_metrics();
        let at = Instant::now();
        if !etcd.contains(TO_ETCD) {
            return Err(format!("etcd does not tell {TO_ETCD}"));
        }
        let metrics = metrics.unwrap_or_default();
        let served = served(&plane.apiserver_metrics().await);
        let flushes = Flushes::read(&metrics);
        Ok(Self { at, writes: subject::writes(&metrics), served, etcd_bytes: metric(&etcd, TO_ETCD, &[]), flushes })
    }

    pub fn until(&self, later: &Self) -> Counted {
        let less = |later: &BTreeMap<String, u64>, earlier: &BTreeMap<String, u64>| {
            let counts = later.iter().map(|(resource, count)| {
                (resource.clone(), count - earlier.get(resource).copied().unwrap_or_default())
            });
            counts.filter(|(_, count)| *count > 0).collect()
        };
        Counted {
            elapsed: later.at.duration_since(self.at),
            writes: less(&later.writes, &self.writes),
            served: less(&later.served, &self.served),
            etcd_bytes: later.etcd_bytes - self.etcd_bytes,
            flushes: later.flushes.since(&self.flushes),
        }
    }
}

impl Counted {
    pub fn all_writes(&self) -> u64 {
        self.writes.values().sum()
    }

    /// Checks that the apiserver has counted the operator's writes, except for requests in flight at either end.
    pub fn check(&self) -> Result<(), String> {
        for resource in OURS {
            let of = |counts: &BTreeMap<String, u64>| counts.get(resource).copied().unwrap_or_default();
            let (ours, theirs) = (of(&self.writes), of(&self.served));
            if ours.abs_diff(theirs) > 4 {
                return Err(format!("the operator counts {ours} writes of {resource}, the apiserver {theirs}"));
            }
        }
        Ok(())
    }
}

impl Flushes {
    pub fn read(text: &str) -> Self {
        let prefix = format!("{FLUSHES}_bucket{{le=\"");
        let buckets = text.lines().filter_map(|line| {
            let (bound, count) = line.strip_prefix(&prefix)?.split_once("\"} ")?;
            Some((bound.trim_start_matches('+').parse().ok()?, count.parse().ok()?))
        });
        Self {
            count: metric(text, &format!("{FLUSHES}_count"), &[]),
            seconds: metric(text, &format!("{FLUSHES}_sum"), &[]),
            buckets: buckets.collect(),
        }
    }

    fn since(&self, earlier: &Self) -> Self {
        let before = |bound: f64| {
            let known = earlier.buckets.iter().find(|(other, _)| other.total_cmp(&bound).is_eq());
            known.map_or(0.0, |(_, count)| *count)
        };
        Self {
            count: self.count - earlier.count,
            seconds: self.seconds - earlier.seconds,
            buckets: self.buckets.iter().map(|(bound, count)| (*bound, count - before(*bound))).collect(),
        }
    }

    pub fn mean_millis(&self) -> f64 {
        self.seconds / self.count * 1e3
    }

    /// The upper bound of the bucket that contains the 99th percentile.
    pub fn p99_millis(&self) -> f64 {
        let bucket = self.buckets.iter().find(|(_, count)| *count >= self.count * 0.99);
        bucket.map_or(f64::NAN, |(bound, _)| bound * 1e3)
    }
}

/// Calls to the apiserver by verb and resource.
pub type Calls = BTreeMap<(String, String), u64>;

/// An operator's calls to the apiserver, from its metrics.
pub fn calls(text: &str) -> Calls {
    let mut calls = Calls::new();
    for line in text.lines().filter(|line| line.starts_with("llmtune_webhooks_api_requests_total{")) {
        let [Some(verb), Some(resource)] = ["verb", "resource"].map(|name| label(line, name)) else { continue };
        *calls.entry((verb.to_owned(), resource.to_owned())).or_default() += value(line);
    }
    calls
}

/// A label of a series other than its first: labels are in alphabetical order.
fn label<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_once(&format!(",{name}=\"")).and_then(|(_, rest)| rest.split('"').next())
}

fn value(line: &str) -> u64 {
    let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    value.unwrap_or_default() as u64
}

/// The writes that the apiserver has served, by resource.
fn served(text: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
        let label = |name: &str| label(line, name);
        let (Some(verb), Some(resource)) = (label("verb"), label("resource")) else { continue };
        if !["POST", "PUT", "PATCH", "APPLY", "DELETE"].contains(&verb) {
            continue;
        }
        let name = match label("subresource").filter(|subresource| !subresource.is_empty()) {
            Some(subresource) => format!("{resource}/{subresource}"),
            None => resource.to_owned(),
        };
        *counts.entry(name).or_default() += value(line);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apiservers_writes_are_read_and_its_reads_are_not() {
        let text = "apiserver_request_total{code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"llmtune.io\",\
                    resource=\"webhooks\",scope=\"resource\",subresource=\"status\",verb=\"APPLY\",version=\"v1alpha1\"} 7\n\
                    apiserver_request_total{code=\"200\",component=\"apiserver\",dry_run=\"\",group=\"\",\
                    resource=\"secrets\",scope=\"resource\",subresource=\"\",verb=\"GET\",version=\"v1\"} 9\n";
        assert_eq!(served(text), BTreeMap::from([("webhooks/status".to_owned(), 7)]));
    }

    #[test]
    fn an_operators_calls_are_read_whatever_their_codes() {
        let series = "llmtune_webhooks_api_requests_total{code=\"";
        let text = format!(
            "{series}200\",resource=\"leases\",verb=\"update\"}} 7\n{series}409\",resource=\"leases\",verb=\"update\"}} 1\n\
             {series}200\",resource=\"leases\",verb=\"get\"}} 2\n"
        );
        let call = |verb: &str, count| ((verb.to_owned(), "leases".to_owned()), count);
        assert_eq!(calls(&text), Calls::from([call("get", 2), call("update", 8)]));
    }

    #[test]
    fn the_99th_percentile_lies_in_the_bucket_that_reaches_it() {
        let text = |low: u32, all: u32| {
            format!(
                "{FLUSHES}_bucket{{le=\"0.01\"}} {low}\n{FLUSHES}_bucket{{le=\"0.05\"}} {all}\n\
                 {FLUSHES}_bucket{{le=\"+Inf\"}} {all}\n{FLUSHES}_sum 2\n{FLUSHES}_count {all}\n"
            )
        };
        let flushes = Flushes::read(&text(198, 200)).since(&Flushes::read(&text(0, 0)));
        assert!((flushes.p99_millis() - 10.0).abs() < 1e-9);
        let flushes = Flushes::read(&text(198, 200)).since(&Flushes::read(&text(100, 100)));
        assert!((flushes.p99_millis() - 50.0).abs() < 1e-9);
    }
}
