//! Guesses the key that signed a request if the given secret did not. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret, SecretSlice};

use super::examine::{Scheme, Variant};
use llmtune_api::{secret::Encoding, signature::hexadecimal};

type Keys = Vec<Variant<SecretSlice<u8>>>;

/// The key and possible other keys, each with a description of the mistake.
pub fn keys(secret: &SecretSlice<u8>, scheme: Scheme) -> Keys {
    let mut all = Keys::new();
    match scheme {
        Scheme::Body => of_bytes(secret.expose_secret(), &mut all),
        Scheme::StandardWebhooks => of_text(secret.expose_secret(), &mut all),
    }
    all
}

fn add(all: &mut Keys, value: Vec<u8>, said: &str) {
    let value: SecretSlice<u8> = value.into();
    if !value.expose_secret().is_empty() && all.iter().all(|known| known.value.expose_secret() != value.expose_secret())
    {
        all.push(Variant::said(value, said));
    }
}

/// For schemes that use the stored bytes as the key.
fn of_bytes(bytes: &[u8], all: &mut Keys) {
    all.push(Variant::as_it_is(bytes.to_vec().into()));
    let trimmed = bytes.trim_ascii_end();
    add(
        all,
        trimmed.to_vec(),
        "the secret file ends in a line break, but the signing key does not; remove it (write the file with printf %s, or trim it)",
    );
    for line_break in ["\n", "\r\n"] {
        let said = "the Secret in the cluster ends in a line break, but this file does not; store the Secret again without it (printf %s instead of echo), or add it to the receiver's key";
        add(all, [trimmed, line_break.as_bytes()].concat(), said);
    }
    add(
        all,
        bytes.trim_ascii().to_vec(),
        "the secret file begins with white space, but the signing key does not; trim it",
    );
    for quote in [b'"', b'\''] {
        if let Some(inside) = trimmed.strip_prefix(&[quote]).and_then(|rest| rest.strip_suffix(&[quote])) {
            add(all, inside.to_vec(), "the secret file has quotation marks around the key; remove them");
        }
    }
    if let Some(rest) = bytes.strip_prefix("\u{feff}".as_bytes()) {
        add(all, rest.trim_ascii_end().to_vec(), "the secret file begins with a byte order mark; save it without one");
    }
    if let Ok(decoded) = STANDARD.decode(trimmed) {
        let newline = decoded.trim_ascii_end().to_vec();
        let said = "the secret file contains the base64 of the key, as kubectl get secret -o yaml shows it; decode it (base64 -d)";
        add(all, decoded, said);
        add(all, newline, said);
    }
    let twice = "the Secret in the cluster contains the base64 of this secret, because it was encoded twice; set it under stringData in plain text, or under data encoded once";
    add(all, STANDARD.encode(trimmed).into_bytes(), twice);
    add(all, format!("{}\n", STANDARD.encode(trimmed)).into_bytes(), twice);
    let hexadecimal = hexadecimal(trimmed);
    add(
        all,
        hexadecimal.into_bytes(),
        "the key is the hexadecimal text, not the bytes that it encodes; do not decode it in the receiver",
    );
    if let Some(bytes) = unhex(trimmed) {
        add(all, bytes, "the key is the bytes that this hexadecimal text encodes; decode it in the receiver");
    }
    add(
        all,
        [b"whsec_", trimmed].concat(),
        "the key is the complete text with whsec_; in this format, do not remove the prefix or decode the text",
    );
    let encoded = format!("whsec_{}", STANDARD.encode(trimmed));
    add(
        all,
        encoded.into_bytes(),
        "the key is the complete text whsec_… of the Secret; in this format, do not remove the prefix or decode the text",
    );
    if let Some(rest) = trimmed.strip_prefix(b"whsec_") {
        add(
            all,
            rest.to_vec(),
            "the Secret in the cluster does not have the prefix whsec_; remove it from the receiver's key",
        );
    }
}

/// For Standard Webhooks, where the stored text encodes the key: `whsec_` and base64, and other forms that its
/// libraries accept.
fn of_text(bytes: &[u8], all: &mut Keys) {
    let whole = |text: &[u8]| Encoding::Whsec.decode(text).ok();
    if let Some(key) = whole(bytes) {
        all.push(Variant::as_it_is(key));
    }
    let mut add_key = |text: &[u8], said: &str| {
        if let Some(key) = whole(text) {
            add(all, key.expose_secret().to_vec(), said);
        }
    };
    let trimmed = bytes.trim_ascii();
    for quote in [b'"', b'\''] {
        if let Some(inside) = trimmed.strip_prefix(&[quote]).and_then(|rest| rest.strip_suffix(&[quote])) {
            add_key(inside, "the secret file has quotation marks around the secret; remove them");
        }
    }
    if let Ok(decoded) = STANDARD.decode(trimmed) {
        add_key(
            decoded.trim_ascii(),
            "the secret file contains the base64 of the secret, as kubectl get secret -o yaml shows it; decode it (base64 -d)",
        );
    }
    add(all, bytes.to_vec(), "the secret file contains the decoded key; use the text whsec_… of the Secret instead");
    add(all, trimmed.to_vec(), "the signer used the text itself as the key; it must decode the base64 after whsec_");
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() % 2 == 0)?;
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
