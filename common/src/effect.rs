//! The quantities of effects on links as people write them: rates, sizes, ratios, loss, slices.
//!
//! Each type has one text, read by `FromStr` and written by `Display`: the same in a file, on the
//! command line and in tables.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::duration::Span;

/// Why a text is no such quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: {why}; write it like {like}")]
pub struct AmountError {
    text: String,
    what: &'static str,
    why: String,
    like: &'static str,
}

/// A number with a unit, as its digits and what follows them.
fn number_and_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// A number without a sign, with at most `scale` as unit, rounded to the next whole one.
fn scaled(number: &str, scale: u64) -> Result<u64, String> {
    let value: f64 = number.parse().map_err(|_| "it has no number".to_owned())?;
    #[expect(clippy::cast_precision_loss, reason = "units are far below 2^52")]
    let value = value * scale as f64;
    if value < 0.0 {
        return Err("it is below zero".to_owned());
    }
    // 2^53: above, neighbouring whole numbers cannot be told apart.
    if !(0.0..=9_007_199_254_740_992.0).contains(&value) {
        return Err("it is too large".to_owned());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "just checked")]
    let rounded = value.round() as u64;
    Ok(rounded)
}

/// Bits for each second: `100kbit`, `10Mbit`, `1Gbit`; or bytes: `128kB/s`, `1MB/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate {
    /// At least 1.
    pub bits_per_s: u64,
}

impl FromStr for Rate {
    type Err = AmountError;
    fn from_str(text: &str) -> Result<Self, AmountError> {
        let refuse = |why: &str| AmountError {
            text: text.to_owned(),
            what: "rate",
            why: why.to_owned(),
            like: "10Mbit or 1MB/s",
        };
        let (number, unit) = number_and_unit(text);
        // A small b is a bit and a large one a byte; the prefix may be of either case.
        let unit = unit.strip_suffix("/s").map_or_else(|| unit.to_owned(), |u| format!("{u}/s"));
        let scale = match unit.to_ascii_lowercase().as_str() {
            "bit" | "bit/s" => 1,
            "kbit" | "kbit/s" => 1_000,
            "mbit" | "mbit/s" => 1_000_000,
            "gbit" | "gbit/s" => 1_000_000_000,
            "b/s" => 8,
            "kb/s" => 8_000,
            "mb/s" => 8_000_000,
            "gb/s" => 8_000_000_000,
            "" => return Err(refuse("its unit is missing")),
            _ => return Err(refuse("its unit is not known")),
        };
        match scaled(number, scale).map_err(|why| refuse(&why))? {
            0 => Err(refuse("nothing would ever pass; `cut` or `stall` says that")),
            bits_per_s => Ok(Self { bits_per_s }),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bits_per_s;
        let units = [(1_000_000_000, "Gbit"), (1_000_000, "Mbit"), (1_000, "kbit")];
        let unit = units.into_iter().find(|(scale, _)| bits.is_multiple_of(*scale));
        let (scale, unit) = unit.unwrap_or((1, "bit"));
        f.pad(&format!("{}{unit}", bits / scale))
    }
}

/// Bytes: `512B`, `64KiB`, `10kB`, `1MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size {
    /// How many.
    pub bytes: u64,
}

impl FromStr for Size {
    type Err = AmountError;
    fn from_str(text: &str) -> Result<Self, AmountError> {
        let refuse = |why: &str| AmountError {
            text: text.to_owned(),
            what: "size",
            why: why.to_owned(),
            like: "512B, 64KiB or 1MB",
        };
        let (number, unit) = number_and_unit(text);
        let scale = match unit.to_ascii_lowercase().as_str() {
            "b" => 1,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "" => return Err(refuse("its unit is missing")),
            _ => return Err(refuse("its unit is not known")),
        };
        Ok(Self { bytes: scaled(number, scale).map_err(|why| refuse(&why))? })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes;
        let units = [
            (1 << 30, "GiB"),
            (1_000_000_000, "GB"),
            (1 << 20, "MiB"),
            (1_000_000, "MB"),
            (1 << 10, "KiB"),
            (1_000, "kB"),
        ];
        let unit = units.into_iter().find(|(scale, _)| bytes > 0 && bytes.is_multiple_of(*scale));
        let (scale, unit) = unit.unwrap_or((1, "B"));
        f.pad(&format!("{}{unit}", bytes / scale))
    }
}

/// A share or a probability: `1%`, `0.01%`, `100%`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ratio {
    /// Parts per million, at most a million.
    ppm: u32,
}

impl Ratio {
    /// Never.
    pub const ZERO: Self = Self { ppm: 0 };
    /// Always.
    pub const ONE: Self = Self { ppm: 1_000_000 };

    /// Parts per million, at most a million.
    #[must_use]
    pub const fn from_ppm(ppm: u32) -> Self {
        Self { ppm: if ppm > Self::ONE.ppm { Self::ONE.ppm } else { ppm } }
    }

    /// In parts per million.
    #[must_use]
    pub const fn ppm(self) -> u32 {
        self.ppm
    }

    /// Whether a throw of 32 even bits meets it.
    #[must_use]
    pub fn meets(self, throw: u32) -> bool {
        u64::from(throw) * 1_000_000 < (u64::from(self.ppm) << 32)
    }

    /// The sum, at most [`Self::ONE`].
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self::from_ppm(self.ppm.saturating_add(other.ppm))
    }
}

impl FromStr for Ratio {
    type Err = AmountError;
    fn from_str(text: &str) -> Result<Self, AmountError> {
        let refuse = |why: &str| AmountError {
            text: text.to_owned(),
            what: "share",
            why: why.to_owned(),
            like: "1% or 0.01%",
        };
        let Some(number) = text.trim().strip_suffix('%') else {
            return Err(refuse("the % is missing"));
        };
        let ppm = scaled(number.trim_end(), 10_000).map_err(|why| refuse(&why))?;
        match u32::try_from(ppm) {
            Ok(ppm) if ppm <= Self::ONE.ppm => Ok(Self { ppm }),
            Ok(_) | Err(_) => Err(refuse("it is more than 100%")),
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}%", f64::from(self.ppm) / 10_000.0))
    }
}

/// How segments are lost.
///
/// `1%` loses each by itself. `p=1% r=20% good=0% bad=100%` is the model of Gilbert and Elliott in
/// the words of netem(8): a segment turns the good state bad with `p` and the bad one good with `r`;
/// in each state segments are lost with its own probability. `burst=20ms every=2s` loses all for 20
/// ms, on average every 2 s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// Each segment by itself.
    Bernoulli(Ratio),
    /// Two states with memory (Gilbert 1960, Elliott 1963).
    Gilbert {
        /// From good to bad, for each segment.
        enter: Ratio,
        /// From bad to good, for each segment.
        leave: Ratio,
        /// Lost in the good state; 0% where it is not said.
        good: Ratio,
        /// Lost in the bad state; 100% where it is not said.
        bad: Ratio,
    },
    /// All of a time, exponentially distributed pauses in between.
    Burst {
        /// How long all is lost, in microseconds.
        lasts_us: u64,
        /// From one beginning to the next, on average, in microseconds; more than `lasts_us`.
        every_us: u64,
    },
}

impl FromStr for Loss {
    type Err = AmountError;
    fn from_str(text: &str) -> Result<Self, AmountError> {
        let refuse = |why: &str| AmountError {
            text: text.to_owned(),
            what: "loss",
            why: why.to_owned(),
            like: "1%, \"p=1% r=20%\" or \"burst=20ms every=2s\"",
        };
        if !text.contains('=') {
            return Ok(Self::Bernoulli(text.parse().map_err(|e: AmountError| refuse(&e.why))?));
        }
        let words = Words::read(text, &["p", "r", "good", "bad", "burst", "every"])
            .map_err(|why| refuse(&why))?;
        let ratio = |key: &str| -> Result<Option<Ratio>, AmountError> {
            words.get(key).map(str::parse).transpose()
        };
        let span_us = |key: &str| -> Result<Option<u64>, AmountError> {
            let span = words.get(key).map(str::parse::<Span>).transpose();
            Ok(span.map_err(|e| refuse(&e.to_string()))?.map(micros))
        };
        match (ratio("p")?, ratio("r")?, span_us("burst")?, span_us("every")?) {
            (Some(enter), Some(leave), None, None) => Ok(Self::Gilbert {
                enter,
                leave,
                good: ratio("good")?.unwrap_or(Ratio::ZERO),
                bad: ratio("bad")?.unwrap_or(Ratio::ONE),
            }),
            (None, None, Some(lasts_us), Some(every_us)) if words.len() == 2 => {
                if lasts_us == 0 || lasts_us >= every_us {
                    return Err(refuse("burst must be more than 0 and less than every"));
                }
                Ok(Self::Burst { lasts_us, every_us })
            }
            _ => Err(refuse("it needs either p and r, or burst and every")),
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Bernoulli(share) => share.fmt(f),
            Self::Gilbert { enter, leave, good, bad } => {
                write!(f, "p={enter} r={leave}")?;
                if good != Ratio::ZERO {
                    write!(f, " good={good}")?;
                }
                if bad != Ratio::ONE {
                    write!(f, " bad={bad}")?;
                }
                Ok(())
            }
            Self::Burst { lasts_us, every_us } => {
                write!(f, "burst={} every={}", span(lasts_us), span(every_us))
            }
        }
    }
}

/// Bytes cut into small pieces: `64B`, `64B variation=16B`, `64B delay=1ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slice {
    /// Bytes of a piece on average, at least 1.
    pub bytes: u64,
    /// A piece has at most this many more or less, evenly; less than `bytes`.
    pub variation_bytes: u64,
    /// Microseconds between pieces.
    pub delay_us: u64,
}

impl FromStr for Slice {
    type Err = AmountError;
    fn from_str(text: &str) -> Result<Self, AmountError> {
        let refuse = |why: &str| AmountError {
            text: text.to_owned(),
            what: "slice",
            why: why.to_owned(),
            like: "64B or \"64B variation=16B delay=1ms\"",
        };
        let (size, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let bytes = size.parse::<Size>().map_err(|e| refuse(&e.why))?.bytes;
        let words = Words::read(rest, &["variation", "delay"]).map_err(|why| refuse(&why))?;
        let variation = words.get("variation").map(str::parse::<Size>).transpose()?;
        let delay = words.get("delay").map(str::parse::<Span>).transpose();
        let delay = delay.map_err(|e| refuse(&e.to_string()))?;
        let variation_bytes = variation.map_or(0, |size| size.bytes);
        if bytes == 0 || variation_bytes >= bytes {
            return Err(refuse("a piece must have a byte at least, also with its variation"));
        }
        Ok(Self { bytes, variation_bytes, delay_us: delay.map_or(0, micros) })
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Size { bytes: self.bytes })?;
        if self.variation_bytes > 0 {
            write!(f, " variation={}", Size { bytes: self.variation_bytes })?;
        }
        if self.delay_us > 0 {
            write!(f, " delay={}", span(self.delay_us))?;
        }
        Ok(())
    }
}

/// How jitter is distributed around the base delay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// Evenly, at most the jitter more or less.
    #[default]
    Uniform,
    /// Normally; the jitter is the standard deviation. Never less than no delay.
    Normal,
    /// With a long tail of late ones (Pareto, shape 3); the jitter is the mean of what is added.
    Pareto,
}

/// `KEY=VALUE` words of a text.
struct Words<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Words<'a> {
    fn read(text: &'a str, allowed: &[&str]) -> Result<Self, String> {
        let mut words: Vec<(&str, &str)> = Vec::new();
        for word in text.split([' ', ',']).filter(|word| !word.is_empty()) {
            let Some((key, value)) = word.split_once('=') else {
                return Err(format!("{word:?} is not KEY=VALUE"));
            };
            if !allowed.contains(&key) {
                return Err(format!("{key:?} is not one of {}", allowed.join(", ")));
            }
            if words.iter().any(|(other, _)| *other == key) {
                return Err(format!("{key:?} is there twice"));
            }
            words.push((key, value));
        }
        Ok(Self(words))
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(other, _)| *other == key).map(|(_, value)| *value)
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

fn micros(span: Span) -> u64 {
    u64::try_from(span.0.as_micros()).unwrap_or(u64::MAX)
}

fn span(us: u64) -> Span {
    Span(std::time::Duration::from_micros(us))
}

macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
as_text!(Rate, Size, Ratio, Loss, Slice);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round<T: FromStr<Err = AmountError> + fmt::Display>(text: &str) -> String {
        text.parse::<T>().map_or_else(|error| error.to_string(), |value| value.to_string())
    }

    #[test]
    fn quantities_are_written_as_they_are_read() {
        for text in ["100kbit", "10Mbit", "1Gbit", "1500bit"] {
            assert_eq!(round::<Rate>(text), text);
        }
        assert_eq!(round::<Rate>("1MB/s"), "8Mbit");
        assert_eq!(round::<Rate>("1.5mbit"), "1500kbit");
        for text in ["512B", "64KiB", "10kB", "1MiB", "0B"] {
            assert_eq!(round::<Size>(text), text);
        }
        for text in ["1%", "0.01%", "100%", "0%"] {
            assert_eq!(round::<Ratio>(text), text);
        }
        for text in ["1%", "p=1% r=20%", "p=1% r=20% good=0.1% bad=50%", "burst=20ms every=2s"] {
            assert_eq!(round::<Loss>(text), text);
        }
        for text in ["64B", "64B variation=16B delay=1ms"] {
            assert_eq!(round::<Slice>(text), text);
        }
    }

    #[test]
    fn what_is_no_quantity_says_why_and_what_to_write() {
        for (said, why) in [
            (round::<Rate>("10"), "unit is missing"),
            (round::<Rate>("0bit"), "nothing would ever pass"),
            (round::<Rate>("fast"), "unit is not known"),
            (round::<Rate>("-1Mbit"), "unit is not known"),
            (round::<Size>("1e99B"), "unit is not known"),
            (round::<Size>("99999999999999999999B"), "too large"),
            (round::<Ratio>("1"), "% is missing"),
            (round::<Ratio>("101%"), "more than 100%"),
            (round::<Loss>("p=1%"), "either p and r"),
            (round::<Loss>("p=1% r=2% p=3%"), "twice"),
            (round::<Loss>("burst=2s every=2s"), "less than every"),
            (round::<Slice>("16B variation=16B"), "a byte at least"),
            (round::<Slice>("16B wait=1ms"), "not one of"),
        ] {
            assert!(said.contains(why) && said.contains("write it like"), "{said}");
        }
    }

    proptest! {
        #[test]
        fn any_ratio_is_met_as_often_as_it_says(ppm in 0_u32..=1_000_000) {
            let ratio = Ratio::from_ppm(ppm);
            let edge = ((u64::from(ppm) << 32) / 1_000_000).min(u64::from(u32::MAX));
            let edge = u32::try_from(edge).unwrap();
            prop_assert_eq!(ratio.meets(edge), ppm == 1_000_000 || u64::from(edge) * 1_000_000 < u64::from(ppm) << 32);
            prop_assert!(edge == 0 || ratio.meets(edge - 1));
        }

        #[test]
        fn no_text_is_a_panic(text in "\\PC{0,40}") {
            let _ = (round::<Rate>(&text), round::<Size>(&text), round::<Ratio>(&text));
            let _ = (round::<Loss>(&text), round::<Slice>(&text));
        }
    }
}
