#!/bin/sh
# Brings what building and testing Faultbed needs and a fresh Debian 12 with Rust lacks.
#
#   deploy/setup.sh [--install] run|test|bench|static
#
# As root, or with --install (then with sudo), missing packages are installed; else they are
# printed and nothing is changed. Services of installed packages are never started.
set -eu

install=no
if [ "${1:-}" = --install ]; then install=yes; shift; fi
purpose=${1:-run}

missing=
need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || case " $missing " in *" $2 "*) ;; *) missing="$missing $2" ;; esac
}
need cc gcc
[ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
need protoc protobuf-compiler
# etcd's protos import protobuf's own, which Debian keeps apart from the compiler.
[ -e /usr/include/google/protobuf/descriptor.proto ] || missing="$missing libprotobuf-dev"
need etcd etcd-server
need etcdctl etcd-client
if [ "$purpose" = test ]; then
    need python3 python3 # one test runs a server of Python's library as a user's own database
    # Real databases live through a list of tests.
    need redis-server redis-server
    need redis-sentinel redis-sentinel
    need redis-cli redis-tools
    [ -n "$(ls -d /usr/lib/postgresql/*/bin/postgres 2>/dev/null)" ] || missing="$missing postgresql"
    need psql postgresql-client
    # The comparison with the kernel builds links of its own, and has nftables drop their packets.
    # An ordinary user has what is in sbin, but not on the path.
    PATH=$PATH:/usr/sbin:/sbin
    need ip iproute2
    need nft nftables
    need ethtool ethtool
    need nats-server nats-server
    need curl curl # members of a database join and leave by it
    need openssl openssl # looks at certificates from outside
    need java default-jre-headless
    [ -e /usr/share/java/zookeeper.jar ] || missing="$missing zookeeper"
    # Its command in PATH is not the one that is run, and would begin a broker.
    [ -e /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing="$missing rabbitmq-server"
    [ -e /usr/lib/python3/dist-packages/pika ] || missing="$missing python3-pika"
    need systemd-analyze systemd # says what is wrong in our units; nothing of it is started
    need dpkg-deb dpkg
    need sshd openssh-server # one test brings in a host over ssh, by a server of its own
    need ssh openssh-client
    need unshare util-linux
    # The survival matrix moves the wall clocks of daemons, each by itself.
    [ -e "/usr/lib/$(uname -m)-linux-gnu/faketime/libfaketime.so.1" ] || missing="$missing libfaketime"
fi
if [ "$purpose" = bench ]; then # what our proxy is measured against, and the tools to be alone with it
    need haproxy haproxy
    need nginx nginx-light
    [ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || missing="$missing libnginx-mod-stream"
    need socat socat
    need unshare util-linux
    need ip iproute2
fi
if [ "$purpose" = static ]; then # for deploy/package.sh --static
    need musl-gcc musl-tools
    need dpkg-deb dpkg
fi
if ! command -v cargo >/dev/null 2>&1; then
    echo "cargo is missing: install Rust first (https://rustup.rs), then open a new terminal" >&2
    exit 2
fi
# Debian's own cargo is too old, and would only say that it does not know the edition.
wants=$(sed -n 's/^rust-version = "1\.\([0-9]*\).*/\1/p' "$(dirname "$0")/../Cargo.toml")
has=$(cargo --version | sed -n 's/^cargo 1\.\([0-9]*\).*/\1/p')
if [ "${has:-0}" -lt "${wants:-0}" ]; then
    echo "$(cargo --version) is too old, 1.$wants is needed: rustup update (https://rustup.rs)" >&2
    exit 2
fi
if [ "$purpose" = test ]; then
    for tool in fmt clippy; do
        cargo $tool --version >/dev/null 2>&1 && continue
        echo "cargo $tool is missing: rustup component add rustfmt clippy" >&2
        exit 2
    done
fi
if [ "$purpose" = static ]; then
    target=$(uname -m)-unknown-linux-musl
    libs=$(rustc --print target-libdir --target "$target" 2>/dev/null || true)
    if [ ! -d "$libs" ]; then
        if [ "$(id -u)" != 0 ] && [ "$install" = no ]; then
            echo "Rust cannot build for $target; run again with --install, or: rustup target add $target" >&2
            exit 2
        fi
        rustup target add "$target" >&2
    fi
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=
elif [ "$install" = yes ]; then
    as_root=sudo
else
    echo "these Debian packages are missing; install them, or run again with --install:" >&2
    echo "    sudo apt-get install --no-install-recommends$missing" >&2
    exit 2
fi

# policy-rc.d is Debian's way to say that no service may start while packages are set up.
policy=/usr/sbin/policy-rc.d
made_policy=no
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null
    $as_root chmod 755 $policy
    made_policy=yes
fi
clean_up() { [ $made_policy = no ] || $as_root rm -f $policy; }
trap clean_up EXIT
trap 'exit 130' HUP INT TERM
echo "installing:$missing" >&2
$as_root apt-get update -qq >&2
# shellcheck disable=SC2086 # one word for each package
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
# Nor at the next boot: the lab starts its own. This also works where systemd does not run, as in an image.
for service in etcd-server:etcd redis-server:redis-server redis-sentinel:redis-sentinel \
    postgresql:postgresql nats-server:nats-server haproxy:haproxy nginx-light:nginx \
    openssh-server:ssh rabbitmq-server:rabbitmq-server; do
    case " $missing " in
    *" ${service%:*} "*)
        if command -v systemctl >/dev/null 2>&1; then $as_root systemctl disable -q "${service#*:}" || true; fi ;;
    esac
done
