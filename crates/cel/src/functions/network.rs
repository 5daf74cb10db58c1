//! IP addresses and CIDRs, as in Go's `net/netip`.

use std::fmt;
use std::net::IpAddr;

use super::{Work, arguments};
use crate::value::Value;
use crate::work::Fault;

/// Cost of parsing an address.
const PARSE_STEPS: u64 = 4;

/// An address and its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    address: IpAddr,
    bits: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Cidr {
    fn parse(text: &str) -> Option<Self> {
        let (address, length) = text.rsplit_once('/')?;
        let address = parse(address)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let plain = length == "0" || !length.starts_with(['0', '+']);
        let bits = length.parse().ok().filter(|bits| plain && *bits <= most)?;
        Some(Self { address, bits })
    }

    fn masked(self) -> Self {
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                IpAddr::from((u32::from(address) & mask).to_be_bytes())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                IpAddr::from((u128::from(address) & mask).to_be_bytes())
            }
        };
        Self { address, ..self }
    }

    fn contains(self, address: IpAddr) -> bool {
        self.masked().address == Self { address, ..self }.masked().address
            && self.address.is_ipv4() == address.is_ipv4()
    }
}

/// Parses an address. Zones and IPv4-mapped IPv6 addresses are invalid.
fn parse(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    match address {
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => None,
        address => Some(address),
    }
}

pub(super) fn ip(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.steps(PARSE_STEPS)?;
    arguments!(args,
        [Value::String(text)] => Value::Ip(parse(text).ok_or(Fault::Refused)?),
        [Value::Cidr(cidr)] => Value::Ip(cidr.address),
    )
}

pub(super) fn is_ip(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.steps(PARSE_STEPS)?;
    arguments!(args, [Value::String(text)] => Value::Bool(parse(text).is_some()))
}

pub(super) fn is_canonical(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.steps(2 * PARSE_STEPS)?;
    arguments!(args, [Value::String(text)] => Value::Bool(parse(text).ok_or(Fault::Refused)?.to_string() == **text))
}

pub(super) fn family(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [Value::Ip(address)] => Value::Int(if address.is_ipv4() { 4 } else { 6 }))
}

fn is(args: &[Value], of: fn(IpAddr) -> bool) -> Result<Value, Fault> {
    arguments!(args, [Value::Ip(address)] => Value::Bool(of(*address)))
}

pub(super) fn is_unspecified(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    is(args, |address| address.is_unspecified())
}

pub(super) fn is_loopback(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    is(args, |address| address.is_loopback())
}

pub(super) fn is_link_local_multicast(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    is(args, |address| match address {
        IpAddr::V4(address) => address.octets()[..3] == [224, 0, 0],
        IpAddr::V6(address) => address.segments()[0] & 0xff0f == 0xff02,
    })
}

fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

pub(super) fn is_link_local_unicast(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    is(args, link_local)
}

pub(super) fn is_global_unicast(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    is(args, |address| {
        let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
        !(broadcast
            || address.is_unspecified()
            || address.is_loopback()
            || address.is_multicast()
            || link_local(address))
    })
}

pub(super) fn cidr(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.steps(PARSE_STEPS)?;
    arguments!(args, [Value::String(text)] => Value::Cidr(Cidr::parse(text).ok_or(Fault::Refused)?))
}

pub(super) fn is_cidr(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.steps(PARSE_STEPS)?;
    arguments!(args, [Value::String(text)] => Value::Bool(Cidr::parse(text).is_some()))
}

pub(super) fn contains_ip(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.steps(PARSE_STEPS)?;
    arguments!(args,
        [Value::Cidr(cidr), Value::Ip(address)] => Value::Bool(cidr.contains(*address)),
        [Value::Cidr(cidr), Value::String(text)] => Value::Bool(cidr.contains(parse(text).ok_or(Fault::Refused)?)),
    )
}

pub(super) fn contains_cidr(work: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    work.steps(PARSE_STEPS)?;
    let (outer, inner) = match args {
        [Value::Cidr(outer), Value::Cidr(inner)] => (outer, *inner),
        [Value::Cidr(outer), Value::String(text)] => (outer, Cidr::parse(text).ok_or(Fault::Refused)?),
        _ => return Err(Fault::Types),
    };
    Ok(Value::Bool(outer.bits <= inner.bits && outer.contains(inner.address)))
}

pub(super) fn prefix_length(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [Value::Cidr(cidr)] => Value::Int(cidr.bits.into()))
}

pub(super) fn masked(_: &mut Work, args: &[Value]) -> Result<Value, Fault> {
    arguments!(args, [Value::Cidr(cidr)] => Value::Cidr(cidr.masked()))
}
