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

/// What is measured over a path: a column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Measure {
    /// One TCP connection that sends as much as it can, Gbit/s.
    Stream,
    /// One byte there and one back, the median in µs.
    PingPong,
    /// Connect, one byte, close, sixteen at a time; connections per second.
    Connect,
    /// HTTP requests per second over sixteen connections that are kept.
    KeepAlive,
}

impl Measure {
    /// All, in the order of the columns.
    pub const ALL: [Self; 4] = [Self::Stream, Self::PingPong, Self::Connect, Self::KeepAlive];

    /// The column's head.
    fn head(self) -> &'static str {
        match self {
            Self::Stream => "one stream, Gbit/s",
            Self::PingPong => "ping-pong p50, µs",
            Self::Connect => "new connections/s",
            Self::KeepAlive => "HTTP keep-alive x16, req/s",
        }
    }

    /// A path's figure as a share of direct; less is better for a latency alone.
    fn share(self, own: f64, direct: f64) -> f64 {
        if self == Self::PingPong { direct / own } else { own / direct }
    }
}

/// One path's figures of one round, in the order of the measurements that were asked for.
pub type Figures = Vec<f64>;

/// Runs all rounds and prints the table.
pub fn run(rounds: u32, seconds: f64, paths: &[Path], measures: &[Measure]) -> Result<()> {
    let mut all: BTreeMap<Path, Vec<Figures>> = BTreeMap::new();
    for round in 1..=rounds {
        for path in paths.iter().copied() {
            let figures = path::measure(path, seconds, measures)?;
            eprintln!("round {round}/{rounds} {:<28} {}", path.name(), row(&figures));
            all.entry(path).or_default().push(figures);
        }
    }
    print_table(&all, rounds, measures);
    Ok(())
}

fn row(figures: &[f64]) -> String {
    figures.iter().map(|figure| format!("{figure:>12.1}")).collect::<Vec<_>>().join(" ")
}

fn print_table(all: &BTreeMap<Path, Vec<Figures>>, rounds: u32, measures: &[Measure]) {
    let Some(direct) = all.get(&Path::Direct).map(|rounds| medians(rounds)) else { return };
    println!(
        "\nMedians of {rounds} interleaved rounds, across two nodes; in brackets the share of direct:\n"
    );
    let heads: Vec<&str> = measures.iter().map(|measure| measure.head()).collect();
    println!("| path | {} |", heads.join(" | "));
    println!("|---|{}", "---|".repeat(heads.len()));
    for (path, rounds) in all {
        let cells: Vec<String> = medians(rounds)
            .iter()
            .zip(&direct)
            .zip(measures)
            .map(|((own, direct), measure)| format!("{own:.1} ({:.2})", measure.share(*own, *direct)))
            .collect();
        println!("| {} | {} |", path.name(), cells.join(" | "));
    }
}

/// The median of each measurement.
fn medians(rounds: &[Figures]) -> Figures {
    let columns = rounds.first().map_or(0, Vec::len);
    let median = |index: usize| {
        let mut column: Vec<f64> = rounds.iter().map(|figures| figures[index]).collect();
        column.sort_by(f64::total_cmp);
        column[column.len() / 2]
    };
    (0..columns).map(median).collect()
}

#[cfg(test)]
mod tests {
    use super::medians;

    #[test]
    fn the_median_is_taken_of_each_column() {
        let rounds = [vec![1.0, 30.0, 5.0, 0.0], vec![3.0, 10.0, 5.0, 0.0], vec![2.0, 20.0, 5.0, 9.0]];
        assert_eq!(medians(&rounds), [2.0, 20.0, 5.0, 0.0]);
    }
}
