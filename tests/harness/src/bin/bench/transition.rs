//! The transitions of the load, identified by data that the bare watch and the receivers can read back.

use jiff::{SignedDuration, Timestamp};

/// One run of a job entering a phase. Runs count over the whole benchmark; the `startedAt` of a job identifies its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Transition {
    pub run: u32,
    pub completed: bool,
}

/// `startedAt` of run 0: 2026-01-01T00:00:00Z; each run is a second later.
const FIRST_START: i64 = 1_767_225_600;

/// When a run started, as its status says.
pub fn started_at(run: u32) -> String {
    started(run).to_string()
}

/// When a run ended, as its status says.
pub fn completed_at(run: u32) -> String {
    (started(run) + SignedDuration::from_hours(1)).to_string()
}

fn started(run: u32) -> Timestamp {
    Timestamp::from_second(FIRST_START + i64::from(run)).unwrap()
}

pub fn job_name(job: u32) -> String {
    format!("job-{job:06}")
}

impl Transition {
    /// Reads a transition from these fields. The phase may be spelled `Running`, as in a status, or `running`, as in an
    /// event.
    pub fn read(job: &str, phase: &str, started_at: &str, jobs: u32) -> Option<Self> {
        let start: Timestamp = started_at.parse().ok()?;
        let run = u32::try_from(start.as_second() - FIRST_START).ok()?;
        let completed = match phase {
            "Running" | "running" => false,
            "Completed" | "completed" => true,
            _ => return None,
        };
        (job_name(run % jobs) == job).then_some(Self { run, completed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_is_parsed_from_its_own_text() {
        let read = |job: &str, phase: &str| Transition::read(job, phase, &started_at(1234), 1000);
        assert_eq!(read("job-000234", "Completed"), Some(Transition { run: 1234, completed: true }));
        assert_eq!(read("job-000234", "running"), Some(Transition { run: 1234, completed: false }));
        assert_eq!(read("job-000235", "running"), None);
        assert_eq!(read("job-000234", "Pending"), None);
    }
}
