//! Suggestions for a mistyped name.

/// The names closest to `wanted`, closest first, at most three. Empty if none is close.
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let farthest = (wanted.chars().count() / 3).max(2);
    let mut alike: Vec<(usize, &str)> = names
        .into_iter()
        .filter_map(|name| {
            let distance = strsim::levenshtein(wanted, name);
            // Leaving out a part of a name is a common mistake with a large distance.
            let part = wanted.len() >= 2 && (name.contains(wanted) || (name.len() >= 2 && wanted.contains(name)));
            (distance <= farthest.min(name.len().max(1) - 1).max(1) || part).then_some((distance, name))
        })
        .collect();
    alike.sort_unstable();
    alike.dedup();
    alike.into_iter().map(|(_, name)| name).take(3).collect()
}

/// `ci or cd`, `ci, cd or ce`.
pub fn either(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [others @ .., last] => format!("{} or {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_only_similar_names() {
        let names = ["ci", "cd", "grafana", "slack-alerts", "slack-news", "x"];
        assert_eq!(nearest("cj", names), ["cd", "ci"]);
        assert_eq!(nearest("grafna", names), ["grafana"]);
        assert_eq!(nearest("slack", names), ["slack-news", "slack-alerts"]);
        assert_eq!(nearest("platform-team", names), [""; 0]);
        assert_eq!(nearest("ci", []), [""; 0]);
    }

    #[test]
    fn joins_names_as_a_choice() {
        assert_eq!(either(&[]), "");
        assert_eq!(either(&["a"]), "a");
        assert_eq!(either(&["a", "b", "c"]), "a, b or c");
    }
}
