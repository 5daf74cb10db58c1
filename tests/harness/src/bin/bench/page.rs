//! Sections of `docs/performance.md`: what each part of the benchmark measured, beside its targets.

use std::{fmt::Write, fs, path::Path};

use crate::tally::percentile;

/// What a part has to say.
pub struct Page {
    pub text: String,
    /// The rows whose target was missed.
    pub missed: Vec<String>,
}

/// One figure beside its target.
pub struct Row {
    figure: String,
    target: Option<f64>,
    digits: usize,
    value: f64,
    beside: Option<f64>,
}

/// What stands beside a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Other {
    None,
    Alone,
    WithRatio,
}

impl Row {
    pub fn new(figure: impl Into<String>, digits: usize, value: f64) -> Self {
        Self { figure: figure.into(), target: None, digits, value, beside: None }
    }

    /// It is to be no more than this, where the target was set for what was measured.
    pub fn at_most(self, target: f64, applies: bool) -> Self {
        Self { target: applies.then_some(target), ..self }
    }

    /// What it is held against.
    pub fn beside(self, value: f64) -> Self {
        Self { beside: Some(value), ..self }
    }

    /// The highest of these values, beside their median.
    pub fn highest(figure: impl Into<String>, digits: usize, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self::new(figure, digits, percentile(&values, 1.0)).beside(percentile(&values, 0.5))
    }

    fn misses(&self) -> bool {
        // What could not be measured reaches nothing.
        self.target.is_some_and(|target| self.value.is_nan() || self.value > target)
    }
}

impl Page {
    /// A page that begins with these words.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), missed: Vec::new() }
    }

    /// Adds a table of the operator's figures; `beside`: what they are held against.
    pub fn table(&mut self, beside: &str, rows: &[Row]) {
        let head =
            format!("\n| figure | target | operator | {beside} | operator ÷ {beside} |\n|---|---|---|---|---|\n");
        self.text.push_str(&head);
        self.rows(rows, Other::WithRatio);
    }

    /// Adds a table of what was measured several times: the highest, beside it the median.
    pub fn spread(&mut self, rows: &[Row]) {
        self.text.push_str("\n| figure | target | highest | median |\n|---|---|---|---|\n");
        self.rows(rows, Other::Alone);
    }

    /// Adds a table of what was measured once and is held against nothing but its target.
    pub fn values(&mut self, rows: &[Row]) {
        self.text.push_str("\n| figure | target | value |\n|---|---|---|\n");
        self.rows(rows, Other::None);
    }

    /// Adds a table with a column for each setting: the rows' names, their digits, and a value for each column.
    pub fn columns(&mut self, setting: &str, heads: &[String], rows: &[(&str, usize, Vec<f64>)]) {
        let line = format!("---|{}", "---|".repeat(heads.len()));
        let _ = writeln!(self.text, "\n| {setting} | {} |\n|{line}", heads.join(" | "));
        for (name, digits, values) in rows {
            let values: Vec<String> = values.iter().map(|value| format!("{value:.digits$}")).collect();
            let _ = writeln!(self.text, "| {name} | {} |", values.join(" | "));
        }
    }

    fn rows(&mut self, rows: &[Row], others: Other) {
        let page = &mut self.text;
        for row in rows {
            let Row { figure, target, digits, value, beside } = row;
            let missed = if row.misses() { ", missed" } else { "" };
            let target = target.map_or_else(|| "–".into(), |target| format!("≤ {target}{missed}"));
            let _ = write!(page, "| {figure} | {target} | {value:.digits$} |");
            if others != Other::None {
                let other = beside.map_or_else(|| "–".into(), |beside| format!("{beside:.digits$}"));
                let _ = write!(page, " {other} |");
            }
            if others == Other::WithRatio {
                let ratio = beside.filter(|beside| *beside > 0.0).map(|beside| format!("{:.2}", value / beside));
                let _ = write!(page, " {} |", ratio.as_deref().unwrap_or("–"));
            }
            page.push('\n');
        }
        let missed = rows.iter().filter(|row| row.misses());
        self.missed.extend(missed.map(|row| format!("{}: {:.*}", row.figure, row.digits, row.value)));
    }
}

/// Writes the text between the two lines of this part in the file; what people wrote outside of them stays.
pub fn save(path: &Path, part: &str, page: &str) -> std::io::Result<()> {
    let text = fs::read_to_string(path).unwrap_or_else(|_| "# Performance\n".to_owned());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, splice(&text, part, page))
}

fn splice(text: &str, part: &str, page: &str) -> String {
    let [begin, end] = ["begin", "end"].map(|what| format!("<!-- written by `make bench`, {part}: {what} -->"));
    let (before, after) = match (text.split_once(&begin), text.split_once(&end)) {
        (Some((before, _)), Some((_, after))) => (before.to_owned(), after),
        _ => (format!("{text}\n"), "\n"),
    };
    format!("{before}{begin}\n{page}\n{end}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_and_what_other_parts_measured_stays() {
        let [begin, end] = ["begin", "end"].map(|what| format!("<!-- written by `make bench`, writes: {what} -->"));
        let text = format!("# Title\nabove\n{begin}\nold\n{end}\nbelow\n");
        assert_eq!(splice(&text, "writes", "new"), format!("# Title\nabove\n{begin}\nnew\n{end}\nbelow\n"));
        assert_eq!(splice("bare\n", "writes", "new"), format!("bare\n\n{begin}\nnew\n{end}\n"));
        let both = splice(&splice("bare\n", "ledger", "one"), "writes", "two");
        assert!(splice(&both, "ledger", "three").ends_with(&format!("\n{begin}\ntwo\n{end}\n")));
    }

    #[test]
    fn a_missed_target_is_said() {
        let mut page = Page::new("");
        let late = Row::new("late", 1, 2.0).at_most(1.0, true).beside(4.0);
        page.table("floor", &[late, Row::new("unknown", 0, f64::NAN).at_most(1.0, true), Row::new("fine", 0, 2.0)]);
        assert!(page.text.contains("| late | ≤ 1, missed | 2.0 | 4.0 | 0.50 |"), "{}", page.text);
        assert_eq!(page.missed, ["late: 2.0", "unknown: NaN"]);
    }

    #[test]
    fn a_table_has_the_columns_that_its_kind_needs() {
        let mut page = Page::new("");
        page.values(&[Row::new("one", 1, 2.0).at_most(3.0, true)]);
        assert!(
            page.text.ends_with("\n| figure | target | value |\n|---|---|---|\n| one | ≤ 3 | 2.0 |\n"),
            "{}",
            page.text
        );
        page.columns("Webhooks", &["1".into(), "10".into()], &[("CPU, µs", 0, vec![1.0, 2.4])]);
        assert!(page.text.ends_with("\n| Webhooks | 1 | 10 |\n|---|---|---|\n| CPU, µs | 1 | 2 |\n"), "{}", page.text);
    }
}
