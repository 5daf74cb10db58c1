//! Who gets an event, against a plain reading of what was asked for.

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

/// An event of an object in this namespace, with the labels that it was seen under, and the uids that it goes to; those in doubt apart.
fn told(index: &Index, namespace: &str, seen_under: Option<&str>) -> (Vec<u128>, Vec<u128>) {
    let event = sample(EventType::TrainingFailed, Uid::from_u128(7), namespace, None, Timestamp::UNIX_EPOCH);
    let namespace_labels = seen_under.map(|team| Arc::new(labels(team)));
    let object = Object { namespace_labels, ..event.object.outline() };
    let number = |uid: Uid| (1..100).find(|number| Uid::from_u128(*number) == uid).unwrap();
    let (mut wanted, mut doubted) = (Vec::new(), Vec::new());
    for Match { subscription, doubt } in index.matching(&event, &object) {
        if doubt.is_none() { &mut wanted } else { &mut doubted }.push(number(subscription.uid));
    }
    (wanted, doubted)
}

#[test]
fn a_webhook_never_gets_another_namespace_s_events_and_a_cluster_webhook_those_of_the_namespaces_it_selects() {
    let mut index = Index::default();
    index.insert(subscription(1, Scope::Cluster(Selector::default())));
    index.insert(subscription(2, Scope::Namespace("research".into())));
    index.insert(subscription(3, Scope::Namespace("serving".into())));
    index.insert(subscription(4, Scope::Cluster(team("a"))));
    index.namespaces.seen("research".into(), 5, labels("a"), true);
    index.namespaces.seen("serving".into(), 5, labels("b"), true);
    assert_eq!(told(&index, "research", None), (vec![2, 1, 4], vec![]), "those of its namespace first");
    assert_eq!(told(&index, "serving", None), (vec![3, 1], vec![]));
    index.namespaces.seen("research".into(), 6, labels("b"), false);
    index.namespaces.seen("serving".into(), 7, labels("a"), false);
    assert_eq!(
        told(&index, "research", Some("a")),
        (vec![2, 1], vec![]),
        "what is known now comes before what was seen"
    );
    assert_eq!(told(&index, "serving", None), (vec![3, 1, 4], vec![]), "matching follows the labels");
}

#[test]
fn of_a_namespace_that_is_gone_what_was_known_last_counts_and_what_nothing_is_known_of_is_in_doubt() {
    let mut index = Index::default();
    index.insert(subscription(1, Scope::Cluster(team("a"))));
    index.namespaces.seen("research".into(), 5, labels("a"), true);
    index.namespaces.gone("research");
    assert_eq!(told(&index, "research", None), (vec![1], vec![]));
    assert_eq!(told(&index, "forgotten", Some("a")), (vec![1], vec![]));
    assert_eq!(told(&index, "forgotten", Some("b")), (vec![], vec![]));
    assert_eq!(told(&index, "forgotten", None), (vec![], vec![1]));
    let narrowed = Subscription { selector: team("a"), ..subscription(1, Scope::Cluster(team("a"))) };
    index.insert(narrowed);
    assert_eq!(told(&index, "forgotten", None), (vec![], vec![]), "it would not have got it anyway");
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u128, Scope),
    Remove(u128),
    Seen(&'static str, &'static str),
    Gone(&'static str),
}

fn scope(number: u128) -> impl Strategy<Value = Scope> {
    // A uid is of one kind for good.
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
        // Of the last nothing is ever heard.
        2 => (prop::sample::select(&NAMESPACES[..3]), prop::sample::select(&TEAMS[..]))
            .prop_map(|(namespace, team)| Step::Seen(namespace, team)),
        1 => prop::sample::select(&NAMESPACES[..3]).prop_map(Step::Gone),
    ]
}

proptest! {
    #[test]
    fn an_event_goes_to_whoever_asked_for_its_namespace(steps in prop::collection::vec(step(), 0..40)) {
        let mut index = Index::default();
        let mut asked: HashMap<u128, Scope> = HashMap::new();
        let mut teams: HashMap<&str, &str> = HashMap::new();
        for (version, step) in (1..).zip(steps) {
            match step {
                Step::Insert(number, scope) => {
                    // A Webhook's namespace never changes.
                    let scope = match (asked.get(&number), scope) {
                        (Some(before @ Scope::Namespace(_)), Scope::Namespace(_)) => before.clone(),
                        (_, scope) => scope,
                    };
                    index.insert(subscription(number, scope.clone()));
                    asked.insert(number, scope);
                }
                Step::Remove(number) => {
                    prop_assert_eq!(index.remove(Uid::from_u128(number)).is_some(), asked.remove(&number).is_some());
                }
                Step::Seen(namespace, team) => {
                    index.namespaces.seen(namespace.into(), version, labels(team), false);
                    teams.insert(namespace, team);
                }
                Step::Gone(namespace) => index.namespaces.gone(namespace),
            }
            prop_assert_eq!(
                index.selects_namespaces(),
                asked.values().any(|scope| matches!(scope, Scope::Cluster(selector) if !selector.selects_all()))
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
                        asked.iter().filter(|(_, scope)| wants(scope) == want).map(|(number, _)| *number).collect();
                    numbers.sort_unstable();
                    numbers
                };
                let (mut wanted, mut doubted) = told(&index, namespace, None);
                wanted.sort_unstable();
                doubted.sort_unstable();
                prop_assert_eq!((wanted, doubted), (whose(Some(true)), whose(None)));
            }
        }
        for number in asked.keys() {
            index.remove(Uid::from_u128(*number));
        }
        prop_assert!(index.subscriptions.is_empty() && index.of_namespaces.is_empty() && index.of_cluster.is_empty());
        prop_assert!(!index.selects_namespaces() && !index.reads_annotations());
    }
}
