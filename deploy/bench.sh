#!/bin/sh
# Benchmarks with release binaries: medians, and ratios between targets of one run.
#
#   deploy/bench.sh start|flip|hosts|adopt|idle|identity [--json]
#   deploy/bench.sh agents [--json] [--hosts N] [--faults N]
#   deploy/bench.sh link [--json] [--rounds N] [--only TEST,…] [--targets NAME,…] [--also NAME=BINARY]
#   deploy/bench.sh effects [--json] [--only TEST,…]
#   deploy/bench.sh kernel [WORD …]
#
# hosts is flip with three hosts in network namespaces and an etcd of three members as the store. adopt
# kills an agent with 50 nodes and starts it again. agents has one coordinator and 200 agents that are
# only simulated, over mutual TLS, with 10 nodes each; --hosts takes another number.
#
# link runs our proxy next to nothing at all, HAProxy, nginx and socat, and next to toxiproxy-server
# and etcd-proxy where their binaries are on PATH; --also adds another build of ours. Its tests are
# bulk1, bulk8, default (bulk under the kernel's default congestion control), rtt, requests, short
# and idle. link and effects run in a network namespace of their own where one can be made: then
# nothing else is on their loopback device, and congestion control can be chosen for all.
#
# kernel prints the table of docs/kernel.md: what a client sees of a real link and of ours. Words choose
# cases by their names.
set -eu
cd "$(dirname "$0")/.."
bench=${1:-}
case $bench in
link) deploy/setup.sh bench ;;
kernel | hosts) deploy/setup.sh test ;;
*) deploy/setup.sh run ;;
esac
cargo build --release --bins --locked -q
program="${CARGO_TARGET_DIR:-target}/release/bench"
case $bench in
link | effects | agents) ;;
kernel) shift && exec "${program%/bench}/kernel-compare" "$@" ;;
*) exec "$program" "$@" ;;
esac

enter="unshare --net"
# Without root the namespace needs a user namespace; nginx and HAProxy must not think they are root in it.
[ "$(id -u)" = 0 ] || enter="unshare --user --map-current-user --keep-caps --net"
if $enter ip link set lo up 2>/dev/null; then
    # shellcheck disable=SC2016,SC2086 # expanded inside; one word for each option
    FAULTBED_BENCH_NAMESPACE=yes exec $enter sh -c 'ip link set lo up; exec "$0" "$@"' "$program" "$@"
fi
echo "no network namespace can be made: what else uses the loopback device is in the figures" >&2
exec "$program" "$@"
