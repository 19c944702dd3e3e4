//! The result of a benchmark: rows of medians with minimum and maximum, ratios of paired rounds, and bounds.

use std::fmt::Write as _;

/// One benchmark's rows.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) bench: &'static str,
    pub(crate) rows: Vec<Row>,
    /// What the reader must know of the run.
    pub(crate) notes: Vec<String>,
}

/// What is required of a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }

    fn text(self, value: f64) -> String {
        let verdict = if self.is_met(value) { "met" } else { "MISSED" };
        let (sign, bound) = match self {
            Self::AtLeast(least) => (">=", least),
            Self::AtMost(most) => ("<=", most),
        };
        // As many digits as the values have.
        format!("{sign} {}: {verdict}", (bound * 1e3).round() / 1e3)
    }
}

/// One measured thing.
#[derive(Debug)]
pub(crate) struct Row {
    metric: String,
    target: String,
    unit: &'static str,
    sorted: Vec<f64>,
    bound: Option<Bound>,
    ratios: Vec<Ratio>,
}

/// To another target of the same run.
#[derive(Debug)]
struct Ratio {
    to: String,
    sorted: Vec<f64>,
    bounds: Vec<Bound>,
}

impl Row {
    /// A row of samples, at least one.
    pub(crate) fn new(
        metric: impl Into<String>,
        target: impl Into<String>,
        unit: &'static str,
        samples: Vec<f64>,
    ) -> Self {
        Self {
            metric: metric.into(),
            target: target.into(),
            unit,
            sorted: sorted(samples),
            bound: None,
            ratios: Vec::new(),
        }
    }

    /// With a bound for its median.
    pub(crate) fn bound(mut self, bound: Bound) -> Self {
        self.bound = Some(bound);
        self
    }

    /// With the median of pairwise ratios to another target.
    pub(crate) fn ratio(self, to: &str, own: &[f64], other: &[f64]) -> Self {
        self.bounded_ratio(to, own, other, &[])
    }

    /// As [`Self::ratio`], with what is required of the median, and what is hoped for.
    pub(crate) fn bounded_ratio(
        mut self,
        to: &str,
        own: &[f64],
        other: &[f64],
        bounds: &[Bound],
    ) -> Self {
        let ratios = own.iter().zip(other).map(|(a, b)| a / b).collect();
        self.ratios.push(Ratio {
            to: to.to_owned(),
            sorted: sorted(ratios),
            bounds: bounds.to_vec(),
        });
        self
    }

    /// The value at a quantile from 0 to 1.
    pub(crate) fn at(&self, quantile: f64) -> f64 {
        at(&self.sorted, quantile)
    }
}

fn sorted(mut samples: Vec<f64>) -> Vec<f64> {
    samples.sort_by(f64::total_cmp);
    samples
}

/// The value at a quantile of sorted samples, at least one.
pub(crate) fn at(sorted: &[f64], quantile: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into samples that fit into memory"
    )]
    let index = ((sorted.len() - 1) as f64 * quantile).round() as usize;
    sorted[index]
}

impl Table {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut out = format!(
            "{:<34} {:<22} {:>10} {:>10} {:>10} {:>10}  ratios: median (min-max)\n",
            self.bench, "target", "median", "min", "p90", "max"
        );
        let mut last = "";
        for row in &self.rows {
            if last != row.metric && row.target == "direct" {
                out.push('\n');
            }
            last = &row.metric;
            let name = format!("{} ({})", row.metric, row.unit);
            let [median, min, p90, max] = [0.5, 0.0, 0.9, 1.0].map(|q| row.at(q));
            let own = row.bound.map(|bound| format!("[{}]", bound.text(median)));
            let ratios: Vec<_> =
                own.into_iter().chain(row.ratios.iter().map(Ratio::text)).collect();
            let _ = writeln!(
                out,
                "{name:<34} {:<22} {median:>10.3} {min:>10.3} {p90:>10.3} {max:>10.3}  {}",
                row.target,
                ratios.join(", ")
            );
        }
        for note in &self.notes {
            let _ = writeln!(out, "{note}");
        }
        out
    }

    /// One document for machines.
    pub(crate) fn json(&self) -> String {
        let rows: Vec<_> = self.rows.iter().map(Row::json).collect();
        let document = serde_json::json!({
            "bench": self.bench, "rows": rows, "notes": self.notes,
        });
        format!("{document}\n")
    }
}

impl Row {
    fn json(&self) -> serde_json::Value {
        let ratios = self.ratios.iter().map(|ratio| {
            let median = at(&ratio.sorted, 0.5);
            let bounds: Vec<_> = ratio.bounds.iter().map(|bound| bound.json(median)).collect();
            let value = serde_json::json!({
                "median": median, "min": at(&ratio.sorted, 0.0), "max": at(&ratio.sorted, 1.0),
                "bounds": bounds,
            });
            (ratio.to.clone(), value)
        });
        serde_json::json!({
            "metric": self.metric, "target": self.target, "unit": self.unit,
            "median": self.at(0.5), "min": self.at(0.0), "max": self.at(1.0),
            "bound": self.bound.map(|bound| bound.json(self.at(0.5))),
            "ratios": serde_json::Map::from_iter(ratios),
        })
    }
}

impl Bound {
    fn json(self, value: f64) -> serde_json::Value {
        let (kind, limit) = match self {
            Self::AtLeast(least) => ("at_least", least),
            Self::AtMost(most) => ("at_most", most),
        };
        serde_json::json!({ kind: limit, "met": self.is_met(value) })
    }
}

impl Ratio {
    fn text(&self) -> String {
        let [median, min, max] = [0.5, 0.0, 1.0].map(|q| at(&self.sorted, q));
        let mut text = format!("{median:.3} ({min:.2}-{max:.2}) x {}", self.to);
        // The first bound is required, what follows is hoped for.
        for (place, bound) in self.bounds.iter().enumerate() {
            let hope = if place == 0 { "" } else { "stretch " };
            let _ = write!(text, " [{hope}{}]", bound.text(median));
        }
        text
    }
}
