//! One story out of what several coordinators tell. Pure.

use faultbed_common::event::Event;
use serde::Serialize;

/// What two coordinators tell within this time, in the same words, is the same. They see a change of the
/// store within milliseconds of each other, and judge ages once a second, each by its own clock.
const SAME_WITHIN_MS: u64 = 5_000;

/// What is remembered while it goes on: more cannot happen within the time above.
const REMEMBERED_MAX: usize = 20_000;

/// An event, and who told it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Told {
    /// As the first told it.
    #[serde(flatten)]
    pub(super) event: Event,
    /// Where the coordinators are that told it.
    pub(super) from: Vec<String>,
}

/// Takes events as they come, and knows which are told again.
#[derive(Debug, Default)]
pub(super) struct Merger {
    told: Vec<Told>,
}

impl Merger {
    /// Takes what one coordinator tells; gives it back where it is new. Those of one coordinator must come
    /// in order.
    pub(super) fn take(&mut self, from: &str, event: Event) -> Option<Told> {
        let is_same = |told: &&mut Told| {
            let known = &told.event;
            known.at_unix_ms.abs_diff(event.at_unix_ms) <= SAME_WITHIN_MS
                && (known.kind, &known.subject, &known.text)
                    == (event.kind, &event.subject, &event.text)
                // Who tells the same again means that it happened again.
                && !told.from.iter().any(|teller| teller == from)
        };
        if let Some(told) = self.told.iter_mut().find(is_same) {
            told.from.push(from.to_owned());
            return None;
        }
        if self.told.len() >= REMEMBERED_MAX {
            self.told.drain(..REMEMBERED_MAX / 2);
        }
        let told = Told { event, from: vec![from.to_owned()] };
        self.told.push(told.clone());
        Some(told)
    }

    /// All that was taken, as it came.
    pub(super) fn told(&self) -> &[Told] {
        &self.told
    }
}

#[cfg(test)]
mod tests {
    use faultbed_common::event::EventKind;

    use super::*;

    fn event(at_unix_ms: u64, text: &str) -> Event {
        let (kind, subject) = (EventKind::Node, "kv-1".to_owned());
        Event { seq: 1, at_unix_ms, kind, subject, text: text.to_owned() }
    }

    #[test]
    fn what_several_tell_is_shown_once_and_says_who_told_it() {
        let mut merger = Merger::default();
        let told = [
            ("a", 1000, "kv-1 is ready"),
            ("b", 1400, "kv-1 is ready"),
            ("b", 1500, "ada asks to run ls"),
            ("a", 2000, "kv-1 crashed"),
            // It was ready twice within the time, and both saw both.
            ("a", 2500, "kv-1 is ready"),
            ("b", 2900, "kv-1 is ready"),
            ("b", 9000, "kv-1 crashed"),
        ];
        for (from, at, text) in told {
            merger.take(from, event(at, text));
        }
        let lines: Vec<_> = merger
            .told()
            .iter()
            .map(|told| (told.event.at_unix_ms, told.event.text.as_str(), told.from.join("+")))
            .collect();
        let expected = [
            (1000, "kv-1 is ready", "a+b"),
            (1500, "ada asks to run ls", "b"),
            (2000, "kv-1 crashed", "a"),
            (2500, "kv-1 is ready", "a+b"),
            (9000, "kv-1 crashed", "b"),
        ];
        assert_eq!(lines, expected.map(|(at, text, from)| (at, text, from.to_owned())));
    }

    #[test]
    fn what_is_told_again_is_not_new() {
        let mut merger = Merger::default();
        assert!(merger.take("a", event(1000, "x")).is_some());
        assert!(merger.take("b", event(1001, "x")).is_none());
        assert!(merger.take("b", event(1002, "x")).is_some());
    }
}
