//! The payload (`data`) of each event: the facts that a receiver gets, and their names. Unknown facts are left out.

use jiff::Timestamp;

use super::{
    EventType,
    amount::Amount,
    id::OccurrenceName,
    json,
    lifecycle::{AnnouncedModel, Occurrence},
    object::{Facts, Metric, Object, ServingFacts, TrainingFacts, UsageFacts},
};

/// The content of `data`.
#[derive(Debug, Default)]
pub struct Data {
    /// The members, name and JSON, in the order in which they are written.
    pub members: Vec<(&'static str, String)>,
    /// Facts were dropped because they are too large.
    pub truncated: bool,
}

impl Data {
    pub(super) fn text(&mut self, name: &'static str, value: &str) {
        let mut text = String::with_capacity(value.len() + 2);
        json::write_string(&mut text, value);
        self.members.push((name, text));
    }

    fn optional(&mut self, name: &'static str, value: Option<&String>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    fn time(&mut self, name: &'static str, value: Option<Timestamp>) {
        if let Some(value) = value {
            self.text(name, &value.to_string());
        }
    }

    /// Adds a number as the nearest double, or as text if the double would be another amount.
    fn amount(&mut self, name: &'static str, value: Option<&Amount>) {
        let Some(value) = value else { return };
        let Some(double) = value.printed_double() else { return self.text(name, &value.to_string()) };
        let mut text = String::new();
        json::write_number(&mut text, double);
        self.members.push((name, text));
    }
}

/// Returns the payload of an occurrence.
#[must_use]
pub fn data(object: &Object, occurrence: &Occurrence) -> Data {
    match &object.facts {
        Facts::Training(facts) => training(object, facts, occurrence),
        Facts::Serving(facts) => serving(object, facts, &occurrence.recalled.model),
        Facts::Usage(facts) => usage(object, facts, occurrence),
    }
}

/// Returns the time of the event: the object's own time if it has one, otherwise the time of observation, in
/// milliseconds. A run never ends before it started.
#[must_use]
pub fn occurred_at(object: &Object, occurrence: &Occurrence, observed_at: Timestamp) -> Timestamp {
    let observed_at = Timestamp::from_millisecond(observed_at.as_millisecond()).unwrap_or(observed_at);
    match (&object.facts, occurrence.event) {
        (Facts::Training(facts), EventType::TrainingStarted) => facts.started_at.unwrap_or(observed_at),
        (Facts::Training(facts), EventType::TrainingCompleted | EventType::TrainingFailed) => {
            let ended = completed_at(facts, occurrence).filter(|_| !occurrence.recalled.start_was_observed);
            let ended = ended.unwrap_or(observed_at);
            began_at(facts, occurrence).map_or(ended, |began| ended.max(began))
        }
        (Facts::Usage(facts), _) => facts.observed_at,
        _ => observed_at,
    }
}

/// Returns the start of the run, as its start event reported it.
fn began_at(facts: &TrainingFacts, occurrence: &Occurrence) -> Option<Timestamp> {
    occurrence.recalled.started_at.or(facts.started_at)
}

/// Returns the end of the run. In a later run, a time before its start is left over from an earlier run.
fn completed_at(facts: &TrainingFacts, occurrence: &Occurrence) -> Option<Timestamp> {
    let began = began_at(facts, occurrence).filter(|_| occurrence.run > 1);
    facts.completed_at.filter(|ended| !occurrence.recalled.gone && began.is_none_or(|began| began <= *ended))
}

fn training(object: &Object, facts: &TrainingFacts, occurrence: &Occurrence) -> Data {
    let ended = occurrence.event != EventType::TrainingStarted;
    let mut data = Data::default();
    match &facts.job_id {
        Some(job_id) => data.text("jobId", job_id),
        None => data.text("jobId", &object.uid.to_string()),
    }
    data.text("name", &object.name);
    data.text("namespace", &object.namespace);
    data.optional("baseModel", facts.base_model.as_ref());
    data.optional("trainingMethod", facts.training_method.as_ref());
    if let Some(status) = occurrence.status {
        data.text("status", status);
    }
    let recalled = &occurrence.recalled;
    if occurrence.event == EventType::TrainingFailed && !recalled.gone {
        let members =
            [("reason", &facts.reason, recalled.stale.reason), ("message", &facts.message, recalled.stale.message)];
        let known = members.into_iter().filter(|(_, _, is_old)| !is_old);
        let mut known = known.filter_map(|(name, value, _)| value.as_deref().map(|value| (name, value))).peekable();
        if known.peek().is_some() {
            let mut text = String::new();
            json::write_object(&mut text, known, json::write_string);
            data.members.push(("error", text));
        }
    }
    if ended {
        data.optional("artifact", facts.artifact.as_ref());
    }
    if !facts.metrics.is_empty() {
        let mut text = String::new();
        let members = facts.metrics.iter().map(|(name, metric)| (name.as_str(), metric));
        json::write_object(&mut text, members, |out, metric| match metric {
            Metric::Number(number) => json::write_number(out, *number),
            Metric::Text(value) => json::write_string(out, value),
        });
        data.members.push(("metrics", text));
    }
    data.truncated = facts.metrics_too_long;
    if let Some(progress) = facts.progress {
        let mut text = String::new();
        json::write_number(&mut text, progress);
        data.members.push(("progress", text));
    }
    if occurrence.run > 0 {
        data.members.push(("run", occurrence.run.to_string()));
    }
    data.time("createdAt", object.created_at);
    data.time("startedAt", began_at(facts, occurrence));
    if ended {
        data.time("completedAt", completed_at(facts, occurrence));
    }
    data
}

fn serving(object: &Object, facts: &ServingFacts, model: &AnnouncedModel) -> Data {
    let mut data = Data::default();
    match &facts.deployment_id {
        Some(id) => data.text("deploymentId", id),
        None => data.text("deploymentId", &object.uid.to_string()),
    }
    data.text("name", &object.name);
    data.text("namespace", &object.namespace);
    match model {
        AnnouncedModel::Last(model) => {
            let (id, version) = &**model;
            data.text("modelId", id);
            data.optional("version", version.as_ref());
        }
        AnnouncedModel::Unknown if facts.model_id.is_some() => {}
        AnnouncedModel::Named | AnnouncedModel::Unknown => {
            data.optional("modelId", facts.model_id.as_ref());
            data.optional("version", facts.version.as_ref());
        }
    }
    data.optional("environment", facts.environment.as_ref());
    data.optional("endpoint", facts.endpoint.as_ref());
    data
}

fn usage(object: &Object, facts: &UsageFacts, occurrence: &Occurrence) -> Data {
    let mut data = Data::default();
    data.text("name", &object.name);
    data.text("namespace", &object.namespace);
    data.text("metric", &facts.metric);
    data.amount("value", Some(&facts.value));
    data.amount("limit", facts.limit.as_ref());
    data.amount("percent", facts.percent().as_ref());
    if let OccurrenceName::Threshold { threshold, .. } = &occurrence.name {
        let spelled = facts.thresholds.iter().find(|level| level.name() == *threshold);
        data.text("threshold", spelled.map_or(threshold, |level| level.text()));
    }
    data.optional("unit", facts.unit.as_ref());
    data.time("observedAt", Some(facts.observed_at));
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_beyond_doubles_is_told_as_text() {
        for (amount, text) in [
            ("0.1", "0.1"),
            ("9007199254740992", "9007199254740992"),
            ("9007199254740993", "\"9007199254740993\""),
            ("-9007199254740993", "\"-9007199254740993\""),
            ("16Ei", "\"18446744073709551616\""),
            ("8Pi", "9007199254740992"),
            ("9007199254740993500m", "\"9007199254740993.5\""),
            ("1e21", "1e+21"),
            ("123456789.123456789123456789", "123456789.12345679"),
        ] {
            let mut data = Data::default();
            data.amount("value", Some(&Amount::quantity(amount).unwrap()));
            assert_eq!(data.members, [("value", text.to_owned())]);
        }
    }
}
