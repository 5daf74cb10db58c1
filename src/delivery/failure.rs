//! What went wrong with an attempt, told so that its reader knows what to do: never the answer's body, the url's path or a secret.

use std::{error::Error as _, io, time::Duration};

use http::{HeaderMap, StatusCode, header};
use reqwest::Url;
use rustls::AlertDescription;

use super::{address::Refused, attempt::Class, clients::ClientError};

/// Why a status is no acknowledgement; `None` where it is one.
pub(super) fn describe_status(status: StatusCode, headers: &HeaderMap, url: &Url, signed: bool) -> Option<String> {
    if status.is_success() {
        return None;
    }
    let reason = status.canonical_reason().unwrap_or("unknown status");
    let code = status.as_u16();
    if !status.is_redirection() {
        let advice = match code {
            401 | 403 if signed => ": give the receiver the key that spec.secretRef names, byte for byte",
            401 | 403 => ": if the receiver checks signatures, name its key in spec.secretRef",
            404 | 405 => ": check the path in spec.url",
            413 => ": let the receiver take bodies of 256 KiB",
            _ => "",
        };
        return Some(format!("HTTP {code} {reason}{advice}"));
    }
    let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    let host = location.and_then(|location| url.join(location).ok());
    Some(match host.as_ref().and_then(Url::host_str) {
        Some(host) => format!(
            "HTTP {code} {reason} to host {host}: redirects are not followed, write the final address in spec.url"
        ),
        None => format!("HTTP {code} {reason}: redirects are not followed, write the final address in spec.url"),
    })
}

/// The class of an attempt without an answer, and why there was none.
pub(super) fn describe_error(error: &ClientError, limit: Duration) -> (Class, String) {
    match error {
        ClientError::Refused(refused) => (Class::Address, refused.to_string()),
        ClientError::Tls(_) => (Class::Tls, error.to_string()),
        ClientError::Http(error) => describe_request(error, limit),
    }
}

/// The innermost cause tells: the outer ones repeat the url.
fn describe_request(error: &reqwest::Error, limit: Duration) -> (Class, String) {
    let mut innermost: &(dyn std::error::Error + 'static) = error;
    let mut tls = None;
    loop {
        if let Some(refused) = innermost.downcast_ref::<Refused>() {
            return (Class::Address, refused.to_string());
        }
        if let Some(found) = innermost.downcast_ref::<rustls::Error>() {
            tls = Some(found);
        }
        let inside = innermost.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match inside.map(|inside| inside as &(dyn std::error::Error + 'static)).or_else(|| innermost.source()) {
            Some(cause) => innermost = cause,
            None => break,
        }
    }
    if error.is_timeout() {
        let limit = limit.as_secs_f64();
        (Class::Timeout, format!("no answer within {limit} s: answer before any work, or raise spec.delivery.timeout"))
    } else if let Some(tls) = tls {
        (Class::Tls, format!("TLS: {}", describe_tls(tls)))
    } else if error.is_dns() {
        (Class::Connect, describe_lookup(&innermost.to_string()))
    } else if error.is_connect() {
        (Class::Connect, describe_connect(&innermost.to_string()))
    } else if error.source().is_none() {
        (Class::Protocol, "the request failed".into())
    } else {
        (Class::Protocol, format!("the connection broke: {innermost}"))
    }
}

fn describe_lookup(cause: &str) -> String {
    let cause = cause.strip_prefix("failed to lookup address information: ").unwrap_or(cause);
    format!("cannot find the host of spec.url: {cause}")
}

fn describe_connect(cause: &str) -> String {
    let cause = cause.split(" (os error").next().unwrap_or(cause);
    format!("cannot connect to the host and port of spec.url: {cause}")
}

const NO_COMMON_TLS: &str = "the endpoint offers no TLS 1.2 or 1.3 with a cipher that is considered safe: upgrade it";

/// What the endpoint said when it ended the handshake (RFC 8446, 6.2).
fn describe_alert(alert: AlertDescription) -> String {
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
            return "the endpoint does not know the host in spec.url: correct it".into();
        }
        other => return format!("the endpoint ended the handshake: {other:?}"),
    };
    format!(
        "the endpoint refuses the client certificate of spec.tls.clientCertificateRef: {certificate}; have another issued"
    )
}

fn describe_tls(error: &rustls::Error) -> String {
    use rustls::CertificateError as Certificate;
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
            Certificate::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
                let names = presented.join(", ").replace("DnsName(\"", "").replace("\")", "");
                format!("the endpoint's certificate is not for the host in spec.url, but for {names}")
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                "the endpoint's certificate is not for the host in spec.url".into()
            }
            Certificate::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
                "the endpoint's certificate is that of a CA: let the CA issue another to the endpoint".into()
            }
            other => format!("the endpoint's certificate is refused: {other}"),
        },
        rustls::Error::InvalidMessage(_) => {
            "the endpoint does not speak TLS there: correct the port in spec.url, or write http:// if it is meant".into()
        }
        rustls::Error::AlertReceived(alert) => describe_alert(*alert),
        rustls::Error::PeerIncompatible(_) => NO_COMMON_TLS.into(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_redirect_names_the_locations_host_and_never_its_path() {
        let url = Url::parse("https://a.example/hook").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, HeaderValue::from_static("https://b.example/secret-path"));
        let text = describe_status(StatusCode::FOUND, &headers, &url, true).unwrap();
        assert!(text.contains("b.example") && !text.contains("secret-path"), "{text}");
    }

    #[test]
    fn a_refusal_says_what_to_look_at() {
        let url = Url::parse("https://a.example/hook").unwrap();
        for (code, signed, says) in [
            (401, true, "HTTP 401 Unauthorized: give the receiver the key that spec.secretRef names, byte for byte"),
            (403, false, "HTTP 403 Forbidden: if the receiver checks signatures, name its key in spec.secretRef"),
            (404, true, "HTTP 404 Not Found: check the path in spec.url"),
            (503, true, "HTTP 503 Service Unavailable"),
        ] {
            let status = StatusCode::from_u16(code).unwrap();
            assert_eq!(describe_status(status, &HeaderMap::new(), &url, signed).as_deref(), Some(says));
        }
    }

    #[test]
    fn a_connection_that_fails_is_told_without_error_numbers() {
        assert_eq!(
            describe_lookup("failed to lookup address information: Name or service not known"),
            "cannot find the host of spec.url: Name or service not known"
        );
        assert_eq!(
            describe_connect("Connection refused (os error 111)"),
            "cannot connect to the host and port of spec.url: Connection refused"
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
            let text = describe_tls(&error);
            assert!(text.contains(says), "{text}");
        }
    }
}
