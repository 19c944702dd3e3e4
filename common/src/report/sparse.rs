//! What was counted on links, without the counters that are 0.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::LinkEvidence;
use crate::link::Link;

/// Writes links so that [`LinkEvidence`] reads them as they were: what is not there is 0 to it.
pub(super) fn links<S: Serializer>(
    links: &BTreeMap<Link, LinkEvidence>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(links.iter().map(|(link, counted)| (link, Counted(counted))))
}

struct Counted<'a>(&'a LinkEvidence);

impl Serialize for Counted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let LinkEvidence {
            connections,
            held_bytes,
            dropped_segments,
            delayed_chunks,
            delay_histogram,
            attempts_refused,
            delayed_accepts,
            lost_chunks,
            corrupted_bytes,
            paced_bytes,
            slices,
            resets,
            closes,
            leaked_bytes,
            first_hit_ms,
            last_hit_ms,
        } = self.0;
        let mut map = serializer.serialize_map(None)?;
        for (name, count) in [
            ("connections", connections),
            ("held_bytes", held_bytes),
            ("dropped_segments", dropped_segments),
            ("delayed_chunks", delayed_chunks),
            ("attempts_refused", attempts_refused),
            ("delayed_accepts", delayed_accepts),
            ("lost_chunks", lost_chunks),
            ("corrupted_bytes", corrupted_bytes),
            ("paced_bytes", paced_bytes),
            ("slices", slices),
            ("resets", resets),
            ("closes", closes),
            ("leaked_bytes", leaked_bytes),
        ] {
            if *count > 0 {
                map.serialize_entry(name, count)?;
            }
        }
        if *delay_histogram != [0; 5] {
            map.serialize_entry("delay_histogram", delay_histogram)?;
        }
        for (name, moment) in [("first_hit_ms", first_hit_ms), ("last_hit_ms", last_hit_ms)] {
            if let Some(moment) = moment {
                map.serialize_entry(name, moment)?;
            }
        }
        map.end()
    }
}
