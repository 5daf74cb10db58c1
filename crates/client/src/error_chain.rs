//! Errors with their causes, as log lines and one by one: the outermost alone often says only that something failed. What the apiserver
//! refused is told in its own words, with what to do about it.

use std::{error::Error, fmt, io};

use kube::core::Status;

/// Writes an error and its causes, outermost first, each once.
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut written = String::new();
        let mut next = Some(self.0);
        while let Some(error) = next {
            // kube's own text ends in a dump of the whole answer.
            let refused = match error.downcast_ref() {
                Some(kube::Error::Api(status)) => Some(status.as_ref()),
                _ => error.downcast_ref::<Status>(),
            };
            next = if refused.is_some() { None } else { error.source() };
            let text = refused.map_or_else(
                || without_cause(error),
                |status| explain(status.code, status.message.trim_end()).into_owned(),
            );
            if !text.is_empty() && !written.contains(&text) {
                write!(f, "{}{text}", if written.is_empty() { "" } else { ": " })?;
                written.push_str(&text);
            }
        }
        Ok(())
    }
}

/// An error and its causes, outermost first, also those that an error of io keeps to itself.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        inside.map(|inside| inside as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

/// The innermost cause; those around it may repeat a url.
#[must_use]
pub fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    chain(error).last().unwrap_or(error)
}

/// What an error says beside its cause, which is told next.
fn without_cause(error: &(dyn Error + 'static)) -> String {
    let text = error.to_string();
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    let own = text.strip_suffix(&cause).unwrap_or(&text).trim_end_matches([' ', ':']);
    match own {
        "ServiceError" => String::new(),
        "client error (Connect)" => "cannot connect to the apiserver".into(),
        own => own.to_owned(),
    }
}

/// A refusal of the apiserver, and what to do about it.
#[must_use]
pub fn explain(code: u16, message: &str) -> std::borrow::Cow<'_, str> {
    let what_to_do = match code {
        401 => "the operator's credentials are wrong or have expired, renew the token in KUBECONFIG",
        _ if lacks_right(code, message) => {
            "grant the operator's service account this right, as charts/kustomize/rbac.yaml of this release does"
        }
        _ if is_unknown_kind(code, message) => {
            "the kind is not installed, apply the custom resource definitions of this release (crds/)"
        }
        _ => return message.into(),
    };
    format!("{message}: {what_to_do}").into()
}

/// Whether the apiserver refused because of the operator's rights: quotas and policies answer 403 too.
#[must_use]
pub fn lacks_right(code: u16, message: &str) -> bool {
    code == 403 && message.contains(" cannot ") && message.contains(" resource ")
}

/// Whether the apiserver serves no such kind, rather than no such object or namespace.
#[must_use]
pub fn is_unknown_kind(code: u16, message: &str) -> bool {
    code == 404 && (message.contains("page not found") || message.contains("could not find the requested resource"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORBIDDEN: &str =
        r#"leases "a" is forbidden: User "b" cannot get resource "leases" in API group "c" in the namespace "d""#;

    fn refused(code: u16, reason: &str, message: &str) -> kube::Error {
        kube::Error::Api(Status::failure(message, reason).with_code(code).boxed())
    }

    #[derive(Debug, thiserror::Error)]
    #[error("failed to list: {0}")]
    struct Outer(#[source] kube::Error);

    #[test]
    fn a_refusal_is_told_in_the_apiservers_words_with_what_to_do_and_without_a_dump() {
        for (error, says, to_do) in [
            (refused(403, "Forbidden", FORBIDDEN), FORBIDDEN, "rbac.yaml"),
            (refused(401, "Unauthorized", "Unauthorized"), "Unauthorized", "renew the token"),
            (refused(404, "", "404 page not found\n"), "404 page not found: the kind is not installed", "crds/"),
            (refused(404, "NotFound", "namespaces \"x\" not found"), "namespaces \"x\" not found", ""),
        ] {
            for (text, begins) in [
                (ErrorChain(&error).to_string(), says.to_owned()),
                (ErrorChain(&Outer(error)).to_string(), format!("failed to list: {says}")),
            ] {
                assert!(text.starts_with(&begins) && text.contains(to_do), "{text}");
                assert!(!text.contains("Status {") && !text.contains("ApiError"), "{text}");
            }
        }
    }

    #[test]
    fn a_quota_that_is_exceeded_is_no_lack_of_a_right() {
        assert!(lacks_right(403, FORBIDDEN));
        assert!(!lacks_right(403, r#"webhookdeliveries "a" is forbidden: exceeded quota: q, requested: 1, used: 0"#));
        assert!(!lacks_right(
            403,
            r#"pods "a" is forbidden: unable to create new content in namespace b because it is being terminated"#
        ));
    }

    #[test]
    fn each_cause_is_told_once() {
        let io = std::io::Error::other("Connection refused");
        let error = kube::Error::Service(Box::new(io));
        assert_eq!(ErrorChain(&error).to_string(), "Connection refused");
    }
}
