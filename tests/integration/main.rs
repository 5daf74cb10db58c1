//! Tests of the operator as a whole: real processes against a real control plane. Each test has its own namespace.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

mod addresses;
mod chart;
mod cluster_webhooks;
mod connections;
mod custom_resources;
mod dashboard;
mod dashboards;
mod deliveries;
mod delivery;
mod documents;
mod errors;
mod examples;
mod filters;
mod formats;
mod gitops;
mod guide;
mod hostile_endpoints;
mod installation;
mod logs;
mod operation;
mod plugin;
mod policies;
mod receivers;
mod recovery;
mod rights;
mod rollouts;
mod rotation;
mod schema;
mod secrecy;
mod secrets;
mod sight;
mod source_examples;
mod sources;
mod subscriptions;
mod tls;
mod usage;
mod usage_thresholds;
mod values;
mod webhook_sources;
mod wire;
