//! A real Chromium in headless mode.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use llmtune_webhooks_harness::root;
use serde_json::{Value, json};

use crate::support::libraries;

/// A browser with one page. It ends when dropped, and with this process.
pub struct Browser {
    process: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Browser {
    pub fn start() -> Self {
        let mut process = Command::new("node")
            .arg(root().join("tests/integration/dashboard/browser.mjs"))
            .arg(libraries("browser"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let from = BufReader::new(process.stdout.take().unwrap());
        Self { to: process.stdin.take(), process, from }
    }

    /// Executes a command of `browser.mjs`. Panics on errors.
    pub fn ask(&mut self, what: &str, how: Value) -> Value {
        self.attempt(what, how).unwrap_or_else(|error| panic!("{what}: {error}\n{}", self.text()))
    }

    fn attempt(&mut self, what: &str, mut how: Value) -> Result<Value, String> {
        how["what"] = what.into();
        writeln!(self.to.as_mut().unwrap(), "{how}").unwrap();
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the browser has ended; see above");
        let answer: Value = serde_json::from_str(&line).unwrap();
        answer["error"].as_str().map_or_else(|| Ok(answer["value"].clone()), |error| Err(error.to_owned()))
    }

    /// Opens a page. Returns the status of the response.
    pub fn open(&mut self, url: &str, how: Value) -> Value {
        let mut how = how;
        how["url"] = url.into();
        self.ask("open", how)
    }

    /// Evaluates a script in the page.
    pub fn evaluate(&mut self, script: &str) -> Value {
        self.ask("evaluate", json!({"script": script}))
    }

    /// The visible text.
    pub fn text(&mut self) -> String {
        let text = self.attempt("evaluate", json!({"script": "document.body.innerText"}));
        text.map_or_else(|error| error, |text| text.as_str().unwrap_or_default().to_owned())
    }

    /// The id of the focused element.
    pub fn focused(&mut self) -> String {
        self.evaluate("document.activeElement.id").as_str().unwrap_or_default().to_owned()
    }

    /// Presses Tab until this element has the focus.
    pub fn tab_to(&mut self, id: &str) {
        for _ in 0..60 {
            if self.focused() == id {
                return;
            }
            self.ask("press", json!({"key": "Tab"}));
        }
        panic!("the keyboard does not come to {id}\n{}", self.text());
    }

    /// The page's requests since it was opened, and the browser's error messages.
    pub fn heard(&mut self) -> (Vec<String>, Vec<String>) {
        let heard = self.ask("heard", json!({}));
        let of =
            |name: &str| heard[name].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect();
        (of("requests"), of("complaints"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.to.take();
        let _ = self.process.wait();
    }
}
