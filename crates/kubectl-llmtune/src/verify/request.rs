//! Parses a recorded request into headers and body. Pure.

/// A recorded request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Names are in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// Parses an optional request line, headers, an empty line and the body. If nothing in the input is a header, all
    /// of it is the body. `further` holds headers from elsewhere, which come first.
    pub fn read(input: &[u8], further: &[(String, String)]) -> Self {
        let mut headers = further.to_vec();
        let (head, body) = split(input);
        headers.extend(head.lines().filter_map(header));
        let mut request = Self { headers, body: body.to_vec() };
        request.trim_to_content_length();
        request
    }

    /// A header's value, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The value of Content-Length.
    pub fn length(&self) -> Option<usize> {
        self.header("content-length")?.trim().parse().ok()
    }

    /// Recordings often end with an additional line break, which Content-Length does not count.
    fn trim_to_content_length(&mut self) {
        let Some(length) = self.length().filter(|length| *length < self.body.len()) else { return };
        if self.body[length..].iter().all(u8::is_ascii_whitespace) {
            self.body.truncate(length);
        }
    }
}

/// Splits the input into head and body.
fn split(input: &[u8]) -> (&str, &[u8]) {
    let first = input.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let first = std::str::from_utf8(first).unwrap_or_default().trim_end();
    if !is_request_line(first) && header(first).is_none() {
        return ("", input);
    }
    let mut begin = 0;
    for line in input.split_inclusive(|byte| *byte == b'\n') {
        let end = begin + line.len();
        if line.trim_ascii().is_empty() {
            return (std::str::from_utf8(&input[..begin]).unwrap_or_default(), &input[end..]);
        }
        begin = end;
    }
    (std::str::from_utf8(input).unwrap_or_default(), &[])
}

fn is_request_line(line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    matches!(words[..], [method, _, version]
        if version.starts_with("HTTP/") && method.chars().all(|letter| letter.is_ascii_uppercase()))
}

/// A header name is a token (RFC 9110, 5.6.2).
fn header(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    let token = |letter: char| letter.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(letter);
    (!name.is_empty() && name.chars().all(token)).then(|| (name.to_lowercase(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = "{\"id\":\"evt_1\",\"data\":{}}";

    #[test]
    fn parses_request_with_optional_first_line_and_any_line_breaks() {
        let head = "POST /hooks HTTP/1.1\r\nX-LLMTune-Event: training.started\r\nContent-Length: 24\r\n";
        for text in [
            format!("{head}\r\n{BODY}"),
            format!("{head}\r\n{BODY}").replace('\r', ""),
            format!("{head}\r\n{BODY}\n"),
            format!("{head}\n{BODY}").split_once('\n').unwrap().1.to_owned(),
        ] {
            let request = Request::read(text.as_bytes(), &[]);
            assert_eq!(request.header("x-llmtune-event"), Some("training.started"), "{text:?}");
            assert_eq!(request.body, BODY.as_bytes(), "{text:?}");
        }
    }

    #[test]
    fn input_without_headers_is_the_body() {
        let headers = [("x-signature".to_owned(), "sha256=0".to_owned())];
        let request = Request::read(BODY.as_bytes(), &headers);
        assert_eq!(request.body, BODY.as_bytes());
        assert_eq!(request.header("x-signature"), Some("sha256=0"));
        let indented = b"{\n  \"id\": \"evt_1\"\n}\n";
        assert_eq!(Request::read(indented, &[]).body, indented);
    }

    #[test]
    fn body_of_wrong_length_is_unchanged() {
        for body in ["{\"a\":1}x", "{"] {
            let text = format!("Content-Length: 7\n\n{body}");
            assert_eq!(Request::read(text.as_bytes(), &[]).body, body.as_bytes());
        }
    }
}
