//! Event types, and sets of them.

use std::fmt;

/// The event types, with the names that subscribers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EventType {
    TrainingStarted,
    TrainingCompleted,
    TrainingFailed,
    ModelDeployed,
    DeploymentCreated,
    DeploymentPaused,
    DeploymentResumed,
    DeploymentDeleted,
    UsageThresholdReached,
}

impl EventType {
    /// Every event type, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::TrainingStarted,
        Self::TrainingCompleted,
        Self::TrainingFailed,
        Self::ModelDeployed,
        Self::DeploymentCreated,
        Self::DeploymentPaused,
        Self::DeploymentResumed,
        Self::DeploymentDeleted,
        Self::UsageThresholdReached,
    ];

    /// Returns the event type of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name() == name)
    }

    /// Returns the event type's name, such as `training.started`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TrainingStarted => "training.started",
            Self::TrainingCompleted => "training.completed",
            Self::TrainingFailed => "training.failed",
            Self::ModelDeployed => "model.deployed",
            Self::DeploymentCreated => "deployment.created",
            Self::DeploymentPaused => "deployment.paused",
            Self::DeploymentResumed => "deployment.resumed",
            Self::DeploymentDeleted => "deployment.deleted",
            Self::UsageThresholdReached => "usage.threshold_reached",
        }
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of event types, as in `spec.events`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventSet(u16);

impl EventSet {
    /// Parses patterns: names, `family.*` or `*`. Fails with the first pattern that selects nothing.
    pub fn parse<S: AsRef<str>>(patterns: &[S]) -> Result<Self, String> {
        let mut set = Self::default();
        for pattern in patterns.iter().map(AsRef::as_ref) {
            let selected = EventType::ALL.into_iter().filter(|event| match pattern.strip_suffix('*') {
                Some("") => true,
                Some(family) => family.ends_with('.') && event.name().starts_with(family),
                None => event.name() == pattern,
            });
            let before = set;
            let mut any = false;
            for event in selected {
                set.0 |= 1 << event as u8;
                any = true;
            }
            if !any {
                debug_assert_eq!(before, set);
                return Err(pattern.to_owned());
            }
        }
        Ok(set)
    }

    /// Reports whether the set contains the event type.
    #[must_use]
    pub const fn contains(self, event: EventType) -> bool {
        self.0 & (1 << event as u8) != 0
    }
}
