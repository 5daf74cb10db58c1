//! Evaluates a Webhook's `spec.filter` for an event. The variables of the expression are `event` (the event's name),
//! `data` (the payload that receivers get) and `object` (`metadata` with name, namespace, labels and annotations).
//! Pure.

use std::{cell::OnceCell, sync::Arc};

use crate::event::{Event, object::Object};
use cel::{CompileError, Document, EvaluationError, Expression, Type};
use llmtune_api::webhook;

const VARIABLES: [&str; 3] = ["event", "data", "object"];

/// A compiled filter. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    text: Arc<str>,
    expression: Expression,
    reads_data: bool,
    reads_object: bool,
    reads_annotations: bool,
}

/// Why a filter could not be evaluated for an event. One sentence, without content of the event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    #[error(transparent)]
    Evaluation(#[from] EvaluationError),
    /// The object was last seen before any filter read annotations, or has more annotations than are kept.
    #[error(
        "the annotations of this object are unknown: it was last seen before a filter read annotations, or has more than 16 KiB of them"
    )]
    NoAnnotations,
    #[error("the event's data was too large for a body and is incomplete")]
    Truncated,
    #[error("the event's data cannot be read")]
    Unreadable,
}

impl Filter {
    /// Compiles a filter.
    pub fn read(text: &str) -> Result<Self, CompileError> {
        let types = [Type::String, Type::Dyn, Type::Dyn];
        let variables: Vec<_> = VARIABLES.into_iter().zip(types).collect();
        let expression = Expression::compile_condition(text, &variables)?;
        Ok(Self {
            text: text.into(),
            reads_data: expression.reads("data", &[]),
            reads_object: expression.reads("object", &[]),
            reads_annotations: expression.reads("object", &["metadata", "annotations"]),
            expression,
        })
    }

    /// The source text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the filter reads annotations of objects.
    #[must_use]
    pub const fn reads_annotations(&self) -> bool {
        self.reads_annotations
    }

    /// Whether the event passes. Missing fields evaluate to false.
    pub fn passes(&self, subject: &Subject<'_>) -> Result<bool, FilterError> {
        if self.reads_annotations && subject.object.annotations.is_none() {
            return Err(FilterError::NoAnnotations);
        }
        let mut scope = Vec::with_capacity(VARIABLES.len());
        let name = Document::from(subject.event.event_type.name());
        scope.push(("event", &name));
        if self.reads_data {
            if subject.event.body.is_truncated() {
                return Err(FilterError::Truncated);
            }
            scope.push(("data", subject.data().ok_or(FilterError::Unreadable)?));
        }
        if self.reads_object {
            scope.push(("object", subject.metadata()));
        }
        Ok(self.expression.holds(&scope)?)
    }
}

/// The newest filter of a Webhook that compiled. It stays in force while later ones do not compile.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterInForce {
    /// The generation of its spec.
    pub generation: i64,
    /// The filter, or `None` if that spec had no filter.
    pub filter: Option<Filter>,
}

impl FilterInForce {
    /// Restores the filter from a status. `None` if this release cannot compile it.
    #[must_use]
    pub fn recorded(record: &webhook::FilterInForce) -> Option<Self> {
        let filter = record.filter.as_deref().map(Filter::read).transpose().ok()?;
        Some(Self { generation: record.generation, filter })
    }

    /// The record for the status.
    #[must_use]
    pub fn record(&self) -> webhook::FilterInForce {
        let filter = self.filter.as_ref().map(|filter| filter.text().to_owned());
        webhook::FilterInForce { generation: self.generation, filter }
    }
}

/// The variables of filters for one event. Each is built once, when the first filter needs it.
pub struct Subject<'a> {
    event: &'a Event,
    object: &'a Object,
    data: OnceCell<Option<Document>>,
    metadata: OnceCell<Document>,
}

impl<'a> Subject<'a> {
    /// Creates the variables for an event and the observed object.
    #[must_use]
    pub const fn new(event: &'a Event, object: &'a Object) -> Self {
        Self { event, object, data: OnceCell::new(), metadata: OnceCell::new() }
    }

    fn data(&self) -> Option<&Document> {
        let read = || self.event.body.data().and_then(|data| serde_json::from_str(data).ok());
        self.data.get_or_init(read).as_ref()
    }

    fn metadata(&self) -> &Document {
        self.metadata.get_or_init(|| {
            let Object { name, namespace, labels, annotations, .. } = self.object;
            let texts = |texts: &std::collections::BTreeMap<String, String>| -> Document {
                texts.iter().map(|(key, value)| (key.as_str(), value.as_str().into())).collect()
            };
            let mut metadata: Vec<(&str, Document)> = vec![
                ("name", name.as_str().into()),
                ("namespace", namespace.as_str().into()),
                ("labels", texts(labels)),
            ];
            metadata.extend(annotations.as_ref().map(|annotations| ("annotations", texts(annotations))));
            [("metadata", metadata.into_iter().collect())].into_iter().collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::event::{
        EventType,
        body::{self, Envelope},
        format::Forms,
        id::{EventId, OccurrenceName},
        lifecycle::{Occurrence, Recalled},
        object::{Facts, Metric, TrainingFacts, Uid},
        payload,
    };

    fn job() -> Object {
        let outline =
            Object::of_event(EventType::TrainingCompleted, Uid::from_u128(7), "research".into(), "llama".into());
        let metrics =
            [("loss".to_owned(), Metric::Number(0.5)), ("step".to_owned(), Metric::Text("NaN".into()))].into();
        let base_model = Some("meta-llama/Llama-3.1-8B".to_owned());
        let facts = Facts::Training(TrainingFacts { base_model, metrics, ..TrainingFacts::default() });
        Object { facts, labels: [("team".to_owned(), "nlp".to_owned())].into(), ..outline }
    }

    fn annotated(annotations: &[(&str, &str)]) -> Object {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Object { annotations: Some(annotations), ..job() }
    }

    fn passes(filter: &str, object: &Object) -> Result<bool, FilterError> {
        let (event, name) = (EventType::TrainingCompleted, OccurrenceName::Generation(1));
        let id = EventId::new("s", object.uid, event, &name, 1, 1);
        let occurrence =
            Occurrence { event, name, count: 1, status: Some("completed"), run: 1, recalled: Recalled::default() };
        let now = Timestamp::UNIX_EPOCH;
        let envelope = Envelope { id, event, occurred_at: now, sequence: 1, cluster: Some("here"), test: false };
        let event = Event {
            id,
            event_type: event,
            object: std::sync::Arc::new(object.outline()),
            observed_at: now,
            sequence: 1,
            body: body::open(envelope, payload::data(object, &occurrence)),
            forms: Forms::default(),
        };
        Filter::read(filter).unwrap().passes(&Subject::new(&event, object))
    }

    #[test]
    fn filter_reads_event_data_and_object_metadata() {
        for filter in [
            "data.baseModel.startsWith('meta-llama/')",
            "event == 'training.completed' && data.status == 'completed' && data.run == 1",
            "data.metrics.loss < 1 && data.metrics.step == 'NaN'",
            "object.metadata.name == 'llama' && object.metadata.namespace == 'research'",
            "object.metadata.labels.team in ['nlp', 'vision']",
            "!has(data.artifact) && !('other' in object.metadata.labels)",
        ] {
            assert_eq!(passes(filter, &job()), Ok(true), "{filter}");
        }
        for filter in
            ["data.baseModel == 'x'", "data.artifact == 'x'", "data.artifact != 'x'", "object.metadata.labels.x == ''"]
        {
            assert_eq!(passes(filter, &job()), Ok(false), "{filter}");
        }
    }

    #[test]
    fn unknown_annotations_are_an_error() {
        let filter = "object.metadata.annotations['example.com/owner'] == 'ada'";
        assert_eq!(passes(filter, &annotated(&[("example.com/owner", "ada")])), Ok(true));
        assert_eq!(passes(filter, &annotated(&[])), Ok(false));
        assert_eq!(passes(filter, &job()), Err(FilterError::NoAnnotations));
        assert_eq!(
            passes("object.metadata.name == 'llama'", &job()),
            Ok(true),
            "a filter that reads no annotations does not need them"
        );
        assert!(FilterError::NoAnnotations.to_string().chars().count() <= 256);
    }

    #[test]
    fn truncated_data_is_an_error() {
        let Facts::Training(facts) = job().facts else { panic!("training facts") };
        let artifact = Some("x".repeat(body::MAX_BYTES));
        let large = Object { facts: Facts::Training(TrainingFacts { artifact, ..facts }), ..job() };
        assert_eq!(passes("data.metrics.loss < 1", &large), Err(FilterError::Truncated));
        assert_eq!(passes("object.metadata.name == 'llama'", &large), Ok(true));
    }

    #[test]
    fn type_mismatch_is_an_error() {
        let error = passes("data.metrics.step < 1", &job()).unwrap_err();
        assert_eq!(error.to_string(), "line 1, column 19: `<` does not take a string and an int");
        let error = passes("data.baseModel", &job()).unwrap_err();
        assert_eq!(error.to_string(), "the expression returns a string, not a bool; compare it with a value");
    }
}
