//! Events: what happened to an object. The names, the lifecycles that decide when one occurs, its id, its payload and the
//! bytes of its body. Pure: no client, no clock, no randomness.

pub mod body;
pub mod id;
pub mod json;
pub mod lifecycle;
pub mod object;
pub mod payload;
pub mod sample;
pub mod unknown;

use std::{collections::BTreeMap, fmt, sync::Arc};

use jiff::Timestamp;

use id::EventId;
use object::{Facts, Object, ServingFacts, TrainingFacts, Uid};

/// What can happen, by the name that subscribers use.
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
    /// Every event, in the order of the documentation.
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

    /// The event of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name() == name)
    }

    /// An object of the kind that such events are about, of which nothing but its name is known.
    #[must_use]
    pub fn outline(self, uid: Uid, namespace: String, name: String) -> Object {
        let facts = match self {
            Self::TrainingStarted | Self::TrainingCompleted | Self::TrainingFailed => {
                Facts::Training(TrainingFacts::default())
            }
            _ => Facts::Serving(ServingFacts::default()),
        };
        Object {
            uid,
            version: 0,
            generation: 0,
            namespace,
            name,
            labels: BTreeMap::new(),
            created_at: None,
            owned: false,
            facts,
        }
    }

    /// The event's name, such as `training.started`.
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

/// A set of events, as `spec.events` names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventSet(u16);

impl EventSet {
    /// The events that the patterns select: names, `family.*`, `*`. A pattern that selects nothing is returned as the error.
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

    /// Whether the set holds the event.
    #[must_use]
    pub const fn contains(self, event: EventType) -> bool {
        self.0 & (1 << event as u8) != 0
    }
}

/// One event, shared by all deliveries of it.
#[derive(Debug)]
pub struct Event {
    /// The same for every subscriber, retry and replay.
    pub id: EventId,
    /// What happened.
    pub event_type: EventType,
    /// The object that it happened to, for ordering, matching and reporting.
    pub object: Arc<Object>,
    /// When the operator learned of it.
    pub observed_at: Timestamp,
    /// The how-manieth event of its object it is, from 1.
    pub sequence: u32,
    /// The body up to the value of `deliveredAt` (see [`body`]).
    pub body: body::Opened,
}
