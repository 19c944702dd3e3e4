//! Fuzzing for the other crates: documents of a corpus, edited at random, and a bound on each run.
//!
//! Targets are tests beside what they fuzz, so that parsers stay private: `common/tests/fuzz.rs`
//! (lab files, blueprints with their templates and expressions, targets, quantities, names, links,
//! `proxy.json`, host specs, requests), `agent/tests/fuzz.rs` (`/proc/PID/stat`, run records, orders,
//! ledgers, log tails), tests named `fuzz_…` in `agent/src` (`/proc/net/tcp`, `sockaddr`, answers of
//! `sock_diag`) and `coordinator/tests/fuzz.rs` (keys and values of the store, bodies of requests).
//!
//! `cargo test fuzz` runs each for a second. `cargo bolero test NAME` runs one for as long as one
//! likes, with libFuzzer's coverage; what it finds goes to `__fuzz__/NAME/crashes` and is then run by
//! `cargo test` too. `BOLERO_RANDOM_TEST_TIME_MS` changes the second, and `BOLERO_RANDOM_SEED` runs
//! what a failure has printed.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

pub use bolero;
use bolero::{Driver, ValueGenerator};

/// The time of one target where nobody says otherwise.
pub const TIME: Duration = Duration::from_secs(1);
/// A document that takes longer hangs, on however busy a machine.
const RUN_MAX: Duration = Duration::from_secs(5);
/// Documents grow by edits, but not beyond this.
const BYTES_MAX: usize = 64 * 1024;
/// Edits of one document, at most. Few, so that most of it is still understood.
const EDITS_MAX: usize = 6;
/// Bytes that one edit takes out or puts in, at most.
const SPAN_MAX: usize = 64;

/// What parsers stumble over.
const WORDS: &[&[u8]] = &[
    b"",
    b"0",
    b"-1",
    b"18446744073709551616",
    b"1e999",
    b"NaN",
    b"99999999999999999999s",
    b"\"",
    b"'''",
    b"\\u0000",
    b"\0",
    b"\xff\xfe",
    b"\xf0\x9f\xa6\x80",
    b"{{",
    b"}}",
    b"{% for i in range(9) %}",
    b"[[[[[[[[",
    b"]",
    b"{}",
    b"null",
    b"=",
    b"\n",
    b",",
    b"not:",
    b"*",
    b"%",
    b"127.0.0.1:0",
    b"[::]:65536",
];

/// The files of `fuzz/corpus/NAME`.
///
/// # Panics
/// Where there are none.
#[must_use]
pub fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    files(&dir)
}

/// The files of a directory below the workspace, such as `deploy/examples`.
///
/// # Panics
/// Where there are none.
#[must_use]
pub fn examples(dir: &str) -> Vec<Vec<u8>> {
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(dir))
}

fn files(dir: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(dir).map(|entries| entries.flatten().collect::<Vec<_>>());
    let mut paths: Vec<_> = entries.unwrap_or_default().iter().map(fs::DirEntry::path).collect();
    paths.sort();
    let found: Vec<_> = paths.iter().filter_map(|path| fs::read(path).ok()).collect();
    assert!(!found.is_empty(), "no corpus in {}", dir.display());
    found
}

/// Runs a target over one document.
///
/// # Panics
/// Where it takes too long; so does the target where it fails.
pub fn run(document: &[u8], target: impl Fn(&[u8])) {
    let began = Instant::now();
    target(document);
    let took = began.elapsed();
    assert!(took < RUN_MAX, "it took {took:.1?}");
}

/// Makes documents: one of the corpus, with some edits.
#[derive(Debug, Clone)]
pub struct Edited {
    documents: Vec<Vec<u8>>,
}

impl Edited {
    /// Edits of these documents.
    ///
    /// # Panics
    /// Where there are none.
    #[must_use]
    pub fn of<D: Into<Vec<u8>>>(documents: impl IntoIterator<Item = D>) -> Self {
        let documents: Vec<Vec<u8>> = documents.into_iter().map(Into::into).collect();
        assert!(!documents.is_empty(), "a corpus has documents");
        Self { documents }
    }

    fn edit<D: Driver>(&self, document: &mut Vec<u8>, driver: &mut D) -> Option<()> {
        let at = (0..=document.len()).generate(driver)?;
        let end = (at + (0..=SPAN_MAX).generate(driver)?).min(document.len());
        let put: Vec<u8> = match (0..6_u8).generate(driver)? {
            // Taken out.
            0 => Vec::new(),
            // There twice.
            1 => document[at..end].repeat(2),
            // Something that parsers stumble over, in its place or before it.
            2 => WORDS[(0..WORDS.len()).generate(driver)?].to_vec(),
            3 => [WORDS[(0..WORDS.len()).generate(driver)?], &document[at..end]].concat(),
            // A part of another document.
            4 => {
                let other = &self.documents[(0..self.documents.len()).generate(driver)?];
                let from = (0..=other.len()).generate(driver)?;
                let to = (from + (0..=SPAN_MAX).generate(driver)?).min(other.len());
                other[from..to].to_vec()
            }
            // Any bytes.
            _ => {
                let mut bytes = document[at..end].to_vec();
                for byte in bytes.iter_mut().take(4) {
                    *byte = (0..=u8::MAX).generate(driver)?;
                }
                bytes
            }
        };
        document.splice(at..end, put);
        document.truncate(BYTES_MAX);
        Some(())
    }
}

impl ValueGenerator for Edited {
    type Output = Vec<u8>;

    fn generate<D: Driver>(&self, driver: &mut D) -> Option<Vec<u8>> {
        let mut document = self.documents[(0..self.documents.len()).generate(driver)?].clone();
        for _ in 0..(0..=EDITS_MAX).generate(driver)? {
            self.edit(&mut document, driver)?;
        }
        Some(document)
    }
}

/// A target: first the corpus as it is, then edits of it for [`TIME`]. The second argument is what is
/// done with each document, as `&[u8]`; it must not panic.
#[macro_export]
macro_rules! fuzz {
    ($corpus:expr, $target:expr) => {{
        let documents: Vec<Vec<u8>> = $corpus.into_iter().map(Into::into).collect();
        let target = $target;
        documents.iter().for_each(|document| $crate::run(document, &target));
        $crate::bolero::check!()
            .with_generator($crate::Edited::of(documents))
            .with_test_time($crate::TIME)
            .for_each(|document: &Vec<u8>| $crate::run(document, &target));
    }};
}
