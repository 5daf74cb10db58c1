use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::dashboard::history::History;

const NOW: i64 = 1_700_000_000;
const AGO: &str = "2023-11-14T22:00:00Z";

fn frame(amiss: &str) -> Frame<'_> {
    let now = Timestamp::from_second(NOW).unwrap();
    Frame { base: "/0123", server: amiss, namespace: Some(amiss), amiss: vec![amiss.to_owned()], now }
}

/// A Webhook and a delivery in which every free text is this text.
fn filled_with(text: &str) -> (Hook, Delivery) {
    let condition = |kind: &str| json!({"type": kind, "status": "False", "reason": text, "message": text, "lastTransitionTime": AGO});
    let hook = json!({
        "apiVersion": "llmtune.io/v1alpha1", "kind": "Webhook", "metadata": {"name": "ci"},
        "spec": {"url": text, "events": [text]},
        "status": {"endpoint": text, "conditions": [condition("Ready"), condition("Healthy")]}
    });
    let delivery = json!({
        "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery", "metadata": {"name": text},
        "spec": {"webhookRef": {"name": "ci"}},
        "status": {
            "conditions": [condition("Delivered"), {"type": "Finished", "status": "True", "reason": "", "message": "", "lastTransitionTime": AGO}],
            "event": {"id": text, "type": text, "sequence": 1, "object": {"kind": text, "name": text}, "body": ""},
            "lastAttempt": {"time": AGO, "attempt": 1, "error": text}, "attempts": 1, "finishedAt": AGO
        }
    });
    let target = "ci".parse().unwrap();
    let hook = Hook::read(&serde_json::from_value(hook).unwrap(), target, text.to_owned());
    (hook, Delivery::of(&serde_json::from_value(delivery).unwrap()))
}

fn pages(text: &str) -> String {
    let (hook, delivery) = filled_with(text);
    let frame = frame(text);
    let hour = History::<u8>::default().hour(&0, &hook.status, &[], frame.now);
    let deliveries = [delivery];
    let details = [News::Failed(text), News::Of(&deliveries[0])]
        .map(|news| detail(&frame, &hook, &hour, &deliveries, text, &news));
    let [failed, succeeded] = details;
    let message = message(&frame, "/key/webhook/ns/gone", "gone", text);
    failed + &succeeded + &message + &overview(&frame, &[(hook, hour)])
}

fn marks_of(page: &str) -> [usize; 3] {
    ['<', '>', '"'].map(|mark| page.matches(mark).count())
}

proptest! {
    #[test]
    fn text_never_becomes_markup_or_reorders_the_page(
        text in prop_oneof!["[a-z<>\"'&/=` \u{202e}\u{2066}\u{7}]{1,40}", "[^\\n]{1,40}"]
    ) {
        let page = pages(&text);
        prop_assert_eq!(marks_of(&page), marks_of(&pages("x")));
        let hidden = |letter: &char| letter.is_control() && *letter != '\n';
        prop_assert_eq!(page.chars().find(|letter| hidden(letter) || ('\u{202a}'..='\u{202e}').contains(letter)), None);
    }
}

#[test]
fn shows_newest_hundred_deliveries_and_command_for_others() {
    let (hook, delivery) = filled_with("x");
    let deliveries = vec![delivery; 1000];
    let frame = frame("x");
    let hour = History::<u8>::default().hour(&0, &hook.status, &deliveries, frame.now);
    let page = detail(&frame, &hook, &hour, &deliveries, "/", &News::Nothing);
    assert_eq!(page.matches(">Redeliver</button>").count(), ROWS);
    assert!(page.contains("Redeliver all 1000 that failed") && page.contains("and 900 older ones: "));
    assert!(page.contains("kubectl llmtune -n x deliveries webhook/ci"));
    println!("{} bytes", page.len());
}
