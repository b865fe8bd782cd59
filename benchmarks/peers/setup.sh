#!/usr/bin/env bash
# The peers' environments: bash benchmarks/peers/setup.sh FOLDER   (about 2.5 GB; PYTHON=python3.11 for another Python)
# The first pip line brings this PyTorch, so that nothing later pulls another one.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$here/.ci/work/peers}
PYTHON=${PYTHON:-python3}

make_environment() { # NAME PACKAGE...
  local name=$1
  shift
  "$PYTHON" -m venv "$folder/$name"
  "$folder/$name/bin/python" -m pip install --quiet torch==2.13.0 safetensors==0.8.0
  "$folder/$name/bin/python" -m pip install --quiet torch==2.13.0 "$@"
  # This project's model, data and batches, without its own dependencies.
  FEDSYNSAM_CUDA=0 "$folder/$name/bin/python" -m pip install --quiet --no-deps -e "$here"
}

mkdir -p "$folder"
make_environment flower 'flwr[simulation]==1.41.0' numpy==2.4.6
make_environment pfl pfl==0.6.0 numpy==2.4.6
