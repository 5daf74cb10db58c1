//! The commands of a document, and the shell that runs them as written.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use llmtune_webhooks_harness::{
    control_plane::tool,
    eventually,
    process::{Process, free_port, temporary_folder},
    root,
};
use serde_json::Value;

use super::markdown::{Block, Markdown};
use crate::support::{BINARY, SOON, Scene, plugin_binary};

/// A replacement for `cargo`. The binaries are already built; the script only checks that the command builds them.
const CARGO: &str =
    "#!/bin/sh\ncase $* in \"build --release\"*) ;; *) echo \"cargo $*: not what is built here\" >&2; exit 1 ;; esac\n";

/// The blocks of a document that are to be run, in order.
pub struct Script {
    document: &'static str,
    blocks: Vec<Block>,
}

impl Script {
    pub fn of(document: &'static str) -> Self {
        let runs = |block: &Block| block.is_commands() && block.not_run.is_none();
        Self { document, blocks: Markdown::of(document).blocks.into_iter().filter(runs).collect() }
    }

    /// The next block under this heading.
    pub fn take(&mut self, heading: &str) -> Block {
        let place = self.blocks.iter().position(|block| block.heading == heading);
        let place = place.unwrap_or_else(|| panic!("{}: no commands are left under {heading:?}", self.document));
        self.blocks.remove(place)
    }

    /// All remaining blocks.
    pub fn rest(&mut self) -> Vec<Block> {
        std::mem::take(&mut self.blocks)
    }

    /// Checks that every block has been run.
    pub fn ended(&self) {
        assert!(self.blocks.is_empty(), "{}: the test does not run these: {:#?}", self.document, self.blocks);
    }
}

/// A user's shell: in a checkout, with kubectl set to a scene's namespace, Helm, the plugin and the binaries that cargo
/// builds.
pub struct Shell {
    pub checkout: PathBuf,
    home: PathBuf,
    kubeconfig: PathBuf,
    /// Texts in documents, each with its replacement in the test.
    instead: Vec<(String, String)>,
}

impl Shell {
    pub fn new(scene: &Scene) -> Self {
        let checkout = temporary_folder("checkout");
        for entry in fs::read_dir(root()).unwrap().map(Result::unwrap).filter(|entry| entry.file_name() != "target") {
            symlink(entry.path(), checkout.join(entry.file_name())).unwrap();
        }
        fs::create_dir_all(checkout.join("target/release")).unwrap();
        for binary in [Path::new(BINARY), plugin_binary()] {
            symlink(binary, checkout.join("target/release").join(binary.file_name().unwrap())).unwrap();
        }
        let home = temporary_folder("home");
        let programs = home.join(".local/bin");
        fs::create_dir_all(&programs).unwrap();
        for name in ["kubectl", "helm"] {
            symlink(tool(name), programs.join(name)).unwrap();
        }
        fs::write(programs.join("cargo"), CARGO).unwrap();
        fs::set_permissions(programs.join("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
        let mut config: Value =
            serde_json::from_str(&fs::read_to_string(scene.plane.kubeconfig("admin")).unwrap()).unwrap();
        config["contexts"][0]["context"]["namespace"] = scene.namespace.clone().into();
        let kubeconfig = home.join("kubeconfig");
        fs::write(&kubeconfig, config.to_string()).unwrap();
        Self { checkout, home, kubeconfig, instead: Vec::new() }
    }

    /// Replaces a text of the document.
    pub fn instead(&mut self, of: &str, stands: &str) {
        self.instead.push((of.to_owned(), stands.to_owned()));
    }

    /// Replaces a port of the document by a free one.
    pub fn port(&mut self, of: u16) -> u16 {
        let free = free_port();
        self.instead(&of.to_string(), &free.to_string());
        free
    }

    fn command(&self, script: &str) -> Command {
        let script = self.instead.iter().fold(script.to_owned(), |script, (of, stands)| script.replace(of, stands));
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new("sh");
        command.args(["-euc", &script]).current_dir(&self.checkout);
        command
            .env("PATH", format!("{}:{path}", self.home.join(".local/bin").display()))
            .env("HOME", &self.home)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("NO_COLOR", "1")
            .env_remove("HTTPS_PROXY")
            .env_remove("https_proxy");
        command
    }

    fn output(&self, script: &str) -> Output {
        let output = self.command(script).stdin(std::process::Stdio::null()).output().unwrap();
        println!("$ {}\n{}", script.trim_end(), shown(&output));
        output
    }

    /// Runs a block as written. Panics on errors.
    pub fn run(&self, block: &Block) -> String {
        self.type_in(&block.script())
    }

    /// Runs commands as written. Panics on errors.
    pub fn type_in(&self, script: &str) -> String {
        let output = self.output(script);
        assert!(output.status.success(), "{script}\n{}", shown(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The output that a user sees, whatever the exit code.
    pub fn look(&self, script: &str) -> String {
        shown(&self.output(script))
    }

    /// Runs a block in its own terminal, where it keeps running.
    pub fn terminal(&self, block: &Block) -> Terminal {
        let log = temporary_folder("terminal").join("log");
        let process = Process::start(block.script().lines().last().unwrap(), &mut self.command(&block.script()), &log);
        Terminal { process }
    }
}

fn shown(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A terminal in which a command runs.
pub struct Terminal {
    process: Process,
}

impl Terminal {
    /// Waits for a line with all these words, and returns it.
    pub async fn line(&self, words: &[&str]) -> String {
        let what = format!("{} prints {words:?}", self.process.name);
        eventually(&what, SOON, || async {
            let log = self.log();
            log.lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        })
        .await
    }

    /// The complete output.
    pub fn log(&self) -> String {
        self.process.log_text()
    }
}

impl Drop for Terminal {
    /// Ends the shell's children too: the shell leads its own process group.
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", "--", &format!("-{}", self.process.pid())]).status();
    }
}
