//! The functions of expressions: those of the apiserver's CEL environment, and `math` and `base64`.
//!
//! 1. A function charges its work before it does it.
//! 2. A function refuses arguments whose types do not match its signatures.

pub(super) mod format;
pub(super) mod formats;
mod lists;
mod math;
pub(super) mod network;
pub(super) mod numbers;
mod optionals;
pub(super) mod quantity;
mod re2;
pub(super) mod regex;
mod strings;
pub(super) mod time;
pub(super) mod url;
mod versions;

use std::collections::BTreeMap;
use std::sync::LazyLock;

pub(super) use lists::sort_by_keys;

use super::types::Signature;
use super::value::Value;
use super::work::{Fault, Work};

/// Matches the arguments of a function. Other arguments have the wrong types.
macro_rules! arguments {
    ($args:expr, $($pattern:pat $(if $guard:expr)? => $value:expr),+ $(,)?) => {
        match $args { $($pattern $(if $guard)? => Ok($value),)+ _ => Err(Fault::Types) }
    };
}
use arguments;

pub(super) type Call = fn(&mut Work, &[Value]) -> Result<Value, Fault>;

/// A function that expressions may call.
pub(super) struct Function {
    /// The name, including the namespace.
    pub name: &'static str,
    pub signatures: Vec<Signature>,
    pub call: Call,
}

/// All functions with their signatures. A receiver is before the dot.
const TABLE: &[(&str, &str, Call)] = &[
    #[cfg(test)]
    ("test.panic", "() dyn", |_, _| panic!("as a library might")),
    (
        "size",
        "(string) int | (bytes) int | (list(A)) int | (map(A, B)) int | string.() int | bytes.() int | list(A).() int | map(A, B).() int",
        lists::size,
    ),
    ("type", "(A) type", |_, args| arguments!(args, [value] => Value::Type(value.type_of()))),
    ("dyn", "(A) dyn", |_, args| arguments!(args, [value] => value.clone())),
    ("bool", "(bool) bool | (string) bool", numbers::bool),
    ("int", "(int) int | (uint) int | (double) int | (string) int | (timestamp) int | (duration) int", numbers::int),
    ("uint", "(uint) uint | (int) uint | (double) uint | (string) uint", numbers::uint),
    ("double", "(double) double | (int) double | (uint) double | (string) double", numbers::double),
    (
        "string",
        "(string) string | (bool) string | (int) string | (uint) string | (double) string | (bytes) string | (timestamp) string | (duration) string | (IP) string | (CIDR) string",
        numbers::string,
    ),
    ("bytes", "(bytes) bytes | (string) bytes", numbers::bytes),
    ("timestamp", "(timestamp) timestamp | (string) timestamp | (int) timestamp", time::timestamp),
    ("duration", "(duration) duration | (string) duration", time::duration),
    ("getFullYear", "timestamp.() int | timestamp.(string) int", time::full_year),
    ("getMonth", "timestamp.() int | timestamp.(string) int", time::month),
    ("getDayOfYear", "timestamp.() int | timestamp.(string) int", time::day_of_year),
    ("getDayOfMonth", "timestamp.() int | timestamp.(string) int", time::day_of_month),
    ("getDate", "timestamp.() int | timestamp.(string) int", time::date),
    ("getDayOfWeek", "timestamp.() int | timestamp.(string) int", time::day_of_week),
    ("getHours", "timestamp.() int | timestamp.(string) int | duration.() int", time::hours),
    ("getMinutes", "timestamp.() int | timestamp.(string) int | duration.() int", time::minutes),
    ("getSeconds", "timestamp.() int | timestamp.(string) int | duration.() int", time::seconds),
    ("getMilliseconds", "timestamp.() int | timestamp.(string) int | duration.() int", time::milliseconds),
    ("startsWith", "string.(string) bool", strings::starts_with),
    ("endsWith", "string.(string) bool", strings::ends_with),
    ("contains", "string.(string) bool", strings::contains),
    ("charAt", "string.(int) string", strings::char_at),
    ("indexOf", "string.(string) int | string.(string, int) int | list(A).(A) int", strings::index_of),
    ("lastIndexOf", "string.(string) int | string.(string, int) int | list(A).(A) int", strings::last_index_of),
    ("lowerAscii", "string.() string", strings::lower_ascii),
    ("upperAscii", "string.() string", strings::upper_ascii),
    ("trim", "string.() string", strings::trim),
    ("replace", "string.(string, string) string | string.(string, string, int) string", strings::replace),
    ("split", "string.(string) list(string) | string.(string, int) list(string)", strings::split),
    ("substring", "string.(int) string | string.(int, int) string", strings::substring),
    ("join", "list(string).() string | list(string).(string) string", strings::join),
    ("reverse", "list(A).() list(A) | string.() string", strings::reverse),
    ("strings.quote", "(string) string", strings::quote),
    ("format", "string.(list(dyn)) string", format::format),
    ("matches", "string.(string) bool | (string, string) bool", regex::matches),
    ("find", "string.(string) string", regex::find),
    ("findAll", "string.(string) list(string) | string.(string, int) list(string)", regex::find_all),
    ("isSorted", "list(A).() bool", lists::is_sorted),
    ("sum", "list(A).() A", lists::sum),
    ("min", "list(A).() A", lists::min),
    ("max", "list(A).() A", lists::max),
    ("includes", "A.(B) bool", lists::includes),
    ("first", "list(A).() optional(A)", lists::first),
    ("last", "list(A).() optional(A)", lists::last),
    ("sort", "list(A).() list(A)", lists::sort),
    ("distinct", "list(A).() list(A)", lists::distinct),
    ("slice", "list(A).(int, int) list(A)", lists::slice),
    ("flatten", "list(list(A)).() list(A) | list(dyn).(int) list(dyn)", lists::flatten),
    ("lists.range", "(int) list(int)", lists::range),
    ("sets.contains", "(list(A), list(A)) bool", lists::sets_contains),
    ("sets.equivalent", "(list(A), list(A)) bool", lists::sets_equivalent),
    ("sets.intersects", "(list(A), list(A)) bool", lists::sets_intersects),
    ("optional.of", "(A) optional(A)", optionals::of),
    ("optional.ofNonZeroValue", "(A) optional(A)", optionals::of_non_zero_value),
    ("optional.none", "() optional(A)", optionals::none),
    ("optional.unwrap", "(list(optional(A))) list(A)", optionals::unwrap),
    ("unwrapOpt", "list(optional(A)).() list(A)", optionals::unwrap),
    ("hasValue", "optional(A).() bool", optionals::has_value),
    ("value", "optional(A).() A", optionals::value),
    ("url", "(string) URL", url::url),
    ("isURL", "(string) bool", url::is_url),
    ("getScheme", "URL.() string", url::scheme),
    ("getHost", "URL.() string", url::host),
    ("getHostname", "URL.() string", url::hostname),
    ("getPort", "URL.() string", url::port),
    ("getEscapedPath", "URL.() string", url::escaped_path),
    ("getQuery", "URL.() map(string, list(string))", url::query),
    ("ip", "(string) IP | CIDR.() IP", network::ip),
    ("isIP", "(string) bool", network::is_ip),
    ("ip.isCanonical", "(string) bool", network::is_canonical),
    ("family", "IP.() int", network::family),
    ("isUnspecified", "IP.() bool", network::is_unspecified),
    ("isLoopback", "IP.() bool", network::is_loopback),
    ("isLinkLocalMulticast", "IP.() bool", network::is_link_local_multicast),
    ("isLinkLocalUnicast", "IP.() bool", network::is_link_local_unicast),
    ("isGlobalUnicast", "IP.() bool", network::is_global_unicast),
    ("cidr", "(string) CIDR", network::cidr),
    ("isCIDR", "(string) bool", network::is_cidr),
    ("containsIP", "CIDR.(string) bool | CIDR.(IP) bool", network::contains_ip),
    ("containsCIDR", "CIDR.(string) bool | CIDR.(CIDR) bool", network::contains_cidr),
    ("prefixLength", "CIDR.() int", network::prefix_length),
    ("masked", "CIDR.() CIDR", network::masked),
    ("quantity", "(string) quantity", quantity::quantity),
    ("isQuantity", "(string) bool", quantity::is_quantity),
    ("sign", "(quantity) int | quantity.() int", quantity::sign),
    ("isInteger", "quantity.() bool", quantity::is_integer),
    ("asInteger", "quantity.() int", quantity::as_integer),
    ("asApproximateFloat", "quantity.() double", quantity::as_approximate_float),
    ("add", "quantity.(quantity) quantity | quantity.(int) quantity", quantity::add),
    ("sub", "quantity.(quantity) quantity | quantity.(int) quantity", quantity::sub),
    ("isGreaterThan", "quantity.(quantity) bool | semver.(semver) bool", versions::is_greater_than),
    ("isLessThan", "quantity.(quantity) bool | semver.(semver) bool", versions::is_less_than),
    ("compareTo", "quantity.(quantity) int | semver.(semver) int", versions::compare_to),
    ("semver", "(string) semver | (string, bool) semver", versions::semver),
    ("isSemver", "(string) bool | (string, bool) bool", versions::is_semver),
    ("major", "semver.() int", versions::major),
    ("minor", "semver.() int", versions::minor),
    ("patch", "semver.() int", versions::patch),
    ("format.named", "(string) optional(format)", formats::named),
    ("format.dns1123Label", "() format", |_, _| formats::value("dns1123Label")),
    ("format.dns1123Subdomain", "() format", |_, _| formats::value("dns1123Subdomain")),
    ("format.dns1035Label", "() format", |_, _| formats::value("dns1035Label")),
    ("format.qualifiedName", "() format", |_, _| formats::value("qualifiedName")),
    ("format.dns1123LabelPrefix", "() format", |_, _| formats::value("dns1123LabelPrefix")),
    ("format.dns1123SubdomainPrefix", "() format", |_, _| formats::value("dns1123SubdomainPrefix")),
    ("format.dns1035LabelPrefix", "() format", |_, _| formats::value("dns1035LabelPrefix")),
    ("format.labelValue", "() format", |_, _| formats::value("labelValue")),
    ("format.uri", "() format", |_, _| formats::value("uri")),
    ("format.uuid", "() format", |_, _| formats::value("uuid")),
    ("format.byte", "() format", |_, _| formats::value("byte")),
    ("format.date", "() format", |_, _| formats::value("date")),
    ("format.datetime", "() format", |_, _| formats::value("datetime")),
    ("validate", "format.(string) optional(list(string))", formats::validate),
    ("base64.encode", "(bytes) string", strings::base64_encode),
    ("base64.decode", "(string) bytes", strings::base64_decode),
    ("math.ceil", "(double) double", |_, args| math::double(args, f64::ceil)),
    ("math.floor", "(double) double", |_, args| math::double(args, f64::floor)),
    ("math.round", "(double) double", |_, args| math::double(args, f64::round)),
    ("math.trunc", "(double) double", |_, args| math::double(args, f64::trunc)),
    ("math.sqrt", "(double) double | (int) double | (uint) double", math::sqrt),
    ("math.abs", "(int) int | (uint) uint | (double) double", math::abs),
    ("math.sign", "(int) int | (uint) uint | (double) double", math::sign),
    ("math.isInf", "(double) bool", |_, args| math::is(args, f64::is_infinite)),
    ("math.isNaN", "(double) bool", |_, args| math::is(args, f64::is_nan)),
    ("math.isFinite", "(double) bool", |_, args| math::is(args, f64::is_finite)),
    ("math.bitAnd", "(int, int) int | (uint, uint) uint", |_, args| math::bits(args, |a, b| a & b)),
    ("math.bitOr", "(int, int) int | (uint, uint) uint", |_, args| math::bits(args, |a, b| a | b)),
    ("math.bitXor", "(int, int) int | (uint, uint) uint", |_, args| math::bits(args, |a, b| a ^ b)),
    ("math.bitNot", "(int) int | (uint) uint", math::bit_not),
    ("math.bitShiftLeft", "(int, int) int | (uint, int) uint", math::shift_left),
    ("math.bitShiftRight", "(int, int) int | (uint, int) uint", math::shift_right),
    (
        "math.greatest",
        "(list(dyn)) dyn | (dyn) dyn | (dyn, dyn) dyn | (dyn, dyn, dyn) dyn | (dyn, dyn, dyn, dyn) dyn | (dyn, dyn, dyn, dyn, dyn) dyn | (dyn, dyn, dyn, dyn, dyn, dyn) dyn | (dyn, dyn, dyn, dyn, dyn, dyn, dyn) dyn | (dyn, dyn, dyn, dyn, dyn, dyn, dyn, dyn) dyn",
        math::greatest,
    ),
    (
        "math.least",
        "(list(dyn)) dyn | (dyn) dyn | (dyn, dyn) dyn | (dyn, dyn, dyn) dyn | (dyn, dyn, dyn, dyn) dyn | (dyn, dyn, dyn, dyn, dyn) dyn | (dyn, dyn, dyn, dyn, dyn, dyn) dyn | (dyn, dyn, dyn, dyn, dyn, dyn, dyn) dyn | (dyn, dyn, dyn, dyn, dyn, dyn, dyn, dyn) dyn",
        math::least,
    ),
];

static FUNCTIONS: LazyLock<BTreeMap<&'static str, Function>> = LazyLock::new(|| {
    let function = |&(name, signatures, call): &(&'static str, &str, Call)| {
        (name, Function { name, signatures: Signature::parse(signatures), call })
    };
    TABLE.iter().map(function).collect()
});

/// The function with this name, including the namespace.
pub(super) fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS.get(name)
}

/// Whether `name` is the namespace of a function.
pub(super) fn is_namespace(name: &str) -> bool {
    TABLE.iter().any(|(function, ..)| function.split_once('.').is_some_and(|(namespace, _)| namespace == name))
}

/// All functions except the one that simulates a bug in a library.
#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = &'static Function> {
    FUNCTIONS.values().filter(|function| function.name != "test.panic")
}
