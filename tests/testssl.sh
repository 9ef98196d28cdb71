#!/bin/sh
# Has testssl.sh (Debian: apt-get install testssl.sh) look at a gateway's https, and fails on any
# finding above LOW. The test certificate's own chain is left out: nobody knows its authority.
# Usage: tests/testssl.sh [path of the comfygate binary]
set -eu
cd "$(dirname "$0")/.."

binary=${1:-target/debug/comfygate}
testssl=$(command -v testssl || command -v testssl.sh) || {
    echo "testssl.sh is missing: apt-get install -y testssl.sh" >&2
    exit 1
}
work=$(mktemp -d)
gateway=
sim=
trap 'kill $gateway $sim 2>/dev/null || true; rm -rf "$work"' EXIT

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -sha256 \
    -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 \
    -addext basicConstraints=critical,CA:FALSE -addext extendedKeyUsage=serverAuth \
    -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null

# Waits until a log has a line, and prints what follows these words up to a comma or the end.
told() {
    for _ in $(seq 600); do
        word=$(sed -n "s/.*$2\([^, ]*\).*/\1/p" "$1" | head -n 1)
        [ -n "$word" ] && echo "$word" && return
        sleep 0.1
    done
    echo "$1 never said \"$2\":" >&2
    cat "$1" >&2
    exit 1
}

"$binary" sim -p 0 >"$work/sim.log" 2>&1 &
sim=$!
backend=$(told "$work/sim.log" 'http:\/\/')
cat >"$work/gate.yaml" <<YAML
server: {host: 127.0.0.1, port: 0, tls: {cert: cert.pem, key: key.pem, hsts: 365d}}
admin: {listen: "127.0.0.1:0"}
state_dir: $work/state
backends: ["http://$backend"]
YAML
"$binary" -c "$work/gate.yaml" >"$work/gate.log" 2>&1 &
gateway=$!
address=$(told "$work/gate.log" 'listening on ')

# What the certificate's chain, its revocation and its authority are about.
chain='cert_chain_of_trust|cert_trust|cert_revocation|cert_crlDistributionPoints|cert_ocspURL|DNS_CAArecord|cert_caIssuers|certificate_transparency|overall_grade|grade_cap_reason|OCSP_stapling|cert_validityPeriod|cert_extlifeSpan|cert_notAfter|cert_expirationStatus'
"$testssl" --quiet --color 0 --warnings off --ip one --jsonfile "$work/found.json" \
    "https://$address/" >"$work/testssl.log" 2>&1 || true
[ -s "$work/found.json" ] || { cat "$work/testssl.log" >&2; exit 1; }

python3 - "$work/found.json" "$chain" <<'PYTHON'
import collections, json, re, sys

found = json.load(open(sys.argv[1]))
count = collections.Counter(one["severity"] for one in found)
print("testssl.sh:", ", ".join(f"{n} {severity}" for severity, n in sorted(count.items())))
chain = re.compile(sys.argv[2])
bad = []
for one in found:
    if one["severity"] in ("LOW", "MEDIUM", "HIGH", "CRITICAL", "WARN"):
        told = f"{one['severity']:8} {one['id']}: {one['finding']}"
        mine = not chain.search(one["id"])
        print(told, "" if mine else "(the test certificate's chain)")
        if mine and one["severity"] not in ("LOW", "WARN"):
            bad.append(told)
if len(found) < 100:
    sys.exit(f"testssl.sh looked at {len(found)} things only")
sys.exit(1 if bad else 0)
PYTHON
