//! Headers that a Webhook adds to its deliveries.

use kube::{KubeSchema, core::Rule};
use serde::{Deserialize, Serialize};

use super::reference::ValueSource;

/// What a header is called (RFC 9110, 5.1), as a CEL literal.
const TOKEN: &str = r#""^[!#$%&'*+.^_`|~0-9A-Za-z-]+$""#;
/// What a header may say, as a CEL literal: visible ASCII, with spaces and tabs inside.
const VALUE: &str = r"'^[!-~]([\t -~]*[!-~])?$'";
/// The most characters of a header's value.
pub const MAX_VALUE: usize = 8192;

/// Headers that HTTP, proxies and tracing decide on, or the operator, in lower case.
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
/// What the names of further ones begin with.
const RESERVED_PREFIXES: [&str; 8] =
    ["ce-", "content-", "proxy-", "webhook-", "x-forwarded-", "x-hub-signature", "x-llmtune-", "x-signature"];

/// A header of every delivery, or of every query.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.value) != has(self.valueFrom)")
    .message("a header must have value, or valueFrom where it is a secret, and not both"))]
pub struct Header {
    /// The header's name. What HTTP, proxies and the operator decide on cannot be given, such as Host, Content-Type and signatures.
    #[schemars(length(max = 128))]
    #[x_kube(
        validation = Rule::new(format!("self.matches({TOKEN})"))
            .message("name must be a header's name: letters, digits and '-', such as X-Environment"),
        validation = Rule::new(not_reserved())
            .message("name is a header that HTTP, a proxy or the operator decides on: choose another, such as Authorization or X-Environment")
    )]
    pub name: String,
    /// What it says, to be seen by everybody who may read Webhooks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8192))]
    #[x_kube(validation = Rule::new(format!("self.matches({VALUE})"))
        .message("value must be printable ASCII characters, at least one, without white space at either end"))]
    pub value: Option<String>,
    /// Where the Secret lies that it says. It is sent in clear, and so must bear the label `llmtune.io/send-in-clear: "true"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<ValueSource>,
}

/// Whether this is a header, in lower case, that a Webhook cannot give.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name) || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn not_reserved() -> String {
    format!(
        "!(self.lowerAscii() in {RESERVED:?}) && !{RESERVED_PREFIXES:?}.exists(prefix, self.lowerAscii().startsWith(prefix))"
    )
}

/// A list of headers has each name once (RFC 9110, 5.1: names are case-insensitive).
pub(super) fn unique_names() -> Rule {
    Rule::new("self.all(one, self.exists_one(other, other.name.lowerAscii() == one.name.lowerAscii()))")
        .message("headers must have each name once, whatever its case: remove one of the two")
}
