//! Errors with their causes, for log lines and one by one, because the outermost error often says only that something
//! failed. A rejection by the apiserver has the apiserver's words, and what to do.

use std::{error::Error, fmt, io};

use kube::core::Status;

/// Writes an error and its causes, outermost first, each once.
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut written = String::new();
        let mut next = Some(self.0);
        while let Some(error) = next {
            // kube's own text ends with a dump of the whole response.
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

/// Returns an error and its causes, outermost first, including those inside an I/O error.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        inside.map(|inside| inside as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

/// Returns the innermost cause. The outer ones can contain a URL.
#[must_use]
pub fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    chain(error).last().unwrap_or(error)
}

/// Returns the text of an error without that of its cause, which follows.
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

/// Describes a rejection by the apiserver, and what to do about it.
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

/// Reports whether the apiserver rejected a request because of missing rights. Quotas and policies return 403 too.
#[must_use]
pub fn lacks_right(code: u16, message: &str) -> bool {
    code == 403 && message.contains(" cannot ") && message.contains(" resource ")
}

/// Reports whether the apiserver does not serve the kind, as opposed to a missing object or namespace.
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
    fn rejections_have_the_apiservers_words_and_advice() {
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
    fn exceeded_quota_is_not_a_missing_right() {
        assert!(lacks_right(403, FORBIDDEN));
        assert!(!lacks_right(403, r#"webhookdeliveries "a" is forbidden: exceeded quota: q, requested: 1, used: 0"#));
        assert!(!lacks_right(
            403,
            r#"pods "a" is forbidden: unable to create new content in namespace b because it is being terminated"#
        ));
    }

    #[test]
    fn each_cause_is_written_once() {
        let io = std::io::Error::other("Connection refused");
        let error = kube::Error::Service(Box::new(io));
        assert_eq!(ErrorChain(&error).to_string(), "Connection refused");
    }
}
