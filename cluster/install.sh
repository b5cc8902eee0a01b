#!/usr/bin/env bash
# Installs mtil from this script's checkout, with the versions of constraints.txt:
#
#   cluster/install.sh VENV
#
# into a virtual environment. Creates a missing environment, and leaves an up-to-date one alone. Runs on
# all machines of a cluster and in the image. PYTHON names an interpreter (3.11 or newer). pip's own
# settings apply, such as PIP_EXTRA_INDEX_URL with the address of PyTorch's CPU builds.
set -euo pipefail

venv=${1:?usage: cluster/install.sh VENV}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

sources=$(find mtil tune -name '*.py' | LC_ALL=C sort)
# shellcheck disable=SC2086
state=$(cat pyproject.toml constraints.txt $sources <(echo "${PIP_EXTRA_INDEX_URL:-}") | sha256sum)
if [ "$(cat "$venv/installed" 2>/dev/null)" = "$state" ]; then
    echo "mtil is installed in $venv"
    exit 0
fi

fits() { "$1" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
for python in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if fits "$python"; then break; fi
    python=
done
if [ -z "$python" ]; then
    echo "Python must be 3.11 or newer and have venv; install python3-venv, or set PYTHON." >&2
    exit 2
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
rm -f "$venv/installed"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile \
    --constraint constraints.txt \
    --upgrade --upgrade-strategy only-if-needed '.[ray,tune,cluster,gcs,encoders]'
if [ -z "${PIP_NO_COMPILE:-}" ]; then
    # pip compiles on a single core; this uses all. Files that are not Python, as in torch's tests, may fail.
    "$venv/bin/python" -m compileall -qq -j 0 -x /tests/ "$venv/lib" || true
fi
# Show broken installations here, not at the start of a training.
"$venv/bin/python" -I -c \
    'import mtil.distributed.training.worker, tune.search, ray.dashboard.dashboard, boto3, torch._dynamo'
echo "$state" > "$venv/installed"
echo "mtil is installed in $venv"
