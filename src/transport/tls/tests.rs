use rcgen::{CertificateParams, KeyPair};

use super::*;

/// A certificate of its own issue, and its key.
fn issued() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["ci.example.com".to_owned()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

#[test]
fn the_same_configuration_exists_once_and_goes_with_its_last_user() {
    let materials = Materials::default();
    let ((bundle, _), (chain, key)) = (issued(), issued());
    let get = |bundle: Option<&str>| {
        materials.get(bundle.map(str::as_bytes), Some((chain.as_bytes(), key.as_bytes()))).unwrap()
    };
    let first = get(Some(&bundle));
    assert!(Arc::ptr_eq(&first, &get(Some(&bundle))));
    assert!(!Arc::ptr_eq(&first, &get(None)));
    let gone = Arc::downgrade(&first);
    drop(first);
    assert!(gone.upgrade().is_none());
    let _other = get(None);
    assert_eq!(materials.known.lock().unwrap().len(), 1, "what nobody uses is forgotten");
}

#[test]
fn what_cannot_be_used_is_told_in_words_that_hold_nothing_of_it() {
    let materials = Materials::default();
    let ((chain, key), (_, other)) = (issued(), issued());
    let canary = "-----BEGIN canary\ncanary\n-----END canary-----\n";
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\ncanary==\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let none = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for bundle in ["", "canary", canary, none, "-----BEGIN CERTIFICATE-----\ncanary!\n-----END CERTIFICATE-----\n"] {
        let Err(Unusable::Bundle(text)) = materials.get(Some(bundle.as_bytes()), None) else { panic!("{bundle}") };
        assert!(!text.contains("canary"), "{text}");
    }
    for (chain, key, says) in [
        (chain.as_str(), other.as_str(), "not the key of"),
        (&chain, "canary", "no PEM private key"),
        (&chain, canary, "no PEM private key"),
        (&chain, encrypted, "unencrypted"),
        ("canary", &key, "of tls.crt, it holds no PEM certificate"),
        (none, &key, "the first certificate in tls.crt is none"),
    ] {
        let refused = materials.get(None, Some((chain.as_bytes(), key.as_bytes())));
        let Err(Unusable::Certificate(text)) = refused else { panic!("{says}") };
        assert!(text.contains(says) && !text.contains("canary"), "{text}");
    }
}
