//! The error of a command: what went wrong, and what to do next.

use std::{fmt, process::ExitCode};

use kube::runtime::watcher;

use llmtune_client::error_chain::{ErrorChain, is_unknown_kind, lacks_right};

/// The exit code that shells report for a program ended by a closed pipe: 128 + SIGPIPE.
const PIPE_CLOSED: u8 = 141;

/// The advice for an operator that does not answer.
pub const OPERATOR_AWAY: &str = "does an operator run, and does it serve this namespace? kubectl get leases -A \
    --field-selector metadata.name=llmtune-webhooks names the one that leads; its log says more";

/// The reason why a command failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    what: String,
    next: Option<String>,
    /// Standard output is a closed pipe.
    unheard: bool,
}

impl Failure {
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), next: None, unheard: false }
    }

    /// Adds advice on what to do next.
    pub fn next(self, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..self }
    }

    /// The error of a failed write to standard output.
    pub fn unprinted(error: &std::io::Error) -> Self {
        let unheard = error.kind() == std::io::ErrorKind::BrokenPipe;
        Self { unheard, ..Self::new(format!("cannot print: {error}")) }
    }

    /// Converts the error of a request. `server` is the apiserver's address.
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

    /// Prints the error to standard error, as kubectl does.
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

/// The error if a retry would not help.
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

/// Advice on how to get the permission that the apiserver's message says is missing, and from whom.
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

    fn report(code: u16, message: &str) -> String {
        let error = kube::Error::Api(Status::failure(message, "").with_code(code).boxed());
        Failure::of_request(&error, "https://cluster.example").to_string()
    }

    fn forbidden(user: &str, verb: &str, resource: &str, place: &str) -> String {
        report(
            403,
            &format!(
                "{resource}.llmtune.io is forbidden: User \"{user}\" cannot {verb} resource \"{resource}\" in API group \"llmtune.io\" {place}"
            ),
        )
    }

    #[test]
    fn who_lacks_a_right_is_told_who_can_give_it_and_how() {
        let research = "in the namespace \"research\"";
        for (report, to_do) in [
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
            assert!(report.contains(" is forbidden: User ") && report.contains(to_do), "{report}");
        }
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        for (report, to_do) in [
            (report(404, "404 page not found"), "kubectl apply -f crds/"),
            (report(404, "the server could not find the requested resource"), "kubectl apply -f crds/"),
            (report(401, "Unauthorized"), "log in again"),
        ] {
            assert!(report.contains(to_do), "{report}");
        }
        let cut_off = kube::Error::Service(Box::new(std::io::Error::other("Connection refused")));
        let report = Failure::of_request(&cut_off, "https://cluster.example").to_string();
        assert!(
            report.contains("https://cluster.example: Connection refused") && report.contains("kubectl cluster-info"),
            "{report}"
        );
    }

    #[test]
    fn what_a_policy_or_a_quota_says_stands_as_it_is() {
        let message = "webhookdeliveries \"a\" is forbidden: exceeded quota: q, requested: 1, used: 0";
        assert_eq!(report(403, message), message);
    }
}
