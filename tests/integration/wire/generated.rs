//! Generates payloads with edge cases of JSON, JavaScript and the body's size limit.

use std::collections::BTreeMap;

use jiff::Timestamp;
use llmtune_core::event::{
    EventType,
    amount::Amount,
    body::{self, Envelope},
    id::{EventId, OccurrenceName},
    lifecycle::{Occurrence, Recalled},
    object::{Facts, Metric, Object, ServingFacts, TrainingFacts, Uid, UsageFacts},
    payload::{self, Data},
};
use llmtune_webhooks::source::{deployment::Deployments, training_job::TrainingJobs, usage};
use proptest::{
    char::range,
    collection::{btree_map, vec},
    option,
    prelude::*,
    sample::select,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

const AWKWARD_KEYS: &[&str] = &[
    "",
    "0",
    "1",
    "9",
    "10",
    "01",
    "00",
    "-0",
    "-1",
    "1.5",
    "1e3",
    " 1",
    "4294967294",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "99999999999",
    "__proto__",
    "constructor",
    "toString",
    "toJSON",
    "loss",
    "\u{661}",
];

const AWKWARD_NUMBERS: &[f64] = &[
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.1,
    0.3,
    1e-6,
    1e-7,
    123_456.789,
    1e20,
    1e21,
    -1e21,
    1.5e300,
    5e-324,
    -5e-324,
    2.225_073_858_507_201e-308,
    f64::MIN_POSITIVE,
    f64::MAX,
    f64::MIN,
    f64::EPSILON,
    4_294_967_295.0,
    9_007_199_254_740_991.0,
    9_007_199_254_740_992.0,
    9_007_199_254_740_994.0,
    18_446_744_073_709_551_615.0,
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
];

const AWKWARD_CHARS: &[char] = &[
    '"',
    '\\',
    '/',
    '\u{0}',
    '\u{8}',
    '\t',
    '\n',
    '\u{b}',
    '\u{c}',
    '\r',
    '\u{1b}',
    '\u{7f}',
    '\u{80}',
    '\u{85}',
    '\u{a0}',
    '\u{ad}',
    '\u{301}',
    '\u{2028}',
    '\u{2029}',
    '\u{d7ff}',
    '\u{e000}',
    '\u{feff}',
    '\u{fffd}',
    '\u{ffff}',
    '\u{1f600}',
    '\u{1f9d1}',
    '\u{10ffff}',
    'é',
    'ß',
    '東',
    '<',
    '&',
    '\'',
];

/// The input of one event's bodies.
#[derive(Clone, Debug)]
pub struct Payload {
    pub object: Object,
    pub occurrence: Occurrence,
    pub sequence: u32,
    pub cluster: Option<String>,
    pub observed_at: Timestamp,
    pub delivered_at: Timestamp,
}

impl Payload {
    pub fn data(&self) -> Data {
        payload::data(&self.object, &self.occurrence)
    }

    /// The body, built with the calls of the engine and the sender.
    pub fn body(&self) -> String {
        let Occurrence { event, ref name, count, .. } = self.occurrence;
        let source = match self.object.facts {
            Facts::Training(_) => TrainingJobs::NAME,
            Facts::Serving(_) => Deployments::NAME,
            Facts::Usage(_) => usage::NAME,
        };
        let envelope = Envelope {
            id: EventId::new(source, self.object.uid, event, name, count, 1),
            event,
            occurred_at: payload::occurred_at(&self.object, &self.occurrence, self.observed_at),
            sequence: self.sequence,
            cluster: self.cluster.as_deref(),
            test: false,
        };
        body::open(envelope, self.data()).close(self.delivered_at)
    }
}

/// This many values, the same ones for the same seed.
pub fn sample<S: Strategy>(strategy: &S, count: usize, seed: u64) -> Vec<S::Value> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

/// Payloads of every event.
pub fn payload() -> impl Strategy<Value = Payload> {
    let envelope = (any::<u32>(), option::of(text()), time(), time());
    (select(&EventType::ALL[..]), envelope).prop_flat_map(|(event, (sequence, cluster, observed_at, delivered_at))| {
        (object(event), occurrence(event)).prop_map(move |(object, occurrence)| {
            let cluster = cluster.clone();
            Payload { object, occurrence, sequence, cluster, observed_at, delivered_at }
        })
    })
}

fn occurrence(event: EventType) -> impl Strategy<Value = Occurrence> {
    let crossing =
        (text(), any::<i64>()).prop_map(|(threshold, generation)| OccurrenceName::Threshold { threshold, generation });
    let name = prop_oneof![
        time().prop_map(OccurrenceName::StartedAt),
        any::<i64>().prop_map(OccurrenceName::Generation),
        crossing
    ];
    let status = select(vec!["running", "completed", "failed", "cancelled", "unknown"]);
    (name, 1..4_u32, status, any::<u32>()).prop_map(move |(name, count, status, run)| Occurrence {
        event,
        name,
        count,
        status: Some(status),
        run,
        recalled: Recalled::default(),
    })
}

fn object(event: EventType) -> impl Strategy<Value = Object> {
    let facts = match event {
        EventType::TrainingStarted | EventType::TrainingCompleted | EventType::TrainingFailed => training().boxed(),
        EventType::UsageThresholdReached => usage_figure().boxed(),
        _ => serving().boxed(),
    };
    let labels = btree_map(text(), text(), 0..4);
    (any::<u128>(), text(), text(), labels, option::of(time()), facts).prop_map(
        |(uid, namespace, name, labels, created_at, facts)| Object {
            uid: Uid::from_u128(uid),
            version: 1,
            generation: 1,
            namespace,
            name,
            kind: None,
            labels,
            namespace_labels: None,
            annotations: None,
            created_at,
            owned: false,
            facts,
        },
    )
}

fn training() -> impl Strategy<Value = Facts> {
    let words = [option::of(text()), option::of(text()), option::of(text()), option::of(text())];
    let long = [option::of(text_or_long()), option::of(text_or_long())];
    let progress = option::of(0.0..=100.0_f64);
    (words, long, metrics(), progress, option::of(time()), option::of(time())).prop_map(
        |(words, [artifact, message], metrics, progress, started_at, completed_at)| {
            let [job_id, base_model, training_method, reason] = words;
            Facts::Training(TrainingFacts {
                stage: None,
                job_id,
                base_model,
                training_method,
                artifact,
                metrics,
                metrics_too_long: false,
                progress,
                started_at,
                completed_at,
                reason,
                message,
                continues: false,
            })
        },
    )
}

fn serving() -> impl Strategy<Value = Facts> {
    let words = [option::of(text()), option::of(text()), option::of(text()), option::of(text())];
    (words, option::of(text_or_long())).prop_map(|([deployment_id, model_id, version, environment], endpoint)| {
        Facts::Serving(ServingFacts { deployment_id, model_id, version, environment, endpoint, ..Default::default() })
    })
}

fn usage_figure() -> impl Strategy<Value = Facts> {
    let amount = || number().prop_filter_map("finite", |number| Amount::sample(&format!("{number:e}")).ok());
    (text(), amount(), option::of(amount()), option::of(text()), time()).prop_map(
        |(metric, value, limit, unit, observed_at)| {
            Facts::Usage(UsageFacts { metric, value, limit, unit, observed_at, ..Default::default() })
        },
    )
}

fn metrics() -> impl Strategy<Value = BTreeMap<String, Metric>> {
    let key = prop_oneof![
        3 => select(AWKWARD_KEYS).prop_map(str::to_owned),
        1 => any::<u32>().prop_map(|index| index.to_string()),
        1 => any::<u64>().prop_map(|number| number.to_string()),
        2 => text(),
    ];
    let metric = prop_oneof![3 => number().prop_map(Metric::Number), 1 => text_or_long().prop_map(Metric::Text)];
    btree_map(key, metric, 0..16)
}

/// Doubles of all magnitudes and kinds.
pub fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        (0..1_u64 << 52).prop_map(f64::from_bits),
        any::<i64>().prop_map(|integer| integer as f64),
        any::<u64>().prop_map(|integer| integer as f64),
        (any::<i32>(), -30..30_i32).prop_map(|(digits, exponent)| format!("{digits}e{exponent}").parse().unwrap()),
        select(AWKWARD_NUMBERS),
    ]
}

fn character() -> impl Strategy<Value = char> {
    prop_oneof![4 => range(' ', '~'), 3 => select(AWKWARD_CHARS), 1 => range('\0', '\u{1f}'), 1 => any::<char>()]
}

fn text() -> impl Strategy<Value = String> {
    vec(character(), 0..16).prop_map(String::from_iter)
}

/// Sometimes a text that alone, or with another, makes a body too long.
fn text_or_long() -> impl Strategy<Value = String> {
    let repeated = (vec(character(), 1..8).prop_map(String::from_iter), 1_000..400_000_usize);
    let long = repeated.prop_map(|(unit, bytes): (String, usize)| unit.repeat(bytes.div_ceil(unit.len())));
    prop_oneof![59 => text(), 1 => long]
}

/// From 1970 to 2096, to the nanosecond.
fn time() -> impl Strategy<Value = Timestamp> {
    let fraction = prop_oneof![Just(0), 0..1_000_000_000_i32];
    (0..4_000_000_000_i64, fraction).prop_map(|(second, fraction)| Timestamp::new(second, fraction).unwrap())
}
