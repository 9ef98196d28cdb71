#!/bin/sh
# Installs what building and testing need and this machine lacks (Debian and Ubuntu, as root or by
# sudo without a password), or names the command that does.
#
#   tools/check-tools.sh             what `make run` and `make test` need
#   tools/check-tools.sh --browser   also what some tests use: Chromium, promtool, slowhttptest, aiohttp
set -eu

missing=""
lacks() { missing="$missing $*"; }
has() { command -v "$1" >/dev/null 2>&1; }

PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
export PATH

# A linker and libc's headers, not just a compiler: Rust needs the one, C code the others.
compiles() {
    has cc && printf '#include <stdio.h>\nint main(void) { return 0; }\n' |
        cc -x c -o /dev/null - >/dev/null 2>&1
}
compiles || lacks gcc libc6-dev
has make || lacks make
has cmake || lacks cmake # builds zlib-ng, which Pingora compresses with
[ -e /etc/ssl/certs/ca-certificates.crt ] || [ ! -e /etc/debian_version ] || lacks ca-certificates
if [ "${1:-}" = --browser ]; then
    has chromium || lacks chromium
    has chromedriver || lacks chromium-driver
    has promtool || lacks prometheus # checks the metrics page and the alert rules
    has slowhttptest || lacks slowhttptest # attacks the gateway
    python3 -c 'import aiohttp' 2>/dev/null || /usr/bin/python3 -c 'import aiohttp' 2>/dev/null ||
        lacks python3-aiohttp # ComfyUI's own HTTP stack, as a backend
    python3 -m pip --version >/dev/null 2>&1 || lacks python3 python3-pip # fetches the stock page
fi

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

install_missing() {
    has apt-get || return 1
    [ "$(id -u)" = 0 ] || { has sudo && sudo -n true 2>/dev/null; } || return 1
    echo "installing:$missing"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

if [ -n "$missing" ] && ! install_missing; then
    echo "missing:$missing; install with: sudo apt-get update && sudo apt-get install -y$missing" >&2
    exit 1
fi

if ! has cargo; then
    echo "missing: cargo; install with: curl -sSf https://sh.rustup.rs | sh -s -- -y" >&2
    exit 1
fi
oldest=$(sed -n 's/^rust-version = "1\.\([0-9]*\).*/\1/p' "$(dirname "$0")/../Cargo.toml")
found=$(cargo --version | sed -n 's/^cargo 1\.\([0-9]*\).*/\1/p')
if [ -n "$found" ] && [ "$found" -lt "$oldest" ]; then
    echo "cargo 1.$found is too old, 1.$oldest is needed; update with: rustup update stable" >&2
    exit 1
fi
for component in rustfmt clippy; do
    name=$component
    [ "$component" = clippy ] && name=cargo-clippy
    if ! has "$name" || ! "$name" --version >/dev/null 2>&1; then
        if ! has rustup || ! rustup component add "$component"; then
            echo "missing: $component; install with: rustup component add $component" >&2
            exit 1
        fi
    fi
done
