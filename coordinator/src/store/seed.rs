//! Seeds of random tests: printed with the command that repeats them.

use rand::{Rng, SeedableRng, rngs::StdRng};

/// The variable that fixes the seed.
const SEED: &str = "FAULTBED_SEED";

/// The seed for a test: the one asked for, else a new one.
pub(crate) fn seed(test: &str) -> u64 {
    let asked = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
    let seed = asked.unwrap_or_else(|| StdRng::from_os_rng().random());
    println!("repeat with {SEED}={seed} cargo test -p faultbed-coordinator --lib {test}");
    seed
}
