//! Tables as kubectl prints them: columns three spaces apart, `<none>` for empty values. Pure.

/// The meaning of a text, which determines its color.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    #[default]
    Plain,
    Good,
    Bad,
    Faint,
}

/// Whether texts may be colored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint(pub bool);

impl Paint {
    /// The text in the color of its tone, if colors are enabled (ECMA-48, SGR).
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => 32,
            Tone::Bad => 31,
            Tone::Faint => 2,
        };
        if self.0 && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// The text cannot move a terminal's cursor. An empty text is shown as `<none>`.
    pub fn new(text: impl Into<String>) -> Self {
        let text = printable(&text.into());
        Self { text: if text.is_empty() { "<none>".into() } else { text }, tone: Tone::Plain }
    }

    pub fn toned(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }
}

impl From<Option<String>> for Cell {
    fn from(text: Option<String>) -> Self {
        Self::new(text.unwrap_or_default())
    }
}

/// Makes untrusted text safe to print. Characters that move a terminal's cursor or reorder the surrounding text
/// (Unicode UAX #9, explicit formatting characters) become the replacement character.
pub fn printable(text: &str) -> String {
    let reorders = |letter| matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let shown =
        |letter: char| if letter.is_control() || reorders(letter) { char::REPLACEMENT_CHARACTER } else { letter };
    text.chars().map(shown).collect()
}

/// Rows under a header.
#[derive(Clone, Debug, Default)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row. It must have as many cells as the table has columns.
    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.header.len());
        self.rows.push(cells);
    }

    pub const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lines of the table, header first. Lines are cut at `width`, the width of the terminal.
    pub fn lines(&self, paint: Paint, width: Option<usize>) -> Vec<String> {
        let wide = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| length(&cell.text));
            cells.chain([length(self.header[column])]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.header.len()).map(wide).collect();
        let header = self.header.iter().map(|name| Cell { text: (*name).to_owned(), tone: Tone::Plain }).collect();
        let rows = std::iter::once(&header).chain(&self.rows);
        rows.map(|row: &Vec<Cell>| line(row, &widths, paint, width.unwrap_or(usize::MAX))).collect()
    }

    pub fn text(&self, paint: Paint, width: Option<usize>) -> String {
        self.lines(paint, width).into_iter().map(|line| line + "\n").collect()
    }
}

fn line(row: &[Cell], widths: &[usize], paint: Paint, mut remaining: usize) -> String {
    let mut line = String::new();
    for (column, cell) in row.iter().enumerate() {
        let text = cut(&cell.text, remaining);
        line.push_str(&paint.paint(cell.tone, &text));
        if column + 1 < row.len() {
            let gap = (widths[column] + 3).saturating_sub(length(&text)).min(remaining.saturating_sub(length(&text)));
            line.extend(std::iter::repeat_n(' ', gap));
            remaining = remaining.saturating_sub(widths[column] + 3);
        }
    }
    line.trim_end().to_owned()
}

/// Cuts the text to this many characters, and marks the cut with an ellipsis.
pub fn cut(text: &str, width: usize) -> String {
    if length(text) <= width {
        return text.to_owned();
    }
    let start: String = text.chars().take(width.saturating_sub(1)).collect();
    if width == 0 { start } else { start + "…" }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["NAME", "HEALTHY", "WHY"]);
        table.row(vec![Cell::new("ci"), Cell::new("True").toned(Tone::Good), Cell::default_none()]);
        table.row(vec![
            Cell::new("slack-alerts"),
            Cell::new("False").toned(Tone::Bad),
            Cell::new("HTTP 500: look there"),
        ]);
        table
    }

    impl Cell {
        fn default_none() -> Self {
            None.into()
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_content() {
        let expected = "\
NAME           HEALTHY   WHY
ci             True      <none>
slack-alerts   False     HTTP 500: look there
";
        assert_eq!(table().text(Paint(false), None), expected);
    }

    #[test]
    fn colors_do_not_change_the_layout() {
        let painted = table().text(Paint(true), None);
        assert!(painted.contains("\x1b[32mTrue\x1b[0m      <none>"), "{painted:?}");
        let plain = painted.replace("\x1b[32m", "").replace("\x1b[31m", "").replace("\x1b[0m", "");
        assert_eq!(plain, table().text(Paint(false), None));
    }

    #[test]
    fn lines_fit_the_terminal() {
        for width in 0..60 {
            for line in table().lines(Paint(false), Some(width)) {
                assert!(length(&line) <= width, "{width}: {line:?}");
            }
        }
        assert_eq!(table().lines(Paint(false), Some(33))[2], "slack-alerts   False     HTTP 50…");
    }

    #[test]
    fn control_characters_in_cells_are_replaced() {
        let mut table = Table::new(&["NAME"]);
        table.row(vec![Cell::new("a\x1b[2Jb\n\u{9b}c\u{202e}d\u{2066}e")]);
        assert_eq!(table.text(Paint(false), None), "NAME\na\u{fffd}[2Jb\u{fffd}\u{fffd}c\u{fffd}d\u{fffd}e\n");
    }
}
