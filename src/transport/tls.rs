//! TLS as users give it: certificates to trust, and one to show. Each distinct configuration exists once, with its clients, however
//! many Webhooks have it, and goes with the last of them.
//!
//! What is wrong is told in fixed words: a bundle may be read from any Secret, and nothing of it may be seen.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rustls::{
    DigitallySignedStruct, Error, InconsistentKeys, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};

use super::clients::Pool;

/// The certificates of a PEM bundle, at least one; what else is in it is passed over.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(certificates) if certificates.is_empty() => Err("it holds no PEM certificate".to_owned()),
        Ok(certificates) => Ok(certificates),
        // Its text quotes what it read.
        Err(_) => {
            Err("it holds broken PEM: write each certificate from BEGIN to END CERTIFICATE as it was issued".to_owned())
        }
    }
}

/// Why a TLS configuration is none.
#[derive(Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The bundle.
    Bundle(String),
    /// The certificate to show, or its key.
    Certificate(String),
}

/// A TLS configuration, and the clients that have it.
pub struct Material {
    pub(super) bundle: Option<Arc<WebPkiServerVerifier>>,
    pub(super) identity: Option<Arc<CertifiedKey>>,
    pub(super) pool: Pool,
}

/// All configurations that are in use, by a hash of what they are made from.
#[derive(Default)]
pub struct Materials {
    known: Mutex<HashMap<[u8; 32], Weak<Material>>>,
}

impl Materials {
    /// The configuration of a PEM bundle, and of a PEM chain with its key.
    pub fn get(&self, bundle: Option<&[u8]>, identity: Option<(&[u8], &[u8])>) -> Result<Arc<Material>, Unusable> {
        let digest = digest([bundle, identity.map(|(chain, _)| chain), identity.map(|(_, key)| key)]);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(material) = known.get(&digest).and_then(Weak::upgrade) {
            return Ok(material);
        }
        let bundle = bundle.map(trust).transpose().map_err(Unusable::Bundle)?;
        let identity = identity.map(|(chain, key)| prove(chain, key)).transpose().map_err(Unusable::Certificate)?;
        let material = Arc::new(Material { bundle, identity, pool: Pool::default() });
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

fn trust(pem: &[u8]) -> Result<Arc<WebPkiServerVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots
            .add(certificate)
            .map_err(|_| "one of its certificates is none: write the CA's as it was issued".to_owned())?;
    }
    let built =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider())).build();
    built.map_err(|error| error.to_string())
}

fn prove(chain: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let chain = certificates(chain).map_err(|problem| format!("of tls.crt, {problem}"))?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| "tls.key holds no PEM private key: write it unencrypted, in PKCS#8, PKCS#1 or SEC1".to_owned())?;
    match CertifiedKey::from_der(chain, key, &ring::default_provider()) {
        Ok(certified) => Ok(Arc::new(certified)),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err("tls.key is not the key of the first certificate in tls.crt".to_owned())
        }
        Err(Error::InvalidCertificate(_)) => Err("the first certificate in tls.crt is none".to_owned()),
        Err(_) => Err("tls.key is of no kind that TLS knows here: write an RSA, ECDSA or Ed25519 key".to_owned()),
    }
}

/// Trusts whom a bundle trusts, and whom all trust.
pub(super) struct Either {
    pub bundle: Arc<WebPkiServerVerifier>,
    pub rest: Arc<dyn ServerCertVerifier>,
}

impl fmt::Debug for Either {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Either").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Either {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let by = |verifier: &dyn ServerCertVerifier| {
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        };
        // The bundle's issuer is the likelier one, and so what it finds is told.
        by(self.bundle.as_ref()).or_else(|found| by(self.rest.as_ref()).map_err(|_| found))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.rest.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.rest.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.rest.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests;
