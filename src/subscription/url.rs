//! The URL of a Webhook's endpoint. The apiserver validates a URL in a spec; this module applies the same rules to a
//! URL in a Secret. Error messages never contain the URL.

use reqwest::Url;

use super::{
    reader::Objects,
    reference::{Place, Problem, ReferenceError, Role},
};

/// The maximum number of characters of a URL.
const MAX_LENGTH: usize = 2048;
const MAX_HOST: usize = 253;

/// The URL in a spec, or a reference to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UrlReference {
    /// The URL is in the spec.
    Given(Url),
    /// The URL is in a Secret.
    Secret(Place),
}

/// Why a text is not a valid URL of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error(
        "it is not an absolute, percent-encoded http:// or https:// URL of at most 2048 characters: write one such as https://ci.example.com/hooks"
    )]
    Malformed,
    #[error(
        "it must name a host of at most 253 characters, and a port from 1 to 65535 if it has one: write one such as https://ci.example.com:8443/hooks"
    )]
    Host,
    #[error(
        "it must not contain a user name or password: send the header Authorization with valueFrom in spec.headers"
    )]
    Password,
    #[error("it must not have a fragment (#...), which is never sent: remove it")]
    Fragment,
    /// The operator runs with `--require-https`.
    #[error(
        "it begins with http://, but this operator sends only to https:// (--require-https): have the endpoint speak TLS, and write https://"
    )]
    Insecure,
    #[error("it begins with http://, so spec.tls would have no effect: write https://, or remove spec.tls")]
    TlsOverHttp,
}

impl UrlError {
    /// The reason in conditions and Events.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Insecure => "HTTPSRequired",
            Self::Malformed | Self::Host | Self::Password | Self::Fragment | Self::TlsOverHttp => "InvalidURL",
        }
    }
}

/// Parses a URL by the rules of the URL standard.
pub(super) fn parse(text: &str, require_https: bool) -> Result<Url, UrlError> {
    let url = Url::parse(text).map_err(|_| UrlError::Malformed)?;
    match url.scheme() {
        "http" if require_https => Err(UrlError::Insecure),
        "http" | "https" if url.has_host() => Ok(url),
        "http" | "https" => Err(UrlError::Host),
        _ => Err(UrlError::Malformed),
    }
}

/// Parses a URL and applies the apiserver's validation rules for `spec.url`.
pub fn admit(text: &str, require_https: bool) -> Result<Url, UrlError> {
    let scheme = text.split_once("//").map(|(scheme, _)| scheme.to_ascii_lowercase());
    let is_absolute = matches!(scheme.as_deref(), Some("http:" | "https:"));
    let is_encoded = !text.chars().any(|letter| letter.is_control() || letter.is_whitespace());
    if !is_absolute || !is_encoded || text.chars().count() > MAX_LENGTH || !has_whole_escapes(text) {
        return Err(UrlError::Malformed);
    }
    let url = parse(text, require_https)?;
    let authority = text.split(['/', '?', '#']).nth(2).unwrap_or_default();
    if authority.contains('@') {
        return Err(UrlError::Password);
    }
    // The URL standard ignores extra slashes before a host.
    if authority.is_empty() || url.host_str().is_none_or(|host| host.len() > MAX_HOST) || url.port() == Some(0) {
        return Err(UrlError::Host);
    }
    if text.contains('#') { Err(UrlError::Fragment) } else { Ok(url) }
}

fn has_whole_escapes(text: &str) -> bool {
    let mut parts = text.split('%').skip(1);
    parts.all(|part| part.len() >= 2 && part.bytes().take(2).all(|digit| digit.is_ascii_hexdigit()))
}

impl UrlReference {
    /// The endpoint in a status: scheme, host and port, never the path. If the URL is in a Secret, the Secret's name.
    #[must_use]
    pub fn endpoint(&self) -> String {
        match self {
            Self::Given(url) => url.origin().ascii_serialization(),
            Self::Secret(place) => format!("(Secret {})", place.object.name),
        }
    }

    /// The URL, if it is in the spec.
    #[must_use]
    pub const fn given(&self) -> Option<&Url> {
        match self {
            Self::Given(url) => Some(url),
            Self::Secret(_) => None,
        }
    }

    /// The Secret key that contains the URL, if it is in a Secret.
    pub(super) const fn place(&self) -> Option<&Place> {
        match self {
            Self::Given(_) => None,
            Self::Secret(place) => Some(place),
        }
    }

    /// The URL. If `tls` is set, an `http://` URL is an error.
    pub(super) fn find(&self, objects: &Objects, require_https: bool, tls: bool) -> Result<Url, ReferenceError> {
        let place = match self {
            Self::Given(url) => return Ok(url.clone()),
            Self::Secret(place) => place,
        };
        let text = std::str::from_utf8(objects.bytes(&Role::Url, place)?).map_err(|_| UrlError::Malformed);
        let url = text.and_then(|text| admit(text.trim_ascii_end(), require_https));
        let url = url.and_then(|url| if tls && url.scheme() == "http" { Err(UrlError::TlsOverHttp) } else { Ok(url) });
        url.map_err(|error| ReferenceError::new(Role::Url, &place.object, Problem::Url(place.key.clone(), error)))
    }
}

#[cfg(test)]
mod tests {
    use super::{UrlError::*, *};

    #[test]
    fn url_in_a_secret_follows_the_rules_of_spec_url() {
        let long = format!("https://ci.example.com/{}", "a".repeat(MAX_LENGTH));
        let host = format!("https://{}com/", "a.".repeat(126));
        for (text, error) in [
            ("", Malformed),
            ("ci.example.com/hooks", Malformed),
            ("//ci.example.com", Malformed),
            ("ftp://ci.example.com", Malformed),
            ("mailto:ops@example.com", Malformed),
            (" https://ci.example.com", Malformed),
            ("https://ci.example.com/a b", Malformed),
            ("https://ci.exa\nmple.com", Malformed),
            ("https://ci.example.com/\0", Malformed),
            ("https://ci.example.com/%zz", Malformed),
            ("https://ci.example.com/%a", Malformed),
            ("https://ci.example.com:http/", Malformed),
            ("https://ci.example.com:65536/", Malformed),
            ("https://[::1/", Malformed),
            (&long, Malformed),
            ("https:///ci.example.com", Host),
            ("https://ci.example.com:0/", Host),
            (&host, Host),
            ("https://user:password@ci.example.com", Password),
            ("https://@ci.example.com", Password),
            ("https://a@b@ci.example.com?x", Password),
            ("https://ci.example.com/#part", Fragment),
            ("https://ci.example.com#", Fragment),
        ] {
            assert_eq!(admit(text, false).unwrap_err(), error, "{text}");
        }
        assert_eq!(admit("http://ci.example.com", true).unwrap_err(), Insecure);
        for text in [
            "http://ci.example.com",
            "HTTPS://ci.example.com:8443/hooks?token=a%20b&to=ops@example.com",
            "https://[2001:db8::1]/a/@b//c;d=e",
            "https://b\u{fc}cher.example",
        ] {
            assert!(admit(text, false).is_ok(), "{text}");
        }
    }
}
