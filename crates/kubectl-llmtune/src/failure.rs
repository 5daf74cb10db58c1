//! The error of a command: what went wrong, and what to do next.

use std::{fmt, process::ExitCode};

use kube::runtime::watcher;

use llmtune_client::error_chain::{ErrorChain, is_unknown_kind, lacks_right};

/// The exit code that shells report for a program ended by a closed pipe: 128 + SIGPIPE.
const PIPE_CLOSED: u8 = 141;

/// The advice for an operator that does not answer.
pub const OPERATOR_AWAY: &str = "check that the operator is running and watches this namespace; kubectl get leases -A \
    --field-selector metadata.name=llmtune-webhooks shows the leader, and its log has the details";

/// The reason why a command failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    problem: String,
    advice: Option<String>,
    /// Standard output is a closed pipe.
    pipe_closed: bool,
}

impl Failure {
    pub fn new(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), advice: None, pipe_closed: false }
    }

    /// Adds advice on what to do next.
    pub fn next(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// The error of a failed write to standard output.
    pub fn unprinted(error: &std::io::Error) -> Self {
        let pipe_closed = error.kind() == std::io::ErrorKind::BrokenPipe;
        Self { pipe_closed, ..Self::new(format!("cannot print: {error}")) }
    }

    /// Converts the error of a request. `server` is the apiserver's address.
    pub fn of_request(error: &kube::Error, server: &str) -> Self {
        let kube::Error::Api(status) = error else {
            let problem = format!("the request to the cluster at {server} failed: {}", ErrorChain(error));
            return Self::new(problem)
                .next("check with kubectl cluster-info that kubectl can reach it, or select another with --context");
        };
        let message = status.message.trim_end();
        if status.code == 401 {
            let problem = format!("the cluster at {server} rejected your credentials: {message}");
            return Self::new(problem).next("log in again, as for kubectl; kubectl auth whoami shows your user");
        }
        if is_unknown_kind(status.code, message) {
            return Self::new(format!("the CRDs of llmtune-webhooks are not installed in the cluster at {server}")).next(
                "ask the platform team to install them, with the chart (helm install … charts/llmtune-webhooks) or kubectl apply -f crds/; \
                 kubectl api-resources --api-group=llmtune.io then lists them",
            );
        }
        if lacks_right(status.code, message) {
            return Self::new(message).next(missing_right(message));
        }
        Self::new(message)
    }

    /// Prints the error to standard error, as kubectl does.
    pub fn report(&self) -> ExitCode {
        if self.pipe_closed {
            return ExitCode::from(PIPE_CLOSED);
        }
        eprintln!("error: {self}");
        ExitCode::FAILURE
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)?;
        self.advice.as_ref().map_or(Ok(()), |advice| write!(f, "\n{advice}"))
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
        return format!("{resource} are cluster-scoped: ask a cluster admin, or use a Webhook in your own namespace");
    }
    if resource == "leases" || resource == "namespaces" {
        return "set the namespace with -n".into();
    }
    let role = if reads { "view" } else { "edit" };
    match quoted(" in the namespace \"") {
        Some(namespace) => {
            format!(
                "ask an admin of namespace {namespace} for the role {role}, to which charts/kustomize/rbac-people.yaml adds \
                 this permission: kubectl -n {namespace} create rolebinding llmtune-{role} --clusterrole={role} {}",
                subject(user)
            )
        }
        None if reads => {
            "use -n NAMESPACE instead of -A, or ask a cluster admin for the role view in all namespaces".into()
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
    fn missing_permission_suggests_a_role_binding() {
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
            (forbidden("ada", "list", "webhooks", "at the cluster scope"), "use -n NAMESPACE instead of -A"),
            (forbidden("ada", "get", "clusterwebhooks", "at the cluster scope"), "ask a cluster admin"),
        ] {
            assert!(report.contains(" is forbidden: User ") && report.contains(to_do), "{report}");
        }
    }

    #[test]
    fn each_refusal_has_advice() {
        for (report, to_do) in [
            (report(404, "404 page not found"), "kubectl apply -f crds/"),
            (report(404, "the server could not find the requested resource"), "kubectl apply -f crds/"),
            (report(401, "Unauthorized"), "log in again"),
        ] {
            assert!(report.contains(to_do), "{report}");
        }
        let unreachable = kube::Error::Service(Box::new(std::io::Error::other("Connection refused")));
        let report = Failure::of_request(&unreachable, "https://cluster.example").to_string();
        assert!(
            report.contains("https://cluster.example failed: Connection refused")
                && report.contains("kubectl cluster-info"),
            "{report}"
        );
    }

    #[test]
    fn policy_and_quota_messages_are_unchanged() {
        let message = "webhookdeliveries \"a\" is forbidden: exceeded quota: q, requested: 1, used: 0";
        assert_eq!(report(403, message), message);
    }
}
