//! Webhooks, of a namespace and of the cluster.

use super::*;

fn delivery(delivery: Value) -> Value {
    with(json!({"delivery": delivery}))
}

fn backoff(backoff: Value) -> Value {
    delivery(json!({"backoff": backoff}))
}

fn selector(selector: Value) -> Value {
    with(json!({"selector": selector}))
}

fn headers(headers: Vec<(&str, &str)>) -> Value {
    let headers = headers.into_iter().map(|(name, value)| json!({"name": name, "value": value}));
    with(json!({"headers": headers.collect::<Vec<_>>()}))
}

fn requirement(requirement: Value) -> Value {
    selector(json!({"matchExpressions": [requirement]}))
}

/// Invalid manifests, each with the field that the refusal must name and the text that it must contain.
fn invalid_webhooks() -> Vec<(Value, &'static str, &'static str)> {
    const ABSOLUTE: &str = "must be an absolute, percent-encoded http:// or https:// URL, such as https://";
    const HOST: &str = "url must name a host, of at most 253 characters, such as https://";
    const PORT: &str = "port must be from 1 to 65535, such as https://";
    const PASSWORD: &str = "must not contain a user name or password";
    const FRAGMENT: &str = "must not have a fragment (#...), which is never sent: remove it";
    const EVENTS: &str = "events can contain training.started, training.completed";
    const TIMEOUT: &str = "timeout must be a duration from 1s to 60s, in whole h, m, s or ms, such as 30s";
    const INITIAL: &str = "initial must be a duration from 10ms to 24h, in whole h, m, s or ms, such as 5s";
    const MAX: &str = "max must be a duration from 10ms to 24h, in whole h, m, s or ms, such as 1h";
    const ORDER: &str = "must not be shorter than backoff.initial: raise max or lower initial";
    const SECRET: &str = "must be a Secret's name: lowercase letters, digits, '-' and '.', such as ci-hook";
    const KEY: &str = "must be a key of the Secret: letters, digits, '-', '_' and '.', such as secret";
    const VALUES: &str = "In and NotIn need values; Exists and DoesNotExist must have none";
    const LABEL: &str = "a label key must be a name of at most 63 letters, digits, '-', '_' and '.'";
    const LABEL_VALUE: &str = "a label's value is empty or at most 63 letters, digits, '-', '_' and '.'";

    const ONE_URL: &str = "set exactly one of url and urlFrom: url, such as https://";

    let url = |url: &str| with(json!({"url": url}));
    let url_from = |source: Value| with(json!({"url": null, "urlFrom": source}));
    let header = |header: Value| with(json!({"headers": [header]}));
    let events = |events: &[&str]| with(json!({"events": events}));
    let timeout = |timeout: Value| delivery(json!({"timeout": timeout}));
    let secret = |secret: Value| with(json!({"secretRef": secret}));
    let tls = |tls: Value| with(json!({"tls": tls}));
    let bundle = |bundle: Value| tls(json!({"caBundleRef": bundle}));
    let plain_tls = with(json!({"url": "http://ci.example.com", "tls": {"clientCertificateRef": {"name": "ci"}}}));
    let long = |count: usize| "a".repeat(count);
    let two_faults = with(json!({"url": "ftp://ci.example.com", "delivery": {"timeout": "soon"}}));
    vec![
        (url(""), "spec.url", ABSOLUTE),
        (url("ci.example.com"), "spec.url", ABSOLUTE),
        (url("ci.example.com:8080/hooks"), "spec.url", ABSOLUTE),
        (url("/hooks"), "spec.url", ABSOLUTE),
        (url("//ci.example.com/hooks"), "spec.url", ABSOLUTE),
        (url("ftp://ci.example.com"), "spec.url", ABSOLUTE),
        (url("file:///etc/passwd"), "spec.url", ABSOLUTE),
        (url("mailto:ops@example.com"), "spec.url", ABSOLUTE),
        (url("https://ci example.com"), "spec.url", ABSOLUTE),
        (url("https://ci.example.com/%zz"), "spec.url", ABSOLUTE),
        (url("https://ci.example.com\n"), "spec.url", ABSOLUTE),
        (url("https://ci.example.com:http/"), "spec.url", ABSOLUTE),
        (url("https://[::1/"), "spec.url", ABSOLUTE),
        (url("http://"), "spec.url", HOST),
        (url("https:///path"), "spec.url", HOST),
        (url("http:ci.example.com"), "spec.url", HOST),
        (url("http://:8080/hooks"), "spec.url", HOST),
        (url(&format!("https://{}com/", "a.".repeat(126))), "spec.url", HOST),
        (url("https://ci.example.com:0/"), "spec.url", PORT),
        (url("https://ci.example.com:65536/"), "spec.url", PORT),
        (url("https://ci.example.com:123456789012345678901234567890/"), "spec.url", PORT),
        (url("https://user:password@ci.example.com"), "spec.url", PASSWORD),
        (url("https://user@ci.example.com/hooks"), "spec.url", PASSWORD),
        (url("https://@ci.example.com/hooks"), "spec.url", PASSWORD),
        (url("https://a@b@ci.example.com/hooks"), "spec.url", PASSWORD),
        (url("https://ci.example.com/hooks#part"), "spec.url", FRAGMENT),
        (url("https://ci.example.com#"), "spec.url", FRAGMENT),
        (url(&format!("{URL}?{}", long(2048))), "spec.url", "Too long: may not be more than 2048"),
        (with(json!({"url": null})), "spec", ONE_URL),
        (with(json!({"urlFrom": {"secretKeyRef": {"name": "ci", "key": "url"}}})), "spec", ONE_URL),
        (url_from(json!({})), "spec.urlFrom.secretKeyRef", "Required value"),
        (url_from(json!({"secretKeyRef": {"name": "ci"}})), "spec.urlFrom.secretKeyRef.key", "Required value"),
        (url_from(json!({"secretKeyRef": {"name": "C I", "key": "url"}})), "spec.urlFrom.secretKeyRef.name", SECRET),
        (
            url_from(json!({"secretKeyRef": {"name": "ci", "key": "the url"}})),
            "spec.urlFrom.secretKeyRef.key",
            "must be a key of the Secret",
        ),
        (url_from(json!({"configMapKeyRef": {"name": "ci"}})), "spec.urlFrom.configMapKeyRef", "unknown field"),
        (header(json!({"name": "X-Env"})), "spec.headers[0]", "must have either value, or valueFrom if it is a secret"),
        (
            header(json!({"name": "X-Env", "value": "a", "valueFrom": {"secretKeyRef": {"name": "ci", "key": "a"}}})),
            "spec.headers[0]",
            "if it is a secret",
        ),
        (header(json!({"value": "a"})), "spec.headers[0].name", "Required value"),
        (header(json!({"name": "X-Env", "valueFrom": {}})), "spec.headers[0].valueFrom.secretKeyRef", "Required value"),
        (header(json!({"name": long(129), "value": "a"})), "spec.headers[0].name", "Too long"),
        (header(json!({"name": "X-Env", "value": long(8193)})), "spec.headers[0].value", "Too long"),
        (headers(vec![("X-Env", "a"); 2]), "spec.headers[1]", "Duplicate value"),
        (
            headers(vec![("X-Env", "a"), ("Y", "b"), ("x-eNV", "c")]),
            "spec.headers",
            "each header name can occur once, ignoring case",
        ),
        (
            with(
                json!({"headers": (0..33).map(|n| json!({"name": format!("X-{n}"), "value": "a"})).collect::<Vec<_>>()}),
            ),
            "spec.headers",
            "must have at most 32 items",
        ),
        (with(json!({"url": 8080})), "spec.url", "must be of type string"),
        (events(&[]), "spec.events", "must name at least one event, such as training.completed, or \"*\" for all"),
        (with(json!({"events": null})), "spec.events", "Required value"),
        (with(json!({"events": "*"})), "spec.events", "must be of type array"),
        (events(&["training.complete"]), "spec.events[0]", EVENTS),
        (events(&["*", "training"]), "spec.events[1]", EVENTS),
        (events(&["Training.Completed"]), "spec.events[0]", EVENTS),
        (events(&["training.completed "]), "spec.events[0]", EVENTS),
        (events(&["training.**"]), "spec.events[0]", EVENTS),
        (events(&[""]), "spec.events[0]", EVENTS),
        (events(&["*", "model.*", "*"]), "spec.events[2]", "Duplicate value: \"*\""),
        (events(&["*"; 17]), "spec.events", "Too many: 17: must have at most 16 items"),
        (events(&[&long(65)]), "spec.events[0]", "Too long: may not be more than 64"),
        (timeout(json!("-5s")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("0s")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("999ms")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("61s")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("1m1ms")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("9999h")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("100000ms")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("1d")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("5")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("1.5s")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("30 s")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("30S")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("30s\n")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!(30)), "spec.delivery.timeout", "must be of type string"),
        (backoff(json!({"initial": "5ms"})), "spec.delivery.backoff.initial", INITIAL),
        (backoff(json!({"initial": "0s"})), "spec.delivery.backoff.initial", INITIAL),
        (backoff(json!({"initial": "1d"})), "spec.delivery.backoff.initial", INITIAL),
        (backoff(json!({"initial": "24h1ms", "max": "24h"})), "spec.delivery.backoff.initial", INITIAL),
        (backoff(json!({"max": "25h"})), "spec.delivery.backoff.max", MAX),
        (backoff(json!({"max": "forever"})), "spec.delivery.backoff.max", MAX),
        (backoff(json!({"max": "9ms", "initial": "10ms"})), "spec.delivery.backoff.max", MAX),
        (backoff(json!({"initial": "10s", "max": "9s999ms"})), "spec.delivery.backoff", ORDER),
        (backoff(json!({"initial": "2h"})), "spec.delivery.backoff", "max (default 1h)"),
        (backoff(json!({"max": "4s"})), "spec.delivery.backoff", ORDER),
        (backoff(json!({"factor": 0})), "spec.delivery.backoff.factor", "greater than or equal to 1"),
        (backoff(json!({"factor": 11})), "spec.delivery.backoff.factor", "less than or equal to 10"),
        (backoff(json!({"factor": 1.5})), "spec.delivery.backoff.factor", "of type integer"),
        (delivery(json!({"maxRetries": 21})), "spec.delivery.maxRetries", "less than or equal to 20"),
        (delivery(json!({"maxRetries": -1})), "spec.delivery.maxRetries", "greater than or equal to 0"),
        (delivery(json!({"maxRetries": "5"})), "spec.delivery.maxRetries", "must be of type integer"),
        (delivery(json!({"concurrency": 0})), "spec.delivery.concurrency", "greater than or equal to 1"),
        (delivery(json!({"concurrency": 65})), "spec.delivery.concurrency", "less than or equal to 64"),
        (delivery(json!("fast")), "spec.delivery", "must be of type object"),
        (named(&long(64)), "metadata.name", "at most 63 characters, since it becomes a label value: choose a shorter"),
        (secret(json!({})), "spec.secretRef.name", "Required value"),
        (secret(json!("ci-hook")), "spec.secretRef", "must be of type object"),
        (secret(json!({"name": ""})), "spec.secretRef.name", SECRET),
        (secret(json!({"name": "Ci-Hook"})), "spec.secretRef.name", SECRET),
        (secret(json!({"name": "ci..hook"})), "spec.secretRef.name", SECRET),
        (secret(json!({"name": "team/ci-hook"})), "spec.secretRef.name", SECRET),
        (secret(json!({"name": long(254)})), "spec.secretRef.name", "Too long: may not be more than 253"),
        (secret(json!({"name": "ci", "key": ""})), "spec.secretRef.key", KEY),
        (secret(json!({"name": "ci", "key": "my key"})), "spec.secretRef.key", KEY),
        (
            secret(json!({"name": "ci", "previousKey": "my key"})),
            "spec.secretRef.previousKey",
            "must be a key of the Secret",
        ),
        (secret(json!({"name": "ci", "key": "previous"})), "spec.secretRef", "previousKey must differ from key"),
        (plain_tls, "spec", "tls requires an https:// url: use https://, or remove tls"),
        (tls(json!({})), "spec.tls", "tls must have caBundleRef, clientCertificateRef or both"),
        (tls(json!({"insecure": true})), "spec.tls.insecure", "unknown field"),
        (bundle(json!({"name": "ca"})), "spec.tls.caBundleRef.kind", "Required value"),
        (bundle(json!({"kind": "Pod", "name": "ca"})), "spec.tls.caBundleRef.kind", "\"ConfigMap\", \"Secret\""),
        (bundle(json!({"kind": "Secret", "name": "C A"})), "spec.tls.caBundleRef.name", "must be an object's name"),
        (
            bundle(json!({"kind": "Secret", "name": "ca", "key": "a b"})),
            "spec.tls.caBundleRef.key",
            "must be a key of the object",
        ),
        (
            tls(json!({"clientCertificateRef": {"name": "C"}})),
            "spec.tls.clientCertificateRef.name",
            "must be a Secret's name",
        ),
        (selector(json!({"matchLabels": {"team": "re search"}})), "spec.selector.matchLabels[team]", LABEL_VALUE),
        (selector(json!({"matchLabels": {"team": long(64)}})), "spec.selector.matchLabels", "not be more than 63"),
        (selector(json!({"matchLabels": {"team": 7}})), "spec.selector.matchLabels.team", "must be of type string"),
        (selector(json!({"matchLabels": {"the team": "x"}})), "spec.selector.matchLabels", LABEL),
        (selector(json!({"matchLabels": {"": "x"}})), "spec.selector.matchLabels", LABEL),
        (selector(json!({"matchLabels": {long(64): "x"}})), "spec.selector.matchLabels", LABEL),
        (
            requirement(json!({"key": "a", "operator": "Is"})),
            "operator",
            "\"In\", \"NotIn\", \"Exists\", \"DoesNotExist\"",
        ),
        (requirement(json!({"key": "a"})), "spec.selector.matchExpressions[0].operator", "Required value"),
        (requirement(json!({"operator": "Exists"})), "spec.selector.matchExpressions[0].key", "Required value"),
        (requirement(json!({"key": "", "operator": "Exists"})), "spec.selector.matchExpressions[0].key", LABEL),
        (requirement(json!({"key": "a/b/c", "operator": "Exists"})), "spec.selector.matchExpressions[0].key", LABEL),
        (requirement(json!({"key": "a", "operator": "In"})), "spec.selector.matchExpressions[0]", VALUES),
        (requirement(json!({"key": "a", "operator": "NotIn", "values": []})), "matchExpressions[0]", VALUES),
        (requirement(json!({"key": "a", "operator": "Exists", "values": ["x"]})), "matchExpressions[0]", VALUES),
        (requirement(json!({"key": "a", "operator": "DoesNotExist", "values": [""]})), "matchExpressions[0]", VALUES),
        (requirement(json!({"key": "a", "operator": "In", "values": ["x y"]})), "[0].values[0]", LABEL_VALUE),
        (requirement(json!({"key": "a", "operator": "In", "values": [long(64)]})), "[0].values[0]", "more than 63"),
        (requirement(json!({"key": "a", "operator": "In", "values": vec!["x"; 65]})), "[0].values", "at most 64 items"),
        (selector(json!({"team": "research"})), "spec.selector.team", "unknown field"),
        (with(json!({"suspend": "yes"})), "spec.suspend", "must be of type boolean"),
        (with(json!({"retries": 3})), "spec.retries", "unknown field"),
        (delivery(json!({"retries": 3})), "spec.delivery.retries", "unknown field"),
        (secret(json!({"name": "ci", "namespace": "other"})), "spec.secretRef.namespace", "unknown field"),
        (two_faults.clone(), "spec.url", ABSOLUTE),
        (two_faults, "spec.delivery.timeout", TIMEOUT),
    ]
}

fn valid_webhooks() -> Vec<Value> {
    let url = |url: &str| with(json!({"url": url}));
    let events = |events: &[&str]| with(json!({"events": events}));
    let timeout = |timeout: &str| delivery(json!({"timeout": timeout}));
    let every: Vec<&str> = EventType::ALL.iter().map(|event| event.name()).collect();
    vec![
        with(json!({})),
        events(&every),
        events(&["*"]),
        events(&["training.*", "deployment.*", "model.*", "usage.*"]),
        events(&["*", "training.*", "training.completed"]),
        events(&["usage.threshold_reached"]),
        url("http://ci.example.com"),
        url("HTTPS://ci.example.com/"),
        url("http://localhost:1/"),
        url("https://ci.example.com:65535/hooks?token=a%20b&to=ops@example.com"),
        url("https://ci.example.com?x"),
        url("https://ci.example.com/a/@b//c;d=e"),
        url("http://192.0.2.1:8080/hooks"),
        url("http://[2001:db8::1]:8080/hooks"),
        url("http://ci.team-a.svc.cluster.local./hooks"),
        url("https://b\u{fc}cher.example/hooks"),
        url(&format!("{URL}?{}", "a".repeat(2048 - URL.len() - 1))),
        named(&"a".repeat(63)),
        named("ci.team-a"),
        timeout("1s"),
        timeout("1000ms"),
        timeout("1m"),
        timeout("60s"),
        timeout("59s500ms"),
        timeout("500ms1s"),
        timeout("1s1s"),
        timeout("00030s"),
        backoff(json!({"initial": "10ms", "max": "10ms", "factor": 1})),
        backoff(json!({"initial": "1m500ms", "max": "1h30m"})),
        backoff(json!({"initial": "24h", "max": "24h", "factor": 10})),
        backoff(json!({"initial": "0h0m5s0ms", "max": "23h59m59s1000ms"})),
        delivery(json!({"maxRetries": 0, "concurrency": 1})),
        delivery(json!({"maxRetries": 20, "concurrency": 64})),
        with(json!({"suspend": true})),
        with(json!({"secretRef": {"name": "ci-hook"}})),
        with(json!({"secretRef": {"name": "ci.hook.v2", "key": "webhook_Secret-1.txt"}})),
        with(json!({"secretRef": {"name": "ci-hook", "key": "new", "previousKey": "old"}})),
        with(json!({"url": null, "urlFrom": {"secretKeyRef": {"name": "ci-hook", "key": "url"}}})),
        with(
            json!({"url": null, "urlFrom": {"secretKeyRef": {"name": "ci", "key": "url"}}, "tls": {"clientCertificateRef": {"name": "ci"}}}),
        ),
        headers(vec![
            ("Authorization", "Bearer a.b-c"),
            ("X-Env", "a\tb c"),
            ("cookie", "a=\"b\""),
            ("x-_.~!#$%&'*+^`|9", "~"),
        ]),
        with(
            json!({"headers": [{"name": "Authorization", "valueFrom": {"secretKeyRef": {"name": "ci", "key": "token"}}}]}),
        ),
        with(json!({"headers": [{"name": "X".repeat(128), "value": "a".repeat(8192)}]})),
        with(json!({"tls": {"caBundleRef": {"kind": "ConfigMap", "name": "ca"}}})),
        with(json!({"tls": {
            "caBundleRef": {"kind": "Secret", "name": "ca", "key": "bundle.pem"}, "clientCertificateRef": {"name": "ci"}
        }})),
        selector(json!({})),
        selector(json!({"matchLabels": {}, "matchExpressions": []})),
        selector(json!({
            "matchLabels": {"team": "research", "example.com/tier": "", "a": "a".repeat(63)},
            "matchExpressions": [
                {"key": "app.kubernetes.io/name", "operator": "In", "values": ["llama", "mistral", ""]},
                {"key": "stage", "operator": "NotIn", "values": ["dev"]},
                {"key": "gpu", "operator": "Exists"},
                {"key": "draft", "operator": "DoesNotExist", "values": []},
            ]
        })),
    ]
}

#[test]
fn an_invalid_webhook_is_refused_with_what_to_write_instead() {
    run(async {
        let apiserver = Apiserver::new().await;
        let mut failures = Vec::new();
        for (manifest, field, says) in invalid_webhooks() {
            for manifest in [of_cluster(&manifest), manifest] {
                let result = apiserver.try_out(&manifest).await;
                failures.extend(complaint(&manifest, field, says, result));
            }
        }
        no_failures(&failures);
    });
}

#[test]
fn reserved_and_invalid_headers_are_refused() {
    run(async {
        const RESERVED: &str = "is a header that HTTP, a proxy or the operator sets: use another";
        const TOKEN: &str = "must be a header's name: letters, digits and '-', such as X-Environment";
        const PRINTABLE: &str =
            "value must be printable ASCII characters, at least one, without white space at either end";
        let apiserver = Apiserver::new().await;
        let mut failures = Vec::new();
        for name in [
            "Accept",
            "baggage",
            "Connection",
            "Content-Type",
            "content-length",
            "CONTENT-ENCODING",
            "Content-Digest",
            "ce-id",
            "Ce-Anything",
            "Date",
            "Expect",
            "Forwarded",
            "Host",
            "HOST",
            "HTTP2-Settings",
            "Keep-Alive",
            "Max-Forwards",
            "Proxy-Authorization",
            "Proxy-Connection",
            "Signature",
            "Signature-Input",
            "TE",
            "Trailer",
            "Transfer-Encoding",
            "traceparent",
            "TraceState",
            "Upgrade",
            "User-Agent",
            "Via",
            "webhook-id",
            "Webhook-Signature",
            "X-Forwarded-For",
            "X-Hub-Signature",
            "X-Hub-Signature-256",
            "X-LLMTune-Event",
            "x-llmtune-signature-previous",
            "X-Real-IP",
            "X-Signature",
            "X-Signature-Ed25519",
        ] {
            let manifest = headers(vec![("X-Env", "a"), (name, "a")]);
            let result = apiserver.try_out(&manifest).await;
            failures.extend(complaint(&manifest, "spec.headers[1].name", RESERVED, result));
        }
        for name in
            ["", "X Env", "X-Env:", "X-\u{c9}nv", "X-Env\n", "(x)", "a/b", "a=b", "\"a\"", "a,b", "a@b", "[a]", "{a}"]
        {
            let manifest = headers(vec![(name, "a")]);
            let result = apiserver.try_out(&manifest).await;
            failures.extend(complaint(&manifest, "spec.headers[0].name", TOKEN, result));
        }
        for value in ["", " ", " a", "a ", "\ta", "a\n", "a\r\nX-Forged: 1", "a\0b", "\u{7f}", "\u{e9}", "\u{1f600}"] {
            let manifest = headers(vec![("X-Env", value)]);
            let result = apiserver.try_out(&manifest).await;
            failures.extend(complaint(&manifest, "spec.headers[0].value", PRINTABLE, result));
        }
        no_failures(&failures);
    });
}

#[test]
fn only_cluster_webhooks_select_namespaces() {
    const LABEL: &str = "a label key must be a name of at most 63 letters, digits, '-', '_' and '.'";
    const LABEL_VALUE: &str = "a label's value is empty or at most 63 letters, digits, '-', '_' and '.'";
    const VALUES: &str = "In and NotIn need values; Exists and DoesNotExist must have none";
    run(async {
        let apiserver = Apiserver::new().await;
        let selecting = |selector: &Value| of_cluster(&with(json!({"namespaceSelector": selector})));
        let mut failures = Vec::new();
        for selector in [
            json!({}),
            json!({"matchLabels": {"team": "research"}}),
            json!({"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system"]}]}),
        ] {
            let taken = apiserver.try_out(&selecting(&selector)).await;
            let taken = taken.unwrap_or_else(|error| panic!("{error}\n{selector:#}"));
            assert_eq!(taken["spec"]["namespaceSelector"], selector);
        }
        for (selector, field, says) in [
            (json!("team=a"), "spec.namespaceSelector", "must be of type object"),
            (json!({"team": "a"}), "spec.namespaceSelector.team", "unknown field"),
            (json!({"matchLabels": {"the team": "x"}}), "spec.namespaceSelector.matchLabels", LABEL),
            (json!({"matchLabels": {"team": "re search"}}), "spec.namespaceSelector.matchLabels[team]", LABEL_VALUE),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
                "spec.namespaceSelector.matchExpressions[0]",
                VALUES,
            ),
        ] {
            let result = apiserver.try_out(&selecting(&selector)).await;
            failures.extend(complaint(&selector, field, says, result));
        }
        let webhook = with(json!({"namespaceSelector": {}}));
        let result = apiserver.try_out(&webhook).await;
        failures.extend(complaint(&webhook, "spec.namespaceSelector", "unknown field", result));
        no_failures(&failures);
    });
}

#[test]
fn headers_of_two_managers_are_merged_by_name() {
    run(async {
        let scene = Scene::new("header-managers").await;
        let apiserver = Apiserver::of(&scene).await;
        apiserver.create(&headers(vec![("X-Env", "prod"), ("X-Team", "a")])).await;
        let one = |value: &str| {
            json!({
                "apiVersion": "llmtune.io/v1alpha1", "kind": "Webhook", "metadata": {"name": "ci"},
                "spec": {"url": URL, "events": ["*"], "headers": [{"name": "X-Region", "value": value}]}
            })
        };
        let taken = apiserver.apply("other", "", &one("eu")).await.unwrap();
        let names: Vec<&str> =
            taken["spec"]["headers"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["X-Env", "X-Team", "X-Region"]);
    });
}

#[test]
fn the_refusal_of_an_unknown_event_names_every_known_one() {
    run(async {
        let message = Apiserver::new().await.try_out(&with(json!({"events": ["training.stopped"]}))).await.unwrap_err();
        let names = EventType::ALL.iter().map(|event| event.name());
        for name in names.chain(["training.*", "model.*", "deployment.*", "usage.*", "\"*\""]) {
            assert!(message.contains(name), "{name} is missing: {message}");
        }
        assert!(message.contains("\"training.stopped\""), "the unknown one is missing: {message}");
    });
}

#[test]
fn valid_webhooks_are_accepted_and_resolved() {
    run(async {
        let apiserver = Apiserver::new().await;
        let mut failures = Vec::new();
        for manifest in valid_webhooks().iter().flat_map(|manifest| [manifest.clone(), of_cluster(manifest)]) {
            let taken = match apiserver.try_out(&manifest).await {
                Ok(taken) => taken,
                Err(message) => {
                    failures.push(format!("refused: {message}\n{manifest:#}"));
                    continue;
                }
            };
            let spec = match manifest["kind"].as_str() {
                Some("Webhook") => serde_json::from_value(taken).map(|read: Webhook| read.spec),
                _ => serde_json::from_value(taken).map(|read: ClusterWebhook| read.spec.webhook),
            };
            let spec = spec.unwrap_or_else(|error| panic!("{error}\n{manifest:#}"));
            let plan = Plan::read(&spec, "default", false);
            if let Some(error) = plan.error() {
                failures.push(format!("taken, but of no use: {error}\n{manifest:#}"));
            }
            let Ok(Dispatch { references: References { url, .. }, .. }) = plan.dispatch else { continue };
            let Some(url) = url.given() else { continue };
            assert!(url.username().is_empty() && url.password().is_none(), "{url}");
        }
        no_failures(&failures);
    });
}

#[test]
fn what_a_webhook_leaves_out_is_filled_in() {
    run(async {
        let scene = Scene::new("defaults").await;
        let apiserver = Apiserver::of(&scene).await;
        let full = json!({
            "timeout": "30s", "maxRetries": 5, "concurrency": 8,
            "backoff": {"initial": "5s", "factor": 5, "max": "1h"}
        });
        for (number, (given, differs)) in [
            (json!({}), json!({})),
            (json!({"delivery": {}}), json!({})),
            (json!({"delivery": {"backoff": {}}}), json!({})),
            (json!({"delivery": {"timeout": "10s"}}), json!({"timeout": "10s"})),
            (json!({"delivery": {"maxRetries": 0, "backoff": {"factor": 2}}}), json!({"maxRetries": 0, "factor": 2})),
            (
                json!({"delivery": {"concurrency": 1, "backoff": {"max": "10s"}}}),
                json!({"concurrency": 1, "max": "10s"}),
            ),
            (json!({"delivery": {"backoff": {"initial": "1s"}}}), json!({"initial": "1s"})),
        ]
        .into_iter()
        .enumerate()
        {
            let manifest = webhook(&format!("ci-{number}"), URL, &given);
            apiserver.create(&manifest).await;
            let mut expected = full.clone();
            for (key, value) in differs.as_object().unwrap() {
                let parent = if expected.get(key).is_some() { &mut expected } else { &mut expected["backoff"] };
                parent[key] = value.clone();
            }
            let spec = scene.get("webhook", &format!("ci-{number}"))["spec"].clone();
            assert_eq!(
                spec,
                json!({"url": URL, "events": ["*"], "suspend": false, "format": "LLMTune", "delivery": expected}),
                "{manifest:#}"
            );
        }
        let ours = DeliveryPolicy { backoff: Backoff::default(), ..DeliveryPolicy::default() };
        assert_eq!(serde_json::to_value(ours).unwrap(), full, "the defaults of the types are those of the schema");
        let cluster = apiserver.try_out(&of_cluster(&with(json!({})))).await.unwrap();
        assert_eq!(cluster["spec"], apiserver.try_out(&with(json!({}))).await.unwrap()["spec"]);
        let signed = apiserver.try_out(&with(json!({"secretRef": {"name": "ci-hook"}}))).await.unwrap();
        assert_eq!(signed["spec"]["secretRef"], json!({"name": "ci-hook", "key": "secret", "previousKey": "previous"}));
    });
}

#[test]
fn a_null_counts_as_absent() {
    run(async {
        let apiserver = Apiserver::new().await;
        let nulls = json!({
            "secretRef": null, "selector": null, "suspend": null, "tls": null,
            "delivery": {"timeout": null, "maxRetries": null, "backoff": null}
        });
        let taken = apiserver.try_out(&webhook("ci", URL, &nulls)).await.unwrap();
        assert_eq!(taken["spec"], apiserver.try_out(&with(json!({}))).await.unwrap()["spec"]);
        let taken = apiserver.try_out(&job(json!({"baseModel": null, "trainingMethod": null}))).await.unwrap();
        assert_eq!(taken["spec"], json!({}));
    });
}
