//! Describes a failed attempt, and what to do about it. A description never contains the response's body, the URL's
//! path or a secret.

use std::{error::Error, io, time::Duration};

use http::{HeaderMap, StatusCode, header};
use reqwest::Url;
use rustls::{AlertDescription, PeerMisbehaved};

use super::target::Target;
use crate::transport::{
    address::Refused,
    client::{Response, SendError},
    clients::ClientError,
    connector::{CONNECT, ConnectError, ProxyProblem, Stage},
    tls::{SUPPORTED_KEYS, curve_in},
};
use llmtune_client::error_chain::{chain, innermost};
use llmtune_core::attempt::Class;

/// The secret parts of an attempt, which a description must not contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redaction {
    /// Only what never leaves the operator.
    None,
    /// A header. The endpoint knows its value and may return it.
    Headers,
    /// The URL, with its host and the address of the host.
    Url,
}

impl Redaction {
    /// Returns the URL as users refer to it.
    const fn url(self) -> &'static str {
        match self {
            Self::None | Self::Headers => "spec.url",
            Self::Url => "the URL that spec.urlFrom names",
        }
    }
}

/// Returns why a response is not an acknowledgment; `None` if it is one.
pub(super) fn describe_answer(response: &Response, target: &Target) -> Option<String> {
    describe_status(response.status(), response.headers(), response.proxy(), target)
}

/// `proxy`: the proxy that may have answered instead of the endpoint.
fn describe_status(status: StatusCode, headers: &HeaderMap, proxy: Option<&str>, target: &Target) -> Option<String> {
    if status.is_success() {
        return None;
    }
    let url = target.discretion.url();
    let (code, reason) = (status.as_u16(), reason(status));
    if let Some(proxy) = proxy.filter(|_| matches!(code, 403 | 407 | 502..=504)) {
        let advice = match code {
            407 => "have the platform team write the proxy's user name and password into --proxy".to_owned(),
            403 => format!(
                "have the proxy allow the host of {url}; if the endpoint answered, {}",
                describe_refusal(target)
            ),
            _ => format!("check the host and port of {url}, to which the proxy connects"),
        };
        return Some(format!("HTTP {code} {reason} through the proxy {proxy}: {advice}"));
    }
    if !status.is_redirection() {
        let advice = match code {
            401 | 403 => format!(": {}", describe_refusal(target)),
            404 | 405 => format!(": check the path in {url}"),
            410 => format!(": correct {url}, or delete the Webhook"),
            413 => ": let the receiver take bodies of 256 KiB".to_owned(),
            _ => String::new(),
        };
        return Some(format!("HTTP {code} {reason}{advice}"));
    }
    let location = headers.get(header::LOCATION).filter(|_| target.discretion == Redaction::None);
    let location = location.and_then(|location| location.to_str().ok());
    let location = location.and_then(|location| target.url.join(location).ok());
    let host = location.as_ref().and_then(Url::host_str).map(|host| format!(" to host {host}")).unwrap_or_default();
    Some(format!("HTTP {code} {reason}{host}: redirects are not followed, write the final address in {url}"))
}

/// Returns advice for a response that refuses the sender.
fn describe_refusal(target: &Target) -> String {
    let key = match &target.keys {
        Some(keys) if keys.previous().is_some() => {
            "the endpoint accepts neither key of spec.secretRef; give the receiver one of them, byte for byte"
        }
        Some(_) => "give the receiver the key in spec.secretRef, byte for byte",
        None => "if the receiver verifies signatures, set spec.secretRef to its key",
    };
    let headers = if target.headers.is_empty() { "" } else { "check spec.headers; " };
    format!("{headers}{key}")
}

/// Returns the class and the reason of an attempt without a response. `limit` is the time limit of the attempt.
pub fn describe_error(error: &ClientError, limit: Duration, discretion: Redaction) -> (Class, String) {
    match error {
        ClientError::Refused(refused) => (Class::Address, describe_guard(refused, discretion)),
        ClientError::Tls(_) => (Class::Tls, error.to_string()),
        ClientError::Http(SendError::Url) => (Class::Protocol, error.to_string()),
        ClientError::Http(SendError::Timeout { stage, proxy }) => {
            describe_timeout(*stage, proxy.as_deref(), limit, discretion)
        }
        ClientError::Http(SendError::Connect(error)) => describe_connect(error, discretion),
        ClientError::Http(SendError::Http(error)) => describe_broken(error, discretion),
    }
}

/// The range would reveal the address, so it is omitted if the URL is secret.
fn describe_guard(refused: &Refused, discretion: Redaction) -> String {
    match discretion {
        Redaction::None | Redaction::Headers => refused.to_string(),
        Redaction::Url => format!(
            "address refused: the operator does not send to the host of {}: use another, or have the platform team allow its range with --allow-cidr",
            discretion.url()
        ),
    }
}

/// Before TLS starts, nothing is connected, so the endpoint is not slow.
fn describe_timeout(stage: Stage, proxy: Option<&str>, limit: Duration, discretion: Redaction) -> (Class, String) {
    let (url, limit) = (discretion.url(), limit.as_secs_f64());
    match (stage, proxy) {
        (Stage::Lookup, None) => (
            Class::Connect,
            format!(
                "connect timeout: the name servers did not answer for the host of {url} within {limit} s: check the cluster's DNS"
            ),
        ),
        (Stage::Connect, None) => (Class::Connect, describe_silence(limit, url)),
        (Stage::Lookup | Stage::Connect | Stage::Tunnel, _) => {
            let proxy = proxy.unwrap_or("of --proxy");
            let text = format!(
                "connect timeout: the proxy {proxy} opened no connection to the host of {url} within {limit} s: check that host, and the proxy"
            );
            (Class::Connect, text)
        }
        (Stage::Handshake, _) => (
            Class::Timeout,
            format!(
                "no answer within {limit} s to the beginning of TLS: check that the endpoint speaks TLS on the port of {url}"
            ),
        ),
        (Stage::Answer, _) => (
            Class::Timeout,
            format!("no answer within {limit} s: answer before any work, or raise spec.delivery.timeout"),
        ),
    }
}

fn describe_silence(limit: f64, url: &str) -> String {
    format!(
        "connect timeout: nothing accepted a connection at the host and port of {url} within {limit} s: check them, and firewalls and NetworkPolicies on the way"
    )
}

fn describe_connect(error: &ConnectError, discretion: Redaction) -> (Class, String) {
    let url = discretion.url();
    let text = match error {
        ConnectError::Refused(refused) => return (Class::Address, describe_guard(refused, discretion)),
        ConnectError::Tls(error) => return describe_handshake(error, discretion),
        ConnectError::Lookup(cause) => format!("cannot find the host of {url}: {cause}"),
        ConnectError::TimedOut => describe_silence(CONNECT.as_secs_f64(), url),
        ConnectError::Proxy { proxy, problem } => describe_proxy(proxy, problem, url),
        ConnectError::Name | ConnectError::Tcp(_) => {
            format!("cannot connect to the host and port of {url}: {}", without_number(&innermost(error).to_string()))
        }
    };
    (Class::Connect, text)
}

/// The proxy is the platform team's and not secret. `proxy` does not contain its password.
fn describe_proxy(proxy: &str, problem: &ProxyProblem, url: &str) -> String {
    match problem {
        ProxyProblem::Unreached(error) => {
            let cause = innermost(error.as_ref()).to_string();
            format!(
                "cannot connect to the proxy {proxy}: {}; have the platform team check --proxy",
                without_number(&cause)
            )
        }
        ProxyProblem::Broken => {
            format!(
                "the proxy {proxy} closed the connection instead of opening a tunnel to the host of {url}: have the platform team check --proxy"
            )
        }
        ProxyProblem::Answered(status) => {
            let code = status.as_u16();
            let advice = match code {
                407 => "have the platform team write its user name and password into --proxy".to_owned(),
                502..=504 => format!("check the host and port of {url}, to which the proxy connects"),
                _ => format!("have it allow the host and port of {url}"),
            };
            format!("the proxy {proxy} answered HTTP {code} {}, and opened no tunnel: {advice}", reason(*status))
        }
    }
}

/// Describes a failed TLS handshake.
fn describe_handshake(error: &io::Error, discretion: Redaction) -> (Class, String) {
    if let Some(tls) = find_tls(error) {
        return (Class::Tls, format!("TLS: {}", describe_tls(tls, discretion)));
    }
    let cause = innermost(error).to_string();
    let text = format!("cannot connect to the host and port of {}: {}", discretion.url(), without_number(&cause));
    (Class::Connect, text)
}

fn find_tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    chain(error).filter_map(|cause| cause.downcast_ref()).last()
}

/// Describes a broken connection. h2 quotes the endpoint's text, so only codes are reported.
fn describe_broken(error: &hyper::Error, discretion: Redaction) -> (Class, String) {
    if let Some(tls) = find_tls(error) {
        return (Class::Tls, format!("TLS: {}", describe_tls(tls, discretion)));
    }
    let http2 = chain(error).find_map(|cause| cause.downcast_ref::<h2::Error>());
    let text = match http2.map(|error| (error, error.reason())) {
        Some((error, Some(reason))) if error.is_go_away() => format!("HTTP/2 ended it: {reason}"),
        Some((_, Some(reason))) => format!("HTTP/2 ended the request: {reason}"),
        _ => innermost(error).to_string(),
    };
    (Class::Protocol, format!("the connection broke: {}", without_number(&text)))
}

/// Returns the system's error text without its number.
fn without_number(cause: &str) -> &str {
    cause.split(" (os error").next().unwrap_or(cause)
}

fn reason(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("unknown status")
}

const NO_COMMON_TLS: &str = "the endpoint does not support TLS 1.2 or 1.3 with a safe cipher: upgrade it";

/// Describes the alert with which the endpoint ended the handshake (RFC 8446, 6.2).
fn describe_alert(alert: AlertDescription, url: &str) -> String {
    let certificate = match alert {
        AlertDescription::CertificateRequired => {
            return "the endpoint requires a client certificate: set spec.tls.clientCertificateRef".into();
        }
        AlertDescription::HandshakeFailure => {
            return "the endpoint refused the handshake: it may require a client certificate (spec.tls.clientCertificateRef), support no safe cipher, or have a key on the curve P-521, which is not supported: use P-256, P-384, RSA or Ed25519".into();
        }
        AlertDescription::ProtocolVersion | AlertDescription::InsufficientSecurity => return NO_COMMON_TLS.into(),
        AlertDescription::CertificateExpired => "it has expired",
        AlertDescription::CertificateRevoked => "it is revoked",
        AlertDescription::UnknownCA => "it does not know its issuer",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied
        | AlertDescription::DecryptError => "it does not accept it",
        AlertDescription::UnrecognisedName => {
            return format!("the endpoint does not know the host in {url}: correct it");
        }
        AlertDescription::InternalError => return "the endpoint failed in the handshake: see its log".into(),
        _ => return "the endpoint ended the handshake: see its log".into(),
    };
    format!(
        "the endpoint refuses the client certificate of spec.tls.clientCertificateRef: {certificate}; use another certificate"
    )
}

pub(crate) fn describe_tls(error: &rustls::Error, discretion: Redaction) -> String {
    use rustls::CertificateError as Certificate;
    let url = discretion.url();
    match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            // An issuer of this name is trusted, but it did not sign the certificate.
            Certificate::UnknownIssuer | Certificate::BadSignature => {
                "the endpoint's certificate is signed by an unknown authority: add the CA certificate to spec.tls.caBundleRef, or have the platform team add it with --ca-file".into()
            }
            Certificate::Expired | Certificate::ExpiredContext { .. } => {
                "the endpoint's certificate has expired: renew it".into()
            }
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                "the endpoint's certificate is not valid yet: check its dates and the clocks".into()
            }
            // The endpoint chooses the names, which may contain what it received. They are shown only if nothing secret
            // was sent.
            Certificate::NotValidForNameContext { presented, .. }
                if !presented.is_empty() && discretion == Redaction::None =>
            {
                let names = presented.join(", ").replace("DnsName(\"", "").replace("\")", "");
                format!("the endpoint's certificate is not for the host in {url}, but for {names}")
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                format!("the endpoint's certificate is not for the host in {url}")
            }
            Certificate::UnsupportedSignatureAlgorithmForPublicKeyContext { public_key_algorithm_id, .. } => {
                let what = curve_in(public_key_algorithm_id).unwrap_or("a kind that is not supported");
                format!("the endpoint's certificate is signed by a key of {what}: {SUPPORTED_KEYS}")
            }
            Certificate::UnsupportedSignatureAlgorithmContext { .. } => {
                format!("the endpoint's certificate is signed by an algorithm that is not supported, as those on the curve P-521 are: {SUPPORTED_KEYS}")
            }
            Certificate::Revoked => "the endpoint's certificate is revoked: replace it".into(),
            Certificate::BadEncoding => "the endpoint's certificate cannot be parsed: replace it".into(),
            Certificate::InvalidPurpose | Certificate::InvalidPurposeContext { .. } => {
                "the endpoint's certificate is not for TLS servers (extended key usage): replace it".into()
            }
            Certificate::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
                "the endpoint's certificate is a CA certificate: have the CA issue a server certificate, or add exactly this certificate to the bundle in spec.tls.caBundleRef".into()
            }
            Certificate::Other(other) if other.to_string().contains("UnsupportedCertVersion") => {
                "the endpoint's certificate has X.509 version 1: replace it with one of version 3, with a subjectAltName".into()
            }
            _ => "the endpoint's certificate violates RFC 5280: replace it".into(),
        },
        rustls::Error::InvalidMessage(_) => {
            format!("the endpoint does not speak TLS on this port: correct the port in {url}, or use http://")
        }
        rustls::Error::AlertReceived(alert) => describe_alert(*alert, url),
        rustls::Error::PeerIncompatible(_) => NO_COMMON_TLS.into(),
        rustls::Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme) => {
            format!("the endpoint has a key of a kind that is not supported, such as one on the curve P-521: {SUPPORTED_KEYS}")
        }
        rustls::Error::PeerMisbehaved(_)
        | rustls::Error::InappropriateMessage { .. }
        | rustls::Error::InappropriateHandshakeMessage { .. } => {
            "the endpoint violates the TLS protocol: upgrade it".into()
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderValue;

    use super::*;
    use crate::{delivery::sign::Keys, transport::resolver::LookupError};

    fn target(discretion: Redaction) -> Target {
        let url = Url::parse("https://a.example/hook").unwrap();
        Target { tenant: "ns".into(), url, headers: HeaderMap::new(), keys: None, tls: None, discretion }
    }

    #[test]
    fn redirects_show_only_the_host_and_nothing_secret() {
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, HeaderValue::from_static("https://b.example/secret-path"));
        let describe = |discretion| describe_status(StatusCode::FOUND, &headers, None, &target(discretion)).unwrap();
        let text = describe(Redaction::None);
        assert!(text.contains("b.example") && !text.contains("secret-path"), "{text}");
        for discretion in [Redaction::Headers, Redaction::Url] {
            let text = describe(discretion);
            assert!(!text.contains("b.example"), "{text}");
        }
    }

    #[test]
    fn refusals_have_advice() {
        let mut signed = target(Redaction::None);
        signed.keys = Some(Arc::new(Keys::new(vec![7; 32].into(), None)));
        let mut rotating = target(Redaction::None);
        rotating.keys = Some(Arc::new(Keys::new(vec![7; 32].into(), Some(vec![6; 32].into()))));
        let mut with_headers = target(Redaction::Headers);
        with_headers.headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        let (plain, secret) = (target(Redaction::None), target(Redaction::Url));
        for (code, target, says) in [
            (401, &signed, "HTTP 401 Unauthorized: give the receiver the key in spec.secretRef, byte for byte"),
            (
                401,
                &rotating,
                "HTTP 401 Unauthorized: the endpoint accepts neither key of spec.secretRef; give the receiver one of them, byte for byte",
            ),
            (403, &plain, "HTTP 403 Forbidden: if the receiver verifies signatures, set spec.secretRef to its key"),
            (
                401,
                &with_headers,
                "HTTP 401 Unauthorized: check spec.headers; if the receiver verifies signatures, set spec.secretRef to its key",
            ),
            (404, &plain, "HTTP 404 Not Found: check the path in spec.url"),
            (404, &secret, "HTTP 404 Not Found: check the path in the URL that spec.urlFrom names"),
            (503, &signed, "HTTP 503 Service Unavailable"),
        ] {
            let status = StatusCode::from_u16(code).unwrap();
            assert_eq!(describe_status(status, &HeaderMap::new(), None, target).as_deref(), Some(says));
        }
    }

    #[test]
    fn failed_connections_are_reported_without_error_numbers() {
        let refused = || io::Error::from_raw_os_error(111);
        for (error, discretion, says) in [
            (
                ConnectError::Lookup(LookupError::NoSuchName),
                Redaction::None,
                "cannot find the host of spec.url: no such name (NXDOMAIN)",
            ),
            (
                ConnectError::Tcp(refused()),
                Redaction::Url,
                "cannot connect to the host and port of the URL that spec.urlFrom names: Connection refused",
            ),
            (
                ConnectError::Proxy {
                    proxy: "proxy.example.com:3128".into(),
                    problem: ProxyProblem::Unreached(Box::new(ConnectError::Tcp(refused()))),
                },
                Redaction::None,
                "cannot connect to the proxy proxy.example.com:3128: Connection refused; have the platform team check --proxy",
            ),
        ] {
            assert_eq!(describe_connect(&error, discretion), (Class::Connect, says.to_owned()));
        }
    }

    #[test]
    fn only_connected_endpoints_count_as_slow() {
        let describe = |stage| describe_timeout(stage, None, Duration::from_millis(1500), Redaction::None);
        for (stage, class, begins) in [
            (Stage::Lookup, Class::Connect, "connect timeout: the name servers"),
            (Stage::Connect, Class::Connect, "connect timeout: nothing accepted a connection"),
            (Stage::Tunnel, Class::Connect, "connect timeout: the proxy"),
            (Stage::Handshake, Class::Timeout, "no answer within 1.5 s to the beginning of TLS"),
            (Stage::Answer, Class::Timeout, "no answer within 1.5 s: answer before any work"),
        ] {
            let (is, text) = describe(stage);
            assert!(is == class && text.starts_with(begins), "{is:?}: {text}");
        }
    }

    #[test]
    fn refused_certificates_are_explained() {
        use rustls::{CertificateError, Error, InvalidMessage, pki_types::ServerName};
        let other_name = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("a.example").unwrap(),
            presented: vec!["DnsName(\"b.example\")".into(), "DnsName(\"c.example\")".into()],
        };
        for (error, says) in [
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), "--ca-file"),
            (Error::InvalidCertificate(CertificateError::Expired), "has expired: renew it"),
            (Error::InvalidCertificate(other_name), "but for b.example, c.example"),
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), "does not speak TLS"),
        ] {
            let text = describe_tls(&error, Redaction::None);
            assert!(text.contains(says), "{text}");
            // A name can repeat the value of a header or the URL.
            for discretion in [Redaction::Headers, Redaction::Url] {
                let text = describe_tls(&error, discretion);
                assert!(!text.contains(".example"), "{text}");
            }
        }
    }
}
