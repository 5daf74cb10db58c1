use http::HeaderMap;
use standardwebhooks::{Webhook, WebhookError};

pub fn verify(body: &[u8], headers: &HeaderMap, secret: &str) -> Result<(), WebhookError> {
    Webhook::new(secret)?.verify(body, headers)
}
