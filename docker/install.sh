#!/bin/sh
# A checkout -> Chiron in a new virtual environment, tried out. All that the image holds is made here, with docker or without:
#
#   docker/install.sh FOLDER                       every package as docker/lock.txt has it, by its hash
#   TORCH_INDEX=URL docker/install.sh FOLDER       torch from that index instead, without CUDA and by its version
#   BORROW=PYTHON docker/install.sh FOLDER         no package but Chiron, the others are those of that interpreter; and no demo
set -eu

main() {
    checkout=$(cd "$(dirname "$0")/.." && pwd)
    venv=$1
    scratch=$(mktemp -d)
    trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT
    "${PYTHON:-python3}" -m venv ${BORROW:+--without-pip} "$venv"
    venv=$(cd "$venv" && pwd)
    packages
    chiron
    try_out
}

packages() {
    if [ -n "${BORROW:-}" ]; then
        "$BORROW" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$(site_packages)/borrowed.pth"
    elif [ -n "${TORCH_INDEX:-}" ]; then
        grep -vE '^(torch|triton|nvidia-.*|cuda-.*)==' "$checkout/docker/lock.txt" >"$scratch/lock.txt"
        install --require-hashes -r "$scratch/lock.txt"
        install --index-url "$TORCH_INDEX" "$(sed -n 's/^\(torch==[^ ]*\) .*/\1/p' "$checkout/docker/lock.txt")"
    else
        install --require-hashes -r "$checkout/docker/lock.txt"
    fi
}

chiron() {
    mkdir "$scratch/source"
    for part in pyproject.toml README.md LICENSE pipeline flows models; do
        cp -R "$checkout/$part" "$scratch/source/"
    done
    "$venv/bin/python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$scratch" "$scratch/source"
    install --ignore-installed "$scratch"/chiron_qsm-*.whl
    "$venv/bin/python" -m pip check
}

install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: "$@"
}

site_packages() {
    "$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
}

# With the image's own environment, but for its /tmp, and a HOME that cannot be written.
try_out() {
    mkdir -m 555 "$scratch/home"
    mkdir "$scratch/tmp" "$scratch/output"
    inside=$(sed -n "s|^ENV \(.*\)|\1|p" "$checkout/docker/Dockerfile" | sed "s|=/tmp|=$scratch/tmp|; /^PATH=/d")
    cd "$scratch/output"
    touch "$scratch/start"
    within chiron --version
    within chiron doctor --device cpu "$scratch/output"
    within python -c "import pipeline; assert pipeline.__file__.startswith('$venv'), 'not this very installation'"
    if [ -z "${BORROW:-}" ]; then
        within chiron doctor --deep --device cpu "$scratch/output"
        within chiron demo "$scratch/output" --device cpu --method rts --voxel-size 6 --set dip.seconds=1
    fi
    written=$(find "$venv" "$scratch/home" -newer "$scratch/start")
    [ -z "$written" ] || { echo "written where nothing may be: $written" >&2; exit 1; }
}

within() {
    env -i $inside HOME="$scratch/home" TMPDIR="$scratch/tmp" PATH="$venv/bin:/usr/bin:/bin" "$@"
}

main "$@"
