//! A URL and the addresses of its host: the client connects to no address that the guard refuses.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::HeaderMap;
use reqwest::Url;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

use llmtune_core::attempt::Class;
use llmtune_webhooks::{
    delivery::failure::{Redaction, describe_error},
    subscription::{
        resolve::Plan,
        url::{self, UrlReference},
    },
    transport::{
        address::{Guard, parse_range},
        client::SendError,
        clients::{ClientError, Clients},
        resolver::{Resolve, Resolving},
    },
};

/// A resolver with a fixed answer.
struct Always(IpAddr);

impl Resolve for Always {
    fn resolve(&self, _: String) -> Resolving {
        let addresses = vec![self.0];
        Box::pin(async move { Ok(addresses) })
    }
}

/// Clients behind a guard that refuses every address, whether resolved or literal. Any connection is a failure.
struct Shut {
    clients: Clients,
    runtime: Runtime,
}

impl Shut {
    fn new() -> Self {
        let deny = ["0.0.0.0/0", "::/0"].map(|range| parse_range(range).unwrap());
        let guard = Guard::new(&[], &deny, Vec::new());
        let clients = Clients::new(Vec::new(), guard, Arc::new(Always([127, 0, 0, 1].into())), None).unwrap();
        Self { clients, runtime: Builder::new_current_thread().enable_all().build().unwrap() }
    }

    fn send(&self, url: &str) {
        let Some(read) = read(url) else { return };
        let limit = Duration::from_secs(5);
        let sent =
            self.runtime.block_on(self.clients.post(&"ns".into(), &read, None, HeaderMap::new(), "{}".into(), limit));
        let Err(error) = sent else { panic!("{url:?} was sent to") };
        if let ClientError::Http(SendError::Url) = error {
            return;
        }
        let (class, text) = describe_error(&error, limit, Redaction::None);
        // TLS rejects such a name, so it is never resolved.
        let nameless = class == Class::Connect && text.ends_with("invalid dns name");
        assert!(class == Class::Address || nameless, "{url:?}: {text}");
        assert!(text.chars().count() <= 256, "{text}");
        let (_, secret) = describe_error(&error, limit, Redaction::Url);
        assert!(URL_SECRET_ERRORS.contains(&secret.as_str()), "{secret}");
    }
}

/// All error texts about a URL in a Secret. They do not depend on the URL.
const URL_SECRET_ERRORS: [&str; 2] = [
    "address refused: the operator does not send to the host of the URL that spec.urlFrom names: use another, or have the platform team allow its range with --allow-cidr",
    "cannot connect to the host and port of the URL that spec.urlFrom names: invalid dns name",
];

/// Reads the URL as in a spec. Returns `None` if it is rejected.
fn read(url: &str) -> Option<Url> {
    let spec = json!({"url": url, "events": ["*"]});
    let plan = Plan::read(&serde_json::from_value(spec).unwrap(), "ns", false).dispatch.ok()?;
    let UrlReference::Given(url) = plan.references.url else { unreachable!("no other is named") };
    Some(url)
}

thread_local! {
    static SHUT: Shut = Shut::new();
}

/// Asserts that a URL in a Secret is either rejected or read like one in a spec.
fn admit(url: &str) {
    let Ok(admitted) = url::admit(url, false) else { return };
    assert_eq!(read(url).as_ref(), Some(&admitted), "{url:?}");
    let bare = admitted.username().is_empty() && admitted.password().is_none() && admitted.fragment().is_none();
    assert!(bare && admitted.host_str().is_some_and(|host| host.len() <= 253), "{url:?}");
}

/// A URL or its host: however it is written, a guard that refuses everything prevents every connection.
pub fn address(url: &[u8]) {
    let Ok(url) = str::from_utf8(url) else { return };
    admit(url);
    SHUT.with(|shut| {
        shut.send(url);
        shut.send(&format!("http://{url}:8080/hook"));
    });
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::seeds;

    /// An IPv4 address in any form that the URL standard accepts.
    fn spelled_v4(address: Ipv4Addr) -> impl Strategy<Value = String> {
        let [a, b, c, d] = address.octets().map(u64::from);
        let parts = prop::sample::select(vec![
            vec![a, b, c, d],
            vec![a, b, c << 8 | d],
            vec![a, b << 16 | c << 8 | d],
            vec![a << 24 | b << 16 | c << 8 | d],
        ]);
        let radix = prop::collection::vec((0..4_usize, 0..3_usize), 4);
        let dressed = prop::collection::vec(0..6_usize, 64);
        (parts, radix, dressed, any::<bool>()).prop_map(|(parts, radix, dressed, dot)| {
            let parts = parts.iter().zip(radix).map(|(part, (radix, zeros))| {
                let zeros = "0".repeat(zeros);
                match radix {
                    0 => format!("0x{zeros}{part:x}"),
                    1 => format!("0X{zeros}{part:X}"),
                    2 => format!("0{zeros}{part:o}"),
                    _ => part.to_string(),
                }
            });
            let text = parts.collect::<Vec<_>>().join(".") + if dot { "." } else { "" };
            text.chars().zip(dressed.into_iter().cycle()).map(|(sign, dress)| dress_up(sign, dress)).collect()
        })
    }

    /// Replaces the character by another one that is normalized to it.
    fn dress_up(sign: char, dress: usize) -> String {
        let wide = |from: char, to: u32| char::from_u32(to + (sign as u32 - from as u32)).unwrap().to_string();
        match (sign, dress) {
            ('0'..='9', 0) => wide('0', 0xff10),
            ('0'..='9', 1) => wide('0', 0x1d7ce),
            ('a'..='f' | 'x', 0) => wide('a', 0xff41),
            ('.', 0) => "。".to_owned(),
            ('.', 1) => "．".to_owned(),
            (sign, 2) => format!("%{:02x}", sign as u32),
            (sign, 3) => format!("{sign}\u{ad}"),
            (sign, _) => sign.to_string(),
        }
    }

    fn spelled_v6(address: Ipv6Addr) -> impl Strategy<Value = String> {
        let [.., g, h] = address.segments();
        let groups: Vec<String> = address.segments().iter().map(|group| format!("{group:04X}")).collect();
        let dotted = format!("{}:{}.{}.{}.{}", groups[..6].join(":"), g >> 8, g & 255, h >> 8, h & 255);
        prop::sample::select(vec![format!("[{address}]"), format!("[{}]", groups.join(":")), format!("[{dotted}]")])
    }

    fn spelled() -> impl Strategy<Value = (IpAddr, String)> {
        let v4 = prop_oneof![
            any::<u32>().prop_map(Ipv4Addr::from_bits),
            any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(0x7f00_0000 | bits >> 8)),
            any::<u16>().prop_map(|bits| Ipv4Addr::from_bits(0xa9fe_0000 | u32::from(bits))),
        ];
        let v4 = v4.prop_flat_map(|address| spelled_v4(address).prop_map(move |text| (IpAddr::from(address), text)));
        let v6 = prop_oneof![
            any::<u128>().prop_map(Ipv6Addr::from_bits),
            any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).to_ipv6_mapped()),
            Just(Ipv6Addr::LOCALHOST),
        ];
        let v6 = v6.prop_flat_map(|address| spelled_v6(address).prop_map(move |text| (IpAddr::from(address), text)));
        prop_oneof![2 => v4, 1 => v6]
    }

    proptest! {
        #![proptest_config(seeds::cases(3000))]

        #[test]
        fn spelling_does_not_change_whether_an_address_is_refused((address, text) in spelled()) {
            let guard = || Guard::new(&[], &[], Vec::new());
            thread_local! {
                static OPEN: Clients = Clients::new(Vec::new(), Guard::new(&[], &[], Vec::new()), Arc::new(Always([127, 0, 0, 1].into())), None).unwrap();
            }
            let Some(url) = read(&format!("http://{text}/hook")) else { panic!("{text} is no host") };
            let allowed = OPEN.with(|clients| clients.client(&url, None).is_ok());
            prop_assert_eq!(allowed, guard().check(address, 80).is_ok(), "{} is {}", text, address);
        }
    }

    proptest! {
        #![proptest_config(seeds::cases(1500))]

        #[test]
        fn arbitrary_hosts_are_never_connected_to_if_refused(
            host in prop_oneof![spelled().prop_map(|(_, text)| text), "\\PC{1,20}", "[0-9a-fx.:%\\[\\]]{1,24}"],
        ) {
            address(host.as_bytes());
        }

        #[test]
        fn nor_is_anything_that_is_written_as_a_url(url in seeds::mutated("address")) {
            address(&url);
        }
    }
}
