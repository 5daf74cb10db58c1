//! Decides which addresses may be connected to. Pure: rules for address ranges, of which the one with the longest
//! prefix decides.
//!
//! An IPv6 address that contains an IPv4 address, for translation or tunneling, must be allowed itself, and so must the
//! contained address. Addresses without a rule are allowed: receivers are in private ranges as well as in public ones.

use std::{
    cmp::Reverse,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The number of characters of a host that a refusal shows: a status has 256, and the rule matters more.
const SHOWN_HOST: usize = 80;

/// The well-known prefix of NAT64 (RFC 6052). The contained IPv4 address decides.
const NAT64: Rule = open(v6([0x64, 0xff9b], 96), "NAT64");

/// The default rules: IANA's registries of special-purpose addresses (RFC 6890), and the addresses of cloud metadata
/// and credentials. `docs/security.md` has the reasons.
const BUILT_IN: [Rule; 48] = [
    refuse(v4([0, 0, 0, 0], 8), "unspecified"),
    refuse(v4([100, 100, 100, 200], 32), "cloud metadata"),
    refuse(v4([127, 0, 0, 0], 8), "loopback"),
    refuse(v4([168, 63, 129, 16], 32), "cloud metadata"),
    refuse(v4([169, 254, 0, 0], 16), "link-local and cloud metadata"),
    refuse(v4([192, 0, 0, 0], 24), "protocol assignments"),
    refuse(v4([192, 0, 2, 0], 24), "documentation"),
    refuse(v4([192, 88, 99, 0], 24), "6to4 relays"),
    refuse(v4([198, 18, 0, 0], 15), "benchmarking"),
    refuse(v4([198, 51, 100, 0], 24), "documentation"),
    refuse(v4([203, 0, 113, 0], 24), "documentation"),
    refuse(v4([224, 0, 0, 0], 4), "multicast"),
    refuse(v4([240, 0, 0, 0], 4), "reserved"),
    refuse(v4([255, 255, 255, 255], 32), "broadcast"),
    refuse(v6([0], 8), "reserved"),
    refuse(v6([0], 96), "IPv4-compatible"),
    refuse(v6([0], 128), "unspecified"),
    refuse(v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback"),
    refuse(v6([0, 0, 0, 0, 0xffff], 96), "IPv4-translated"),
    NAT64,
    refuse(v6([0x64, 0xff9b, 1], 48), "local NAT64"),
    refuse(v6([0x100], 8), "reserved"),
    refuse(v6([0x100], 64), "discard"),
    refuse(v6([0x200], 7), "reserved"),
    refuse(v6([0x400], 6), "reserved"),
    refuse(v6([0x800], 5), "reserved"),
    refuse(v6([0x1000], 4), "reserved"),
    refuse(v6([0x2001], 23), "protocol assignments"),
    refuse(v6([0x2001, 0], 32), "Teredo"),
    refuse(v6([0x2001, 2], 48), "benchmarking"),
    refuse(v6([0x2001, 0xdb8], 32), "documentation"),
    refuse(v6([0x2002], 16), "6to4"),
    refuse(v6([0x3fff], 20), "documentation"),
    refuse(v6([0x4000], 3), "reserved"),
    refuse(v6([0x6000], 3), "reserved"),
    refuse(v6([0x8000], 3), "reserved"),
    refuse(v6([0xa000], 3), "reserved"),
    refuse(v6([0xc000], 3), "reserved"),
    refuse(v6([0xe000], 4), "reserved"),
    refuse(v6([0xf000], 5), "reserved"),
    refuse(v6([0xf800], 6), "reserved"),
    refuse(v6([0xfd00, 0xec2], 32), "cloud metadata"),
    refuse(v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128), "cloud metadata"),
    refuse(v6([0xfe00], 9), "reserved"),
    refuse(v6([0xfe80], 10), "link-local and cloud metadata"),
    refuse(v6([0xfec0], 10), "site-local"),
    refuse(v6([0xff00], 8), "multicast"),
    refuse(v6([0xff02], 16), "multicast"),
];

#[derive(Clone, Copy, Debug)]
struct Rule {
    range: IpNet,
    open: bool,
    /// What the range is for; `None` for a user's rule.
    what: Option<&'static str>,
}

const fn v4(address: [u8; 4], length: u8) -> IpNet {
    let [a, b, c, d] = address;
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6<const N: usize>(head: [u16; N], length: u8) -> IpNet {
    let mut bits = 0;
    let mut at = 0;
    while at < N {
        bits |= (head[at] as u128) << (112 - 16 * at);
        at += 1;
    }
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), length))
}

const fn refuse(range: IpNet, what: &'static str) -> Rule {
    Rule { range, open: false, what: Some(what) }
}

const fn open(range: IpNet, what: &'static str) -> Rule {
    Rule { range, open: true, what: Some(what) }
}

/// The rules of an operator.
#[derive(Debug)]
pub struct Guard {
    /// In the order in which they are checked.
    rules: Vec<Rule>,
    apiserver: Vec<SocketAddr>,
}

/// Why an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is in a range that is refused unless the platform team allows it.
    BuiltIn(IpNet, &'static str),
    /// It is in a range of `--deny-cidr`.
    Denied(IpNet),
    /// It is the address and port of the kube-apiserver.
    Apiserver,
}

/// A host that may not be connected to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address refused: {host} {refusal}")]
pub struct Refused {
    host: String,
    /// The rule.
    pub refusal: Refusal,
}

impl Refused {
    /// Creates the error for a host, or for the first refused address of a host with several. Of a long host, the end
    /// is shown.
    #[must_use]
    pub fn new(host: &str, refusal: Refusal) -> Self {
        let host = match host.char_indices().rev().nth(SHOWN_HOST - 1) {
            Some((at, _)) if at > 0 => format!("…{}", &host[at..]),
            _ => host.to_owned(),
        };
        Self { host, refusal }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(range, what) => {
                write!(f, "is in {range} ({what}): use another host, or have the platform team set --allow-cidr")
            }
            Self::Denied(range) => {
                write!(
                    f,
                    "is in {range}, which --deny-cidr denies: use another host, or have the platform team change the flag"
                )
            }
            Self::Apiserver => {
                write!(f, "is the address and port of the kube-apiserver, which is always denied: use another")
            }
        }
    }
}

impl Guard {
    /// Combines the built-in rules and the user's. The longest prefix decides. For equal lengths, the user's rules come
    /// before built-in ones, and denials before allowances. No rule allows the addresses of the `apiserver`, each with
    /// its port.
    #[must_use]
    pub fn new(allow: &[IpNet], deny: &[IpNet], apiserver: Vec<SocketAddr>) -> Self {
        let user = |open| move |range: &IpNet| Rule { range: *range, open, what: None };
        let mut rules: Vec<Rule> = deny.iter().map(user(false)).chain(allow.iter().map(user(true))).collect();
        rules.extend(BUILT_IN);
        // A stable sort keeps the order above for equal lengths.
        rules.sort_by_key(|rule| Reverse(rule.range.prefix_len()));
        let apiserver = apiserver.into_iter().map(|at| SocketAddr::new(at.ip().to_canonical(), at.port())).collect();
        Self { rules, apiserver }
    }

    /// Creates a guard that refuses nothing.
    #[must_use]
    pub const fn open() -> Self {
        Self { rules: Vec::new(), apiserver: Vec::new() }
    }

    /// Checks whether a connection may go to this address and port.
    pub fn check(&self, address: IpAddr, port: u16) -> Result<(), Refusal> {
        // The kernel connects an IPv4-mapped address to the IPv4 address itself.
        let address = address.to_canonical();
        self.judge(address, port)?;
        let IpAddr::V6(address) = address else { return Ok(()) };
        carried(address).try_for_each(|inside| self.judge(inside.into(), port))
    }

    fn judge(&self, address: IpAddr, port: u16) -> Result<(), Refusal> {
        if self.apiserver.contains(&SocketAddr::new(address, port)) {
            return Err(Refusal::Apiserver);
        }
        match self.rules.iter().find(|rule| rule.range.contains(&address)) {
            Some(Rule { open: false, range, what: Some(what) }) => Err(Refusal::BuiltIn(*range, what)),
            Some(Rule { open: false, range, what: None }) => Err(Refusal::Denied(*range)),
            _ => Ok(()),
        }
    }
}

/// Returns the IPv4 addresses that an IPv6 address may lead to.
fn carried(address: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let bits = address.to_bits();
    let segments = address.segments();
    // The IPv4 address that ends this many bits before the end.
    let before_end = |distance: u32| Ipv4Addr::from_bits((bits >> distance) as u32);
    // RFC 6052, 2.2: around bits 64 to 71, which are zero.
    let around = |first: u32| {
        let (head, tail) = (bits >> 64, (bits << 72) >> 72);
        let second = 32 - first;
        Ipv4Addr::from_bits(((head << second) | (tail >> (56 - second))) as u32)
    };
    let last = before_end(0);
    // Neither unspecified nor loopback (RFC 4291, 2.5.5.1).
    let compatible = bits >> 32 == 0 && bits > 1;
    let translated = segments[..6] == [0, 0, 0, 0, 0xffff, 0];
    let nat64 = segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
    let isatap = segments[4] & !0x200 == 0 && segments[5] == 0x5efe;
    let local_nat64 = segments[..3] == [0x64, 0xff9b, 1];
    let (teredo, six_to_four) = (segments[..2] == [0x2001, 0], segments[0] == 0x2002);
    let at_end = (compatible || translated || nat64 || isatap).then_some(last);
    // Teredo contains the client's address in complement, and the server's unchanged (RFC 4380, 4).
    let [server, client] =
        [before_end(64), Ipv4Addr::from_bits(!last.to_bits())].map(|inside| teredo.then_some(inside));
    let six_to_four = six_to_four.then(|| before_end(80));
    // The length of a network-specific prefix is unknown. A position that contains zeros is not the position of an
    // address.
    let local = [around(16), around(8), around(0), last]
        .map(|inside| (local_nat64 && inside.octets()[0] != 0).then_some(inside));
    [at_end, server, client, six_to_four].into_iter().chain(local).flatten()
}

/// Parses an address range in CIDR notation. The error says what to write instead.
pub fn parse_range(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        let address = address.to_canonical();
        return Err(format!("for this single address, use {}", IpNet::from(address)));
    }
    let range: IpNet = text.parse().map_err(|_| "use an address range, such as 10.0.0.0/8 or fd00::/8".to_owned())?;
    if range.addr() != range.network() {
        return Err(format!("the bits after the prefix must be zero: use {}", range.trunc()));
    }
    if let IpNet::V6(inner) = range
        && let Some(address) = inner.addr().to_ipv4_mapped()
    {
        return match Ipv4Net::new(address, inner.prefix_len().saturating_sub(96)) {
            Ok(range) if inner.prefix_len() >= 96 => Err(format!("use the IPv4 form: {range}")),
            _ => Err("use the IPv4 form, as in 10.0.0.0/8".to_owned()),
        };
    }
    Ok(range)
}

#[cfg(test)]
mod tests;
