#!/usr/bin/env bash
# Makes bench/.venv-peers: the peers that the benchmarks compare with, and this package, in one environment,
# so that both run in one process on the same torch. Does nothing where the environment is up to date.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=$here/.venv-peers
stamp=$venv/up-to-date

if [[ -e $stamp && $stamp -nt $here/setup.sh && $stamp -nt $here/../pyproject.toml ]]; then
  exit 0
fi
[[ -x $venv/bin/python ]] || "${PYTHON:-python3.11}" -m venv "$venv"
# torch first: pip then keeps this build instead of the one that a peer's loose pin would bring.
"$venv/bin/pip" install --quiet torch==2.13.0
# One resolution for both: pip refuses here, and not in the middle of a benchmark, when their pins stop agreeing.
"$venv/bin/pip" install --quiet transformer-lens==4.3.0 --editable "$here/.."
"$venv/bin/pip" check
touch "$stamp"
