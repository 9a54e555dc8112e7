//! Text tables and times for people. Cells come from the network: control characters in them are shown escaped, so that
//! nobody writes to the operator's terminal.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A table with a line of headings.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| visible(&cell)).collect());
    }

    /// The text, or one line that says there is nothing.
    pub(crate) fn render(&self, nothing: &str) -> String {
        if self.rows.len() == 1 {
            return format!("{nothing}\n");
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `text` with control characters escaped, and `-` for nothing.
pub(crate) fn visible(text: &str) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Seconds since 1970 as a date, with how far away it is.
pub(crate) fn end(unix: i64, now: OffsetDateTime) -> String {
    let Ok(end) = OffsetDateTime::from_unix_timestamp(unix) else { return unix.to_string() };
    let date = end.format(&Rfc3339).unwrap_or_else(|_| unix.to_string());
    format!("{date} ({})", distance((end - now).whole_seconds()))
}

/// As [`end`], of a date as the agent writes it.
pub(crate) fn end_of(text: &str, now: OffsetDateTime) -> String {
    match OffsetDateTime::parse(text, &Rfc3339) {
        Ok(end_at) => end(end_at.unix_timestamp(), now),
        Err(_) => text.to_owned(),
    }
}

fn distance(seconds: i64) -> String {
    let ago = seconds < 0;
    let seconds = seconds.unsigned_abs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let text = match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    };
    if ago { format!("ended {text} ago") } else { format!("in {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_spaces() {
        let mut table = Table::new(&["NODE", "VERSION"]);
        table.row(["n1".to_owned(), "17".to_owned()]);
        table.row(["a-long-node".to_owned(), String::new()]);
        assert_eq!(table.render("none"), "NODE         VERSION\nn1           17\na-long-node  -\n");
        assert_eq!(Table::new(&["NODE"]).render("no agents"), "no agents\n");
    }

    #[test]
    fn a_name_cannot_write_to_the_terminal() {
        assert_eq!(visible("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }

    #[test]
    fn ends_are_told_with_their_distance() {
        let now = OffsetDateTime::from_unix_timestamp(1_000_000_000).unwrap();
        assert_eq!(end(1_000_000_000 + 45, now), "2001-09-09T01:47:25Z (in 45s)");
        for (seconds, told) in [
            (125, "in 2m05s"),
            (3 * 3600 + 240, "in 3h04m"),
            (2 * 86_400 + 3600, "in 2d01h"),
            (-60, "ended 1m00s ago"),
        ] {
            assert_eq!(distance(seconds), told);
        }
        assert_eq!(end_of("2001-09-09T01:47:25Z", now), end(1_000_000_045, now));
        assert_eq!(end_of("soon", now), "soon");
    }
}
