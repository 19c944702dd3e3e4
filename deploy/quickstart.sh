#!/bin/sh
# From a fresh checkout to a running three-node etcd behind proxies, in one command.
#
#   deploy/quickstart.sh [--install] [ARGUMENTS OF `faultbed up`]
set -eu
cd "$(dirname "$0")/.."

if [ "${1:-}" = --install ]; then shift; deploy/setup.sh --install run; else deploy/setup.sh run; fi
echo "building (5 to 10 minutes the first time)" >&2
cargo build --release --bins --locked -p faultbed-agent -p faultbed-coordinator
bin=$(cd "${CARGO_TARGET_DIR:-target}/release" && pwd)
PATH="$bin:$PATH"
export PATH
echo "faultbed is in $bin; for other terminals:" >&2
echo "    export PATH=$bin:\$PATH" >&2
exec faultbed up deploy/examples/etcd.toml "$@"
