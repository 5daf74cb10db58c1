//! What went wrong, and what to do next.

use std::{fmt, process::ExitCode};

use kube::runtime::watcher;

use crate::error_chain::{ErrorChain, is_unknown_kind, lacks_right};

/// The exit code of a program that a closed pipe ends, as a shell tells it: 128 and SIGPIPE.
const PIPE_CLOSED: u8 = 141;

/// Where to look when the operator does not answer.
pub const OPERATOR_AWAY: &str = "does an operator run, and does it serve this namespace? kubectl get leases -A \
    --field-selector metadata.name=llmtune-webhooks names the one that leads; its log says more";

/// Why a command could not do what was asked.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    what: String,
    next: Option<String>,
    /// Nobody reads any more.
    unheard: bool,
}

impl Failure {
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), next: None, unheard: false }
    }

    /// With what to do about it.
    pub fn next(self, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..self }
    }

    /// Nothing could be printed.
    pub fn unprinted(error: &std::io::Error) -> Self {
        let unheard = error.kind() == std::io::ErrorKind::BrokenPipe;
        Self { unheard, ..Self::new(format!("cannot print: {error}")) }
    }

    /// What came of a request to the apiserver. `server`: its address.
    pub fn of_request(error: &kube::Error, server: &str) -> Self {
        let kube::Error::Api(status) = error else {
            let what = format!("cannot ask the cluster at {server}: {}", ErrorChain(error));
            return Self::new(what)
                .next("kubectl cluster-info tells whether kubectl reaches it; --context names another cluster");
        };
        let message = status.message.trim_end();
        if status.code == 401 {
            let what = format!("the cluster at {server} does not know you: {message}");
            return Self::new(what).next("log in again, as for kubectl; kubectl auth whoami tells who you are");
        }
        if is_unknown_kind(status.code, message) {
            return Self::new(format!("the cluster at {server} has no Webhooks: their definitions are not installed")).next(
                "have the platform team install them, with the chart (helm install … charts/llmtune-webhooks) or kubectl apply -f crds/; \
                 kubectl api-resources --api-group=llmtune.io shows them then",
            );
        }
        if lacks_right(status.code, message) {
            return Self::new(message).next(missing_right(message));
        }
        Self::new(message)
    }

    /// Tells it on standard error, as kubectl does.
    pub fn report(&self) -> ExitCode {
        if self.unheard {
            return ExitCode::from(PIPE_CLOSED);
        }
        eprintln!("error: {self}");
        ExitCode::FAILURE
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.next.as_ref().map_or(Ok(()), |next| write!(f, "\n{next}"))
    }
}

impl std::error::Error for Failure {}

/// What asking again would not help against.
pub fn refusal(error: &watcher::Error) -> Option<&kube::Error> {
    let (watcher::Error::InitialListFailed(error)
    | watcher::Error::WatchStartFailed(error)
    | watcher::Error::WatchFailed(error)) = error
    else {
        return None;
    };
    let refused = matches!(error, kube::Error::Api(status) if [401, 403, 404].contains(&status.code));
    refused.then_some(error)
}

/// Who can give the right that the apiserver's message says is missing, and how.
fn missing_right(message: &str) -> String {
    let after = |word: &str| message.split_once(word).map(|(_, rest)| rest);
    let quoted = |word: &str| after(word).and_then(|rest| rest.split('"').next());
    let verb = after(" cannot ").and_then(|rest| rest.split(' ').next()).unwrap_or("get");
    let resource = quoted(" resource \"").unwrap_or_default();
    let user = quoted("User \"").unwrap_or_default();
    let reads = ["get", "list", "watch"].contains(&verb);
    if ["clusterwebhooks", "webhooksources"].contains(&resource) {
        return format!(
            "{resource} belong to the cluster: ask a cluster admin, or name a Webhook of your own namespace"
        );
    }
    if resource == "leases" || resource == "namespaces" {
        return "name the namespace with -n".into();
    }
    let role = if reads { "view" } else { "edit" };
    match quoted(" in the namespace \"") {
        Some(namespace) => {
            let what = "which the shipped roles add these rights to (charts/kustomize/rbac-people.yaml)";
            format!(
                "ask an admin of namespace {namespace} for the role {role}, {what}: \
                 kubectl -n {namespace} create rolebinding llmtune-{role} --clusterrole={role} {}",
                subject(user)
            )
        }
        None if reads => {
            "name one namespace with -n in place of -A, or ask a cluster admin for the role view in all".into()
        }
        None => "ask a cluster admin".into(),
    }
}

/// The flag that binds a role to this user.
fn subject(user: &str) -> String {
    match user.strip_prefix("system:serviceaccount:") {
        Some(account) => format!("--serviceaccount={account}"),
        None => format!("--user={user}"),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn told(code: u16, message: &str) -> String {
        let error = kube::Error::Api(Status::failure(message, "").with_code(code).boxed());
        Failure::of_request(&error, "https://cluster.example").to_string()
    }

    fn forbidden(user: &str, verb: &str, resource: &str, place: &str) -> String {
        told(
            403,
            &format!(
                "{resource}.llmtune.io is forbidden: User \"{user}\" cannot {verb} resource \"{resource}\" in API group \"llmtune.io\" {place}"
            ),
        )
    }

    #[test]
    fn who_lacks_a_right_is_told_who_can_give_it_and_how() {
        let research = "in the namespace \"research\"";
        for (told, to_do) in [
            (
                forbidden("ada", "list", "webhooks", research),
                "kubectl -n research create rolebinding llmtune-view --clusterrole=view --user=ada",
            ),
            (
                forbidden("system:serviceaccount:research:ci", "create", "webhookdeliveries", research),
                "kubectl -n research create rolebinding llmtune-edit --clusterrole=edit --serviceaccount=research:ci",
            ),
            (forbidden("ada", "list", "webhooks", "at the cluster scope"), "with -n in place of -A"),
            (forbidden("ada", "get", "clusterwebhooks", "at the cluster scope"), "ask a cluster admin"),
        ] {
            assert!(told.contains(" is forbidden: User ") && told.contains(to_do), "{told}");
        }
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        for (told, to_do) in [
            (told(404, "404 page not found"), "kubectl apply -f crds/"),
            (told(404, "the server could not find the requested resource"), "kubectl apply -f crds/"),
            (told(401, "Unauthorized"), "log in again"),
        ] {
            assert!(told.contains(to_do), "{told}");
        }
        let cut_off = kube::Error::Service(Box::new(std::io::Error::other("Connection refused")));
        let told = Failure::of_request(&cut_off, "https://cluster.example").to_string();
        assert!(
            told.contains("https://cluster.example: Connection refused") && told.contains("kubectl cluster-info"),
            "{told}"
        );
    }

    #[test]
    fn what_a_policy_or_a_quota_says_stands_as_it_is() {
        let message = "webhookdeliveries \"a\" is forbidden: exceeded quota: q, requested: 1, used: 0";
        assert_eq!(told(403, message), message);
    }
}
