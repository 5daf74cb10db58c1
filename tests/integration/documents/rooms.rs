//! The dependencies of each module, in the source code and in docs/architecture.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use llmtune_webhooks_harness::root;

/// Modules, each with the other modules that it uses.
pub type Uses = BTreeMap<String, BTreeSet<String>>;

/// The dependencies in the table of docs/architecture.md.
pub fn told() -> Uses {
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let mut documented = Uses::new();
    for line in text.lines().filter(|line| line.starts_with("| `src/")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [rooms, _, used] = cells[..] else { panic!("three cells, in {line}") };
        let used: BTreeSet<String> = used.split(", ").filter(|used| *used != "–").map(str::to_owned).collect();
        for room in rooms.split(", ") {
            let room = room.trim_matches('`').trim_start_matches("src/").trim_end_matches('/').trim_end_matches(".rs");
            documented.insert(room.to_owned(), used.clone());
        }
    }
    documented
}

/// The dependencies in the source code, without tests.
pub fn uses() -> Uses {
    let mut uses = Uses::new();
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let path = entry.unwrap().path();
        let room = path.file_stem().unwrap().to_str().unwrap();
        if !["lib", "main", "bin", "fuzz", "fake"].contains(&room) {
            collect(&path, uses.entry(room.to_owned()).or_default());
        }
    }
    for (room, used) in &mut uses {
        used.remove(room);
    }
    uses
}

fn collect(path: &Path, used: &mut BTreeSet<String>) {
    let name = path.file_stem().unwrap();
    if name == "tests" {
        return;
    }
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            collect(&entry.unwrap().path(), used);
        }
        return;
    }
    if path.extension().is_none_or(|extension| extension != "rs") {
        return;
    }
    let text = fs::read_to_string(path).unwrap();
    let product = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
    for (at, found) in product.match_indices("crate::") {
        // A longer name that ends in `crate` is another crate's. `pub(in crate::…)` is not a dependency.
        if !product[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            named(&product[at + found.len()..], used);
        }
    }
}

/// The first name of each path in this tree of a `use`.
fn named(tree: &str, used: &mut BTreeSet<String>) {
    let name = |text: &str| text.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
    let Some(inside) = tree.strip_prefix('{') else {
        used.insert(name(tree));
        return;
    };
    let (mut depth, mut begins) = (0, true);
    for (at, char) in inside.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth == 0 => return,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            char if begins && !char.is_whitespace() => {
                used.insert(name(&inside[at..]));
                begins = false;
            }
            _ => {}
        }
    }
}
