//! Events: their names, the lifecycles that decide when one occurs, their IDs, payloads and body bytes. Pure: no
//! client, no clock, no randomness.

pub mod amount;
pub mod body;
pub mod format;
pub mod id;
pub mod json;
pub mod lifecycle;
pub mod object;
pub mod observation;
pub mod payload;
pub mod sample;
pub mod schema;
pub mod shared;
pub mod unknown;

use std::sync::Arc;

use jiff::Timestamp;

pub use llmtune_api::event::{EventSet, EventType};

use id::EventId;
use object::Object;

/// One event, shared by all its deliveries.
#[derive(Debug)]
pub struct Event {
    /// The same for every subscriber, retry and replay.
    pub id: EventId,
    pub event_type: EventType,
    /// The object of the event, for ordering, matching and reporting.
    pub object: Arc<Object>,
    /// The time at which the operator observed it.
    pub observed_at: Timestamp,
    /// Sequence number of this event for its object, starting at 1.
    pub sequence: u32,
    /// The body up to the value of `deliveredAt` (see [`body`]).
    pub body: body::OpenBody,
    /// The event in other formats, created for attempts.
    pub forms: format::Forms,
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use TrainingStage::{Cancelled, Completed, Failed, Pending, Running, Suspended};

    use super::{
        body::{self, Envelope},
        id::{DeliveryId, OccurrenceName},
        lifecycle::{Occurrence, Recalled, Stale},
        object::{Facts, Metric, ServingFacts, ServingStage, TrainingFacts, TrainingStage, Uid},
        *,
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn body(event: EventType, object: &Object, status: Option<&'static str>, run: u32) -> String {
        let (name, recalled) = (OccurrenceName::Generation(1), Recalled::default());
        let occurrence = Occurrence { event, name, count: 1, status, run, recalled };
        let envelope = Envelope {
            id: EventId::new("s", object.uid, event, &OccurrenceName::Generation(1), 1, 1),
            event,
            occurred_at: payload::occurred_at(object, &occurrence, at(9)),
            sequence: 3,
            cluster: None,
            test: false,
        };
        let opened = body::open(envelope, payload::data(object, &occurrence));
        assert_eq!(opened.len(), opened.as_str().len());
        let text = opened.close(at(10));
        text.split_once(",\"data\":").unwrap().1.to_owned()
    }

    fn job(facts: TrainingFacts) -> Object {
        let object = Object::of_event(EventType::TrainingStarted, Uid::from_u128(0x0f), "ns".into(), "job".into());
        Object { facts: Facts::Training(facts), created_at: Some(at(0)), ..object }
    }

    #[test]
    fn training_payload_omits_unknown_facts() {
        let facts = TrainingFacts {
            artifact: Some("s3://a".into()),
            metrics: [("loss".to_owned(), Metric::Number(0.5)), ("note".to_owned(), Metric::Text("x".into()))].into(),
            started_at: Some(at(1)),
            completed_at: Some(at(2)),
            reason: Some("OOM".into()),
            ..TrainingFacts::default()
        };
        let common = "{\"jobId\":\"00000000-0000-0000-0000-00000000000f\",\"name\":\"job\",\"namespace\":\"ns\",";
        let tail = "\"run\":1,\"createdAt\":\"2023-11-14T22:13:20Z\",\"startedAt\":\"2023-11-14T22:13:21Z\"";
        let metrics = "\"metrics\":{\"loss\":0.5,\"note\":\"x\"},";
        let end = |occurred| {
            format!("\"occurredAt\":\"{occurred}\",\"sequence\":3,\"deliveredAt\":\"2023-11-14T22:13:30Z\"}}")
        };
        assert_eq!(
            body(EventType::TrainingStarted, &job(facts.clone()), Some("running"), 1),
            format!("{common}\"status\":\"running\",{metrics}{tail}}},{}", end("2023-11-14T22:13:21Z")),
        );
        let completed_at = "\"completedAt\":\"2023-11-14T22:13:22Z\"";
        assert_eq!(
            body(EventType::TrainingFailed, &job(facts.clone()), Some("failed"), 1),
            format!(
                "{common}\"status\":\"failed\",\"error\":{{\"reason\":\"OOM\"}},\"artifact\":\"s3://a\",{metrics}{tail},{completed_at}}},{}",
                end("2023-11-14T22:13:22Z")
            ),
        );
        let bare = TrainingFacts { completed_at: Some(at(2)), ..TrainingFacts::default() };
        assert_eq!(
            body(EventType::TrainingFailed, &job(bare), Some("cancelled"), 0),
            format!(
                "{common}\"status\":\"cancelled\",\"createdAt\":\"2023-11-14T22:13:20Z\",{completed_at}}},{}",
                end("2023-11-14T22:13:22Z")
            ),
        );
    }

    #[test]
    fn a_run_never_ends_before_it_started() {
        let facts = |started_at, completed_at| TrainingFacts { started_at, completed_at, ..TrainingFacts::default() };
        let occurred = |facts: TrainingFacts, run, recalled| {
            let (event, name) = (EventType::TrainingCompleted, OccurrenceName::Generation(1));
            let occurrence = Occurrence { event, name, count: 1, status: Some("completed"), run, recalled };
            let object = job(facts);
            let data = payload::data(&object, &occurrence).members;
            let completed = data.into_iter().any(|(name, _)| name == "completedAt");
            (payload::occurred_at(&object, &occurrence, at(9)), completed)
        };
        let ordinary = Recalled::default;
        assert_eq!(occurred(facts(Some(at(1)), Some(at(2))), 1, ordinary()), (at(2), true));
        // The start was observed later than the end.
        let observed = Recalled { start_was_observed: true, ..Recalled::default() };
        assert_eq!(occurred(facts(None, Some(at(2))), 1, observed), (at(9), true));
        // The object's clock is ahead, or it reports impossible times.
        assert_eq!(occurred(facts(Some(at(30)), None), 1, ordinary()), (at(30), false));
        assert_eq!(occurred(facts(Some(at(3)), Some(at(2))), 1, ordinary()), (at(3), true));
        // In a later run, the completion time is left over from the run before.
        assert_eq!(occurred(facts(Some(at(3)), Some(at(2))), 2, ordinary()), (at(9), false));
        // A resumed run began at its first start.
        let resumed = Recalled { started_at: Some(at(1)), ..Recalled::default() };
        assert_eq!(occurred(facts(Some(at(5)), Some(at(6))), 1, resumed), (at(6), true));
    }

    #[test]
    fn error_of_a_cancelled_run_comes_from_its_end() {
        let facts = TrainingFacts {
            reason: Some("Stopped".into()),
            message: Some("step 3".into()),
            progress: Some(40.0),
            ..TrainingFacts::default()
        };
        let object = job(facts);
        let text = |recalled| {
            let (event, name) = (EventType::TrainingFailed, OccurrenceName::Generation(1));
            let occurrence = Occurrence { event, name, count: 1, status: Some("cancelled"), run: 1, recalled };
            let data = payload::data(&object, &occurrence).members;
            assert!(data.contains(&("progress", "40".to_owned())));
            data.into_iter().find(|(name, _)| *name == "error").map(|(_, text)| text)
        };
        let all = "{\"reason\":\"Stopped\",\"message\":\"step 3\"}";
        assert_eq!(text(Recalled::default()).as_deref(), Some(all));
        let message = Recalled { stale: Stale { reason: false, message: true }, ..Recalled::default() };
        assert_eq!(text(message.clone()).as_deref(), Some("{\"reason\":\"Stopped\"}"));
        assert_eq!(text(Recalled { stale: Stale { reason: true, message: true }, ..message }), None);
        assert_eq!(text(Recalled { gone: true, ..Recalled::default() }), None);
    }

    #[test]
    fn serving_payload_has_the_model() {
        let object = Object::of_event(EventType::ModelDeployed, Uid::from_u128(1), "ns".into(), "chat".into());
        let facts = ServingFacts {
            stage: Some(ServingStage::Deployed),
            deployment_id: Some("dep".into()),
            model_id: Some("llama".into()),
            version: Some("2".into()),
            ..ServingFacts::default()
        };
        assert_eq!(
            body(EventType::ModelDeployed, &Object { facts: Facts::Serving(facts), ..object }, None, 0),
            "{\"deploymentId\":\"dep\",\"name\":\"chat\",\"namespace\":\"ns\",\"modelId\":\"llama\",\"version\":\"2\"},\
             \"occurredAt\":\"2023-11-14T22:13:29Z\",\"sequence\":3,\"deliveredAt\":\"2023-11-14T22:13:30Z\"}",
        );
    }

    #[test]
    fn patterns_select_families_names_and_everything_and_nothing_else() {
        let names = |patterns: &[&str]| {
            let set = EventSet::parse(patterns).unwrap();
            EventType::ALL.into_iter().filter(|event| set.contains(*event)).map(EventType::name).collect::<Vec<_>>()
        };
        assert_eq!(names(&["*"]).len(), 9);
        assert_eq!(names(&["training.*"]), ["training.started", "training.completed", "training.failed"]);
        assert_eq!(names(&["model.deployed", "deployment.paused"]), ["model.deployed", "deployment.paused"]);
        for unknown in ["", "training", "training*", "nothing.*", "model.deploye"] {
            assert_eq!(EventSet::parse(&["*", unknown]).unwrap_err(), unknown);
        }
    }

    #[test]
    fn names_ids_and_stages_are_read_as_they_are_written() {
        for event in EventType::ALL {
            assert_eq!(EventType::parse(event.name()), Some(event));
        }
        assert_eq!(EventType::parse("training"), None);
        let id = EventId::of_test(Uid::from_u128(7));
        assert_eq!(EventId::parse(&id.to_string()), Some(id));
        assert_eq!(format!("{id:?}"), id.to_string());
        let text = id.to_string();
        let upper = text.replace(|digit: char| digit.is_ascii_lowercase() && digit < 'g', "A");
        for wrong in ["", "evt_", &text[..35], &format!("{text}0"), &upper, &text.replace("evt", "dlv")] {
            assert_eq!(EventId::parse(wrong), None, "{wrong}");
        }
        let delivery = DeliveryId::new(id, Uid::from_u128(8));
        assert_eq!(delivery.object_name(), delivery.to_string().replace("dlv_", "dlv-"));
        assert_eq!(format!("{delivery:?}"), delivery.to_string());
        let uid = "01234567-89ab-cdef-0123-456789abcdef";
        assert_eq!(format!("{:?}", Uid::parse(uid).unwrap()), uid);
        for wrong in [
            "0123456-789ab-cdef-0123-456789abcdef",
            "01234567-89AB-cdef-0123-456789abcdef",
            "01234567089ab-cdef-0123-456789abcdef",
        ] {
            assert_eq!(Uid::parse(wrong), None, "{wrong}");
        }
        for stage in [Pending, Suspended, Running, Completed, Failed, Cancelled] {
            assert_eq!(TrainingStage::parse(&format!("{stage:?}")), Some(stage));
        }
    }
}
