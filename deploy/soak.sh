#!/bin/sh
# A soak of one proxy process: random faults, redialling clients and rule changes, with bounds on what
# memory and descriptors may have grown by. Prints a line each 10 s and a summary; fails where a bound
# does not hold.
#
#   deploy/soak.sh [--minutes N | --seconds N] [--seed N]
#
# 20 minutes without an option. FAULTBED_STREAM_MB=20000 cargo test -p faultbed-agent --lib --release
# stream_property is the other test for a night: every byte through every fault.
set -eu
cd "$(dirname "$0")/.."
deploy/setup.sh run
cargo build --release --bins --locked -q
exec "${CARGO_TARGET_DIR:-target}/release/soak" "$@"
