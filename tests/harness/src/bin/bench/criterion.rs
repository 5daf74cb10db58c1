//! Runs a benchmark of `tests/micro/benches` with criterion, and reads its estimates.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use llmtune_webhooks_harness::{process::temporary_folder, root};
use serde_json::Value;

use crate::{Bench, page::Page};

/// Seconds of warm-up and of measurement.
const SETTING: [&str; 2] = ["1", "2"];
const QUICK: [&str; 2] = ["0.1", "0.2"];

/// The estimates of a benchmark.
pub struct Estimates {
    folder: PathBuf,
    /// The benchmark's other output, line by line.
    pub output: String,
}

/// One routine: its path in criterion's output, its name on the page, and the page's unit in nanoseconds.
pub struct Routine {
    pub path: &'static str,
    pub name: &'static str,
    pub unit: Unit,
}

#[derive(Clone, Copy)]
pub enum Unit {
    Micros,
    Millis,
}

/// In nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Median {
    point: f64,
    /// 95% confidence interval.
    low: f64,
    high: f64,
}

impl Estimates {
    /// Runs the benchmark of this name in its own process, with these environment variables.
    pub fn measure(bench: &Bench, name: &str, variables: &[(&str, String)]) -> Result<Self, String> {
        bench.say(&format!("cargo bench --bench {name}"));
        let folder = temporary_folder("criterion");
        let [warm_up, measurement] = if bench.args.quick { QUICK } else { SETTING };
        let mut command = Command::new("cargo");
        command.args(["bench", "--locked", "--package", "llmtune-webhooks-micro", "--bench", name]);
        if cfg!(debug_assertions) {
            command.args(["--profile", "dev"]);
        }
        command.args(["--", "--noplot", "--warm-up-time", warm_up, "--measurement-time", measurement]);
        command.current_dir(root()).env("CRITERION_HOME", &folder).envs(variables.iter().cloned());
        let output =
            command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(format!("cargo bench --bench {name} ended with {}\n{text}", output.status));
        }
        Ok(Self { folder, output: text })
    }

    /// Adds a table with the medians of these routines.
    pub fn table(&self, page: &mut Page, routines: &[Routine]) -> Result<(), String> {
        page.text.push_str("\n| what | median | with 95% confidence |\n|---|---|---|\n");
        for Routine { path, name, unit } in routines {
            let file = self.folder.join(path).join("new/estimates.json");
            let Median { point, low, high } = Median::read(&file)?;
            let (word, divisor) = match unit {
                Unit::Micros => ("µs", 1e3),
                Unit::Millis => ("ms", 1e6),
            };
            let [point, low, high] = [point, low, high].map(|nanos| nanos / divisor);
            let _ = writeln!(page.text, "| {name}, {word} | {point:.2} | {low:.2} to {high:.2} |");
        }
        Ok(())
    }
}

impl Median {
    fn read(file: &Path) -> Result<Self, String> {
        let text = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let estimates: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        Self::of(&estimates).ok_or_else(|| format!("{} tells no median", file.display()))
    }

    fn of(estimates: &Value) -> Option<Self> {
        let median = &estimates["median"];
        let interval = &median["confidence_interval"];
        Some(Self {
            point: median["point_estimate"].as_f64()?,
            low: interval["lower_bound"].as_f64()?,
            high: interval["upper_bound"].as_f64()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_median_is_read_as_criterion_writes_it() {
        let interval = json!({"confidence_level": 0.95, "lower_bound": 1.5, "upper_bound": 2.5});
        let estimates = json!({"median": {"confidence_interval": interval, "point_estimate": 2.0}});
        assert_eq!(Median::of(&estimates), Some(Median { point: 2.0, low: 1.5, high: 2.5 }));
        assert_eq!(Median::of(&json!({"mean": {"point_estimate": 2.0}})), None);
    }
}
