//! The repository's documents: every command that can run is run as written, every manifest of the concepts is applied,
//! and every link has a target.

mod examples;
mod handbook;
mod markdown;
mod plugin;
mod readme;
pub mod script;

use std::{collections::BTreeSet, path::Path};

use llmtune_webhooks_harness::root;

use self::{
    markdown::{Markdown, documents},
    script::Script,
};
use crate::{guide, source_examples, support::run};

/// Tests that each run all commands of some documents, except for those marked as not run.
macro_rules! played {
    ($($test:ident: $scene:path, of $($document:literal),+;)*) => {
        const PLAYED: &[&str] = &[$($($document),+),*];
        $(#[test]
        fn $test() {
            let mut scripts = [$(Script::of($document)),+];
            run($scene(&mut scripts));
            for script in &scripts {
                script.ended();
            }
        })*
    };
}

played! {
    the_readme_leads_to_a_verified_delivery_on_a_cluster_of_ones_own_and_installs_the_operator: readme::play, of
        "README.md";
    what_the_handbook_has_operators_type_works_on_an_installed_release: handbook::play, of
        "docs/operations.md", "charts/llmtune-webhooks/README.md", "docs/concepts.md", "docs/troubleshooting.md",
        "docs/gitops.md", "docs/runbooks/backlog-ageing.md", "docs/runbooks/deliveries-dropped.md",
        "docs/runbooks/deliveries-exhausted.md", "docs/runbooks/endpoint-failing.md",
        "docs/runbooks/ledger-flush-slow.md", "docs/runbooks/no-leader.md", "docs/runbooks/not-ready.md",
        "docs/runbooks/watch-stalled.md";
    the_page_of_the_plugin_shows_what_it_prints: plugin::play, of "docs/kubectl.md";
    the_examples_are_subscribed_and_received_as_their_pages_say: examples::play, of
        "examples/README.md", "examples/receivers/README.md";
    the_commands_of_the_guide_replace_a_secret_and_nothing_is_lost: guide::play, of "docs/receivers.md";
    the_guide_leads_from_a_trainjob_to_the_event_that_it_shows: source_examples::play, of "docs/sources.md";
}

#[test]
fn every_documented_command_is_run_or_explained() {
    for document in documents() {
        for block in Markdown::of(&document).blocks {
            let reason = block.not_run.as_deref();
            assert!(
                !block.is_commands() || reason.is_some() || PLAYED.contains(&document.as_str()),
                "{document}:{}: these commands are run by no test: add the document to `played!`, or write \
                 `<!-- not run: REASON -->` on the line before the block\n{}",
                block.line,
                block.text
            );
            assert!(
                reason.is_none_or(|reason| block.is_commands() && reason.len() > 10),
                "{document}:{}: a reason where there are no commands, or one that tells nothing",
                block.line
            );
        }
    }
}

#[test]
fn every_documented_link_has_a_target() {
    let mut followed = 0;
    for document in documents() {
        let folder = Path::new(&document).parent().unwrap().to_owned();
        let read = Markdown::of(&document);
        for link in read.links.iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { document.clone() } else { plain(&folder.join(path)) };
            assert!(root().join(&target).exists(), "{document}: {link}: there is no {target}");
            let anchors = if anchor.is_empty() { BTreeSet::new() } else { Markdown::of(&target).anchors };
            assert!(
                anchor.is_empty() || anchors.contains(anchor),
                "{document}: {link}: {target} has these headings: {anchors:#?}"
            );
            followed += 1;
        }
    }
    assert!(followed > 100, "{followed} links were found");
}

/// A path without `..`. A link out of the repository keeps it.
fn plain(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.to_str().unwrap().split('/') {
        if part == ".." && parts.last().is_some_and(|last| *last != "..") {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}
