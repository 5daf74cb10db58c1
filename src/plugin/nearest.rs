//! What somebody who mistyped a name may have meant.

/// The names that are most like this one, the likest first, at most three; none where none is alike.
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let farthest = (wanted.chars().count() / 3).max(2);
    let mut alike: Vec<(usize, &str)> = names
        .into_iter()
        .filter_map(|name| {
            let distance = distance(wanted, name);
            // Who leaves a part out makes many mistakes at once.
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

/// How many letters must be put in, left out or changed to come from one to the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (number, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = number + 1;
        for (column, other) in to.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted_in_letters() {
        for (from, to, expected) in
            [("", "", 0), ("ci", "ci", 0), ("ci", "cd", 1), ("kitten", "sitting", 3), ("é", "", 1)]
        {
            assert_eq!(distance(from, to), expected, "{from} {to}");
            assert_eq!(distance(to, from), expected, "{to} {from}");
        }
    }

    #[test]
    fn names_that_are_alike_are_found_and_others_are_not() {
        let names = ["ci", "cd", "grafana", "slack-alerts", "slack-news", "x"];
        assert_eq!(nearest("cj", names), ["cd", "ci"]);
        assert_eq!(nearest("grafna", names), ["grafana"]);
        assert_eq!(nearest("slack", names), ["slack-news", "slack-alerts"]);
        assert_eq!(nearest("platform-team", names), [""; 0]);
        assert_eq!(nearest("ci", []), [""; 0]);
    }

    #[test]
    fn names_are_told_as_a_choice() {
        assert_eq!(either(&[]), "");
        assert_eq!(either(&["a"]), "a");
        assert_eq!(either(&["a", "b", "c"]), "a, b or c");
    }
}
