//! TLS configurations of Webhooks: trusted certificates, and a client certificate. Each distinct configuration exists
//! once, with its clients, and is removed with the last Webhook that uses it.
//!
//! Errors are fixed texts: a bundle can come from any Secret, and none of its content may appear.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, InconsistentKeys, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};

use super::clients::Pool;

/// The certificates of a PEM bundle.
pub struct Bundle {
    /// At least one certificate.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The blocks that are ignored, and what to do. Contains none of their text.
    pub warning: Option<String>,
}

/// Why a PEM block is not a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Lines,
    Base64,
    Der,
}

impl Fault {
    const fn text(self) -> &'static str {
        match self {
            Self::Lines => "the line BEGIN CERTIFICATE or END CERTIFICATE is missing or contains other text",
            Self::Base64 => "its base64 is invalid",
            Self::Der => "it is not an X.509 certificate",
        }
    }
}

/// The number of invalid blocks that a warning names.
const NAMED_BLOCKS: usize = 5;

/// Reads a PEM bundle. Other content is ignored, and invalid certificates are left out with a warning. Fails if no
/// certificate is left.
pub fn certificates(pem: &[u8]) -> Result<Bundle, String> {
    let mut certificates = Vec::new();
    let mut invalid = Vec::new();
    for (number, block) in (1..).zip(blocks(pem)) {
        let parsed = block.and_then(|block| match RootCertStore::empty().add(block.clone()) {
            Ok(()) => Ok(block),
            Err(_) => Err(Fault::Der),
        });
        match parsed {
            Ok(certificate) => certificates.push(certificate),
            Err(fault) => invalid.push((number, fault)),
        }
    }
    let warning = warn_of(&invalid);
    match warning {
        None if certificates.is_empty() => Err("it contains no PEM certificate".to_owned()),
        Some(warning) if certificates.is_empty() => Err(warning),
        warning => Ok(Bundle { certificates, warning }),
    }
}

fn warn_of(invalid: &[(usize, Fault)]) -> Option<String> {
    let (number, fault) = invalid.first()?;
    let fault = fault.text();
    if invalid.len() == 1 {
        return Some(format!("the bundle contains an invalid certificate (block {number}): {fault}; fix or remove it"));
    }
    let numbers: Vec<_> = invalid.iter().take(NAMED_BLOCKS).map(|(number, _)| number.to_string()).collect();
    let (count, numbers) = (invalid.len(), numbers.join(", "));
    let more = if count > NAMED_BLOCKS { ", …" } else { "" };
    Some(format!(
        "the bundle contains {count} invalid certificates (blocks {numbers}{more}): in the first, {fault}; fix or remove them"
    ))
}

/// Returns the PEM blocks (RFC 7468) with the label of a certificate. Text around them and keys are ignored.
fn blocks(pem: &[u8]) -> Vec<Result<CertificateDer<'static>, Fault>> {
    let mut found = Vec::new();
    // The base64 of the current block, if its first line was valid.
    let mut begun: Option<Result<Vec<u8>, Fault>> = None;
    for line in pem.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii) {
        let marks = |what: &[u8]| line.windows(what.len()).any(|part| part == what);
        let is_certificate = marks(b"CERTIFICATE-") && !marks(b"REQUEST");
        let is_one_of = |first: &[u8], second: &[u8]| line == first || line == second;
        if marks(b"-BEGIN ") {
            if begun.take().is_some() {
                found.push(Err(Fault::Lines));
            }
            if is_certificate {
                let right = is_one_of(b"-----BEGIN CERTIFICATE-----", b"-----BEGIN X509 CERTIFICATE-----");
                begun = Some(if right { Ok(Vec::new()) } else { Err(Fault::Lines) });
            }
        } else if marks(b"-END ") && is_certificate {
            let right = is_one_of(b"-----END CERTIFICATE-----", b"-----END X509 CERTIFICATE-----");
            let text = begun
                .take()
                .unwrap_or(Err(Fault::Lines))
                .and_then(|text| if right { Ok(text) } else { Err(Fault::Lines) });
            found.push(text.and_then(|text| match STANDARD.decode(text) {
                Ok(der) => Ok(CertificateDer::from(der)),
                Err(_) => Err(Fault::Base64),
            }));
        } else if let Some(Ok(text)) = &mut begun {
            text.extend(line.iter().filter(|byte| !byte.is_ascii_whitespace()));
        }
    }
    if begun.is_some() {
        found.push(Err(Fault::Lines));
    }
    found
}

/// Why a TLS configuration is invalid.
#[derive(Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The bundle.
    Bundle(String),
    /// The client certificate or its key.
    Certificate(String),
}

/// A TLS configuration, and its clients.
pub struct TlsConfig {
    pub(super) bundle: Option<Arc<BundleVerifier>>,
    pub(super) identity: Option<Arc<CertifiedKey>>,
    pub(super) pool: Pool,
    warning: Option<String>,
}

impl TlsConfig {
    /// Returns the blocks of the bundle that are ignored, and what to do.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }
}

/// All configurations in use, by a hash of their sources.
#[derive(Default)]
pub struct Materials {
    known: Mutex<HashMap<[u8; 32], Weak<TlsConfig>>>,
}

impl Materials {
    /// Returns the configuration for a PEM bundle, and for a PEM chain with its key.
    pub fn get(&self, bundle: Option<&[u8]>, identity: Option<(&[u8], &[u8])>) -> Result<Arc<TlsConfig>, Unusable> {
        let digest = digest([bundle, identity.map(|(chain, _)| chain), identity.map(|(_, key)| key)]);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(material) = known.get(&digest).and_then(Weak::upgrade) {
            return Ok(material);
        }
        let bundle = bundle.map(trust).transpose().map_err(Unusable::Bundle)?;
        let (bundle, warning) = bundle.unzip();
        let identity = identity.map(|(chain, key)| prove(chain, key)).transpose().map_err(Unusable::Certificate)?;
        let material = Arc::new(TlsConfig { bundle, identity, pool: Pool::default(), warning: warning.flatten() });
        known.retain(|_, material| material.strong_count() > 0);
        known.insert(digest, Arc::downgrade(&material));
        Ok(material)
    }
}

fn digest(parts: [Option<&[u8]>; 3]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.map_or(u64::MAX, |part| part.len() as u64).to_be_bytes());
        hash.update(part.unwrap_or_default());
    }
    hash.finalize().into()
}

fn trust(pem: &[u8]) -> Result<(Arc<BundleVerifier>, Option<String>), String> {
    let Bundle { certificates, warning } = certificates(pem)?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|_| Fault::Der.text().to_owned())?;
    }
    let built =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider())).build();
    let inner = built.map_err(|error| error.to_string())?;
    Ok((Arc::new(BundleVerifier { certificates: certificates.into(), inner, rest: None }), warning))
}

fn prove(chain: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let chain: Vec<_> = blocks(chain).into_iter().collect::<Result<_, _>>().map_err(|_| {
        "tls.crt contains invalid PEM: write each certificate from BEGIN to END CERTIFICATE as it was issued".to_owned()
    })?;
    if chain.is_empty() {
        return Err("tls.crt contains no PEM certificate".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
        "tls.key contains no PEM private key: write it unencrypted, in PKCS#8, PKCS#1 or SEC1".to_owned()
    })?;
    let curve = curve_in(key.secret_der());
    match CertifiedKey::from_der(chain, key, &ring::default_provider()) {
        Ok(certified) => Ok(Arc::new(certified)),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err("tls.key is not the key of the first certificate in tls.crt".to_owned())
        }
        Err(Error::InvalidCertificate(_)) => Err("the first certificate in tls.crt is invalid".to_owned()),
        Err(_) => Err(match curve {
            Some(curve) => format!("tls.key is a key of {curve}, which is not supported: {SUPPORTED_KEYS}"),
            None => format!("tls.key has an unsupported key type: {SUPPORTED_KEYS}"),
        }),
    }
}

/// The supported kinds of keys, as advice.
pub(crate) const SUPPORTED_KEYS: &str = "use RSA of at least 2048 bits, ECDSA on P-256 or P-384, or Ed25519";

/// Returns the curve of a key or an algorithm by its object identifier in DER; `None` for supported ones.
pub(crate) fn curve_in(der: &[u8]) -> Option<&'static str> {
    const CURVES: [(&[u8], &str); 5] = [
        (&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23], "the curve P-521"),
        (&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x21], "the curve P-224"),
        (&[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a], "the curve secp256k1"),
        (&[0x06, 0x09, 0x2b, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01], "a Brainpool curve"),
        (&[0x06, 0x03, 0x2b, 0x65, 0x71], "Ed448"),
    ];
    let holds = |part: &[u8]| der.windows(part.len()).any(|window| window == part);
    CURVES.into_iter().find_map(|(identifier, name)| holds(identifier).then_some(name))
}

/// Trusts the issuers among these certificates, and each certificate itself if the endpoint shows exactly it: users may
/// trust a certificate of any issuer, even if it is marked as a CA, as `openssl req -x509` does. Its names and
/// dates are checked all the same.
#[derive(Clone, Debug)]
pub(super) struct BundleVerifier {
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// Trusts them as issuers.
    pub inner: Arc<dyn ServerCertVerifier>,
    /// Trusts what all Webhooks trust.
    pub rest: Option<Arc<dyn ServerCertVerifier>>,
}

impl ServerCertVerifier for BundleVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // Dates are checked before anything else.
            Err(error) if !is_of_dates(&error) && self.certificates.iter().any(|named| named == end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            // The issuer is more likely in the bundle, so the bundle's error is reported.
            Err(error) => match &self.rest {
                Some(rest) => rest
                    .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
                    .map_err(|_| error),
                None => Err(error),
            },
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn is_of_dates(error: &Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let Error::InvalidCertificate(error) = error else { return false };
    matches!(error, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
}

#[cfg(test)]
mod tests;
