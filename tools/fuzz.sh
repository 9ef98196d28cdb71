#!/usr/bin/env bash
# Runs fuzz targets and keeps what they find worth keeping; docs/fuzzing.md.
#
#   tools/fuzz.sh [--time SECONDS] [--keep] [TARGET …]    all targets, a minute each, by default
#
# --keep writes the minimised corpora back to tests/corpus/fuzz, where `cargo test` runs them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

seconds=60
keep=
targets=()
while (($#)); do
    case $1 in
        --time) seconds=${2:?a number of seconds} && shift ;;
        --keep) keep=1 ;;
        -*) echo "unknown: $1; use --time SECONDS, --keep or names of targets" >&2 && exit 2 ;;
        *) targets+=("$1") ;;
    esac
    shift
done
if ((!${#targets[@]})); then
    for file in fuzz/fuzz_targets/*.rs; do
        targets+=("$(basename "$file" .rs)")
    done
fi

cargo fuzz --version >/dev/null 2>&1 || {
    echo "missing: cargo-fuzz; install with: cargo install --locked cargo-fuzz" >&2
    exit 1
}
cargo +nightly --version >/dev/null 2>&1 || {
    echo "missing: a nightly compiler; install with: rustup toolchain install nightly --profile minimal" >&2
    exit 1
}

# Bytes of a corpus that is kept, in base64; the smallest inputs first.
most=100000

dictionary() {
    case $1 in
        config) echo config ;;
        chunks | cookie | form | forwarded | handshake | head | paths | proxy | routes | tab) echo http ;;
        *) echo json ;;
    esac
}

unpack() { # target, folder
    local number=0
    mkdir -p "$2"
    while read -r line; do
        base64 -d <<<"$line" >"$2/kept-$((number += 1))"
    done <"tests/corpus/fuzz/$1.txt"
}

pack() { # target, folder
    find "$2" -type f -printf '%s\t%p\n' | sort -n | cut -f2 | while read -r file; do
        base64 -w0 "$file" && echo
    done | LC_ALL=C awk -v most="$most" '{ size += length($0) + 1 } size <= most' |
        LC_ALL=C sort -u >"tests/corpus/fuzz/$1.txt.new"
    mv "tests/corpus/fuzz/$1.txt.new" "tests/corpus/fuzz/$1.txt"
}

# The versions that the gateway is built with; what only the targets need is added.
cp Cargo.lock fuzz/Cargo.lock
# The crate forbids `unsafe`: without the address sanitizer it runs twice as many inputs.
for target in "${targets[@]}"; do
    corpus=fuzz/corpus/$target
    unpack "$target" "$corpus"
    echo "=== $target, $seconds s"
    cargo +nightly fuzz run --sanitizer none "$target" "$corpus" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=16384 \
        -dict="fuzz/dictionaries/$(dictionary "$target").dict" -print_final_stats=1
    if [[ $keep ]]; then
        cargo +nightly fuzz cmin --sanitizer none "$target" "$corpus"
        pack "$target" "$corpus"
    fi
done
