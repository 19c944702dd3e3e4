#!/bin/sh
# Benchmarks with release binaries: medians, and ratios between targets of one run.
#
#   deploy/bench.sh start|flip|idle [--json]
set -eu
cd "$(dirname "$0")/.."
deploy/setup.sh run
cargo build --release --bins --locked -q
exec "${CARGO_TARGET_DIR:-target}/release/bench" "$@"
