#!/bin/sh
# Builds what is installed on machines: a Debian package and an archive of the same programs.
#
#   deploy/package.sh [--static] [--bins DIR] [--out DIR]
#
#   --static     programs that need nothing of the machine but its kernel (musl): one file runs on any
#                Linux of this architecture. deploy/setup.sh static brings what it takes.
#   --bins DIR   packs programs that are built already
#   --out DIR    where the results go [default: target/package]
#
# PACKAGE_COMPRESS=none|gzip|xz says how the package is compressed [default: xz].
set -eu
cd "$(dirname "$0")/.."

static=no bins= out=target/package
while [ $# -gt 0 ]; do
    case $1 in
    --static) static=yes ;;
    --bins) bins=${2:?--bins wants a directory}; shift ;;
    --out) out=${2:?--out wants a directory}; shift ;;
    *) echo "unknown word $1; see the beginning of $0" >&2; exit 2 ;;
    esac
    shift
done

need() { # need COMMAND WHAT-TO-DO
    command -v "$1" >/dev/null 2>&1 || { echo "$1 is missing: $2" >&2; exit 2; }
}
need dpkg-deb "apt-get install dpkg"

target=
if [ $static = yes ]; then target=$(uname -m)-unknown-linux-musl; fi
if [ -z "$bins" ]; then
    if [ -n "$target" ]; then
        need musl-gcc "deploy/setup.sh --install static"
        # The C of our cryptography is built for it too.
        rustc --print target-libdir --target "$target" 2>/dev/null | xargs test -d || {
            echo "Rust cannot build for $target: deploy/setup.sh --install static" >&2
            exit 2
        }
    fi
    cargo build --release --locked --bins -p faultbed-agent -p faultbed-coordinator \
        ${target:+--target "$target"}
    bins=${CARGO_TARGET_DIR:-target}/${target:+$target/}release
fi

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
license=$(sed -n 's/^license = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
arch=$(dpkg --print-architecture)
programs="faultbed faultbed-agent faultbed-coordinator"
mkdir -p "$out"
out=$(cd "$out" && pwd)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
trap 'exit 130' HUP INT TERM
root=$stage/root

for program in $programs; do
    install -D -m 755 "$bins/$program" "$root/usr/bin/$program"
done
for unit in agent coordinator; do
    install -D -m 644 "deploy/systemd/faultbed-$unit.service" \
        "$root/lib/systemd/system/faultbed-$unit.service"
done
install -D -m 644 deploy/systemd/coordinator.conf "$root/etc/faultbed/coordinator.conf"
doc=$root/usr/share/doc/faultbed
install -D -m 644 -t "$doc" README.md LICENSE docs/*.md
sed "s|@LICENSE@|$license|" deploy/debian/copyright > "$doc/copyright"
chmod 644 "$doc/copyright"
install -D -m 644 -t "$doc/examples" deploy/systemd/unprivileged.conf deploy/examples/*.toml
mkdir -p "$root/usr/share/faultbed"
cp -r deploy/blueprints "$root/usr/share/faultbed/"

# What programs need of the C library is the newest of its versions that they name.
needs_libc() {
    for program in $programs; do
        LC_ALL=C grep -a -o 'GLIBC_2\.[0-9]*' "$root/usr/bin/$program" || true
    done | sed 's/GLIBC_//' | sort -u -t. -k2 -n | tail -n 1
}
libc=$(needs_libc)
depends=
if [ $static = no ] && [ -n "$libc" ]; then depends="libc6 (>= $libc), libgcc-s1"; fi
mkdir -p "$root/DEBIAN"
size=$(du -sk --exclude=DEBIAN "$root" | cut -f1)
sed -e "s|@VERSION@|$version|; s|@ARCH@|$arch|; s|@DEPENDS@|$depends|; s|@SIZE@|$size|" \
    deploy/debian/control.in | grep -v '^Depends: $' > "$root/DEBIAN/control"
install -m 644 deploy/debian/conffiles "$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do
    install -m 755 "deploy/debian/$script" "$root/DEBIAN/$script"
done
find "$root" -type d -exec chmod 755 {} +
find "$root/usr/share" -type f -exec chmod 644 {} +

kind=$arch
[ $static = no ] || kind=$arch-static
deb=$out/faultbed_${version}_$kind.deb
dpkg-deb --root-owner-group -Z"${PACKAGE_COMPRESS:-xz}" --build "$root" "$deb" >&2
archive=$out/faultbed_${version}_$kind.tar
# shellcheck disable=SC2086 # one word for each program
tar -C "$root/usr/bin" --owner=0 --group=0 -cf "$archive" $programs
tar -C "$root/lib/systemd/system" --owner=0 --group=0 -rf "$archive" faultbed-agent.service faultbed-coordinator.service
if [ "${PACKAGE_COMPRESS:-xz}" != none ]; then
    gzip -9nf "$archive"
    archive=$archive.gz
fi
echo "$deb"
echo "$archive"
