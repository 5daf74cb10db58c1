use http::HeaderValue;
use llmtune_webhooks_harness::receiver::{Answer as Reply, Received, Receiver, hmac_hex};
use secrecy::SecretSlice;

use super::*;
use crate::transport::{
    address::{Guard, parse_range},
    resolver::Dns,
};
use llmtune_core::event::{EventType, id::DeliveryId, object::Uid, sample::sample};

const LIMIT: Duration = Duration::from_secs(5);

fn sender() -> Sender {
    sender_under(Claim::unbounded())
}

fn sender_under(claim: Claim) -> Sender {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let guard = Guard::new(&[parse_range("127.0.0.0/8").unwrap()], &[], Vec::new());
    let clients = Clients::new(Vec::new(), guard, Arc::new(Dns::system()), None).unwrap();
    Sender::new(Arc::new(clients), claim)
}

/// A target at this receiver, with the current key `new` and the previous key `old`.
fn rotating(receiver: &Receiver) -> Target {
    let key = |text: &str| SecretSlice::from(text.as_bytes().to_vec());
    Target {
        tenant: "ns".into(),
        url: receiver.url().parse().unwrap(),
        headers: HeaderMap::new(),
        keys: Some(Arc::new(Keys::new(key("new"), Some(key("old"))))),
        tls: None,
        discretion: Redaction::None,
    }
}

/// Makes an attempt in the native format.
async fn send(sender: &Sender, target: &Target) -> Attempted {
    sender.attempt(&attempt(), target, Format::LlmTune, LIMIT).await
}

fn attempt() -> Attempt {
    let (webhook, object) = (Uid::from_u128(1), Uid::from_u128(2));
    let event = sample(EventType::TrainingCompleted, object, "ns", None, Timestamp::now());
    let delivery = DeliveryId::new(event.id, webhook);
    Attempt { webhook, delivery, event: Arc::new(event), number: 3, generation: 1, test: false }
}

/// A receiver with one key.
async fn knowing(key: &'static str) -> Receiver {
    Receiver::answering(move |post| Reply::status(if post.is_signed_with(key) { 200 } else { 401 })).await
}

fn signed_by(posts: &[Received]) -> Vec<&'static str> {
    let by = |post: &Received| if post.is_signed_with("new") { "new" } else { "old" };
    posts.iter().map(by).collect()
}

#[tokio::test]
async fn refused_request_is_repeated_with_the_other_key() {
    let receiver = knowing("new").await;
    let (sender, target) = (sender(), rotating(&receiver));
    let attempted = send(&sender, &target).await;
    assert_eq!(attempted.outcome.result, AttemptResult::Acknowledged);
    assert_eq!(attempted.outcome.exchange.unwrap().class, Class::Success);
    assert!(!attempted.target_may_be_stale, "it has the other key");
    let refused = attempted.refused.unwrap();
    assert_eq!((refused.class, refused.status_code()), (Class::ClientError, Some(401)));
    assert!(send(&sender, &target).await.refused.is_none(), "the new key is first now");

    let posts = receiver.received();
    assert_eq!(signed_by(&posts), ["old", "new", "new"]);
    assert_eq!((posts[0].attempt(), posts[1].attempt()), (3, 3));
    assert_eq!(posts[0].body, posts[1].body);
    assert_eq!(posts[0].delivery_id(), posts[1].delivery_id());
    for post in &posts {
        let main = format!("sha256={}", post.header("x-llmtune-signature"));
        assert_eq!(post.header("x-hub-signature-256"), main);
        assert_eq!(post.header("x-signature"), main);
        assert_eq!(post.header("x-llmtune-signature-previous"), hmac_hex("old", post.body.as_bytes()));
    }
}

#[tokio::test]
async fn accepted_key_is_tried_first_also_after_a_step_back() {
    let receiver = knowing("old").await;
    let (sender, target) = (sender(), rotating(&receiver));
    let acknowledged = async || assert_eq!(send(&sender, &target).await.outcome.result, AttemptResult::Acknowledged);
    acknowledged().await;
    acknowledged().await;
    receiver.answer(|post| Reply::status(if post.is_signed_with("new") { 200 } else { 403 }));
    acknowledged().await;
    receiver.answer(|post| Reply::status(if post.is_signed_with("old") { 200 } else { 403 }));
    acknowledged().await;
    acknowledged().await;
    assert_eq!(signed_by(&receiver.received()), ["old", "old", "old", "new", "new", "old", "old"]);
}

#[tokio::test]
async fn endpoint_refusing_both_keys_is_reported() {
    let receiver = Receiver::answering(|_| Reply::status(403)).await;
    let (sender, target) = (sender(), rotating(&receiver));
    for _ in 0..2 {
        let attempted = send(&sender, &target).await;
        assert!(matches!(attempted.outcome.result, AttemptResult::Failed { .. }));
        assert!(attempted.target_may_be_stale, "the Secret may have been corrected");
        let error = attempted.outcome.exchange.unwrap().error.unwrap();
        assert!(error.contains("accepts neither key of spec.secretRef"), "{error}");
    }
    assert_eq!(signed_by(&receiver.received()), ["old", "new", "old", "new"]);
}

#[tokio::test]
async fn expired_claim_prevents_the_repetition_and_spends_no_attempt() {
    let claim = Claim::unbounded();
    let lapsing = sender_under(claim.clone());
    let receiver = Receiver::answering(move |post| {
        claim.end();
        Reply::status(if post.is_signed_with("new") { 200 } else { 401 })
    })
    .await;
    let target = rotating(&receiver);
    let attempted = send(&lapsing, &target).await;
    assert_eq!(attempted.outcome.result, AttemptResult::Withheld { hold: false });
    assert!(attempted.outcome.exchange.is_none());
    assert_eq!(attempted.refused.unwrap().status_code(), Some(401), "the first request is counted");
    assert_eq!(receiver.count(), 1);
    assert!(send(&sender(), &target).await.outcome.result == AttemptResult::Acknowledged);
    assert_eq!(signed_by(&receiver.received()), ["old", "old", "new"]);
}

#[tokio::test]
async fn the_time_limit_covers_the_repeat() {
    let receiver = Receiver::answering(|post| {
        if post.is_signed_with("new") {
            Reply::status(200).after(Duration::from_secs(30))
        } else {
            Reply::status(401).after(Duration::from_millis(300))
        }
    })
    .await;
    let (sender, target) = (sender(), rotating(&receiver));
    let begun = Instant::now();
    let limit = Duration::from_secs(1);
    let attempted = sender.attempt(&attempt(), &target, Format::LlmTune, limit).await;
    let took = begun.elapsed();
    let exchange = attempted.outcome.exchange.unwrap();
    assert_eq!(exchange.class, Class::Timeout);
    assert_eq!(exchange.error.unwrap().split(':').next(), Some("no answer within 1 s"));
    assert!(exchange.duration < Duration::from_millis(800), "{:?}", exchange.duration);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn standard_webhooks_have_both_signatures_and_no_repetition() {
    let receiver = Receiver::answering(|_| Reply::status(401)).await;
    let format = Format::Derived(Derived::StandardWebhooks);
    let (sender, target) = (sender(), rotating(&receiver));
    assert!(sender.attempt(&attempt(), &target, format, LIMIT).await.refused.is_none());
    let posts = receiver.received();
    assert_eq!(posts.len(), 1);
    let signatures: Vec<&str> = posts[0].header("webhook-signature").split(' ').collect();
    assert!(signatures.len() == 2 && signatures.iter().all(|one| one.starts_with("v1,")), "{signatures:?}");
    assert!(posts[0].headers.keys().all(|name| !name.as_str().starts_with("x-llmtune-signature")));
}

fn after(value: &str) -> Option<Duration> {
    let mut headers = HeaderMap::new();
    headers.insert(header::RETRY_AFTER, HeaderValue::from_str(value).unwrap());
    retry_after(&headers, Timestamp::from_second(784_111_767).unwrap())
}

#[test]
fn retry_after_is_seconds_or_one_of_three_date_forms() {
    assert_eq!(after("120"), Some(Duration::from_secs(120)));
    assert_eq!(after("99999999999999999999999"), Some(Duration::from_secs(u64::MAX)));
    for date in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
        assert_eq!(after(date), Some(Duration::from_secs(10)), "{date}");
    }
    assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
    for nonsense in ["", "soon", "-5", "1.5"] {
        assert_eq!(after(nonsense), None, "{nonsense}");
    }
}

#[test]
fn errors_have_at_most_256_characters() {
    assert_eq!(shorten("é".repeat(300)).chars().count(), 256);
}
