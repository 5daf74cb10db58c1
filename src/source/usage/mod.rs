//! Usage figures, measured: PromQL queries and quotas, against the thresholds of `UsageThreshold` objects.

/// `resource.group`: part of every event id, so it never changes.
pub const NAME: &str = "usagethresholds.llmtune.io";
