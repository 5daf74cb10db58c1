use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// `body`: the request's bytes; `signature`: the value of one of the three headers.
pub fn verify(body: &[u8], signature: &str, secret: &[u8]) -> bool {
    let signature = signature.strip_prefix("sha256=").unwrap_or(signature);
    let Ok(signature) = hex::decode(signature) else { return false };
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(body);
    mac.verify_slice(&signature).is_ok()
}
