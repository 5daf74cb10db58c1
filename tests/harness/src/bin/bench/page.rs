//! Writes sections of `docs/performance.md`: the figures of each part of the benchmark, next to their targets.

use std::{fmt::Write, fs, path::Path};

use crate::tally::percentile;

/// The results of a part.
pub struct Page {
    pub text: String,
    /// The rows with a missed target.
    pub missed: Vec<String>,
}

/// One figure, with its target.
pub struct Row {
    figure: String,
    target: Option<f64>,
    digits: usize,
    value: f64,
    beside: Option<f64>,
}

/// The value next to a figure.
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

    /// Sets the target, an upper bound, if it applies to this setting.
    pub fn at_most(self, target: f64, applies: bool) -> Self {
        Self { target: applies.then_some(target), ..self }
    }

    /// Sets the value for comparison.
    pub fn beside(self, value: f64) -> Self {
        Self { beside: Some(value), ..self }
    }

    /// The highest of these values, with their median for comparison.
    pub fn highest(figure: impl Into<String>, digits: usize, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self::new(figure, digits, percentile(&values, 1.0)).beside(percentile(&values, 0.5))
    }

    fn misses(&self) -> bool {
        // A value that could not be measured misses the target.
        self.target.is_some_and(|target| self.value.is_nan() || self.value > target)
    }
}

impl Page {
    /// A page that begins with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), missed: Vec::new() }
    }

    /// Adds a table of the operator's figures. `beside` is the heading of the values for comparison.
    pub fn table(&mut self, beside: &str, rows: &[Row]) {
        let head =
            format!("\n| figure | target | operator | {beside} | operator ÷ {beside} |\n|---|---|---|---|---|\n");
        self.text.push_str(&head);
        self.rows(rows, Other::WithRatio);
    }

    /// Adds a table of repeated measurements: the highest value and the median.
    pub fn spread(&mut self, rows: &[Row]) {
        self.text.push_str("\n| figure | target | highest | median |\n|---|---|---|---|\n");
        self.rows(rows, Other::Alone);
    }

    /// Adds a table of single measurements, with their targets only.
    pub fn values(&mut self, rows: &[Row]) {
        self.text.push_str("\n| figure | target | value |\n|---|---|---|\n");
        self.rows(rows, Other::None);
    }

    /// Adds a table with one column per setting. Each row has a name, a number of digits and a value per column.
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

/// Replaces the text between the two marker lines of this part in the file. All other text stays.
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
