//! `kubectl llmtune verify`: checks the signature of a recorded request, and explains why it is invalid.

pub mod examine;
pub mod json;
pub mod request;

use std::{
    io::{self, IsTerminal, Read},
    path::Path,
    process::ExitCode,
};

use jiff::Timestamp;
use secrecy::SecretSlice;

use super::{
    cli::VerifyArgs,
    failure::Failure,
    output::{Screen, note, print},
    table::{Paint, Tone},
};
use examine::{Scheme, Verdict};
use request::Request;

/// Upper bound for the input, in bytes. Every request of the operator is smaller.
const MAX_INPUT: u64 = 4 << 20;

pub fn run(asked: &VerifyArgs) -> Result<ExitCode, Failure> {
    let secret = secret(&asked.secret_file)?;
    if io::stdin().is_terminal() {
        note("Reading the request from the terminal: type headers, an empty line and the body, then press Ctrl-D.");
    }
    let mut input = Vec::new();
    let unreadable = |error| Failure::new(format!("standard input cannot be read: {error}"));
    io::stdin().lock().take(MAX_INPUT).read_to_end(&mut input).map_err(unreadable)?;
    if input.is_empty() {
        return Err(Failure::new("standard input contains no request")
            .next("pass the complete request, headers and body: kubectl llmtune verify --secret-file FILE < request"));
    }
    let request = Request::read(&input, &asked.headers);
    let verdict = examine::examine(&request, &secret, asked.format.map(Scheme::of), Timestamp::now());
    print(&formatted(&verdict, Screen::of_stdout().paint))?;
    Ok(if verdict.verified { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads a file that holds a secret.
pub fn secret(path: &Path) -> Result<SecretSlice<u8>, Failure> {
    let bytes = std::fs::read(path)
        .map_err(|error| Failure::new(format!("the secret file {} cannot be read: {error}", path.display())))?;
    if bytes.is_empty() {
        let next = "write the secret to it: kubectl get secret NAME -o jsonpath='{.data.secret}' | base64 -d > FILE";
        return Err(Failure::new(format!("the secret file {} is empty", path.display())).next(next));
    }
    Ok(bytes.into())
}

/// Formats the verdict, one line for each finding.
pub fn formatted(verdict: &Verdict, paint: Paint) -> String {
    let (word, tone) = if verdict.verified { ("verified", Tone::Good) } else { ("not verified", Tone::Bad) };
    let mut text = format!("{}: {}\n", paint.paint(tone, word), verdict.summary);
    for finding in &verdict.findings {
        text.extend([format!("  - {finding}\n")]);
    }
    text
}
