//! Named links: what is published about links between places, as effects of a fault.
//!
//! Nothing here is a guess. Where only a round trip is published, only a round trip is set; whoever
//! wants jitter, loss or a bandwidth beside it writes them, and they hold instead of the preset's.

use std::{borrow::Cow, time::Duration};

use crate::{
    duration::Span,
    effect::{Distribution, Rate},
    fault::FaultSpec,
    nearest,
};

/// One named link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// What it is called in files and on the command line.
    pub name: &'static str,
    /// What it stands for, for lists.
    pub what: &'static str,
    /// The round trip, in microseconds; even, as it is split over two ways.
    pub rtt_us: u64,
    /// The standard deviation of each way's delay, in microseconds, where it is published.
    pub normal_us: Option<u64>,
    /// Bits for each second each way, where they are published.
    pub bits_per_s: Option<u64>,
    /// Who published it.
    pub source: &'static str,
}

/// Azure network round-trip latency statistics: of each pair of regions, the time that 95% of all
/// round trips between 30 June and 30 July 2026 took at most. Of the two ways to measure a pair, the
/// longer.
const AZURE: &str =
    "https://learn.microsoft.com/azure/networking/azure-network-latency, P95, July 2026";

/// The profiles of WebPageTest.
const WEBPAGETEST: &str = "https://github.com/WPO-Foundation/webpagetest/blob/master/www/settings/connectivity.ini.sample";

/// Every preset, from near to far.
pub const PRESETS: [Preset; 12] = [
    // Jeff Dean, "Designs, Lessons and Advice from Building Large Distributed Systems", LADIS 2009. In
    // 2021 it was measured anew, and four of five round trips were shorter still:
    // https://www.evanjones.ca/network-latencies-2021.html
    plain(
        "datacenter",
        "one data centre",
        500,
        "J. Dean, keynote of LADIS 2009, \"Numbers Everyone Should Know\"",
    ),
    // An upper bound, and published as one.
    plain(
        "same-region",
        "two zones of one region",
        2_000,
        "https://learn.microsoft.com/azure/availability-zones/az-overview: less than 2 ms",
    ),
    plain("wan-eu", "Ireland and the Netherlands", 20_000, AZURE),
    plain("wan-us", "Virginia and California", 74_000, AZURE),
    plain("wan-eu-us", "the Netherlands and Virginia", 91_000, AZURE),
    plain("wan-us-asia", "California and Singapore", 172_000, AZURE),
    plain("wan-eu-asia", "the Netherlands and Singapore", 182_000, AZURE),
    // The round trip's quartiles were 40, 50 and 60 ms: those of a normal distribution whose standard
    // deviation is 14 ms, which is 10 ms for each of the two ways.
    Preset {
        normal_us: Some(10_000),
        ..plain(
            "satellite-leo",
            "a satellite in a low orbit",
            50_000,
            "https://blog.apnic.net/2022/11/28/fact-checking-starlinks-performance-figures",
        )
    },
    // For stations at the edge of the satellite's view; what is below it is 79 ms nearer.
    plain("satellite-geo", "a geostationary satellite", 558_000, "RFC 2488, section 2"),
    paced("mobile-lte", "a telephone on LTE", 70_000, 12_000_000),
    paced("mobile-4g", "a telephone on 4G", 170_000, 9_000_000),
    paced("mobile-3g", "a telephone on slow 3G", 400_000, 400_000),
];

const fn plain(
    name: &'static str,
    what: &'static str,
    rtt_us: u64,
    source: &'static str,
) -> Preset {
    Preset { name, what, rtt_us, normal_us: None, bits_per_s: None, source }
}

const fn paced(name: &'static str, what: &'static str, rtt_us: u64, bits_per_s: u64) -> Preset {
    Preset { bits_per_s: Some(bits_per_s), ..plain(name, what, rtt_us, WEBPAGETEST) }
}

impl Preset {
    /// In the words of a file: `rtt 50ms, jitter 10ms normal`.
    #[must_use]
    pub fn effects(&self) -> String {
        let mut words = format!("rtt {}", micros(self.rtt_us));
        if let Some(us) = self.normal_us {
            words.push_str(&format!(", jitter {} normal", micros(us)));
        }
        if let Some(bits_per_s) = self.bits_per_s {
            words.push_str(&format!(", bandwidth {}", Rate { bits_per_s }));
        }
        words
    }
}

/// Why there is no such preset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no preset {name:?}; {help}")]
pub struct UnknownPreset {
    name: String,
    help: String,
}

/// The preset of this name.
///
/// # Errors
/// There is none; names the nearest, or all.
pub fn find(name: &str) -> Result<&'static Preset, UnknownPreset> {
    PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| {
        let names = PRESETS.map(|preset| preset.name);
        let help = nearest::did_you_mean(name, &names)
            .unwrap_or_else(|| format!("there are {}", names.join(", ")));
        UnknownPreset { name: name.to_owned(), help }
    })
}

/// The fault with the effects of its preset in it. What the fault says itself holds; a delay of its
/// own replaces the preset's with its jitter.
#[must_use]
pub fn applied(spec: &FaultSpec) -> Cow<'_, FaultSpec> {
    let named = spec.preset.as_deref().and_then(|name| find(name).ok());
    let Some(preset) = named else { return Cow::Borrowed(spec) };
    let mut spec = spec.clone();
    if spec.latency.is_none() && spec.rtt.is_none() {
        // A round trip takes two ways. Where only one is met, or which is which depends on who is in
        // what group, each way is late by its half.
        if spec.between.is_some() && spec.one_way.is_none() {
            spec.rtt = Some(micros(preset.rtt_us));
        } else {
            spec.latency = Some(micros(preset.rtt_us / 2));
        }
        if let (None, Some(us)) = (spec.jitter, preset.normal_us) {
            spec.jitter = Some(micros(us));
            spec.distribution = spec.distribution.or(Some(Distribution::Normal));
        }
    }
    let rate = preset.bits_per_s.map(|bits_per_s| Rate { bits_per_s });
    spec.bandwidth = spec.bandwidth.or(rate);
    Cow::Owned(spec)
}

fn micros(us: u64) -> Span {
    Span(Duration::from_micros(us))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fault::Targets, shape};

    fn between(preset: &str) -> FaultSpec {
        FaultSpec {
            between: Some(vec![Targets::split("a-1"), Targets::split("b-1")]),
            preset: Some(preset.to_owned()),
            ..FaultSpec::default()
        }
    }

    #[test]
    fn every_preset_is_a_fault_on_its_own_and_says_where_it_is_from() {
        for preset in PRESETS {
            let spec = between(preset.name);
            assert_eq!(shape::check(&spec), Ok(()), "{}", preset.name);
            assert!(shape::summary(&spec).starts_with(preset.name), "{}", shape::summary(&spec));
            assert!(!preset.source.is_empty() && !preset.what.is_empty());
            assert_eq!(preset.rtt_us % 2, 0, "{}", preset.name);
        }
    }

    #[test]
    fn what_a_fault_says_itself_holds() {
        let mine = FaultSpec { rtt: Some(micros(100)), ..between("satellite-leo") };
        assert_eq!(applied(&mine).rtt, Some(micros(100)));
        assert_eq!(applied(&mine).jitter, None);
        let mine = FaultSpec { jitter: Some(micros(100)), ..between("satellite-leo") };
        assert_eq!(applied(&mine).rtt, Some(micros(50_000)));
        assert_eq!((applied(&mine).jitter, applied(&mine).distribution), (mine.jitter, None));
        let rate = Some(Rate { bits_per_s: 1 });
        let mine = FaultSpec { bandwidth: rate, ..between("mobile-4g") };
        assert_eq!(applied(&mine).bandwidth, rate);
        assert_eq!(applied(&mine).rtt, Some(micros(170_000)));
    }

    #[test]
    fn one_way_has_half_of_the_round_trip() {
        let spec = FaultSpec {
            between: None,
            from: Some(Targets::split("a-1")),
            to: Some(Targets::split("b-1")),
            ..between("wan-eu-us")
        };
        assert_eq!(applied(&spec).latency, Some(micros(45_500)));
        assert_eq!(applied(&spec).rtt, None);
        assert_eq!(shape::check(&spec), Ok(()));
    }

    #[test]
    fn a_misspelt_preset_names_the_nearest() {
        let error = find("wan-eu-su").unwrap_err().to_string();
        assert!(error.contains("did you mean \"wan-eu-us\"?"), "{error}");
        let error = find("moon").unwrap_err().to_string();
        assert!(error.contains("there are datacenter, "), "{error}");
    }
}
