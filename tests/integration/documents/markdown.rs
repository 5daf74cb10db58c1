//! Parses a document: its fenced blocks, its headings and its links.

use std::{collections::BTreeSet, fs, path::Path};

use llmtune_webhooks_harness::root;
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// First words of command lines in a block without a language.
const PROGRAMS: [&str; 9] = ["$", "cargo", "docker", "helm", "install", "kubectl", "ln", "make", "node"];

/// A fenced block.
#[derive(Clone, Debug)]
pub struct Block {
    /// The line of its fence.
    pub line: usize,
    /// The heading above it.
    pub heading: String,
    pub language: String,
    pub text: String,
    /// The reason why it is not run, from the comment before it.
    pub not_run: Option<String>,
}

impl Block {
    /// Whether it shows commands to run.
    pub fn is_commands(&self) -> bool {
        match self.language.as_str() {
            "sh" | "bash" | "console" => true,
            "" => self.text.lines().any(|line| PROGRAMS.contains(&line.split(' ').next().unwrap_or_default())),
            _ => false,
        }
    }

    /// Its commands, each with the output that it shows. Without prompts, the block is one script.
    pub fn commands(&self) -> Vec<(String, String)> {
        if !self.text.lines().any(|line| line.starts_with("$ ")) {
            return vec![(self.text.clone(), String::new())];
        }
        let mut commands: Vec<(String, String)> = Vec::new();
        for line in self.text.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                commands.push((command.to_owned(), String::new()));
            } else {
                let output = &mut commands.last_mut().expect("a block with prompts begins with one").1;
                output.push_str(line);
                output.push('\n');
            }
        }
        commands
    }

    /// All its commands as one script.
    pub fn script(&self) -> String {
        self.commands().into_iter().map(|(command, _)| command + "\n").collect()
    }
}

/// A parsed document.
#[derive(Default)]
pub struct Markdown {
    pub blocks: Vec<Block>,
    /// The anchors of its headings, as GitHub generates them.
    pub anchors: BTreeSet<String>,
    /// The targets of its links and pictures.
    pub links: Vec<String>,
}

impl Markdown {
    /// Parses a document; its path is relative to the repository's root.
    pub fn of(document: &str) -> Self {
        Self::read(&fs::read_to_string(root().join(document)).unwrap())
    }

    fn read(text: &str) -> Self {
        let mut read = Self::default();
        let (mut heading, mut in_heading, mut comment) = (String::new(), false, None);
        let mut block: Option<Block> = None;
        for (event, place) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            match event {
                Event::Start(Tag::Heading { .. }) => (heading, in_heading) = (String::new(), true),
                Event::End(TagEnd::Heading(_)) => {
                    in_heading = false;
                    let anchor = anchor(&heading);
                    let same = read.anchors.iter().filter(|known| is_repeat(known, &anchor)).count();
                    read.anchors.insert(if same == 0 { anchor } else { format!("{anchor}-{same}") });
                }
                Event::Text(text) | Event::Code(text) if in_heading => heading.push_str(&text),
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    read.links.push(dest_url.into_string());
                }
                Event::Html(html) => comment = Some(html.into_string()),
                Event::Start(Tag::HtmlBlock) | Event::End(TagEnd::HtmlBlock) => {}
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => {
                    let not_run = comment.take().and_then(|comment| {
                        let reason = comment.trim().strip_prefix("<!-- not run: ")?.strip_suffix(" -->")?;
                        Some(reason.to_owned())
                    });
                    let line = text[..place.start].matches('\n').count() + 1;
                    let (heading, language) = (heading.clone(), language.into_string());
                    block = Some(Block { line, heading, language, text: String::new(), not_run });
                }
                Event::Text(text) if block.is_some() => block.as_mut().unwrap().text.push_str(&text),
                Event::End(TagEnd::CodeBlock) => read.blocks.extend(block.take()),
                _ => comment = None,
            }
        }
        read
    }
}

/// The anchor of a heading: lower case, spaces as hyphens, without punctuation.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn is_repeat(known: &str, anchor: &str) -> bool {
    let rest = known.strip_prefix(anchor);
    rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix('-').is_some_and(|rest| rest.parse::<u32>().is_ok()))
}

/// The documents of the repository, relative to its root.
pub fn documents() -> Vec<String> {
    let mut found = Vec::new();
    let entries = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    for path in entries.filter(|path| !path.ends_with("target") && !path.ends_with(".git")) {
        collect(&path, &mut found);
    }
    found.sort();
    found
}

fn collect(path: &Path, found: &mut Vec<String>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            collect(&entry.unwrap().path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "md") {
        found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
    }
}

#[test]
fn command_blocks_are_recognized() {
    let text = "# A `b`, c\n\n1. item\n\n   <!-- not run: why -->\n   ```sh\n   ls \\\n     -l\n   ```\n\n<!-- not run: stale -->\n\ntext\n\n\
        ```\n$ kubectl get x\nNAME\n$ ls\n```\n\n```\npicture ──▶\n```\n\n## A b c\n\n[one](two.md#a-b-c)\n";
    let read = Markdown::read(text);
    let blocks: Vec<(bool, Option<&str>)> =
        read.blocks.iter().map(|block| (block.is_commands(), block.not_run.as_deref())).collect();
    assert_eq!(blocks, [(true, Some("why")), (true, None), (false, None)]);
    assert_eq!(read.blocks[0].script(), "ls \\\n  -l\n\n");
    assert_eq!((read.blocks[0].line, read.blocks[0].heading.as_str()), (6, "A b, c"));
    let commands = [("kubectl get x".to_owned(), "NAME\n".to_owned()), ("ls".to_owned(), String::new())];
    assert_eq!(read.blocks[1].commands(), commands);
    assert_eq!(read.anchors.iter().collect::<Vec<_>>(), ["a-b-c", "a-b-c-1"]);
    assert_eq!(read.links, ["two.md#a-b-c"]);
}
