//! What the mesh costs: the same four measurements over each path between two nodes, in interleaved rounds.
//!
//! In: how many rounds, how long each measurement, which paths. Out: a table of medians, and of shares of direct. Each path of each
//! round has fresh namespaces, so that no port in TIME_WAIT and no warm state favours anybody.

mod haproxy;
mod node;
mod path;
mod scale;

use std::collections::BTreeMap;

use anyhow::Result;

pub use node::{hooks, memory};
pub use path::Path;
pub use scale::{Size, scale};

/// The measurements, in the order of the table's columns; `true`: more is better.
pub const MEASURES: [(&str, bool); 4] = [
    ("one stream, Gbit/s", true),
    ("ping-pong p50, µs", false),
    ("new connections/s", true),
    ("HTTP keep-alive x16, req/s", true),
];

/// One path's figures of one round, in the order of [`MEASURES`].
pub type Figures = [f64; 4];

/// Runs all rounds and prints the table.
pub fn run(rounds: u32, seconds: f64, paths: &[Path]) -> Result<()> {
    let mut all: BTreeMap<Path, Vec<Figures>> = BTreeMap::new();
    for round in 1..=rounds {
        for path in paths.iter().copied() {
            let figures = path::measure(path, seconds)?;
            eprintln!("round {round}/{rounds} {:<28} {}", path.name(), row(&figures));
            all.entry(path).or_default().push(figures);
        }
    }
    print_table(&all, rounds);
    Ok(())
}

fn row(figures: &Figures) -> String {
    figures.iter().map(|figure| format!("{figure:>12.1}")).collect::<Vec<_>>().join(" ")
}

fn print_table(all: &BTreeMap<Path, Vec<Figures>>, rounds: u32) {
    let Some(direct) = all.get(&Path::Direct).map(|rounds| medians(rounds)) else { return };
    println!(
        "\nMedians of {rounds} interleaved rounds, across two nodes; in brackets the share of direct:\n"
    );
    let heads: Vec<&str> = MEASURES.iter().map(|(name, _)| *name).collect();
    println!("| path | {} |", heads.join(" | "));
    println!("|---|{}", "---|".repeat(heads.len()));
    for (path, rounds) in all {
        let cells: Vec<String> = medians(rounds)
            .iter()
            .zip(direct)
            .zip(MEASURES)
            .map(|((own, direct), (_, more))| {
                let share = if more { own / direct } else { direct / own };
                format!("{own:.1} ({share:.2})")
            })
            .collect();
        println!("| {} | {} |", path.name(), cells.join(" | "));
    }
}

/// The median of each measurement.
fn medians(rounds: &[Figures]) -> Figures {
    let mut medians = [0.0; 4];
    for (index, median) in medians.iter_mut().enumerate() {
        let mut column: Vec<f64> = rounds.iter().map(|figures| figures[index]).collect();
        column.sort_by(f64::total_cmp);
        *median = column.get(column.len() / 2).copied().unwrap_or_default();
    }
    medians
}

#[cfg(test)]
mod tests {
    use super::medians;

    #[test]
    fn the_median_is_taken_of_each_column() {
        let rounds = [[1.0, 30.0, 5.0, 0.0], [3.0, 10.0, 5.0, 0.0], [2.0, 20.0, 5.0, 9.0]];
        assert_eq!(medians(&rounds), [2.0, 20.0, 5.0, 0.0]);
    }
}
