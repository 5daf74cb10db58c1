//! URLs, as Go's `net/url` parses them. Only the case of the scheme is normalized.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::Arc;

use super::{Work, arguments};
use crate::value::{Key, Map, Value};
use crate::work::Fault;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Url {
    scheme: String,
    user: String,
    /// Unescaped, with the port.
    host: String,
    escaped_path: String,
    query: String,
    fragment: String,
}

/// The part of a URL. It determines which characters must be escaped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Path,
    Host,
    Zone,
    User,
    Query,
    Fragment,
}

impl Part {
    fn leaves(self, b: u8) -> bool {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
            return true;
        }
        match self {
            Self::Path => matches!(b, b'$' | b'&' | b'+' | b',' | b'/' | b':' | b';' | b'=' | b'@'),
            Self::Host | Self::Zone => matches!(
                b,
                b'!' | b'"'
                    | b'$'
                    | b'&'
                    | b'\''
                    | b'('
                    | b')'
                    | b'*'
                    | b'+'
                    | b','
                    | b':'
                    | b';'
                    | b'<'
                    | b'='
                    | b'>'
                    | b'['
                    | b']'
            ),
            Self::User => matches!(b, b'$' | b'&' | b'+' | b',' | b';' | b'='),
            Self::Query => false,
            Self::Fragment => matches!(
                b,
                b'!' | b'$' | b'&' | b'(' | b')' | b'*' | b'+' | b',' | b'/' | b':' | b';' | b'=' | b'?' | b'@'
            ),
        }
    }

    fn unescape(self, text: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let [first, after @ ..] = rest {
            rest = after;
            match *first {
                b'%' => {
                    let code = str::from_utf8(after.get(..2)?).ok()?;
                    code.bytes().all(|b| b.is_ascii_hexdigit()).then_some(())?;
                    let byte = u8::from_str_radix(code, 16).ok()?;
                    let allowed = match self {
                        Self::Host => byte >= 0x80 || code == "25",
                        Self::Zone => code == "25" || byte == b' ' || Self::Host.leaves(byte),
                        _ => true,
                    };
                    allowed.then_some(())?;
                    bytes.push(byte);
                    rest = &after[2..];
                }
                b'+' if self == Self::Query => bytes.push(b' '),
                byte if matches!(self, Self::Host | Self::Zone) && byte < 0x80 && !self.leaves(byte) => return None,
                byte => bytes.push(byte),
            }
        }
        Some(bytes)
    }

    fn escape(self, bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len());
        for byte in bytes {
            if self.leaves(*byte) {
                text.push(char::from(*byte));
            } else {
                text.push_str(percent_encoding::percent_encode_byte(*byte));
            }
        }
        text
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn valid_port(port: &str) -> bool {
    port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()))
}

fn parse_host(scheme: &str, host: &str) -> Option<String> {
    match host.rfind('[') {
        Some(0) => {
            let close = host.rfind(']')?;
            let (name, port) = (&host[1..close], &host[close + 1..]);
            valid_port(port).then_some(())?;
            let (address, zone) = name.split_at(name.find("%25").unwrap_or(name.len()));
            let name = text(&Part::Host.unescape(address)?);
            name.parse::<Ipv6Addr>().ok()?;
            let zone = text(&Part::Zone.unescape(zone)?);
            (zone.is_empty() || zone.len() > 1).then_some(())?;
            return Some(format!("[{name}{zone}]{port}"));
        }
        Some(_) => return None,
        None => {}
    }
    let colon = if matches!(scheme, "http" | "https") { host.find(':') } else { host.rfind(':') };
    if let Some(colon) = colon {
        valid_port(&host[colon..]).then_some(())?;
    }
    Part::Host.unescape(host).as_deref().map(text)
}

fn parse_authority(scheme: &str, authority: &str) -> Option<(String, String)> {
    let Some((user, host)) = authority.rsplit_once('@') else {
        return Some((String::new(), parse_host(scheme, authority)?));
    };
    let host = parse_host(scheme, host)?;
    let valid = |b: u8| b.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&b);
    user.bytes().all(valid).then_some(())?;
    Part::User.unescape(user)?;
    Some((user.to_owned(), host))
}

impl Url {
    pub fn bytes(&self) -> usize {
        [&self.scheme, &self.user, &self.host, &self.escaped_path, &self.query, &self.fragment]
            .map(String::len)
            .iter()
            .sum()
    }

    /// Parses a URL. If `request` is true, it must be valid in a request line: absolute, or a path.
    fn parse(raw: &str, request: bool) -> Option<Self> {
        let mut url = Self {
            scheme: String::new(),
            user: String::new(),
            host: String::new(),
            escaped_path: String::new(),
            query: String::new(),
            fragment: String::new(),
        };
        if raw.bytes().any(|b| b < 0x20 || b == 0x7f) || raw.is_empty() && request {
            return None;
        }
        if raw == "*" {
            "*".clone_into(&mut url.escaped_path);
            return Some(url);
        }
        let mut rest = raw;
        let in_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if let Some(end) = raw.find(|c| !in_scheme(c)).filter(|end| raw[*end..].starts_with(':')) {
            if end == 0 {
                return None;
            }
            if raw.starts_with(|c: char| c.is_ascii_alphabetic()) {
                url.scheme = raw[..end].to_ascii_lowercase();
                rest = &raw[end + 1..];
            }
        }
        if let Some((path, query)) = rest.split_once('?') {
            query.clone_into(&mut url.query);
            rest = path;
        }
        if !rest.starts_with('/') {
            if !url.scheme.is_empty() {
                // An opaque URL has no path.
                return Some(url);
            }
            if request || rest.split('/').next().is_some_and(|segment| segment.contains(':')) {
                return None;
            }
        }
        let authority = !url.scheme.is_empty() || !request && !rest.starts_with("///");
        if let Some(after) = rest.strip_prefix("//").filter(|_| authority) {
            let (authority, path) = after.split_at(after.find('/').unwrap_or(after.len()));
            (url.user, url.host) = parse_authority(&url.scheme, authority)?;
            rest = path;
        }
        let path = Part::Path.unescape(rest)?;
        let valid = |b: u8| Part::Path.leaves(b) || b"!'()*[]%".contains(&b);
        url.escaped_path = if rest.bytes().all(valid) { rest.to_owned() } else { Part::Path.escape(&path) };
        Some(url)
    }
}

pub(super) fn is_request_uri(text: &str) -> bool {
    Url::parse(text, true).is_some()
}

pub(super) fn url(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::String(raw)] = args else { return Err(Fault::Types) };
    work.allocation(256 + 16 * raw.len())?;
    let (before, fragment) = raw.split_once('#').unwrap_or((raw, ""));
    let parse = || {
        Url::parse(raw, true)?;
        let url = Url::parse(before, false)?;
        Part::Fragment.unescape(fragment)?;
        Some(Url { fragment: fragment.to_owned(), ..url })
    };
    Ok(Value::Url(Arc::new(parse().ok_or(Fault::Refused)?)))
}

pub(super) fn is_url(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.allocation(256 + 16 * args.iter().map(Value::bytes).sum::<usize>())?;
    arguments!(args, [Value::String(text)] => Value::Bool(is_request_uri(text)))
}

fn part(work: &mut Work, args: &[Value], of: fn(&Url) -> &str) -> Result<Value, Fault> {
    let [Value::Url(url)] = args else { return Err(Fault::Types) };
    work.allocation(url.bytes())?;
    Ok(of(url).into())
}

pub(super) fn scheme(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    part(work, args, |url| &url.scheme)
}

pub(super) fn host(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    part(work, args, |url| &url.host)
}

pub(super) fn hostname(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    part(work, args, |url| {
        let host = url
            .host
            .rfind(':')
            .filter(|colon| valid_port(&url.host[*colon..]))
            .map_or(&*url.host, |colon| &url.host[..colon]);
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    })
}

pub(super) fn port(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    part(work, args, |url| {
        url.host.rfind(':').filter(|colon| valid_port(&url.host[*colon..])).map_or("", |colon| &url.host[colon + 1..])
    })
}

pub(super) fn escaped_path(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    part(work, args, |url| &url.escaped_path)
}

pub(super) fn query(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    let [Value::Url(url)] = args else { return Err(Fault::Types) };
    work.allocation(64 + 16 * url.query.len())?;
    let mut members: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for pair in url.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
        work.allocation(128)?;
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let (Some(key), Some(value)) = (Part::Query.unescape(key), Part::Query.unescape(value)) {
            members.entry(text(&key)).or_default().push(text(&value).into());
        }
    }
    let entries = members.into_iter().map(|(key, values)| (Key::String(key.into()), values.into()));
    Ok(Map::new(entries.collect()).into())
}
