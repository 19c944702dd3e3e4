//! Effects as they are said on the command line: `latency 50ms loss 1%`, `reset after=2s`, `wan-eu-us`.

use std::{fmt::Display, fmt::Write, str::FromStr};

use faultbed_common::{fault::FaultSpec, nearest, preset};

use crate::cli::{blueprints, failure::Failure};

/// One effect that every lab knows.
struct Known {
    /// What it is called.
    word: &'static str,
    /// What follows it, by an example; nothing where it is empty.
    like: &'static str,
    /// What may follow besides, as `KEY=VALUE`.
    keys: &'static [&'static str],
    /// What it does, for the help.
    what: &'static str,
    /// Puts it into a spec.
    put: fn(&mut FaultSpec, &Said<'_>) -> Result<(), String>,
}

/// What was said after the word of an effect.
#[derive(Default)]
struct Said<'a> {
    amount: Option<&'a str>,
    keys: Vec<(&'a str, &'a str)>,
}

impl<'a> Said<'a> {
    fn amount<T: FromStr<Err: Display>>(&self) -> Result<Option<T>, String> {
        self.amount.map(read_as).transpose()
    }

    fn key(&self, name: &str) -> Option<&'a str> {
        self.keys.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// All of it as one text, for amounts that have keys of their own.
    fn whole<T: FromStr<Err: Display>>(&self) -> Result<Option<T>, String> {
        let mut text = self.amount.unwrap_or_default().to_owned();
        for (key, value) in &self.keys {
            let _ = write!(text, " {key}={value}");
        }
        read_as(text.trim()).map(Some)
    }

    fn late(&self, spec: &mut FaultSpec) -> Result<(), String> {
        if let Some(jitter) = self.key("jitter") {
            spec.jitter = Some(read_as(jitter)?);
        }
        if let Some(distribution) = self.key("distribution") {
            spec.distribution = Some(super::parse_distribution(distribution)?);
        }
        Ok(())
    }
}

fn read_as<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

/// An effect without an amount.
macro_rules! bare {
    ($word:literal, $field:ident, $what:literal) => {
        Known {
            word: $word,
            like: "",
            keys: &[],
            what: $what,
            put: |spec, _| {
                spec.$field = true;
                Ok(())
            },
        }
    };
}

/// An effect with one amount.
macro_rules! much {
    ($word:literal, $field:ident, $like:literal, $what:literal) => {
        Known {
            word: $word,
            like: $like,
            keys: &[],
            what: $what,
            put: |spec, said| {
                spec.$field = said.amount()?;
                Ok(())
            },
        }
    };
}

/// Every effect, as the help lists them.
const EFFECTS: [Known; 24] = [
    bare!("cut", cut, "nothing passes, as if the cable were pulled"),
    Known {
        word: "latency",
        like: "50ms",
        keys: &["jitter", "distribution"],
        what: "every byte is late, each way; throughput stays",
        put: |spec, said| {
            spec.latency = said.amount()?;
            said.late(spec)
        },
    },
    Known {
        word: "rtt",
        like: "80ms",
        keys: &["jitter", "distribution"],
        what: "the same, half of it each way (--between)",
        put: |spec, said| {
            spec.rtt = said.amount()?;
            said.late(spec)
        },
    },
    much!("bandwidth", bandwidth, "10Mbit", "all connections of a link share it"),
    Known {
        word: "loss",
        like: "1%",
        keys: &["p", "r", "good", "bad", "burst", "every"],
        what: "segments are lost; also p=1% r=20%, burst=20ms every=2s",
        put: |spec, said| {
            spec.loss = said.whole()?;
            Ok(())
        },
    },
    much!("corrupt", corrupt, "0.1%", "bits flip; the stream is knowingly broken"),
    Known {
        word: "slice",
        like: "64B",
        keys: &["variation", "delay"],
        what: "bytes arrive in pieces; also variation=16B delay=1ms",
        put: |spec, said| {
            spec.slice = said.whole()?;
            Ok(())
        },
    },
    bare!("stall", stall, "bytes wait with their sender, and arrive late"),
    bare!("jam", jam, "bytes are taken and held, and arrive late"),
    Known {
        word: "reset",
        like: "",
        keys: &["after"],
        what: "a RST to connections that are there; with after=2s to each",
        put: |spec, said| {
            spec.reset_after = said.key("after").map(read_as).transpose()?;
            spec.reset = spec.reset_after.is_none();
            Ok(())
        },
    },
    Known {
        word: "close",
        like: "",
        keys: &["after"],
        what: "after=2s: an orderly end to each connection",
        put: |spec, said| {
            spec.close_after = said.key("after").map(read_as).transpose()?;
            Ok(())
        },
    },
    much!("limit", limit, "10KiB", "a connection ends after so many bytes"),
    much!("slow-close", slow_close, "2s", "the end of a stream arrives late"),
    bare!("refuse", refuse, "new connections get a RST"),
    bare!("time-out", time_out, "new connections get no answer"),
    much!("accept-delay", accept_delay, "500ms", "new connections stand still first"),
    much!("duplicate", duplicate, "1%", "not possible on a stream; says why"),
    much!("reorder", reorder, "1%", "not possible on a stream; says why"),
    bare!("pause", pause, "all processes stand still (--on)"),
    bare!("kill", kill, "SIGKILL, and down until it ends (--on)"),
    bare!("stop", stop, "stopped, and down until it ends (--on)"),
    bare!("disk-stall", disk_stall, "what it syncs to disk does not get there (--on)"),
    // Also without this word, unless its name is one of these.
    much!("effect", effect, "NAME", "the blueprint's own of this name (--on)"),
    Known {
        word: "preset",
        like: "wan-eu-us",
        keys: &[],
        what: "a named link, also without this word",
        put: |spec, said| {
            let found = said.amount.map(preset::find).transpose().map_err(|e| e.to_string())?;
            spec.preset = found.map(|preset| preset.name.to_owned());
            Ok(())
        },
    },
];

/// Words between effects, which say nothing.
const FILLERS: [&str; 3] = ["+", "and", "with"];

/// Every word that an effect can begin with: those of every lab, presets, and blueprints' own.
#[must_use]
pub fn words() -> Vec<String> {
    let own = blueprints::shipped().into_values().flat_map(|b| b.effects.into_keys());
    let known = EFFECTS.iter().map(|known| known.word.to_owned());
    known.chain(preset::PRESETS.iter().map(|preset| preset.name.to_owned())).chain(own).collect()
}

/// What `inject --help` ends with.
#[must_use]
pub fn help() -> String {
    let mut text = "Effects on links, as many as make sense together:\n".to_owned();
    let mut line = |known: &Known| {
        let said = format!("{} {}", known.word, known.like);
        let _ = writeln!(text, "  {said:<20} {}", known.what);
    };
    let acts_on_nodes = |known: &&Known| known.what.ends_with("(--on)");
    EFFECTS.iter().filter(|known| !acts_on_nodes(known)).for_each(&mut line);
    text.push_str(
        "\nEffects on nodes (--on), of which the blueprint's own need no word before them:\n",
    );
    let mut line = |known: &Known| {
        let what = known.what.trim_end_matches(" (--on)");
        let said = format!("{} {}", known.word, known.like);
        let _ = writeln!(text, "  {said:<20} {what}");
    };
    EFFECTS.iter().filter(acts_on_nodes).for_each(&mut line);
    for (name, blueprint) in blueprints::shipped() {
        for effect in blueprint.effects.keys() {
            let _ = writeln!(text, "  {effect:<20} of blueprint {name}");
        }
    }
    text.push_str("\nPresets, from published figures (docs/faults.md has their sources):\n");
    for preset in preset::PRESETS {
        let _ = writeln!(text, "  {:<20} {}: {}", preset.name, preset.what, preset.effects());
    }
    text.push_str(
        "\nExamples:
  faultbed inject latency 50ms --jitter 5ms --from kv-1 --to kv-2
  faultbed inject latency 50ms loss 1% bandwidth 10Mbit --between kv-1 kv-2,kv-3
  faultbed inject wan-eu-us --between label:dc=east label:dc=west --for none
  faultbed inject loss burst=20ms every=2s --isolate leader:kv
  faultbed inject stall close after=5s --between kv-1 clients --probability 10%
  faultbed inject reset refuse --halves kv --seed 7
  faultbed inject pause --on kv-3 --for 5s",
    );
    text
}

/// Puts the words of effects into a spec. With `may_be_own`, one word that nobody knows is an effect
/// of the blueprint's own.
///
/// # Errors
/// A word is no effect, an amount is none or is missing.
pub fn read(spec: &mut FaultSpec, words: &[&str], may_be_own: bool) -> Result<(), Failure> {
    let mut words = words
        .iter()
        .map(|word| word.trim_end_matches(','))
        .filter(|word| !word.is_empty())
        .peekable();
    let mut seen: Vec<&str> = Vec::new();
    while let Some(word) = words.next() {
        if FILLERS.contains(&word) {
            continue;
        }
        if seen.contains(&word) {
            return Err(Failure::refused(format!("{word} is there twice")).next(HELP));
        }
        let is_first = seen.is_empty();
        let before = seen.last().copied();
        seen.push(word);
        if let Some(known) = EFFECTS.iter().find(|known| known.word == word) {
            let said = said(known, &mut words)?;
            (known.put)(spec, &said).map_err(|why| Failure::refused(why).next(example(known)))?;
        } else if preset::find(word).is_ok() {
            if let Some(other) = &spec.preset {
                let message = format!("{other} and {word} are two presets; a link has one");
                return Err(Failure::refused(message).next(HELP));
            }
            spec.preset = Some(word.to_owned());
        } else if is_first && may_be_own && words.peek().is_none() {
            spec.effect = Some(word.to_owned());
        } else {
            return Err(unknown(word, before));
        }
    }
    Ok(())
}

const HELP: &str = "faultbed inject --help";

/// What follows an effect and belongs to it.
fn said<'a>(
    known: &Known,
    words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
) -> Result<Said<'a>, Failure> {
    let mut said = Said::default();
    let names_one = ["preset", "effect"].contains(&known.word);
    let is_amount = |word: &&str| !word.contains('=') && (names_one || !is_effect(word));
    if !known.like.is_empty() {
        said.amount = words.next_if(is_amount);
    }
    // `reset after 2s` and `reset after=2s` are the same.
    while let Some(word) = words.peek().copied() {
        if let Some((key, value)) = word.split_once('=') {
            if !known.keys.contains(&key) {
                let message = match known.keys {
                    [] => format!("{} has no {key}", known.word),
                    keys => format!("{} has no {key}; it has {}", known.word, keys.join(", ")),
                };
                return Err(Failure::refused(message).next(example(known)));
            }
            said.keys.push((key, value));
        } else if known.keys.contains(&word) {
            words.next();
            let Some(value) = words.peek().copied() else {
                let message = format!("say how much after {word}");
                return Err(Failure::refused(message).next(example(known)));
            };
            said.keys.push((word, value));
        } else {
            break;
        }
        words.next();
    }
    let needs = !known.like.is_empty() && said.amount.is_none();
    let has_keys_instead = known.word == "loss" && !said.keys.is_empty();
    if needs && !has_keys_instead {
        let message = format!("say how much {}", known.word);
        return Err(Failure::refused(message).next(example(known)));
    }
    Ok(said)
}

fn is_effect(word: &str) -> bool {
    FILLERS.contains(&word)
        || EFFECTS.iter().any(|known| known.word == word)
        || preset::find(word).is_ok()
}

fn example(known: &Known) -> String {
    let place = if known.what.ends_with("(--on)") { "--on kv-1" } else { "--between kv-1 kv-2" };
    let like = if known.word == "close" { "after=2s" } else { known.like };
    let like = if like.is_empty() { String::new() } else { format!(" {like}") };
    format!("faultbed inject {}{like} {place}", known.word)
}

/// The effect on nodes that a word may have been meant to be.
#[must_use]
pub fn nearest_on_nodes(word: &str) -> Option<&'static str> {
    let known = EFFECTS.iter().filter(|known| known.what.ends_with("(--on)"));
    nearest::nearest(word, known.map(|known| known.word))
}

/// A word that is no effect where one was expected, after the effect before it.
fn unknown(word: &str, before: Option<&str>) -> Failure {
    let takes_none = before.and_then(|before| EFFECTS.iter().find(|known| known.word == before));
    let starts_as_amount = word.starts_with(|c: char| c.is_ascii_digit());
    if let (Some(known), true) = (takes_none, starts_as_amount) {
        let more = if known.like.is_empty() { "no amount" } else { "one amount" };
        return Failure::refused(format!("{} takes {more}: {word} is too many", known.word))
            .next(example(known));
    }
    let candidates = words();
    let help = nearest::did_you_mean(word, &candidates).unwrap_or_else(|| {
        let known: Vec<&str> = EFFECTS.iter().map(|known| known.word).collect();
        let presets: Vec<&str> = preset::PRESETS.iter().map(|preset| preset.name).collect();
        format!("they are {}; presets are {}", known.join(", "), presets.join(", "))
    });
    Failure::refused(format!("{word:?} is no effect here; {help}")).next(HELP)
}

/// Refuses what needs `--after` and did not get it.
///
/// # Errors
/// `close` without a time.
pub fn complete(spec: &FaultSpec, words: &[String]) -> Result<(), Failure> {
    let closes = words.iter().any(|word| word.trim_end_matches(',') == "close");
    if closes && spec.close_after.is_none() {
        return Err(Failure::refused("say when: close needs after=DURATION")
            .next("faultbed inject close after=2s --between kv-1 kv-2"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use faultbed_common::shape;

    use super::*;

    fn said(line: &str) -> Result<String, String> {
        let mut spec = FaultSpec::default();
        let words: Vec<&str> = line.split(' ').collect();
        read(&mut spec, &words, false).map_err(|failure| failure.to_string())?;
        Ok(shape::summary(&spec))
    }

    #[test]
    fn effects_read_as_people_say_them() {
        for line in [
            "cut",
            "latency 50ms",
            "bandwidth 10Mbit",
            "loss 1%",
            "loss p=1% r=20%",
            "loss burst=20ms every=2s",
            "corrupt 0.1%",
            "slice 64B variation=16B delay=1ms",
            "stall",
            "jam",
            "reset",
            "reset after 2s",
            "close after 2s",
            "limit 10KiB",
            "slow-close 2s",
            "refuse",
            "time-out",
            "accept-delay 500ms",
            "duplicate 1%",
        ] {
            assert_eq!(said(line).as_deref(), Ok(line));
        }
        for (line, told) in [
            ("latency 50ms jitter=5ms distribution=pareto", "latency 50ms +5ms pareto"),
            ("loss 1% + latency 5ms, bandwidth 1Gbit", "latency 5ms, bandwidth 1Gbit, loss 1%"),
            ("stall and close after=5s", "stall, close after 5s"),
            ("reset after=2s", "reset after 2s"),
            ("wan-eu-us loss 1%", "wan-eu-us (latency 45ms500us, loss 1%)"),
            ("preset mobile-4g", "mobile-4g (latency 85ms, bandwidth 9Mbit)"),
        ] {
            assert_eq!(said(line).as_deref(), Ok(told));
        }
    }

    #[test]
    fn what_is_no_effect_says_what_to_type() {
        for (line, why) in [
            ("latency", "say how much latency\n  next: faultbed inject latency 50ms --between"),
            ("latency loss 1%", "say how much latency"),
            ("latency 5", "write it like 30s"),
            ("latency fast", "write it like 30s"),
            ("cut 5s", "cut takes no amount: 5s is too many"),
            ("latency 5ms 6ms", "latency takes one amount: 6ms is too many"),
            ("bandwidht 1Mbit", "did you mean \"bandwidth\"?"),
            ("wan-eu-su", "did you mean \"wan-eu-us\"?"),
            ("frobnicate", "they are cut, latency,"),
            ("loss", "say how much loss"),
            ("loss p=1%", "either p and r"),
            ("loss q=1%", "loss has no q; it has p, r"),
            ("cut after=2s", "cut has no after"),
            ("reset after", "say how much after after"),
            ("loss 1% loss 2%", "loss is there twice"),
            ("preset wan", "did you mean \"wan-eu\"?"),
            ("wan-eu wan-us", "a link has one"),
        ] {
            let error = said(line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn the_help_names_every_effect_and_preset() {
        let help = help();
        for word in words() {
            assert!(help.contains(&format!("  {word}")), "{word}");
        }
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }
}
