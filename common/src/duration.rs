//! Durations as people write them: `30s`, `1m30s`, `250ms`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest duration accepted anywhere: a year.
pub const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A duration that is written with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(pub Duration);

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration: {why}; write it like 30s, 250ms or 1m30s")]
pub struct SpanError {
    text: String,
    why: String,
}

impl FromStr for Span {
    type Err = SpanError;
    fn from_str(text: &str) -> Result<Self, SpanError> {
        let refuse = |why: &str| SpanError { text: text.to_owned(), why: why.to_owned() };
        if text.trim_start().starts_with('-') {
            return Err(refuse("it must not be negative"));
        }
        let value = humantime::parse_duration(text).map_err(|e| refuse(&e.to_string()))?;
        if value > DURATION_MAX {
            return Err(refuse("it is longer than a year"));
        }
        Ok(Self(value))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&humantime::format_duration(self.0).to_string().replace(' ', ""))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Milliseconds of a duration, saturating: for fields that end in `_ms`.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_refused_with_a_pattern_to_copy() {
        for text in ["-3s", "3", "soon", "", "1000000h"] {
            let error = text.parse::<Span>().unwrap_err().to_string();
            assert!(error.contains("write it like 30s"), "{error}");
        }
        assert_eq!("1m30s".parse::<Span>().unwrap().to_string(), "1m30s");
    }
}
