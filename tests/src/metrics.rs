//! Metrics in the text format: fetched with curl from a node, read into samples, added up.

use std::collections::BTreeMap;

use anyhow::Result;

/// One sample.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// All samples of one fetch.
#[derive(Clone, Debug, Default)]
pub struct Metrics(pub Vec<Sample>);

impl Metrics {
    /// Reads the text format.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()))
    }

    /// The sum of the samples of `name` that carry all these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.0
            .iter()
            .filter(|sample| sample.name == name && has(sample, labels))
            .map(|sample| sample.value)
            .sum()
    }
}

fn has(sample: &Sample, labels: &[(&str, &str)]) -> bool {
    labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|own| own == value))
}

fn sample(line: &str) -> Option<Sample> {
    let (head, value) = match line.split_once('}') {
        Some((head, value)) => (head, value),
        None => line.split_once(' ')?,
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    let (name, labels) = head.split_once('{').unwrap_or((head, ""));
    let labels = labels
        .split("\",")
        .filter_map(|pair| {
            let (key, value) = pair.split_once("=\"")?;
            Some((key.to_owned(), value.trim_end_matches('"').to_owned()))
        })
        .collect();
    Some(Sample { name: name.to_owned(), labels, value })
}
