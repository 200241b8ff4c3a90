#!/usr/bin/env bash
# Makes bench/.venv-peers and bench/.venv-dictionaries: the peers that the benchmarks compare with, and this package, in
# one environment each, so that both run in one process on the same torch. Does nothing where they are up to date.
# There are two because SAELens pins another TransformerLens than the newest.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

environment() {
  local venv=$here/$1
  shift
  local stamp=$venv/up-to-date
  if [[ -e $stamp && $stamp -nt $here/setup.sh && $stamp -nt $here/../pyproject.toml ]]; then
    return
  fi
  [[ -x $venv/bin/python ]] || "${PYTHON:-python3.11}" -m venv "$venv"
  # torch first: pip then keeps this build instead of the one that a peer's loose pin would bring.
  "$venv/bin/pip" install --quiet torch==2.13.0
  # One resolution for all: pip refuses here, and not in the middle of a benchmark, when their pins stop agreeing.
  "$venv/bin/pip" install --quiet "$@" --editable "$here/.."
  "$venv/bin/pip" check
  touch "$stamp"
}

environment .venv-peers transformer-lens==4.3.0
environment .venv-dictionaries sae-lens==6.54.12 eai-sparsify==1.3.3
# Without what they depend on: they pin libraries for capturing that are not used here and do not fit this torch.
"$here/.venv-dictionaries/bin/pip" install --quiet --no-deps dictionary-learning==0.1.0 circuit-tracer==0.5.0
