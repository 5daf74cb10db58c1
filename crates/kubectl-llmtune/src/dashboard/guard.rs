//! Decides which requests the dashboard answers: only requests from this machine that contain the key, and none that
//! another page made. Pure.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use sha2::{Digest, Sha256};

use llmtune_api::signature::hexadecimal;

/// Size of the key in bytes: 128 bits cannot be guessed.
pub const KEY_BYTES: usize = 16;

/// Headers of every response. The page loads, requests and frames nothing from other origins. Nobody may cache or frame
/// it, or read it from another origin.
pub const HEADERS: [(HeaderName, HeaderValue); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; \
             form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    // With no-referrer, browsers send `Origin: null` for the page's own forms (Fetch, "append a request Origin
    // header").
    (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
];

/// The page's own address, with the key in its path.
pub struct Guard {
    hosts: [String; 2],
    key: String,
    digest: [u8; 32],
}

/// The reason why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It was sent to another host name that resolves to this address (DNS rebinding).
    Host,
    /// It does not contain the key.
    Key,
    Method,
    /// It comes from another page.
    Origin,
}

impl Refusal {
    /// The status and the text of the response.
    pub const fn answer(self) -> (StatusCode, &'static str) {
        match self {
            Self::Host => (
                StatusCode::MISDIRECTED_REQUEST,
                "unknown host name: open the URL that kubectl llmtune dashboard printed\n",
            ),
            Self::Key => (
                StatusCode::FORBIDDEN,
                "missing or wrong key: open the URL that kubectl llmtune dashboard printed, with its complete path; each start generates a new key\n",
            ),
            Self::Method => {
                (StatusCode::METHOD_NOT_ALLOWED, "method not allowed: use GET for pages, and POST for forms\n")
            }
            Self::Origin => {
                (StatusCode::FORBIDDEN, "requests from other pages are refused: use the forms of this page\n")
            }
        }
    }
}

impl Guard {
    /// The guard of the page at this port of 127.0.0.1.
    pub fn new(port: u16, key: [u8; KEY_BYTES]) -> Self {
        // Browsers leave out the default port.
        let port = if port == 80 { String::new() } else { format!(":{port}") };
        let key = hexadecimal(&key);
        Self {
            hosts: ["127.0.0.1", "localhost"].map(|name| format!("{name}{port}")),
            digest: Sha256::digest(key.as_bytes()).into(),
            key,
        }
    }

    /// The path prefix of all pages.
    pub fn base(&self) -> String {
        format!("/{}", self.key)
    }

    /// The URL to open. Everyone who has it may act with the user's rights while the command runs.
    pub fn url(&self) -> String {
        format!("http://{}{}/", self.hosts[0], self.base())
    }

    /// Accepts or refuses a request.
    pub fn judge(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = self.host(uri, headers).ok_or(Refusal::Host)?;
        let key = uri.path().split('/').nth(1).unwrap_or_default();
        // Digests are compared, so that the duration of the comparison reveals nothing about the key.
        let digest: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        if digest != self.digest {
            return Err(Refusal::Key);
        }
        if ![Method::GET, Method::HEAD, Method::POST].contains(method) {
            return Err(Refusal::Method);
        }
        let own = match only(headers, &header::ORIGIN) {
            Some(origin) => origin.strip_prefix("http://") == Some(host),
            None if headers.contains_key(header::ORIGIN) => false,
            None => {
                method != Method::POST
                    || only(headers, &HeaderName::from_static("sec-fetch-site")) == Some("same-origin")
            }
        };
        if own { Ok(()) } else { Err(Refusal::Origin) }
    }

    /// The host name of the request, if it is one of the page's own.
    fn host<'a>(&self, uri: &Uri, headers: &'a HeaderMap) -> Option<&'a str> {
        let host = only(headers, &header::HOST)?;
        let own = |name: &str| self.hosts.iter().any(|own| own == name);
        let of_uri = uri.authority().is_none_or(|authority| own(authority.as_str()));
        (own(host) && of_uri).then_some(host)
    }
}

/// The header's value, if the header occurs exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f";

    fn guard(port: u16) -> Guard {
        Guard::new(port, std::array::from_fn(|number| number as u8))
    }

    fn judged(method: &str, path: &str, headers: &[(&str, &str)]) -> Result<(), Refusal> {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect::<HeaderMap>();
        guard(8001).judge(&method.parse().unwrap(), &path.parse().unwrap(), &headers)
    }

    fn path() -> String {
        format!("/{KEY}/webhook/research/ci/test")
    }

    #[test]
    fn url_has_loopback_address_and_key() {
        assert_eq!(guard(8001).url(), format!("http://127.0.0.1:8001/{KEY}/"));
        assert_eq!(guard(80).url(), format!("http://127.0.0.1/{KEY}/"));
    }

    #[test]
    fn other_host_names_are_refused() {
        for host in ["127.0.0.1:8001", "localhost:8001"] {
            assert_eq!(judged("GET", &path(), &[("host", host)]), Ok(()), "{host}");
        }
        let rebound = [
            "evil.example:8001",
            "evil.example",
            "127.0.0.1",
            "127.0.0.1:8002",
            "localhost",
            "LOCALHOST:8001",
            "[::1]:8001",
            "127.0.0.1.evil.example:8001",
            "localhost.:8001",
            "user@127.0.0.1:8001",
            "127.1:8001",
            "0.0.0.0:8001",
            "",
        ];
        for host in rebound {
            assert_eq!(judged("GET", &path(), &[("host", host)]), Err(Refusal::Host), "{host}");
        }
        assert_eq!(judged("GET", &path(), &[]), Err(Refusal::Host));
        let twice = [("host", "127.0.0.1:8001"), ("host", "127.0.0.1:8001")];
        assert_eq!(judged("GET", &path(), &twice), Err(Refusal::Host));
        let absolute = format!("http://evil.example:8001{}", path());
        assert_eq!(judged("GET", &absolute, &[("host", "127.0.0.1:8001")]), Err(Refusal::Host));
    }

    #[test]
    fn requests_without_the_key_are_refused() {
        let shorter = format!("/{}/", &KEY[1..]);
        let louder = format!("/{}/", KEY.to_uppercase());
        let doubled = format!("//{KEY}/");
        for path in ["/", "/style.css", "/favicon.ico", "/?key=1", &shorter, &louder, &doubled] {
            assert_eq!(judged("GET", path, &[("host", "localhost:8001")]), Err(Refusal::Key), "{path}");
        }
    }

    #[test]
    fn only_forms_of_the_page_may_post() {
        let host = ("host", "127.0.0.1:8001");
        for (method, headers, expected) in [
            ("POST", &[host, ("origin", "http://127.0.0.1:8001")][..], Ok(())),
            ("POST", &[host, ("sec-fetch-site", "same-origin")], Ok(())),
            ("POST", &[host], Err(Refusal::Origin)),
            ("POST", &[host, ("origin", "null")], Err(Refusal::Origin)),
            ("POST", &[host, ("origin", "null"), ("sec-fetch-site", "same-origin")], Err(Refusal::Origin)),
            ("POST", &[host, ("origin", "http://127.0.0.1:8002")], Err(Refusal::Origin)),
            ("POST", &[host, ("origin", "http://localhost:8001")], Err(Refusal::Origin)),
            ("POST", &[host, ("origin", "https://127.0.0.1:8001")], Err(Refusal::Origin)),
            ("POST", &[host, ("origin", "http://evil.example")], Err(Refusal::Origin)),
            ("POST", &[host, ("sec-fetch-site", "same-site")], Err(Refusal::Origin)),
            ("POST", &[host, ("sec-fetch-site", "cross-site")], Err(Refusal::Origin)),
            ("GET", &[host, ("origin", "http://evil.example")], Err(Refusal::Origin)),
            ("GET", &[host], Ok(())),
            ("HEAD", &[host], Ok(())),
            ("PUT", &[host, ("origin", "http://127.0.0.1:8001")], Err(Refusal::Method)),
            ("DELETE", &[host], Err(Refusal::Method)),
            ("OPTIONS", &[host, ("origin", "http://evil.example")], Err(Refusal::Method)),
            ("TRACE", &[host], Err(Refusal::Method)),
        ] {
            assert_eq!(judged(method, &path(), headers), expected, "{method} {headers:?}");
        }
    }
}
