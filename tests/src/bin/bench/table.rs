//! The result of a benchmark: rows of medians with minimum, maximum and ratios.

use std::{collections::BTreeMap, fmt::Write as _};

/// One benchmark's rows.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) bench: &'static str,
    pub(crate) rows: Vec<Row>,
}

/// One measured thing.
#[derive(Debug)]
pub(crate) struct Row {
    metric: &'static str,
    target: &'static str,
    unit: &'static str,
    sorted: Vec<f64>,
    /// To other targets of the same run.
    ratios: BTreeMap<&'static str, f64>,
}

impl Row {
    /// A row of samples, at least one.
    pub(crate) fn new(
        metric: &'static str,
        target: &'static str,
        unit: &'static str,
        mut samples: Vec<f64>,
    ) -> Self {
        samples.sort_by(f64::total_cmp);
        Self { metric, target, unit, sorted: samples, ratios: BTreeMap::new() }
    }

    /// With the median of pairwise ratios to another target.
    pub(crate) fn ratio(mut self, to: &'static str, own: &[f64], other: &[f64]) -> Self {
        let ratios = own.iter().zip(other).map(|(a, b)| a / b).collect();
        self.ratios.insert(to, Self::new("", "", "", ratios).at(0.5));
        self
    }

    /// The value at a quantile from 0 to 1.
    pub(crate) fn at(&self, quantile: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index into a few hundred samples"
        )]
        let index = ((self.sorted.len() - 1) as f64 * quantile).round() as usize;
        self.sorted[index]
    }
}

impl Table {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut out = format!(
            "{:<28} {:<22} {:>10} {:>10} {:>10} {:>10}  ratios\n",
            self.bench, "target", "median", "min", "p90", "max"
        );
        for row in &self.rows {
            let ratios: Vec<_> =
                row.ratios.iter().map(|(to, r)| format!("{r:.3} x {to}")).collect();
            let name = format!("{} ({})", row.metric, row.unit);
            let [median, min, p90, max] = [0.5, 0.0, 0.9, 1.0].map(|q| row.at(q));
            let _ = writeln!(
                out,
                "{name:<28} {:<22} {median:>10.3} {min:>10.3} {p90:>10.3} {max:>10.3}  {}",
                row.target,
                ratios.join(", ")
            );
        }
        out
    }

    /// One document for machines.
    pub(crate) fn json(&self) -> String {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                serde_json::json!({
                    "metric": row.metric, "target": row.target, "unit": row.unit,
                    "median": row.at(0.5), "min": row.at(0.0), "max": row.at(1.0),
                    "ratios": row.ratios,
                })
            })
            .collect();
        format!("{}\n", serde_json::json!({ "bench": self.bench, "rows": rows }))
    }
}
