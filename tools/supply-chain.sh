#!/usr/bin/env bash
# What the program is made of.
#
#   tools/supply-chain.sh deny    licences, sources and advisories by deny.toml; what cannot be had is skipped, and said
#   tools/supply-chain.sh sbom    target/sbom/comfygate.cdx.json: every crate in the program, CycloneDX
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

deny() {
    if ! cargo deny --version >/dev/null 2>&1; then
        echo "skipped: licences, sources and advisories are not checked, cargo-deny is missing;" \
            "install with: cargo install --locked cargo-deny" >&2
        return
    fi
    # Licences come with the crates; the list of advisories is fetched.
    cargo deny --locked check bans licenses sources
    if cargo deny --locked fetch db >/dev/null 2>&1; then
        cargo deny --locked check --disable-fetch advisories
    else
        echo "skipped: advisories are not checked, their list cannot be fetched from here" >&2
    fi
}

sbom() {
    cargo cyclonedx --version >/dev/null 2>&1 || {
        echo "missing: cargo-cyclonedx; install with: cargo install --locked cargo-cyclonedx" >&2
        exit 1
    }
    mkdir -p target/sbom
    # It writes beside Cargo.toml.
    cargo cyclonedx --format json --spec-version 1.5 --override-filename comfygate.cdx
    mv comfygate.cdx.json target/sbom/
    echo "target/sbom/comfygate.cdx.json"
}

case ${1:-} in
    deny) deny ;;
    sbom) sbom ;;
    *) echo "use: $0 deny|sbom" >&2 && exit 2 ;;
esac
