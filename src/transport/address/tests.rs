use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    subscription::resolve::Plan,
    transport::{
        clients::{ClientError, Clients},
        resolver::Dns,
    },
};

/// The result of a URL.
#[derive(Debug, PartialEq)]
enum Becomes {
    /// A refused address.
    Refused(&'static str),
    /// An allowed address.
    Address(&'static str),
    /// A name, whose addresses are checked after it is resolved.
    Name(&'static str),
    /// Not a URL.
    Nothing,
}

use Becomes::{Address, Name, Nothing, Refused};

const METADATA: &str = "link-local and cloud metadata";
const CLOUD: &str = "cloud metadata";

/// Hosts in many spellings.
const HOSTS: [(&str, Becomes); 147] = [
    ("127.0.0.1", Refused("loopback")),
    ("127.0.0.1.", Refused("loopback")),
    ("127.0.0.1..", Name("127.0.0.1..")),
    (".127.0.0.1", Nothing),
    ("127.0.0.2", Refused("loopback")),
    ("127.255.255.254", Refused("loopback")),
    ("127.1", Refused("loopback")),
    ("127.0.1", Refused("loopback")),
    ("127.", Refused("unspecified")),
    ("127.1.", Refused("loopback")),
    ("0177.0.0.1", Refused("loopback")),
    ("0177.0.0.01", Refused("loopback")),
    ("00177.00.00.01", Refused("loopback")),
    ("00000000000000000000177.1", Refused("loopback")),
    ("0x7f.0.0.1", Refused("loopback")),
    ("0X7F.0.0.1", Refused("loopback")),
    ("0x7f.1", Refused("loopback")),
    ("0x7f.0x0.0x0.0x1", Refused("loopback")),
    ("0x0000007f.0.0.1", Refused("loopback")),
    ("0x7f000001", Refused("loopback")),
    ("0x7F000001", Refused("loopback")),
    ("0x7f000001.", Refused("loopback")),
    ("0x7.f.0.1", Nothing),
    ("2130706433", Refused("loopback")),
    ("02130706433", Address("17.99.141.27")),
    ("017700000001", Refused("loopback")),
    ("0o177.0.0.1", Nothing),
    ("127.0x1", Refused("loopback")),
    ("127.0.0.0x1", Refused("loopback")),
    ("127.00.0.0x01", Refused("loopback")),
    ("127.16777215", Refused("loopback")),
    ("127.16777216", Nothing),
    ("127.0.0.256", Nothing),
    ("127.0.0.1.1", Nothing),
    ("256.0.0.1", Nothing),
    ("4294967296", Nothing),
    ("4294967295", Refused("broadcast")),
    ("6425673729", Nothing),
    ("127。0。0。1", Refused("loopback")),
    ("127．0．0．1", Refused("loopback")),
    ("127｡0｡0｡1", Refused("loopback")),
    ("１２７.0.0.1", Refused("loopback")),
    ("①②⑦.⓪.⓪.①", Refused("loopback")),
    ("𝟏𝟐𝟕.𝟎.𝟎.𝟏", Refused("loopback")),
    ("𝟙𝟚𝟟.0.0.𝟙", Refused("loopback")),
    ("¹²⁷.⁰.⁰.¹", Refused("loopback")),
    ("₁₂₇.₀.₀.₁", Refused("loopback")),
    ("0ｘ7ｆ.1", Refused("loopback")),
    ("１６９。２５４。１６９。２５４", Refused(METADATA)),
    ("١٢٧.0.0.1", Nothing),
    ("127.0.0.1\u{ad}", Refused("loopback")),
    ("127.0\u{200b}.0.1", Refused("loopback")),
    ("1\u{feff}27.0.0.1", Refused("loopback")),
    ("%31%32%37.0.0.1", Refused("loopback")),
    ("127%2e0%2e0%2e1", Refused("loopback")),
    ("%30x7f.1", Refused("loopback")),
    ("%5B::1%5D", Nothing),
    ("127.0.0.1%00", Nothing),
    ("127.0.0.1%20", Nothing),
    ("127.0.0.1%0d%0a", Nothing),
    ("%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1", Refused("loopback")),
    ("127.0.0\t.1", Refused("loopback")),
    ("127.0.\n0.1", Refused("loopback")),
    ("127.0.0 .1", Nothing),
    ("0", Refused("unspecified")),
    ("0.", Refused("unspecified")),
    ("0.0.0.0", Refused("unspecified")),
    ("0x0", Refused("unspecified")),
    ("0x", Refused("unspecified")),
    ("00", Refused("unspecified")),
    ("0.1.2.3", Refused("unspecified")),
    ("1", Refused("unspecified")),
    ("169.254.169.254", Refused(METADATA)),
    ("169.254.43518", Refused(METADATA)),
    ("169.16689662", Refused(METADATA)),
    ("2852039166", Refused(METADATA)),
    ("0xa9fea9fe", Refused(METADATA)),
    ("0xa9.0xfe.0xa9.0xfe", Refused(METADATA)),
    ("0251.0376.0251.0376", Refused(METADATA)),
    ("025177524776", Refused(METADATA)),
    ("169.254.170.2", Refused(METADATA)),
    ("100.100.100.200", Refused(CLOUD)),
    ("168.63.129.16", Refused(CLOUD)),
    ("224.0.0.1", Refused("multicast")),
    ("239.255.255.250", Refused("multicast")),
    ("240.0.0.1", Refused("reserved")),
    ("255.255.255.255", Refused("broadcast")),
    ("192.0.0.192", Refused("protocol assignments")),
    ("192.0.2.1", Refused("documentation")),
    ("198.51.100.7", Refused("documentation")),
    ("203.0.113.9", Refused("documentation")),
    ("198.18.0.1", Refused("benchmarking")),
    ("198.19.255.255", Refused("benchmarking")),
    ("192.88.99.1", Refused("6to4 relays")),
    ("10.0.0.1", Address("10.0.0.1")),
    ("012.0.0.1", Address("10.0.0.1")),
    ("172.16.0.1", Address("172.16.0.1")),
    ("192.168.1.1", Address("192.168.1.1")),
    ("100.64.0.1", Address("100.64.0.1")),
    ("8.8.8.8", Address("8.8.8.8")),
    ("126.255.255.255", Address("126.255.255.255")),
    ("128.0.0.1", Address("128.0.0.1")),
    ("[::1]", Refused("loopback")),
    ("[0:0:0:0:0:0:0:1]", Refused("loopback")),
    ("[0000:0000:0000:0000:0000:0000:0000:0001]", Refused("loopback")),
    ("[::0.0.0.1]", Refused("loopback")),
    ("[::]", Refused("unspecified")),
    ("[::127.0.0.1]", Refused("IPv4-compatible")),
    ("[::7f00:1]", Refused("IPv4-compatible")),
    ("[::10.0.0.1]", Refused("IPv4-compatible")),
    ("[::ffff:127.0.0.1]", Refused("loopback")),
    ("[::FFFF:7F00:1]", Refused("loopback")),
    ("[0:0:0:0:0:ffff:127.0.0.1]", Refused("loopback")),
    ("[::ffff:169.254.169.254]", Refused(METADATA)),
    ("[::ffff:a9fe:a9fe]", Refused(METADATA)),
    ("[::ffff:0.0.0.0]", Refused("unspecified")),
    ("[::ffff:10.0.0.1]", Address("::ffff:10.0.0.1")),
    ("[::ffff:0:127.0.0.1]", Refused("IPv4-translated")),
    ("[64:ff9b::127.0.0.1]", Refused("loopback")),
    ("[64:ff9b::a9fe:a9fe]", Refused(METADATA)),
    ("[64:ff9b::8.8.8.8]", Address("64:ff9b::8.8.8.8")),
    ("[64:ff9b:1::169.254.169.254]", Refused("local NAT64")),
    ("[2002:7f00:1::]", Refused("6to4")),
    ("[2002:a9fe:a9fe::1]", Refused("6to4")),
    ("[2001:0:1:1:1:1:80ff:fffe]", Refused("Teredo")),
    ("[2001:4860::5efe:169.254.169.254]", Refused(METADATA)),
    ("[fd00::200:5efe:7f00:1]", Refused("loopback")),
    ("[fd00::200:5efe:10.0.0.1]", Address("fd00::200:5efe:10.0.0.1")),
    ("[fe80::1]", Refused(METADATA)),
    ("[fe80::a9fe:a9fe]", Refused(METADATA)),
    ("[FEBF::1]", Refused(METADATA)),
    ("[fe80::1%25eth0]", Nothing),
    ("[fe80::1%eth0]", Nothing),
    ("[::1%251]", Nothing),
    ("[fec0::1]", Refused("site-local")),
    ("[ff02::1]", Refused("multicast")),
    ("[fd00:ec2::254]", Refused(CLOUD)),
    ("[fd20:ce::254]", Refused(CLOUD)),
    ("[2001:db8::1]", Refused("documentation")),
    ("[100::1]", Refused("discard")),
    ("[4000::1]", Refused("reserved")),
    ("[fd12:3456::1]", Address("fd12:3456::1")),
    ("[2606:4700::1111]", Address("2606:4700::1111")),
    ("[::1", Nothing),
    ("::1", Nothing),
    ("[127.0.0.1]", Nothing),
    ("[::1].example.com", Nothing),
];

/// Whole URLs, with text around the host.
const URLS: [(&str, Becomes); 31] = [
    ("HTTP://127.0.0.1/", Refused("loopback")),
    ("hTTps://127.0.0.1", Refused("loopback")),
    ("http:127.0.0.1/", Refused("loopback")),
    ("http:/127.0.0.1/", Refused("loopback")),
    ("http:///127.0.0.1/", Refused("loopback")),
    ("http:\\\\127.0.0.1\\hook", Refused("loopback")),
    ("\t http://127.0.0.1/", Refused("loopback")),
    ("http://127.0.0.1:80/", Refused("loopback")),
    ("http://127.0.0.1:/", Refused("loopback")),
    ("http://127.0.0.1:00080/", Refused("loopback")),
    ("http://127.0.0.1:65536/", Nothing),
    ("http://127.0.0.1:-1/", Nothing),
    ("http://[::1]:8080/", Refused("loopback")),
    ("http://example.com@127.0.0.1/", Refused("loopback")),
    ("http://example.com:80@127.0.0.1/", Refused("loopback")),
    ("http://example.com%40127.0.0.1/", Nothing),
    ("http://a@b@127.0.0.1/", Refused("loopback")),
    ("http://127.0.0.1@example.com/", Name("example.com")),
    ("http://127.0.0.1#@example.com/", Refused("loopback")),
    ("http://127.0.0.1\\@example.com/", Refused("loopback")),
    ("http://127.0.0.1?@example.com/", Refused("loopback")),
    ("http://example.com/@127.0.0.1/", Name("example.com")),
    ("http://example.com?http://127.0.0.1/", Name("example.com")),
    ("//127.0.0.1/", Nothing),
    ("127.0.0.1", Nothing),
    ("http://", Nothing),
    ("file:///etc/passwd", Nothing),
    ("gopher://127.0.0.1/", Nothing),
    ("http://LOCALHOST/", Name("localhost")),
    ("http://ⓛocalhost./", Name("localhost.")),
    ("http://127.0.0.1.nip.io/", Name("127.0.0.1.nip.io")),
];

fn clients(guard: Guard) -> Clients {
    Clients::new(Vec::new(), guard, Arc::new(Dns::system()), None).unwrap()
}

/// Parses a URL like a Webhook's, and requests the client for it.
fn becomes(clients: &Clients, url: &str) -> Becomes {
    let spec = json!({"url": url, "events": ["*"]});
    let Ok(plan) = Plan::read(&serde_json::from_value(spec).unwrap(), "ns", false).dispatch else { return Nothing };
    let url = plan.references.url.given().unwrap();
    let host = url.host_str().unwrap().to_owned();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    match (clients.client(url, None), address) {
        (Err(ClientError::Refused(refused)), Ok(_)) => match refused.refusal {
            Refusal::BuiltIn(_, what) => Refused(what),
            other => panic!("{other}"),
        },
        (Ok(_), Ok(address)) => Address(address.to_string().leak()),
        (Ok(_), Err(_)) => Name(host.leak()),
        (Err(error), _) => panic!("{error}"),
    }
}

#[test]
fn addresses_are_recognized_in_every_spelling() {
    let clients = clients(Guard::new(&[], &[], Vec::new()));
    let hosts = HOSTS.iter().map(|(host, expected)| (format!("http://{host}/hook"), expected));
    let urls = URLS.iter().map(|(url, expected)| ((*url).to_owned(), expected));
    let mut wrong = Vec::new();
    let mut count = 0;
    for (url, expected) in hosts.chain(urls) {
        let became = becomes(&clients, &url);
        let same = match (&became, expected) {
            (Address(became), Address(expected)) => {
                became.parse::<IpAddr>().unwrap() == expected.parse::<IpAddr>().unwrap()
            }
            (became, expected) => became == expected,
        };
        if !same {
            wrong.push(format!("{url:?} becomes {became:?}, not {expected:?}"));
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{count} spellings");
    assert!(count >= 120);
}

fn range(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn longest_prefix_then_user_rule_then_denial_decides() {
    let guard = |allow: &[&str], deny: &[&str]| {
        let ranges = |texts: &[&str]| texts.iter().map(|text| range(text)).collect::<Vec<_>>();
        Guard::new(&ranges(allow), &ranges(deny), Vec::new())
    };
    let allows = |guard: &Guard, address: &str| guard.check(ip(address), 443).is_ok();
    let wide = guard(&["0.0.0.0/0", "::/0"], &[]);
    assert!(!allows(&wide, "127.0.0.1") && !allows(&wide, "::1"), "a built-in rule is longer");
    let loopback = guard(&["127.0.0.0/8"], &[]);
    assert!(allows(&loopback, "127.0.0.1") && allows(&loopback, "::ffff:127.0.0.1") && !allows(&loopback, "::1"));
    let both = guard(&["10.0.0.0/8"], &["10.0.0.0/8"]);
    assert_eq!(both.check(ip("10.1.2.3"), 443), Err(Refusal::Denied(range("10.0.0.0/8"))));
    let nested = guard(&["10.1.0.0/16"], &["10.0.0.0/8", "10.1.2.0/24"]);
    assert!(allows(&nested, "10.1.3.1") && !allows(&nested, "10.1.2.1") && !allows(&nested, "10.2.0.1"));
    let closed = guard(&["10.1.0.0/16"], &["0.0.0.0/0", "::/0"]);
    assert!(allows(&closed, "10.1.0.1") && !allows(&closed, "8.8.8.8") && !allows(&closed, "fd00::1"));
    assert!(allows(&closed, "64:ff9b::10.1.0.1") && !allows(&closed, "64:ff9b::8.8.8.8"), "as the address inside");
}

#[test]
fn no_rule_allows_the_apiservers_address_and_port() {
    let apiserver = vec!["[::ffff:10.96.0.1]:443".parse().unwrap(), "[fd00::1]:6443".parse().unwrap()];
    let guard = Guard::new(&[range("10.96.0.1/32"), range("fd00::1/128")], &[], apiserver);
    for (address, port, refused) in [
        ("10.96.0.1", 443, true),
        ("::ffff:10.96.0.1", 443, true),
        ("64:ff9b::10.96.0.1", 443, true),
        ("10.96.0.1", 6443, false),
        ("10.96.0.2", 443, false),
        ("fd00::1", 6443, true),
        ("fd00::1", 443, false),
    ] {
        let expected = if refused { Err(Refusal::Apiserver) } else { Ok(()) };
        assert_eq!(guard.check(ip(address), port), expected, "{address} {port}");
    }
}

#[test]
fn invalid_ranges_are_refused_with_advice() {
    assert_eq!(parse_range("10.0.0.0/8"), Ok(range("10.0.0.0/8")));
    assert_eq!(parse_range("fd00::/8"), Ok(range("fd00::/8")));
    for (text, says) in [
        ("", "such as 10.0.0.0/8 or fd00::/8"),
        ("ten", "such as 10.0.0.0/8"),
        ("10.0.0.0/33", "such as 10.0.0.0/8"),
        ("10.1.2.3", "use 10.1.2.3/32"),
        ("fd00::1", "use fd00::1/128"),
        ("::ffff:10.1.2.3", "use 10.1.2.3/32"),
        ("10.1.2.3/8", "use 10.0.0.0/8"),
        ("::ffff:10.0.0.0/104", "the IPv4 form: 10.0.0.0/8"),
    ] {
        let error = parse_range(text).unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn refusals_name_host_and_rule_and_fit_a_status() {
    let long = format!("{}.example.com", "a".repeat(240));
    let guard = Guard::new(&[], &[range("10.0.0.0/8")], vec!["10.96.0.1:443".parse().unwrap()]);
    let told =
        |host: &str, address: &str| super::Refused::new(host, guard.check(ip(address), 443).unwrap_err()).to_string();
    assert_eq!(
        told("metadata.example.com", "169.254.169.254"),
        "address refused: metadata.example.com is in 169.254.0.0/16 (link-local and cloud metadata): use another host, or have the platform team set --allow-cidr"
    );
    assert!(told("a.example.com", "10.1.2.3").contains("is in 10.0.0.0/8, which --deny-cidr denies"));
    assert!(told("a.example.com", "10.96.0.1").contains("the address and port of the kube-apiserver"));
    for address in ["169.254.169.254", "10.1.2.3", "10.96.0.1", "fd20:ce::254"] {
        let text = told(&long, address);
        assert!(text.chars().count() <= 256 && text.contains("a.example.com "), "{text}");
    }
}

/// Returns every IPv6 address that contains this IPv4 address.
fn embeddings(inside: Ipv4Addr, prefix: u64) -> Vec<(&'static str, Ipv6Addr)> {
    let [v4, complement] = [u128::from(inside.to_bits()), u128::from(!inside.to_bits())];
    let at = |head: u128, shift: u32| Ipv6Addr::from_bits(head | (v4 << shift));
    let nat64 = 0x64_ff9b_u128 << 96;
    let local = nat64 | (1 << 80);
    // RFC 6052, 2.2: bits 64 to 71 stay zero.
    let around = |length: u32| {
        let (spread, before) = (v4 << (96 - length), 64 - length.min(64));
        let upper = if before == 0 { 0 } else { (spread >> 64) << 64 };
        let lower = (v4 << (96 - length)) & u128::from(u64::MAX);
        Ipv6Addr::from_bits(local | upper | (lower >> 8))
    };
    let isatap = |own: u128| Ipv6Addr::from_bits((u128::from(prefix) << 64) | (own << 32) | v4);
    vec![
        ("mapped", at(0xffff << 32, 0)),
        ("compatible", at(0, 0)),
        ("translated", at(0xffff << 48, 0)),
        ("6to4", at(0x2002 << 112, 80)),
        ("NAT64", at(nat64, 0)),
        ("local NAT64 /96", at(local, 0)),
        ("local NAT64 /64", around(64)),
        ("local NAT64 /56", around(56)),
        ("local NAT64 /48", around(48)),
        ("Teredo's server", at(0x2001 << 112 | 0x0808_0808, 64)),
        ("Teredo's client", Ipv6Addr::from_bits(0x2001 << 112 | 0x0808_0808 << 64 | complement)),
        ("ISATAP", isatap(0x5efe)),
        ("ISATAP, universal", isatap(0x200_5efe)),
    ]
}

fn ranges() -> impl Strategy<Value = Vec<IpNet>> {
    let v4 = (any::<u32>(), 0_u8..=32).prop_map(|(bits, length)| IpNet::from(Ipv4Net::new_assert(bits.into(), length)));
    let v6 =
        (any::<u128>(), 0_u8..=128).prop_map(|(bits, length)| IpNet::from(Ipv6Net::new_assert(bits.into(), length)));
    let near = prop::sample::select(BUILT_IN.map(|rule| rule.range).to_vec());
    prop::collection::vec(prop_oneof![v4, v6, near].prop_map(|range| range.trunc()), 0..6)
}

fn v4_addresses() -> impl Strategy<Value = Ipv4Addr> {
    let near = prop::sample::select(BUILT_IN.map(|rule| rule.range).to_vec());
    let inside = (near, any::<u32>()).prop_filter_map("IPv4", |(range, bits)| match range {
        IpNet::V4(range) => Some(Ipv4Addr::from_bits(range.network().to_bits() | (bits & range.hostmask().to_bits()))),
        IpNet::V6(_) => None,
    });
    prop_oneof![inside, any::<u32>().prop_map(Ipv4Addr::from_bits)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn refused_ipv4_addresses_are_refused_in_every_form(
        inside in v4_addresses(), deny in ranges(), prefix in any::<u64>(),
    ) {
        // Rules as long as the built-in ones allow all of IPv6.
        let allow: Vec<IpNet> = BUILT_IN.iter().map(|rule| rule.range).filter(|range| matches!(range, IpNet::V6(_))).collect();
        let guard = Guard::new(&allow, &deny, vec!["8.8.8.8:443".parse().unwrap()]);
        prop_assume!(inside.octets()[0] != 0);
        if guard.check(inside.into(), 443).is_err() {
            for (form, address) in embeddings(inside, prefix) {
                prop_assert!(guard.check(address.into(), 443).is_err(), "{} as {}: {}", inside, form, address);
            }
        }
    }

    #[test]
    fn default_allows_only_mapped_nat64_and_isatap_forms(inside in v4_addresses()) {
        let guard = Guard::new(&[], &[], Vec::new());
        let itself = guard.check(inside.into(), 443);
        for (form, address) in embeddings(inside, 0xfd00_0000_0000_0001) {
            let verdict = guard.check(address.into(), 443);
            match form {
                "mapped" | "NAT64" | "ISATAP" | "ISATAP, universal" => prop_assert_eq!(verdict, itself, "{}", form),
                _ => prop_assert!(verdict.is_err(), "{} {}", form, address),
            }
        }
    }

    #[test]
    fn rule_with_the_longest_prefix_decides(
        allow in ranges(), deny in ranges(), v4 in v4_addresses(), v6 in any::<u128>(), pick in any::<prop::sample::Index>(),
    ) {
        let guard = Guard::new(&allow, &deny, Vec::new());
        let near = allow.iter().chain(&deny).map(IpNet::network).chain([v4.into(), Ipv6Addr::from_bits(v6).into()]);
        let near: Vec<IpAddr> = near.collect();
        let address = near[pick.index(near.len())];
        prop_assume!(address == address.to_canonical());
        if let IpAddr::V6(address) = address {
            prop_assume!(carried(address).next().is_none());
        }
        let user = |ranges: &[IpNet], open: bool| ranges.iter().map(move |range| (*range, true, open)).collect::<Vec<_>>();
        let rules = [user(&allow, true), user(&deny, false)].concat().into_iter();
        let rules = rules.chain(BUILT_IN.iter().map(|rule| (rule.range, false, rule.open)));
        let decides = rules.filter(|(range, ..)| range.contains(&address)).max_by_key(|(range, user, open)| (range.prefix_len(), *user, !open));
        prop_assert_eq!(guard.check(address, 443).is_ok(), decides.is_none_or(|(.., open)| open));
    }
}
