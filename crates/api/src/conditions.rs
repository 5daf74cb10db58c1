//! Conditions by the conventions of the Kubernetes API: one for each type, with the time of the last change of its
//! status.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Returns the next condition of this type after the existing ones.
#[must_use]
pub fn next(
    before: &[Condition],
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    generation: i64,
    at: Timestamp,
) -> Condition {
    let same = get(before, kind).filter(|before| before.status == status);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: Some(generation),
        last_transition_time: same.map_or_else(|| whole_seconds(at), |same| same.last_transition_time.clone()),
    }
}

/// Replaces the condition of the same type. Returns whether status or reason changed.
pub fn set(conditions: &mut Vec<Condition>, new: Condition) -> bool {
    let Some(known) = conditions.iter_mut().find(|known| known.type_ == new.type_) else {
        conditions.push(new);
        return true;
    };
    let changed = known.status != new.status || known.reason != new.reason;
    *known = new;
    changed
}

/// Returns the condition of this type.
#[must_use]
pub fn get<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Reports whether the condition of this type exists and is `True`.
#[must_use]
pub fn holds(conditions: &[Condition], kind: &str) -> bool {
    get(conditions, kind).is_some_and(|condition| condition.status == "True")
}

/// Returns the status for a known value.
#[must_use]
pub const fn status(holds: bool) -> &'static str {
    if holds { "True" } else { "False" }
}

/// Truncates a time to whole seconds, the precision of `metav1.Time`.
#[must_use]
pub fn whole_seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

#[cfg(test)]
mod tests {
    use crate::conditions::*;

    #[test]
    fn transition_time_changes_only_with_the_status() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut conditions = Vec::new();
        let mut say = |status, reason, message, second| {
            let new = next(&conditions, "Ready", status, reason, message, second, at(second));
            let changed = set(&mut conditions, new);
            assert_eq!(conditions.len(), 1);
            assert_eq!(conditions[0].observed_generation, Some(second));
            assert_eq!(conditions[0].message, message);
            (changed, conditions[0].last_transition_time.0.as_second())
        };
        assert_eq!(say("False", "SecretNotFound", "create it", 1), (true, 1));
        assert_eq!(say("False", "SecretNotFound", "in other words", 2), (false, 1));
        assert_eq!(say("False", "SecretKeyNotFound", "add it", 3), (true, 1));
        assert_eq!(say("True", "Subscribed", "", 4), (true, 4));
        assert!(holds(&conditions, "Ready") && !holds(&conditions, "Healthy"));
    }
}
