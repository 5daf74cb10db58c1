//! Property test with arbitrary histories of objects, endpoints and Webhooks. It checks the invariants that hold in all
//! of them.

use super::*;

/// One step of a history.
#[derive(Clone, Debug)]
enum Step {
    /// A job enters a stage.
    Move(u8, u8),
    /// An attempt in flight ends: acknowledged, failed or withheld.
    End(u8, u8),
    /// Time passes, in milliseconds.
    Pass(u16),
    Hold(u8, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u8, 0..4_u8).prop_map(|(job, stage)| Step::Move(job, stage)),
        4 => (any::<u8>(), 0..10_u8).prop_map(|(which, how)| Step::End(which, how)),
        2 => (0..2000_u16).prop_map(Step::Pass),
        1 => (0..3_u8, any::<bool>()).prop_map(|(webhook, held)| Step::Hold(webhook, held)),
    ]
}

/// The state of one delivery in the model.
#[derive(Debug, Default)]
struct Life {
    attempts: u32,
    under_way: bool,
    ended: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_event_is_delivered_in_order_or_given_up(
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut engine = listed_engine(false);
        let bounds: HashMap<Uid, (usize, u32)> =
            (0..3).map(|number| (Uid::from_u128(1000 + number), (1 + number as usize, number as u32))).collect();
        for number in 0..3 {
            engine.subscribe(subscription(number, 1 + number as usize, number as u32));
        }
        let mut held: HashSet<Uid> = HashSet::new();
        let (mut now, mut version) = (0_i64, 10_u64);
        let mut under_way: Vec<Attempt> = Vec::new();
        let mut lives: HashMap<(Uid, EventId), Life> = HashMap::new();
        let mut order: HashMap<(Uid, Uid), Vec<EventId>> = HashMap::new();
        let mut happened: Vec<EventId> = Vec::new();

        // After the steps, all Webhooks are released, time passes, and every attempt is acknowledged.
        let closing = (0..3).map(|webhook| Step::Hold(webhook, false));
        let settling = (0..400).flat_map(|_| [Step::Pass(1500), Step::End(0, 0)]);
        for step in steps.into_iter().chain(closing).chain(settling) {
            match step {
                Step::Move(number, stage) => {
                    use TrainingStage::{Completed, Failed, Pending, Running};
                    version += 1;
                    let mut object = job(u128::from(number), version, [Pending, Running, Completed, Failed][usize::from(stage)]);
                    // Each entry into Running is a separate run.
                    if let Facts::Training(facts) = &mut object.facts && stage == 1 {
                        facts.started_at = Some(at(version as i64 * 1000));
                    }
                    for event in engine.observe(seen(object), at(now)).events {
                        prop_assert!(!happened.contains(&event.id), "no id stands for two events");
                        happened.push(event.id);
                    }
                }
                Step::End(which, how) => {
                    if !under_way.is_empty() {
                        let attempt = under_way.remove(usize::from(which) % under_way.len());
                        let result = match how {
                            0..=4 => AttemptResult::Acknowledged,
                            5..=8 => AttemptResult::Failed { retry_after: None },
                            _ => AttemptResult::Withheld { hold: false },
                        };
                        let outcome = outcome(&attempt, result);
                        let recorded = engine.record_outcome(outcome, at(now), 0.5);
                        let life = lives.get_mut(&(attempt.webhook, attempt.event.id)).unwrap();
                        life.under_way = false;
                        match recorded.map(|recorded| recorded.verdict) {
                            Some(Verdict::Delivered) => life.ended = true,
                            Some(Verdict::GivenUp(reason)) => {
                                prop_assert_eq!(reason, Reason::Exhausted);
                                prop_assert_eq!(life.attempts, bounds[&attempt.webhook].1 + 1);
                                life.ended = true;
                            }
                            Some(Verdict::Retry(due)) => prop_assert!(due > at(now)),
                            None => life.attempts -= 1,
                        }
                    }
                }
                Step::Pass(millis) => now += i64::from(millis),
                Step::Hold(number, hold) => {
                    let uid = Uid::from_u128(1000 + u128::from(number));
                    if hold { held.insert(uid); } else { held.remove(&uid); }
                    let (concurrency, retries) = bounds[&uid];
                    engine.subscribe(Subscription { held: hold, ..subscription(u128::from(number), concurrency, retries) });
                }
            }
            while let Some(due) = engine.due(at(now)) {
                let attempt = match due {
                    Due::Attempt(attempt) => attempt,
                    Due::StoreDeadLetter(keep) => {
                        engine.dead_letter_stored(keep.webhook, keep.delivery);
                        continue;
                    }
                    Due::GivenUp(_) => panic!("no endpoint is gone"),
                };
                prop_assert!(!held.contains(&attempt.webhook), "a held Webhook begins nothing");
                let life = lives.entry((attempt.webhook, attempt.event.id)).or_default();
                prop_assert!(!life.ended && !life.under_way);
                life.under_way = true;
                life.attempts += 1;
                prop_assert_eq!(life.attempts, attempt.number);
                if attempt.number == 1 {
                    let rival = under_way.iter().find(|other| {
                        other.webhook == attempt.webhook && other.number == 1 && other.event.object.uid == attempt.event.object.uid
                    });
                    prop_assert!(rival.is_none(), "first attempts of one object's events do not overlap");
                    let sent = order.entry((attempt.webhook, attempt.event.object.uid)).or_default();
                    // A withheld first attempt begins again.
                    if sent.last() != Some(&attempt.event.id) {
                        sent.push(attempt.event.id);
                    }
                }
                under_way.push(attempt);
                for (webhook, (concurrency, _)) in &bounds {
                    let busy = under_way.iter().filter(|attempt| attempt.webhook == *webhook).count();
                    prop_assert!(busy <= *concurrency);
                }
            }
        }
        prop_assert_eq!(lives.len(), happened.len() * 3, "every event went to every Webhook");
        prop_assert!(lives.values().all(|life| life.ended), "and ended");
        for sent in order.values() {
            let positions: Vec<usize> = sent.iter().map(|id| happened.iter().position(|other| other == id).unwrap()).collect();
            prop_assert!(positions.is_sorted(), "first attempts go in the order of the events");
        }
        prop_assert!(bounds.keys().all(|webhook| engine.pending(*webhook) == 0));
    }
}
