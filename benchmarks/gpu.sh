#!/usr/bin/env bash
# Everything that needs a GPU, on a machine with a CUDA toolkit and PyTorch, without a network:
#
#   benchmarks/gpu.sh [--dry-run] [build] [tests] [sanitize] [bench] [plot] [ncu] [rounds]     (nothing named: all of them)
#
# Each part has a time limit, goes on when another failed, and logs to $OUT/gpu.log; together they take less than ten
# minutes. What comes out, in $OUT (default benchmarks/results/gpu): gpu.log, gpu.csv, gpu_*.png, ncu.csv, engines.csv.
# Exit code: 0 all well, 1 a part failed or ran out of time, 2 wrong usage, 3 nothing failed but a tool is missing.
# --dry-run prints the commands and their limits, and runs nothing. From the environment: PYTHON, OUT, N (elements of
# the long row), SIZES (of the benchmark), EACH (seconds, instead of every part's own limit).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results/gpu}
N=${N:-1e8}
SIZES=${SIZES:-1x$N,64x1e6}
PARTS=(build tests sanitize bench plot ncu rounds)
declare -A LIMIT=([build]=80 [tests]=110 [sanitize]=75 [bench]=110 [plot]=15 [ncu]=45 [rounds]=140) # seconds: 575 in all
if [[ -n ${EACH:-} ]]; then for part in "${PARTS[@]}"; do LIMIT[$part]=$EACH; done; fi

dry_run=no
chosen=()
for argument in "$@"; do
  case $argument in
    --dry-run) dry_run=yes ;;
    -h | --help)
      sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *)
      if [[ -z ${LIMIT[$argument]+known} ]]; then
        printf 'gpu.sh: no part is called %q; parts: %s\n' "$argument" "${PARTS[*]}" >&2
        exit 2
      fi
      chosen+=("$argument")
      ;;
  esac
done
((${#chosen[@]} > 0)) || chosen=("${PARTS[@]}")

export PYTHONUNBUFFERED=1 MPLBACKEND=Agg
part= deadline=0 # of the part that runs now, by bash's clock

# run COMMAND...: within what is left of the part's time; its output goes to the screen and into the log.
run() {
  if [[ $dry_run == yes ]]; then
    printf '%s (%s s):' "$part" "${LIMIT[$part]}" && printf ' %q' "$@" && printf '\n'
    return 0
  fi
  local left=$((deadline - SECONDS))
  if ((left < 1)); then
    printf 'no time is left for: %s\n' "$*" | tee -a "$OUT/gpu.log"
    return 124
  fi
  printf '\n$ %s\n' "$*" | tee -a "$OUT/gpu.log"
  timeout --kill-after=5 "$left" "$@" </dev/null 2>&1 | tee -a "$OUT/gpu.log"
  return "${PIPESTATUS[0]}"
}

# need WHAT TEST...: say what is missing; a part without its tools ends with 77. A dry run needs nothing.
need() {
  local what=$1
  shift
  if [[ $dry_run == yes ]] || "$@" >/dev/null 2>&1; then return 0; fi
  printf '%s: MISSING: %s\n' "$part" "$what" | tee -a "$OUT/gpu.log"
  return 1
}

has_module() { "$PYTHON" -c "import $1"; }
has_gpu() { "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }
has_cuda_kernels() { "$PYTHON" -c 'import sys; from fedsynsam.ops import backend; sys.exit(backend.why_not("cuda") is not None)'; }

# The architecture of the GPU here, such as 90: compiling for one takes a quarter of the time of all four.
architecture() {
  [[ $dry_run == no ]] || return 0
  nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. '
}

build() {
  need "PyTorch" has_module torch || return 77
  need "pybind11" has_module pybind11 || return 77
  need "setuptools" has_module setuptools || return 77
  local settings=(FEDSYNSAM_CUDA=1 FEDSYNSAM_REQUIRE_EXTENSION=1 "FEDSYNSAM_CUDA_ARCHS=${FEDSYNSAM_CUDA_ARCHS:-$(architecture)}")
  local install=(-m pip install --no-index --no-build-isolation --no-deps --disable-pip-version-check -e .)
  if [[ $dry_run == yes ]] || "$PYTHON" -m pip --version >/dev/null 2>&1; then
    run env "${settings[@]}" "$PYTHON" "${install[@]}" || return
  else # without pip: in place, and `kernels` linked to where an installation would put it
    run env "${settings[@]}" "$PYTHON" setup.py build_ext --inplace || return
    run ln -sfn ../kernels fedsynsam/kernels || return
  fi
  run "$PYTHON" -c 'from fedsynsam.ops import backend; print(backend.build_record()); assert backend.extension.cuda_built'
}

tests() {
  need "pytest" has_module pytest || return 77
  need "hypothesis" has_module hypothesis || return 77
  need "a CUDA device that PyTorch sees" has_gpu || return 77
  # Only files with such tests: others may import what is not installed here.
  local files
  mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests | sort)
  # Most of the time Triton compiles, one kernel at a time in each process; what it has no part in comes first.
  local status=0 options=(-p no:cacheprovider -m gpu -rs --durations=8)
  if has_module xdist >/dev/null 2>&1; then options+=(-n 8); fi
  run env OMP_NUM_THREADS=2 "$PYTHON" -m pytest "${options[@]}" -k 'not triton' "${files[@]}" || status=$?
  run env OMP_NUM_THREADS=2 "$PYTHON" -m pytest "${options[@]}" -k triton "${files[@]}" || status=$?
  return "$status"
}

# The three tools at once: each spends most of its time starting up.
sanitize() {
  need "compute-sanitizer" command -v compute-sanitizer || return 77
  need "a CUDA device, and the extension built with CUDA" has_cuda_kernels || return 77
  local tool status=0 results=()
  for tool in memcheck racecheck synccheck; do
    run env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 \
      "$PYTHON" -m benchmarks.sanitize --backend cuda &
    results+=("$!")
    [[ $dry_run == no ]] || wait "$!"
  done
  for tool in "${results[@]}"; do wait "$tool" || status=$?; done
  return "$status"
}

bench() {
  need "a CUDA device that PyTorch sees" has_gpu || return 77
  run "$PYTHON" -m benchmarks --device cuda --backend cuda,triton --sizes "$SIZES" --seconds 0.05 --out "$OUT/gpu.csv"
}

plot() {
  need "matplotlib" has_module matplotlib || return 77
  need "$OUT/gpu.csv, which the part 'bench' writes" test -f "$OUT/gpu.csv" || return 77
  run "$PYTHON" -m benchmarks.plot "$OUT/gpu.csv" --out "$OUT"
}

ncu() {
  need "ncu (Nsight Compute)" type -P ncu || return 77
  need "a CUDA device that PyTorch sees" has_gpu || return 77
  run "$PYTHON" -m benchmarks.profiling --backend cuda,triton --n "$N" --seconds 30 --out "$OUT/ncu.csv"
}

# Rounds of the simulator, at two sizes of model; the second call keeps the rows of the first.
rounds() {
  need "a CUDA device that PyTorch sees" has_gpu || return 77
  run "$PYTHON" -m benchmarks.engines --device cuda --models cnn --timed 3 --out "$OUT/engines.csv" || return
  run "$PYTHON" -m benchmarks.engines --device cuda --models resnet18 --local-steps 2 --timed 1 --out "$OUT/engines.csv"
}

if [[ $dry_run == no ]]; then
  mkdir -p "$OUT" || exit 2
  { printf '\n=== '; date -u; uname -srm; "$PYTHON" --version; nvidia-smi -L; nvcc --version | tail -n 2; } 2>&1 | tee -a "$OUT/gpu.log"
fi

summary=() failed=no missing=no
for part in "${PARTS[@]}"; do
  [[ " ${chosen[*]} " == *" $part "* ]] || continue
  begun=$SECONDS deadline=$((SECONDS + LIMIT[$part]))
  "$part"
  status=$?
  case $status in
    0) verdict=ok ;;
    77) verdict="missing a tool (see above)" missing=yes ;;
    124 | 137) verdict="out of time (${LIMIT[$part]} s)" failed=yes ;;
    *) verdict="failed (exit code $status)" failed=yes ;;
  esac
  summary+=("$(printf '%-9s %4d s  %s' "$part" $((SECONDS - begun)) "$verdict")")
done

[[ $dry_run == no ]] || exit 0
{
  printf '\n=== summary\n'
  printf '%s\n' "${summary[@]}"
} | tee -a "$OUT/gpu.log"
if [[ $failed == yes ]]; then exit 1; fi
if [[ $missing == yes ]]; then exit 3; fi
