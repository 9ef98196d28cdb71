#!/bin/sh
# Puts the stock ComfyUI page into target/web-root/static, for the browser tests and for
# `comfygate sim --web-root target/web-root/static`. Does nothing when it is there already.
set -eu
cd "$(dirname "$0")/.."

version=1.35.9 # what ComfyUI 0.8.0 asks for
hash=115a6325b3ab39528d7d342e03d56bb3dd32d6cba24019106303cbfd541b557b
root=target/web-root

if [ "$(cat "$root/version" 2>/dev/null)" = "$version" ] && [ -f "$root/static/index.html" ]; then
    exit 0
fi
if ! python3 -m pip --version >/dev/null 2>&1; then
    echo "pip is missing: apt-get install -y python3-pip" >&2
    exit 1
fi

mkdir -p target
work=$(mktemp -d target/web-root.XXXXXX)
trap 'rm -rf "$work"' EXIT
echo "comfyui-frontend-package==$version --hash=sha256:$hash" >"$work/requirements.txt"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
    --only-binary :all: --dest "$work" --requirement "$work/requirements.txt"
python3 -m zipfile -e "$work"/comfyui_frontend_package-*.whl "$work/wheel"
rm -rf "$root"
mkdir "$root"
mv "$work/wheel/comfyui_frontend_package/static" "$root/static"
echo "$version" >"$root/version"
