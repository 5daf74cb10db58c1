//! Selects the proxy to a cluster by kubectl's rules: the kubeconfig's `proxy-url` first, for every host; otherwise the
//! environment variables, as Go's `golang.org/x/net/http/httpproxy` reads them. Pure, except for reading the
//! environment.

use std::{fmt, net::IpAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, Uri};
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use reqwest::Url;
use tracing::warn;

/// A proxy, and where it is configured.
#[derive(Clone)]
pub struct Proxy {
    pub(super) scheme: Scheme,
    /// Its address with the port, without credentials.
    pub(super) uri: Uri,
    /// User name and password.
    pub(super) user: Option<(String, String)>,
    named_by: &'static str,
}

/// The protocol to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
    Socks5,
}

/// The kubeconfig's `proxy-url` is invalid. It is not shown, because it can contain a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "proxy-url of the kubeconfig cannot be used: set an http, https or socks5 URL, such as http://proxy.example.com:3128"
)]
pub struct ProxyError;

/// The environment variables that configure proxies.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment {
    /// `HTTP_PROXY`: for `http://` addresses.
    pub http: Option<String>,
    /// `HTTPS_PROXY`: for `https://` addresses.
    pub https: Option<String>,
    /// `NO_PROXY`.
    pub direct: Option<String>,
}

impl Environment {
    /// Reads the variables of this process: upper case before lower case; empty means unset.
    pub(super) fn of_process() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let any = |name: &str| set(name).or_else(|| set(&name.to_lowercase()));
        Self { http: any("HTTP_PROXY"), https: any("HTTPS_PROXY"), direct: any("NO_PROXY") }
    }
}

impl Proxy {
    /// Returns the proxy to an apiserver. `own` is the kubeconfig's `proxy-url`.
    pub(super) fn towards(
        cluster: &Uri,
        own: Option<&str>,
        environment: &Environment,
    ) -> Result<Option<Self>, ProxyError> {
        if let Some(own) = own {
            let url = Url::parse(own).map_err(|_| ProxyError)?;
            return Self::read(&url, "proxy-url of the kubeconfig").map(Some).ok_or(ProxyError);
        }
        let is_plain = cluster.scheme_str() == Some("http");
        let (name, value) =
            if is_plain { ("HTTP_PROXY", &environment.http) } else { ("HTTPS_PROXY", &environment.https) };
        let (Some(value), Some(host)) = (value, cluster.host()) else { return Ok(None) };
        let port = cluster.port_u16().unwrap_or(if is_plain { 80 } else { 443 });
        if is_direct(host, port, environment.direct.as_deref().unwrap_or_default()) {
            return Ok(None);
        }
        // Without a scheme, the scheme is http.
        let url = if value.contains("://") { Url::parse(value) } else { Url::parse(&format!("http://{value}")) };
        let proxy = url.ok().and_then(|url| Self::read(&url, name));
        if proxy.is_none() {
            // As kubectl does.
            warn!("{name} is not a proxy URL and is ignored: set one such as http://proxy.example.com:3128");
        }
        Ok(proxy)
    }

    fn read(url: &Url, named_by: &'static str) -> Option<Self> {
        let (scheme, name, port) = match url.scheme() {
            "http" => (Scheme::Http, "http", 80),
            "https" => (Scheme::Https, "https", 443),
            "socks5" | "socks5h" => (Scheme::Socks5, "socks5", 1080),
            _ => return None,
        };
        let port = url.port().unwrap_or(port);
        let uri = format!("{name}://{}:{port}", url.host_str().filter(|host| !host.is_empty())?).parse().ok()?;
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let user = !url.username().is_empty() || url.password().is_some();
        let user = user.then(|| (decoded(url.username()), decoded(url.password().unwrap_or_default())));
        Some(Self { scheme, uri, user, named_by })
    }

    /// Returns the value of `Proxy-Authorization`.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        let (name, password) = self.user.as_ref()?;
        let encoded = STANDARD.encode(format!("{name}:{password}"));
        // Base64 is printable.
        let mut value = HeaderValue::try_from(format!("Basic {encoded}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// Omits the credentials.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.uri.to_string().trim_end_matches('/'), self.named_by)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// Reports whether the variables exclude a host: this host itself, or one in `NO_PROXY`.
fn is_direct(host: &str, port: u16, no_proxy: &str) -> bool {
    let host = host.trim_matches(['[', ']']).to_lowercase();
    let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    no_proxy
        .split(',')
        .map(|entry| entry.trim().to_lowercase())
        .any(|entry| entry_matches(&entry, &host, address, port))
}

fn entry_matches(entry: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    if let Ok(range) = entry.parse::<IpNet>() {
        return address.is_some_and(|address| range.contains(&address));
    }
    let (name, only) = split_port(entry);
    if only.is_some_and(|only| only != port.to_string()) {
        return false;
    }
    if let Ok(named) = name.parse::<IpAddr>() {
        return address == Some(named.to_canonical());
    }
    // `example.com` matches the host and its subdomains; `.example.com` and `*.example.com` match its subdomains.
    let name = name.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(name);
    match name.strip_prefix('.') {
        Some(_) => host.ends_with(name),
        None => !name.is_empty() && (host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))),
    }
}

/// Splits a name from the port after it, like Go's `net.SplitHostPort`: an IPv6 address with a port has brackets.
fn split_port(entry: &str) -> (&str, Option<&str>) {
    if let Some((address, port)) = entry.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        return (address, Some(port).filter(|port| !port.is_empty()));
    }
    match entry.split_once(':') {
        Some((name, port)) if !port.contains(':') => (name, Some(port).filter(|port| !port.is_empty())),
        _ => (entry, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_is_read_as_in_go() {
        for (no_proxy, host, direct) in [
            ("", "api.example.com", false),
            ("*", "api.example.com", true),
            ("a.test, *", "10.1.2.3", true),
            ("example.com", "example.com", true),
            ("example.com", "api.example.com", true),
            ("EXAMPLE.com", "api.Example.COM", true),
            ("example.com", "badexample.com", false),
            (".example.com", "api.example.com", true),
            (".example.com", "example.com", false),
            ("*.example.com", "api.example.com", true),
            ("*.example.com", "example.com", false),
            ("*example.com", "api.example.com", false),
            ("example.com:6443", "api.example.com", true),
            ("example.com:443", "api.example.com", false),
            ("a.test,, api.example.com ,", "api.example.com", true),
            (",", "api.example.com", false),
            ("not a host, %zz, 10.0.0.0/99", "api.example.com", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.1.2.3/8", "10.200.0.1", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3:6443", "10.1.2.3", true),
            ("10.1.2.3:443", "10.1.2.3", false),
            ("10.1.2", "10.1.2.3", false),
            ("fd00::/8", "[fd00::1]", true),
            ("fd00::1", "[fd00::1]", true),
            ("[fd00::1]:6443", "[fd00::1]", true),
            ("[fd00::1]:443", "[fd00::1]", false),
            ("svc,.cluster.local", "kubernetes.default.svc", true),
            ("", "localhost", true),
            ("", "LOCALHOST", true),
            ("", "127.0.0.1", true),
            ("", "127.9.9.9", true),
            ("", "[::1]", true),
            ("", "localhost.example.com", false),
        ] {
            assert_eq!(is_direct(host, 6443, no_proxy), direct, "NO_PROXY={no_proxy} for {host}");
        }
    }

    #[test]
    fn kubeconfig_proxy_overrides_environment_and_no_proxy() {
        let environment = Environment {
            http: Some("http://plain:3128".into()),
            https: Some("proxy.example.com:3128".into()),
            direct: Some("10.0.0.0/8".into()),
        };
        let towards = |cluster: &str, own: Option<&str>| {
            let proxy = Proxy::towards(&cluster.parse().unwrap(), own, &environment);
            proxy.map(|proxy| proxy.map(|proxy| proxy.to_string()).unwrap_or_default())
        };
        let is = |text: &str| Ok(text.to_owned());
        assert_eq!(towards("https://api.example.com", None), is("http://proxy.example.com:3128 (HTTPS_PROXY)"));
        assert_eq!(towards("http://api.example.com", None), is("http://plain:3128 (HTTP_PROXY)"));
        assert_eq!(towards("https://10.0.0.1:6443", None), is(""));
        assert_eq!(towards("https://127.0.0.1:6443", None), is(""));
        let own = "socks5://jump.example.com";
        for cluster in ["https://10.0.0.1:6443", "https://127.0.0.1:6443", "http://a"] {
            assert_eq!(towards(cluster, Some(own)), is("socks5://jump.example.com:1080 (proxy-url of the kubeconfig)"));
        }
        for wrong in ["proxy:3128", "ftp://proxy", "http://", "://"] {
            assert_eq!(towards("https://a", Some(wrong)), Err(ProxyError), "{wrong}");
        }
        let nonsense = Environment { https: Some("http://[".into()), ..Environment::default() };
        assert!(Proxy::towards(&"https://a".parse().unwrap(), None, &nonsense).unwrap().is_none(), "as kubectl");
    }

    #[test]
    fn proxy_credentials_are_decoded_and_never_shown() {
        let environment =
            Environment { https: Some("https://us%40er:hun%3Ater2@proxy".into()), ..Environment::default() };
        let proxy = Proxy::towards(&"https://a".parse().unwrap(), None, &environment).unwrap().unwrap();
        assert_eq!((proxy.scheme, proxy.user.clone()), (Scheme::Https, Some(("us@er".into(), "hun:ter2".into()))));
        assert_eq!(proxy.authorization().unwrap(), format!("Basic {}", STANDARD.encode("us@er:hun:ter2")));
        assert_eq!(format!("{proxy} {proxy:?}").matches("hun").count(), 0);
        assert_eq!(proxy.uri, "https://proxy:443");
    }
}
