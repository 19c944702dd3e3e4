#!/bin/sh
# Every check and test of the project. What is missing is installed first (see deploy/setup.sh).
set -eu
cd "$(dirname "$0")/.."
deploy/setup.sh "$@" test

# Most tests wait more than they work.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-$(($(nproc) * 2))}"

step() { echo "== $*" >&2; "$@"; }
step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked -- -D warnings
step env RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --locked -q
if command -v cargo-deny >/dev/null 2>&1; then
    step cargo deny --offline check bans licenses sources
else
    echo "== cargo-deny is not installed; the bans that matter are in the tidy test" >&2
fi
step cargo build --bins --locked -p faultbed-agent -p faultbed-coordinator -p faultbed-tests
step cargo test --workspace --locked
step "${CARGO_TARGET_DIR:-target}/debug/soak" --seconds 60
