use rcgen::{CertificateParams, KeyPair};

use super::*;

/// A self-signed certificate, and its key.
fn issued() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["ci.example.com".to_owned()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

#[test]
fn equal_configurations_exist_once_until_unused() {
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
    assert_eq!(materials.known.lock().unwrap().len(), 1, "unused configurations are removed");
}

#[test]
fn errors_contain_nothing_of_the_bundle() {
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
        ("canary", &key, "tls.crt contains no PEM certificate"),
        (none, &key, "the first certificate in tls.crt is invalid"),
    ] {
        let refused = materials.get(None, Some((chain.as_bytes(), key.as_bytes())));
        let Err(Unusable::Certificate(text)) = refused else { panic!("{says}") };
        assert!(text.contains(says) && !text.contains("canary"), "{text}");
    }
}

mod trust {
    use std::sync::OnceLock;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};

    use super::*;

    const NOW: u64 = 1_767_225_600;

    fn params(name: &str, is_ca: bool) -> CertificateParams {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
        params
    }

    fn self_signed(params: &CertificateParams) -> rcgen::Certificate {
        params.self_signed(&KeyPair::generate().unwrap()).unwrap()
    }

    /// Reports whether a Webhook with this bundle accepts this certificate for a.example.
    fn verify(bundle: &[&rcgen::Certificate], shown: &rcgen::Certificate) -> Result<(), Error> {
        let pem: String = bundle.iter().map(|certificate| certificate.pem()).collect();
        let (named, warning) = trust(pem.as_bytes()).unwrap();
        assert_eq!(warning, None);
        let name = ServerName::try_from("a.example").unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW));
        named.verify_server_cert(shown.der(), &[], &name, &[], now).map(|_| ())
    }

    fn problem(error: Error) -> String {
        let Error::InvalidCertificate(error) = error else { panic!("{error}") };
        format!("{error:?}")
    }

    #[test]
    fn named_certificate_is_trusted_with_its_names_and_dates() {
        let ca = CertifiedIssuer::self_signed(params("ca.example", true), KeyPair::generate().unwrap()).unwrap();
        let issued = params("a.example", false).signed_by(&KeyPair::generate().unwrap(), &ca).unwrap();
        let unknown = CertifiedIssuer::self_signed(params("x.example", true), KeyPair::generate().unwrap()).unwrap();
        let stranger = params("a.example", false).signed_by(&KeyPair::generate().unwrap(), &unknown).unwrap();
        // With and without CA:TRUE, as `openssl req -x509` and others make them.
        for is_ca in [true, false] {
            let own = self_signed(&params("a.example", is_ca));
            assert_eq!(verify(&[&own], &own), Ok(()), "CA: {is_ca}");
            let other = self_signed(&params("a.example", is_ca));
            assert!(verify(&[&own], &other).is_err(), "another of the same name");
            let elsewhere = self_signed(&params("b.example", is_ca));
            assert!(problem(verify(&[&elsewhere], &elsewhere).unwrap_err()).starts_with("NotValidForName"));
            let mut late = params("a.example", is_ca);
            late.not_after = date_time_ymd(2021, 1, 1);
            let late = self_signed(&late);
            assert!(problem(verify(&[&late], &late).unwrap_err()).starts_with("Expired"));
            let mut early = params("a.example", is_ca);
            early.not_before = date_time_ymd(2030, 1, 1);
            let early = self_signed(&early);
            assert!(problem(verify(&[&early], &early).unwrap_err()).starts_with("NotValidYet"));
        }
        assert_eq!(verify(&[&stranger], &stranger), Ok(()), "one whose issuer nobody names");
        assert!(verify(&[&stranger], &issued).is_err());
    }

    #[test]
    fn an_intermediate_in_the_bundle_is_enough() {
        let root = CertifiedIssuer::self_signed(params("root.example", true), KeyPair::generate().unwrap()).unwrap();
        let middle =
            CertifiedIssuer::signed_by(params("middle.example", true), KeyPair::generate().unwrap(), &root).unwrap();
        let leaf = params("a.example", false).signed_by(&KeyPair::generate().unwrap(), &middle).unwrap();
        assert_eq!(verify(&[middle.as_ref()], &leaf), Ok(()));
        assert!(verify(&[root.as_ref()], &leaf).is_err(), "the endpoint must send the intermediate");
    }

    fn pem() -> &'static str {
        static PEM: OnceLock<String> = OnceLock::new();
        PEM.get_or_init(|| self_signed(&params("a.example", true)).pem())
    }

    #[test]
    fn invalid_blocks_are_skipped_and_named() {
        let good = pem();
        let cut = good.replace("-----END CERTIFICATE-----", "");
        let garbled = good.replace("MII", "M!!");
        let short = &good[..good.len() / 2];
        let mangled = good.replace("-----BEGIN", "----BEGIN");
        let one_line = good.replace('\n', " ");
        let no_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let trusted = good.replace("CERTIFICATE", "TRUSTED CERTIFICATE");
        for (what, broken) in [
            ("no END", cut.as_str()),
            ("base64", &garbled),
            ("cut short", short),
            ("BEGIN", &mangled),
            ("one line", &one_line),
            ("DER", no_der),
            ("OpenSSL's own", &trusted),
        ] {
            for (bundle, block) in [
                (format!("{good}{broken}\n"), 2),
                (format!("{broken}\n{good}"), 1),
                (format!("{good}{broken}\n{good}"), 2),
            ] {
                let read = certificates(bundle.as_bytes()).unwrap_or_else(|error| panic!("{what}: {error}"));
                let warning = read.warning.unwrap_or_else(|| panic!("{what} passes"));
                let begins = format!("the bundle contains an invalid certificate (block {block}): ");
                assert!(warning.starts_with(&begins) && warning.ends_with("; fix or remove it"), "{what}: {warning}");
                assert_eq!(read.certificates.len(), bundle.matches(good).count(), "{what}");
            }
            let Err(error) = certificates(broken.as_bytes()) else { panic!("{what} alone passes") };
            assert!(error.contains("(block 1): "), "{error}");
        }
        let many = certificates(format!("{good}{}", no_der.repeat(7)).as_bytes()).unwrap().warning.unwrap();
        assert!(many.starts_with("the bundle contains 7 invalid certificates (blocks 2, 3, 4, 5, 6, …): "), "{many}");
    }

    #[test]
    fn text_around_certificates_is_ignored() {
        let good = pem();
        let key = KeyPair::generate().unwrap().serialize_pem();
        for bundle in [
            format!("# Our CA\nIssuer: CN=a\n{good}"),
            format!("{key}{good}"),
            good.replace('\n', "\r\n"),
            format!("    {}", good.replace('\n', "  \n    ")),
            format!("\u{feff}\n{good}"),
            good.replace("CERTIFICATE", "X509 CERTIFICATE"),
            good.trim_end().to_owned(),
        ] {
            let read = certificates(bundle.as_bytes()).unwrap();
            assert_eq!((read.certificates.len(), read.warning), (1, None), "{bundle}");
        }
    }

    /// Made by openssl: a CA on P-521, and a certificate on P-256 that it issued to a.example.
    const P521: [&str; 3] = [include_str!("p521-ca.pem"), include_str!("p521-leaf.pem"), include_str!("p521-key.pem")];

    #[test]
    fn unsupported_curves_are_named() {
        let [ca, leaf, key] = P521;
        let (named, _) = trust(ca.as_bytes()).unwrap();
        let leaf = certificates(leaf.as_bytes()).unwrap().certificates.remove(0);
        let name = ServerName::try_from("a.example").unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_900_000_000));
        let error = named.verify_server_cert(&leaf, &[], &name, &[], now).unwrap_err();
        let text = crate::delivery::failure::describe_tls(&error, crate::delivery::failure::Redaction::None);
        assert!(
            text.starts_with("the endpoint's certificate is signed by a key of the curve P-521: use RSA"),
            "{text}"
        );
        let text = prove(ca.as_bytes(), key.as_bytes()).unwrap_err();
        assert!(text.starts_with("tls.key is a key of the curve P-521, which is not supported: use RSA"), "{text}");
        assert_eq!(curve_in(&KeyPair::generate().unwrap().serialize_der()), None);
    }
}
