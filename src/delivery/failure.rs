//! What went wrong with an attempt, told so that its reader knows what to do: never the answer's body, the url's path or a secret.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use reqwest::Url;
use rustls::AlertDescription;

use super::{attempt::Class, target::Target};
use crate::{
    causes::{chain, innermost},
    transport::{address::Refused, client::SendError, clients::ClientError},
};

/// What of an attempt is a secret, and so may not be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discretion {
    /// Nothing but what never leaves the operator.
    None,
    /// A header: the endpoint knows it, and may say it again.
    Headers,
    /// The url, with its host and where that leads.
    Url,
}

impl Discretion {
    /// The url as users know it.
    const fn url(self) -> &'static str {
        match self {
            Self::None | Self::Headers => "spec.url",
            Self::Url => "the URL that spec.urlFrom names",
        }
    }
}

/// Why a status is no acknowledgement; `None` where it is one.
pub(super) fn describe_status(status: StatusCode, headers: &HeaderMap, target: &Target) -> Option<String> {
    if status.is_success() {
        return None;
    }
    let url = target.discretion.url();
    let reason = status.canonical_reason().unwrap_or("unknown status");
    let code = status.as_u16();
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
    let location = headers.get(header::LOCATION).filter(|_| target.discretion == Discretion::None);
    let location = location.and_then(|location| location.to_str().ok());
    let location = location.and_then(|location| target.url.join(location).ok());
    let host = location.as_ref().and_then(Url::host_str).map(|host| format!(" to host {host}")).unwrap_or_default();
    Some(format!("HTTP {code} {reason}{host}: redirects are not followed, write the final address in {url}"))
}

/// What to look at where an endpoint answers that nobody may send it this.
fn describe_refusal(target: &Target) -> String {
    let key = match &target.keys {
        Some(keys) if keys.previous().is_some() => {
            "neither key of spec.secretRef is taken, give the receiver one of them, byte for byte"
        }
        Some(_) => "give the receiver the key that spec.secretRef names, byte for byte",
        None => "if the receiver checks signatures, name its key in spec.secretRef",
    };
    let headers = if target.headers.is_empty() { "" } else { "check what spec.headers sends; " };
    format!("{headers}{key}")
}

/// The class of an attempt without an answer, and why there was none.
pub(crate) fn describe_error(error: &ClientError, limit: Duration, discretion: Discretion) -> (Class, String) {
    match error {
        ClientError::Refused(refused) => (Class::Address, describe_guard(refused, discretion)),
        ClientError::Tls(_) => (Class::Tls, error.to_string()),
        ClientError::Http(error) => describe_request(error, limit, discretion),
    }
}

/// The range that an address is in tells of the address.
fn describe_guard(refused: &Refused, discretion: Discretion) -> String {
    match discretion {
        Discretion::None | Discretion::Headers => refused.to_string(),
        Discretion::Url => format!(
            "address refused: the host of {} is where the operator sends nothing: write another, or have the platform team open its range with --allow-cidr",
            discretion.url()
        ),
    }
}

fn describe_request(error: &SendError, limit: Duration, discretion: Discretion) -> (Class, String) {
    let mut tls = None;
    for cause in chain(error) {
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            return (Class::Address, describe_guard(refused, discretion));
        }
        tls = cause.downcast_ref::<rustls::Error>().or(tls);
    }
    let innermost = innermost(error);
    if matches!(error, SendError::Timeout) {
        let limit = limit.as_secs_f64();
        (Class::Timeout, format!("no answer within {limit} s: answer before any work, or raise spec.delivery.timeout"))
    } else if let Some(tls) = tls {
        (Class::Tls, format!("TLS: {}", describe_tls(tls, discretion)))
    } else if error.is_dns() {
        (Class::Connect, describe_lookup(&innermost.to_string(), discretion))
    } else if error.is_connect() {
        (Class::Connect, describe_connect(&innermost.to_string(), discretion))
    } else if matches!(error, SendError::Url) {
        (Class::Protocol, error.to_string())
    } else {
        let text = innermost.to_string();
        // h2 quotes what the endpoint says when it ends a connection.
        let text = text.split(" (b\"").next().unwrap_or_default();
        (Class::Protocol, format!("the connection broke: {}", without_number(text)))
    }
}

fn describe_lookup(cause: &str, discretion: Discretion) -> String {
    let cause = cause.strip_prefix("failed to lookup address information: ").unwrap_or(cause);
    format!("cannot find the host of {}: {cause}", discretion.url())
}

fn describe_connect(cause: &str, discretion: Discretion) -> String {
    format!("cannot connect to the host and port of {}: {}", discretion.url(), without_number(cause))
}

/// The system's words for an error, without its number.
fn without_number(cause: &str) -> &str {
    cause.split(" (os error").next().unwrap_or(cause)
}

const NO_COMMON_TLS: &str = "the endpoint offers no TLS 1.2 or 1.3 with a cipher that is considered safe: upgrade it";

/// What the endpoint said when it ended the handshake (RFC 8446, 6.2).
fn describe_alert(alert: AlertDescription, url: &str) -> String {
    let certificate = match alert {
        AlertDescription::CertificateRequired => {
            return "the endpoint requires a client certificate: name one in spec.tls.clientCertificateRef".into();
        }
        AlertDescription::HandshakeFailure => {
            return "the endpoint refused the handshake: it may require a client certificate (spec.tls.clientCertificateRef), or know no safe cipher".into();
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
        other => return format!("the endpoint ended the handshake: {other:?}"),
    };
    format!(
        "the endpoint refuses the client certificate of spec.tls.clientCertificateRef: {certificate}; have another issued"
    )
}

fn describe_tls(error: &rustls::Error, discretion: Discretion) -> String {
    use rustls::CertificateError as Certificate;
    let url = discretion.url();
    match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            // An issuer of this name is trusted, and yet did not sign it.
            Certificate::UnknownIssuer | Certificate::BadSignature => {
                "the endpoint's certificate is issued by nobody who is trusted: name the issuer's in spec.tls.caBundleRef, or have the operator given it with --ca-file".into()
            }
            Certificate::Expired | Certificate::ExpiredContext { .. } => {
                "the endpoint's certificate has expired: renew it".into()
            }
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                "the endpoint's certificate is not valid yet: check its dates and the clocks".into()
            }
            Certificate::NotValidForNameContext { presented, .. }
                if !presented.is_empty() && discretion != Discretion::Url =>
            {
                let names = presented.join(", ").replace("DnsName(\"", "").replace("\")", "");
                format!("the endpoint's certificate is not for the host in {url}, but for {names}")
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                format!("the endpoint's certificate is not for the host in {url}")
            }
            Certificate::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
                "the endpoint's certificate is that of a CA: let the CA issue another to the endpoint".into()
            }
            other => format!("the endpoint's certificate is refused: {other}"),
        },
        rustls::Error::InvalidMessage(_) => {
            format!("the endpoint does not speak TLS there: correct the port in {url}, or write http:// if it is meant")
        }
        rustls::Error::AlertReceived(alert) => describe_alert(*alert, url),
        rustls::Error::PeerIncompatible(_) => NO_COMMON_TLS.into(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderValue;

    use super::*;
    use crate::delivery::sign::Keys;

    fn target(discretion: Discretion) -> Target {
        let url = Url::parse("https://a.example/hook").unwrap();
        Target { url, headers: HeaderMap::new(), keys: None, tls: None, discretion }
    }

    #[test]
    fn a_redirect_names_the_locations_host_and_never_its_path_nor_anything_where_a_secret_was_sent() {
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, HeaderValue::from_static("https://b.example/secret-path"));
        let describe = |discretion| describe_status(StatusCode::FOUND, &headers, &target(discretion)).unwrap();
        let text = describe(Discretion::None);
        assert!(text.contains("b.example") && !text.contains("secret-path"), "{text}");
        for discretion in [Discretion::Headers, Discretion::Url] {
            let text = describe(discretion);
            assert!(!text.contains("b.example"), "{text}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_look_at() {
        let mut signed = target(Discretion::None);
        signed.keys = Some(Arc::new(Keys::new(vec![7; 32].into(), None)));
        let mut rotating = target(Discretion::None);
        rotating.keys = Some(Arc::new(Keys::new(vec![7; 32].into(), Some(vec![6; 32].into()))));
        let mut with_headers = target(Discretion::Headers);
        with_headers.headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        let (plain, secret) = (target(Discretion::None), target(Discretion::Url));
        for (code, target, says) in [
            (401, &signed, "HTTP 401 Unauthorized: give the receiver the key that spec.secretRef names, byte for byte"),
            (
                401,
                &rotating,
                "HTTP 401 Unauthorized: neither key of spec.secretRef is taken, give the receiver one of them, byte for byte",
            ),
            (403, &plain, "HTTP 403 Forbidden: if the receiver checks signatures, name its key in spec.secretRef"),
            (
                401,
                &with_headers,
                "HTTP 401 Unauthorized: check what spec.headers sends; if the receiver checks signatures, name its key in spec.secretRef",
            ),
            (404, &plain, "HTTP 404 Not Found: check the path in spec.url"),
            (404, &secret, "HTTP 404 Not Found: check the path in the URL that spec.urlFrom names"),
            (503, &signed, "HTTP 503 Service Unavailable"),
        ] {
            let status = StatusCode::from_u16(code).unwrap();
            assert_eq!(describe_status(status, &HeaderMap::new(), target).as_deref(), Some(says));
        }
    }

    #[test]
    fn a_connection_that_fails_is_told_without_error_numbers() {
        assert_eq!(
            describe_lookup("failed to lookup address information: Name or service not known", Discretion::None),
            "cannot find the host of spec.url: Name or service not known"
        );
        assert_eq!(
            describe_connect("Connection refused (os error 111)", Discretion::Url),
            "cannot connect to the host and port of the URL that spec.urlFrom names: Connection refused"
        );
    }

    #[test]
    fn a_certificate_that_is_refused_says_why_in_words() {
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
            let text = describe_tls(&error, Discretion::Headers);
            assert!(text.contains(says), "{text}");
            let text = describe_tls(&error, Discretion::Url);
            assert!(!text.contains(".example"), "{text}");
        }
    }
}
