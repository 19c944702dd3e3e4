//! What one path showed, how near two paths must be, and the table of both.

use std::fmt::Write as _;

/// One thing that was seen.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number without a unit.
    Count(u64),
    /// Bytes.
    Bytes(u64),
    /// Milliseconds.
    Millis(f64),
    /// Megabits per second.
    Megabits(f64),
    /// Percent.
    Percent(f64),
    /// The name of an error or an event.
    Word(String),
}

/// How near our value must be to the kernel's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Like {
    /// The same.
    Same,
    /// Within a share of the kernel's value plus a slack in the value's unit: machines are noisy.
    Near {
        /// Of the kernel's value.
        share: f64,
        /// In the unit of the value.
        slack: f64,
    },
    /// Neither more than this many times as much, nor as much less.
    Factor(f64),
    /// Both at most this much: as good as nothing, on a noisy machine.
    AtMost(f64),
    /// Different, and known to be; the remark says why.
    Apart,
}

/// One row of one path.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What was looked at.
    pub what: String,
    /// What was seen.
    pub value: Value,
    /// How near the other path must be.
    pub like: Like,
    /// What a reader should know.
    pub remark: &'static str,
}

/// What one case showed on one path.
pub type Reading = Vec<Row>;

/// A row.
pub(super) fn row(what: impl Into<String>, value: Value, like: Like) -> Row {
    Row { what: what.into(), value, like, remark: "" }
}

impl Row {
    /// With a remark.
    pub(super) fn remark(mut self, remark: &'static str) -> Self {
        self.remark = remark;
        self
    }

    /// Known to differ, and why.
    pub(super) fn apart(self, why: &'static str) -> Self {
        Self { like: Like::Apart, ..self.remark(why) }
    }
}

/// A time since a moment, as a value.
pub(super) fn millis(time: std::time::Duration) -> Value {
    Value::Millis(time.as_secs_f64() * 1e3)
}

impl Value {
    /// As a number, where it is one.
    #[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    fn number(&self) -> Option<f64> {
        match self {
            Self::Count(number) | Self::Bytes(number) => Some(*number as f64),
            Self::Millis(number) | Self::Megabits(number) | Self::Percent(number) => Some(*number),
            Self::Word(_) => None,
        }
    }

    /// Whether it is a matter of time, which means nothing on a machine that stood still.
    fn is_timed(&self) -> bool {
        matches!(self, Self::Millis(_) | Self::Megabits(_))
    }

    fn unit(&self) -> &'static str {
        match self {
            Self::Count(_) | Self::Word(_) => "",
            Self::Bytes(_) => " B",
            Self::Millis(_) => " ms",
            Self::Megabits(_) => " Mbit/s",
            Self::Percent(_) => " %",
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Count(number) => number.to_string(),
            Self::Bytes(bytes) => format!("{bytes} B"),
            Self::Millis(ms) if *ms < 10.0 => format!("{ms:.2} ms"),
            Self::Millis(ms) => format!("{ms:.0} ms"),
            Self::Megabits(rate) if *rate < 100.0 => format!("{rate:.1} Mbit/s"),
            Self::Megabits(rate) => format!("{rate:.0} Mbit/s"),
            Self::Percent(share) => format!("{share:.2} %"),
            Self::Word(word) => word.clone(),
        }
    }
}

impl Like {
    /// Whether our value is near enough to the kernel's.
    #[must_use]
    pub fn holds(self, kernel: &Value, ours: &Value) -> bool {
        match (self, kernel.number().zip(ours.number())) {
            (Self::Apart, _) => true,
            (Self::Same, _) | (_, None) => kernel == ours,
            (Self::Near { share, slack }, Some((kernel, ours))) => {
                (kernel - ours).abs() <= kernel.abs() * share + slack
            }
            (Self::Factor(factor), Some((kernel, ours))) => {
                ours <= kernel * factor && kernel <= ours * factor
            }
            (Self::AtMost(most), Some((kernel, ours))) => kernel <= most && ours <= most,
        }
    }

    /// For the table.
    fn text(self, unit: &str) -> String {
        match self {
            Self::Same => "the same".to_owned(),
            Self::Near { share: 0.0, slack } => format!("± {slack}{unit}"),
            Self::Near { share, slack: 0.0 } => format!("± {:.0} %", share * 100.0),
            Self::Near { share, slack } => format!("± {:.0} % ± {slack}{unit}", share * 100.0),
            Self::Factor(factor) => format!("within × {factor}"),
            Self::AtMost(most) => format!("both ≤ {most}{unit}"),
            Self::Apart => "**differs**".to_owned(),
        }
    }
}

/// One thing, seen on both paths.
#[derive(Debug, Clone)]
pub struct Pairing {
    /// The real link.
    pub kernel: Row,
    /// Ours.
    pub ours: Row,
}

impl Pairing {
    /// Whether they are as near as the row demands.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.kernel.what == self.ours.what
            && self.like().holds(&self.kernel.value, &self.ours.value)
    }

    /// Whether what was seen hangs on how fast the machine was.
    #[must_use]
    pub fn is_timed(&self) -> bool {
        self.kernel.value.is_timed() && self.ours.value.is_timed()
    }

    /// How near they must be: our side may know that here it cannot do better.
    fn like(&self) -> Like {
        if self.ours.like == Like::Apart { Like::Apart } else { self.kernel.like }
    }

    /// In one line, for messages of failed tests.
    #[must_use]
    pub fn line(&self) -> String {
        let Self { kernel, ours } = self;
        let (what, like) = (&kernel.what, self.like().text(kernel.value.unit()));
        format!("{what}: kernel {}, proxy {} ({like})", kernel.value.text(), ours.value.text())
    }

    /// As a row of a Markdown table.
    pub(super) fn markdown(&self, out: &mut String) {
        let Self { kernel, ours } = self;
        let (seen, like) = (kernel.value.text(), self.like().text(kernel.value.unit()));
        let ours = (ours.value.text(), ours.remark);
        let _infallible =
            writeln!(out, "| {} | {seen} | {} | {like} | {} |", kernel.what, ours.0, ours.1);
    }
}

/// The head of a Markdown table.
pub(super) const HEAD: &str =
    "| what the client sees | kernel | proxy | must be | remark |\n|---|---|---|---|---|\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerances_are_of_the_kernels_value() {
        let near = Like::Near { share: 0.1, slack: 5.0 };
        assert!(near.holds(&Value::Millis(100.0), &Value::Millis(115.0)));
        assert!(!near.holds(&Value::Millis(100.0), &Value::Millis(116.0)));
        assert!(!near.holds(&Value::Word("EPIPE".into()), &Value::Word("ECONNRESET".into())));
        assert!(Like::Factor(1.5).holds(&Value::Megabits(150.0), &Value::Megabits(100.0)));
        assert!(!Like::Factor(1.5).holds(&Value::Megabits(151.0), &Value::Megabits(100.0)));
        assert!(!Like::Same.holds(&Value::Count(3), &Value::Count(4)));
        assert!(!Like::AtMost(5.0).holds(&Value::Millis(1.0), &Value::Millis(6.0)));
    }
}
