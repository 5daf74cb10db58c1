//! Headers that a Webhook adds to its deliveries.

use kube::{KubeSchema, core::Rule};
use serde::{Deserialize, Serialize};

use super::reference::ValueSource;

/// Pattern of a header's name (RFC 9110, 5.1), as a CEL literal.
const TOKEN: &str = r#""^[!#$%&'*+.^_`|~0-9A-Za-z-]+$""#;
/// Pattern of a header's value, as a CEL literal: visible ASCII, with spaces and tabs inside.
const VALUE: &str = r"'^[!-~]([\t -~]*[!-~])?$'";
/// Maximum length of a header's value, in characters.
pub const MAX_VALUE: usize = 8192;

/// Headers that HTTP, proxies, tracing or the operator set, in lower case.
const RESERVED: [&str; 22] = [
    "accept",
    "baggage",
    "connection",
    "date",
    "digest",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "max-forwards",
    "signature",
    "signature-input",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "x-real-ip",
];
/// Prefixes of further reserved names.
const RESERVED_PREFIXES: [&str; 8] =
    ["ce-", "content-", "proxy-", "webhook-", "x-forwarded-", "x-hub-signature", "x-llmtune-", "x-signature"];

/// A header that is added to every delivery, or to every query.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.value) != has(self.valueFrom)")
    .message("a header must have either value, or valueFrom if it is a secret"))]
pub struct Header {
    /// Name of the header. Headers that HTTP, proxies or the operator set, such as Host, Content-Type and signatures, are refused.
    #[schemars(length(max = 128))]
    #[x_kube(
        validation = Rule::new(format!("self.matches({TOKEN})"))
            .message("name must be a header's name: letters, digits and '-', such as X-Environment"),
        validation = Rule::new(not_reserved())
            .message("name is a header that HTTP, a proxy or the operator sets: use another, such as Authorization or X-Environment")
    )]
    pub name: String,
    /// Value of the header. Everybody who may read this object sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8192))]
    #[x_kube(validation = Rule::new(format!("self.matches({VALUE})"))
        .message("value must be printable ASCII characters, at least one, without white space at either end"))]
    pub value: Option<String>,
    /// The Secret that holds the value. The value is sent in clear, so the Secret must have the label `llmtune.io/send-in-clear: "true"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<ValueSource>,
}

/// Whether a header is reserved. `name` is in lower case.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name) || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn not_reserved() -> String {
    format!(
        "!(self.lowerAscii() in {RESERVED:?}) && !{RESERVED_PREFIXES:?}.exists(prefix, self.lowerAscii().startsWith(prefix))"
    )
}

/// Header names in a list are unique (RFC 9110, 5.1: names are case-insensitive).
pub(super) fn unique_names() -> Rule {
    Rule::new("self.all(one, self.exists_one(other, other.name.lowerAscii() == one.name.lowerAscii()))")
        .message("each header name can occur once, ignoring case: remove one of the two")
}
