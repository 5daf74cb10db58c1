//! Compares the recipients of events with a simple model.

use jiff::Timestamp;
use kube_core::Expression;
use proptest::prelude::*;

use super::*;
use crate::event::{EventType, sample::sample};

const NAMESPACES: [&str; 4] = ["research", "serving", "gone", "never-heard-of"];
const TEAMS: [&str; 2] = ["a", "b"];

fn subscription(number: u128, scope: Scope) -> Subscription {
    let second = Duration::from_secs(1);
    Subscription {
        uid: Uid::from_u128(number),
        scope,
        generation: 1,
        events: EventSet::parse(&["*"]).unwrap(),
        selector: Selector::default(),
        filter: None,
        max_retries: 0,
        backoff: Backoff { initial: second, factor: 1, max: second },
        concurrency: 1,
        held: false,
    }
}

fn team(name: &str) -> Selector {
    Expression::Equal("team".into(), name.into()).into()
}

fn labels(team: &str) -> Labels {
    [("team".to_owned(), team.to_owned())].into()
}

/// The recipients of an event in this namespace: the certain ones and the uncertain ones. `seen_under` is the team
/// label of the namespace when the object was last observed.
fn recipients(index: &Index, namespace: &str, seen_under: Option<&str>) -> (Vec<u128>, Vec<u128>) {
    let event = sample(EventType::TrainingFailed, Uid::from_u128(7), namespace, None, Timestamp::UNIX_EPOCH);
    let namespace_labels = seen_under.map(|team| Arc::new(labels(team)));
    let object = Object { namespace_labels, ..event.object.outline() };
    let number = |uid: Uid| (1..100).find(|number| Uid::from_u128(*number) == uid).unwrap();
    let (mut certain, mut uncertain) = (Vec::new(), Vec::new());
    for Match { subscription, uncertainty } in index.matching(&event, &object) {
        if uncertainty.is_none() { &mut certain } else { &mut uncertain }.push(number(subscription.uid));
    }
    (certain, uncertain)
}

#[test]
fn webhooks_match_their_namespace_and_cluster_webhooks_the_selected_ones() {
    let mut index = Index::default();
    index.insert(subscription(1, Scope::Cluster(Selector::default())));
    index.insert(subscription(2, Scope::Namespace("research".into())));
    index.insert(subscription(3, Scope::Namespace("serving".into())));
    index.insert(subscription(4, Scope::Cluster(team("a"))));
    index.namespaces.seen("research".into(), 5, labels("a"), true);
    index.namespaces.seen("serving".into(), 5, labels("b"), true);
    assert_eq!(
        recipients(&index, "research", None),
        (vec![2, 1, 4], vec![]),
        "subscriptions of the namespace come first"
    );
    assert_eq!(recipients(&index, "serving", None), (vec![3, 1], vec![]));
    index.namespaces.seen("research".into(), 6, labels("b"), false);
    index.namespaces.seen("serving".into(), 7, labels("a"), false);
    assert_eq!(recipients(&index, "research", Some("a")), (vec![2, 1], vec![]), "current labels override earlier ones");
    assert_eq!(recipients(&index, "serving", None), (vec![3, 1, 4], vec![]), "matching follows the labels");
}

#[test]
fn last_known_labels_count_and_unknown_namespaces_are_uncertain() {
    let mut index = Index::default();
    index.insert(subscription(1, Scope::Cluster(team("a"))));
    index.namespaces.seen("research".into(), 5, labels("a"), true);
    index.namespaces.gone("research");
    assert_eq!(recipients(&index, "research", None), (vec![1], vec![]));
    assert_eq!(recipients(&index, "forgotten", Some("a")), (vec![1], vec![]));
    assert_eq!(recipients(&index, "forgotten", Some("b")), (vec![], vec![]));
    assert_eq!(recipients(&index, "forgotten", None), (vec![], vec![1]));
    let narrowed = Subscription { selector: team("a"), ..subscription(1, Scope::Cluster(team("a"))) };
    index.insert(narrowed);
    assert_eq!(recipients(&index, "forgotten", None), (vec![], vec![]), "the object's labels do not match anyway");
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u128, Scope),
    Remove(u128),
    Seen(&'static str, &'static str),
    Gone(&'static str),
}

fn scope(number: u128) -> impl Strategy<Value = Scope> {
    // The kind of a uid never changes.
    let of_namespace = prop::sample::select(&NAMESPACES[..]).prop_map(|namespace| Scope::Namespace(namespace.into()));
    let all = Just(Scope::Cluster(Selector::default()));
    let some = prop::sample::select(&TEAMS[..]).prop_map(|name| Scope::Cluster(team(name)));
    if number.is_multiple_of(2) { of_namespace.boxed() } else { prop_oneof![all, some].boxed() }
}

fn step() -> impl Strategy<Value = Step> {
    let number = 1..8_u128;
    prop_oneof![
        3 => number.clone().prop_flat_map(|number| scope(number).prop_map(move |scope| Step::Insert(number, scope))),
        1 => number.prop_map(Step::Remove),
        // The last namespace is never reported.
        2 => (prop::sample::select(&NAMESPACES[..3]), prop::sample::select(&TEAMS[..]))
            .prop_map(|(namespace, team)| Step::Seen(namespace, team)),
        1 => prop::sample::select(&NAMESPACES[..3]).prop_map(Step::Gone),
    ]
}

proptest! {
    #[test]
    fn recipients_equal_those_of_the_model(steps in prop::collection::vec(step(), 0..40)) {
        let mut index = Index::default();
        let mut model: HashMap<u128, Scope> = HashMap::new();
        let mut teams: HashMap<&str, &str> = HashMap::new();
        for (version, step) in (1..).zip(steps) {
            match step {
                Step::Insert(number, scope) => {
                    // A Webhook's namespace never changes.
                    let scope = match (model.get(&number), scope) {
                        (Some(before @ Scope::Namespace(_)), Scope::Namespace(_)) => before.clone(),
                        (_, scope) => scope,
                    };
                    index.insert(subscription(number, scope.clone()));
                    model.insert(number, scope);
                }
                Step::Remove(number) => {
                    prop_assert_eq!(index.remove(Uid::from_u128(number)).is_some(), model.remove(&number).is_some());
                }
                Step::Seen(namespace, team) => {
                    index.namespaces.seen(namespace.into(), version, labels(team), false);
                    teams.insert(namespace, team);
                }
                Step::Gone(namespace) => index.namespaces.gone(namespace),
            }
            prop_assert_eq!(
                index.selects_namespaces(),
                model.values().any(|scope| matches!(scope, Scope::Cluster(selector) if !selector.selects_all()))
            );
            for namespace in NAMESPACES {
                let labels = teams.get(namespace).map(|team| labels(team));
                let wants = |scope: &Scope| match scope {
                    Scope::Namespace(of) => Some(of == namespace),
                    Scope::Cluster(selector) if selector.selects_all() => Some(true),
                    Scope::Cluster(selector) => labels.as_ref().map(|labels| selector.matches(labels)),
                };
                let whose = |want: Option<bool>| {
                    let mut numbers: Vec<u128> =
                        model.iter().filter(|(_, scope)| wants(scope) == want).map(|(number, _)| *number).collect();
                    numbers.sort_unstable();
                    numbers
                };
                let (mut certain, mut uncertain) = recipients(&index, namespace, None);
                certain.sort_unstable();
                uncertain.sort_unstable();
                prop_assert_eq!((certain, uncertain), (whose(Some(true)), whose(None)));
            }
        }
        for number in model.keys() {
            index.remove(Uid::from_u128(*number));
        }
        prop_assert!(index.subscriptions.is_empty() && index.of_namespaces.is_empty() && index.of_cluster.is_empty());
        prop_assert!(!index.selects_namespaces() && !index.reads_annotations());
    }
}
