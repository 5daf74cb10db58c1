//! Signing keys as they are written in a Secret.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
pub use secrecy::{ExposeSecret, SecretSlice};

/// The encoding of a signing key in its Secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// The bytes of the Secret key are the signing key.
    #[default]
    Raw,
    /// The encoding of Standard Webhooks: base64, usually after `whsec_`. Every form that one of the official libraries
    /// accepts is accepted: JavaScript accepts base64 without padding, Python and Go accept it over several lines, all
    /// accept it without `whsec_`. So is `v1,whsec_`, which consoles show. White space is ignored.
    Whsec,
}

/// Why a text is not a Standard Webhooks secret. The error never contains any of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("it contains no key")]
    NoKey,
    #[error("it has quotation marks around the secret: remove them")]
    Quoted,
    #[error("it is a key for asymmetric signatures (whsk_, whpk_), but deliveries are signed with a shared secret")]
    Asymmetric,
    #[error("its prefix must be lowercase: whsec_")]
    PrefixCase,
    #[error(
        "it contains more than one secret: write the current one here, and the previous one under the key in spec.secretRef.previousKey"
    )]
    Several,
    #[error("it uses the URL-safe base64 alphabet, which the libraries do not accept: replace - with + and _ with /")]
    UrlSafe,
    /// The position is counted from 1 after the prefix, without white space.
    #[error("character {0} is not a base64 character")]
    Character(usize),
    #[error("its base64 has = before the end, or too many = at the end")]
    Padding,
    #[error("its base64 has a wrong length: characters are missing or superfluous")]
    Length,
}

/// Accepts missing padding and ignores unused bits of the last character.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

impl Encoding {
    /// Decodes the bytes of a Secret key.
    pub fn decode(self, stored: &[u8]) -> Result<SecretSlice<u8>, SecretError> {
        match self {
            Self::Raw => Ok(stored.to_vec().into()),
            Self::Whsec => decode(stored),
        }
    }
}

fn decode(stored: &[u8]) -> Result<SecretSlice<u8>, SecretError> {
    let text = stored.trim_ascii();
    let text = text.strip_prefix(b"v1,").unwrap_or(text);
    if matches!(text.first(), Some(b'"' | b'\'' | b'`')) {
        return Err(SecretError::Quoted);
    }
    let text = text.strip_prefix(b"whsec_").unwrap_or(text);
    let begins = |prefix: &[u8]| text.get(..prefix.len()).is_some_and(|own| own.eq_ignore_ascii_case(prefix));
    if begins(b"whsk_") || begins(b"whpk_") || begins(b"v1a,") {
        return Err(SecretError::Asymmetric);
    }
    if begins(b"whsec_") {
        return Err(SecretError::PrefixCase);
    }
    if text.windows(6).any(|window| window == b"whsec_") {
        return Err(SecretError::Several);
    }
    let whole: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let base64 = SecretSlice::from(whole);
    let base64 = base64.expose_secret();
    let padding = base64.iter().rev().take_while(|byte| **byte == b'=').count();
    let digits = &base64[..base64.len() - padding];
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    if let Some((position, byte)) = digits.iter().enumerate().find(|(_, byte)| !is_digit(byte)) {
        let others = digits.iter().all(|byte| is_digit(byte) || matches!(byte, b'-' | b'_'));
        return Err(match byte {
            b'=' => SecretError::Padding,
            _ if others => SecretError::UrlSafe,
            _ => SecretError::Character(position + 1),
        });
    }
    match (digits.len(), digits.len() % 4, padding) {
        (0, ..) => Err(SecretError::NoKey),
        (_, 1, _) => Err(SecretError::Length),
        (_, _, 3..) => Err(SecretError::Padding),
        _ => LENIENT.decode(digits).map(Into::into).map_err(|_| SecretError::Length),
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn whsec(text: &str) -> Result<Vec<u8>, SecretError> {
        Encoding::Whsec.decode(text.as_bytes()).map(|key| key.expose_secret().to_vec())
    }

    #[test]
    fn every_secret_form_that_a_library_accepts_is_accepted() {
        // The libraries accept any length. The 24 to 64 bytes of the specification are a rule for generators.
        for length in [1, 16, 24, 32, 47, 48, 49, 64, 65, 96] {
            let key: Vec<u8> = (0..length).map(|byte| 251_u8.wrapping_mul(byte)).collect();
            let base64 = STANDARD.encode(&key);
            let lines = |width: usize, end: &str| {
                let lines: Vec<&str> =
                    base64.as_bytes().chunks(width).map(|line| str::from_utf8(line).unwrap()).collect();
                lines.join(end) + end
            };
            for text in [
                format!("whsec_{base64}"),
                format!("v1,whsec_{base64}"),
                base64.clone(),
                base64.trim_end_matches('=').to_owned(),
                format!("whsec_{}", base64.trim_end_matches('=')),
                format!("whsec_{base64}\n"),
                format!(" \n whsec_{base64}\r\n\t"),
                format!("whsec_{}", lines(64, "\n")),
                format!("whsec_\r\n{}", lines(20, "\r\n")),
                lines(4, " "),
            ] {
                assert_eq!(whsec(&text).as_ref(), Ok(&key), "{length} bytes: {text:?}");
            }
        }
        assert_eq!(Encoding::Raw.decode(b"s3cret\n").unwrap().expose_secret(), b"s3cret\n");
    }

    #[test]
    fn invalid_secrets_are_explained_and_never_quoted() {
        let base64 = STANDARD.encode([0xfb; 32]);
        let url_safe = base64.replace('+', "-").replace('/', "_");
        for (text, error) in [
            (String::new(), SecretError::NoKey),
            ("whsec_".into(), SecretError::NoKey),
            (" \n".into(), SecretError::NoKey),
            ("v1,whsec_==".into(), SecretError::NoKey),
            (format!("\"whsec_{base64}\""), SecretError::Quoted),
            (format!("whsec_{base64} whsec_{base64}"), SecretError::Several),
            (format!("{base64}\n{base64}"), SecretError::Padding),
            (format!("whsec_{base64}=="), SecretError::Padding),
            (format!("WHSEC_{base64}"), SecretError::PrefixCase),
            (format!("whsk_{base64}"), SecretError::Asymmetric),
            (format!("v1a,whpk_{base64}"), SecretError::Asymmetric),
            (format!("whsec_{url_safe}"), SecretError::UrlSafe),
            ("not-so-s3cret".into(), SecretError::UrlSafe),
            ("whsec_hunter2!".into(), SecretError::Character(8)),
            ("whsec_h\u{e9}".into(), SecretError::Character(2)),
            (format!("whsec_{}", &base64[..41]), SecretError::Length),
        ] {
            assert_eq!(whsec(&text), Err(error), "{text:?}");
            assert!(!error.to_string().contains("hunter"));
        }
    }
}
