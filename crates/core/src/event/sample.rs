//! Sample events, for tests of a Webhook.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};

use super::{
    Event, EventType,
    amount::{Amount, Level},
    body::{self, Envelope},
    format::Forms,
    id::{EventId, OccurrenceName},
    lifecycle::{Occurrence, Recalled},
    object::{Facts, Metric, Object, ServingFacts, TrainingFacts, TrainingStage, Uid, UsageFacts},
    payload,
};

/// The name of the sample object.
const NAME: &str = "sample";
/// The threshold that the sample reaches.
const THRESHOLD: &str = "80%";

/// Creates a sample of this event, marked as a test. `uid` belongs to the object that requests the test and determines
/// the event's ID.
#[must_use]
pub fn sample(event: EventType, uid: Uid, namespace: &str, cluster: Option<&str>, now: Timestamp) -> Event {
    let started_at = now.checked_sub(SignedDuration::from_mins(42)).unwrap_or(now);
    let whole = |at: Timestamp| Timestamp::from_second(at.as_second()).unwrap_or(at);
    let text = |text: &str| Some(text.to_owned());
    let (stage, status) = match event {
        EventType::TrainingStarted => (TrainingStage::Running, Some("running")),
        EventType::TrainingCompleted => (TrainingStage::Completed, Some("completed")),
        EventType::TrainingFailed => (TrainingStage::Failed, Some("failed")),
        _ => (TrainingStage::Pending, None),
    };
    let ended = stage.is_finished().then(|| whole(now));
    let facts = if event == EventType::UsageThresholdReached {
        Facts::Usage(usage(now))
    } else if status.is_some() {
        Facts::Training(TrainingFacts {
            stage: Some(stage),
            job_id: text("job-sample"),
            base_model: text("meta-llama/Llama-3.1-8B"),
            training_method: text("sft"),
            artifact: ended.filter(|_| stage == TrainingStage::Completed).and(text("s3://models/sample")),
            metrics: BTreeMap::from([("loss".to_owned(), Metric::Number(0.42))]),
            metrics_too_long: false,
            progress: ended.map(|_| if stage == TrainingStage::Completed { 100.0 } else { 40.0 }),
            started_at: Some(whole(started_at)),
            completed_at: ended,
            reason: ended.filter(|_| stage == TrainingStage::Failed).and(text("OOMKilled")),
            message: ended.filter(|_| stage == TrainingStage::Failed).and(text("a worker ran out of memory")),
            continues: false,
        })
    } else {
        Facts::Serving(ServingFacts {
            deployment_id: text("dep-sample"),
            model_id: text("llama-3.1-8b-sample"),
            version: text("1"),
            environment: text("test"),
            endpoint: text("https://models.example.com/sample"),
            ..ServingFacts::default()
        })
    };
    let object = Object {
        uid,
        version: 0,
        generation: 1,
        namespace: namespace.to_owned(),
        name: NAME.to_owned(),
        kind: None,
        labels: BTreeMap::new(),
        namespace_labels: None,
        annotations: None,
        created_at: Some(whole(started_at)),
        owned: false,
        facts,
    };
    let run = u32::from(status.is_some());
    let name = match &object.facts {
        Facts::Usage(_) => OccurrenceName::Threshold { threshold: THRESHOLD.to_owned(), generation: 1 },
        _ => OccurrenceName::Generation(1),
    };
    let occurrence = Occurrence { event, name, count: 1, status, run, recalled: Recalled::default() };
    let data = payload::data(&object, &occurrence);
    let id = EventId::of_test(uid);
    let occurred_at = payload::occurred_at(&object, &occurrence, now);
    let envelope = Envelope { id, event, occurred_at, sequence: 1, cluster, test: true };
    Event {
        id,
        event_type: event,
        body: body::open(envelope, data),
        object: Arc::new(object.outline()),
        observed_at: now,
        sequence: 1,
        forms: Forms::default(),
    }
}

fn usage(now: Timestamp) -> UsageFacts {
    let amount = |text| Amount::quantity(text).unwrap_or_default();
    UsageFacts {
        metric: "sum(increase(llm_tokens_total{tenant='sample'}[30d]))".to_owned(),
        value: amount("834M"),
        limit: Some(amount("1G")),
        thresholds: Level::parse(THRESHOLD).into_iter().collect(),
        unit: Some("tokens".to_owned()),
        observed_at: Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now),
        ..UsageFacts::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn every_event_has_a_marked_sample() {
        for event in EventType::ALL {
            let now = Timestamp::from_second(1_700_000_000).unwrap();
            let sample = sample(event, Uid::from_u128(7), "research", Some("east"), now);
            let body: Value = serde_json::from_str(&sample.body.close(now)).unwrap();
            assert_eq!(body["test"], true);
            assert_eq!(body["event"], event.name());
            assert_eq!(body["id"], sample.id.to_string());
            assert_eq!(body["data"]["namespace"], "research");
            let received: llmtune_api::payload::Event = serde_json::from_value(body.clone()).unwrap();
            assert_eq!(received.event_type(), Some(event));
            assert_eq!(serde_json::to_value(&received).unwrap(), body, "the payload types cover every member");
        }
    }
}
