//! Finds the valid name that a mistyped one was meant to be.

/// Longer words are never compared: no name is that long.
const WORD_CHARS_MAX: usize = 64;

/// The candidate that `word` was most likely meant to be, if one is near enough to suggest.
/// Among equally near ones the first in alphabetical order, so that the answer never varies.
#[must_use]
pub fn nearest<'a, S: AsRef<str> + ?Sized + 'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a S>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(AsRef::as_ref)
        .filter_map(|candidate| Some((rank(word, candidate)?, candidate)))
        .min()
        .map(|(_, candidate)| candidate)
}

/// `did you mean "count"?`, if a candidate is near enough.
#[must_use]
pub fn did_you_mean<'a, S: AsRef<str> + ?Sized + 'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a S>,
) -> Option<String> {
    nearest(word, candidates).map(|name| format!("did you mean {name:?}?"))
}

/// How far a candidate is from the word; `None` is too far to suggest.
fn rank(word: &str, candidate: &str) -> Option<usize> {
    let (typed, valid) = (word.to_lowercase(), candidate.to_lowercase());
    // `h9` is not a slip for `h1`: who types a number means that number.
    if typed != valid && letters(&typed) == letters(&valid) {
        return None;
    }
    let length = typed.chars().count().max(valid.chars().count());
    if length > WORD_CHARS_MAX {
        return None;
    }
    // A third of the letters may be wrong; of short words one, of single letters none.
    let allowed = if length < 2 { 0 } else { (length / 3).max(1) };
    let steps = distance(&typed, &valid);
    if steps <= allowed {
        return Some(steps);
    }
    // Half a word typed is a common slip that counts many missing letters.
    (typed.len() >= 3 && valid.starts_with(&typed)).then_some(allowed + 1)
}

fn letters(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// Letters to insert, delete, change or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_finger_find_their_word_and_strangers_do_not() {
        let known = ["count", "path", "config", "hosts", "args", "env", "node", "kv-1"];
        for (word, meant) in [
            ("cuont", Some("count")),
            ("Count", Some("count")),
            ("paht", Some("path")),
            ("host", Some("hosts")),
            ("conf", Some("config")),
            ("arg", Some("args")),
            ("memory", None),
            ("kv-2", None),
            ("kw-1", Some("kv-1")),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), meant, "{word}");
        }
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("ab", "ba"), 1);
    }
}
