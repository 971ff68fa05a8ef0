#!/usr/bin/env bash
# Builds, tests, sanitizes, times and profiles on this machine's GPU, in under ten minutes (`make gpu`).
#
#   benchmarks/gpu.sh [STEP...]     every step, or those of these names, such as: build tests
#
# A step has a log, and by `timeout` a limit, at which all that it has started ends too. Time that it does not use goes to
# the next, and one that fails does not stop the others. Results go to $OUT if it is set, else to results/:
# summary.txt, the CSV files of times, what was measured of plans, and logs.tar.gz. The exit code is 0 when every step
# passed, 1 when one did not, 2 when there is no usable GPU. $PYTHON is the Python that has torch.
set -uo pipefail
readonly caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

readonly STEPS=(machine build extension tests racecheck synccheck memcheck initcheck benchmark-quick benchmark plans
  ncu-speech ncu-streaming)
# These say nothing of whether the layer is right: without its tool such a step is skipped.
readonly OPTIONAL=' machine ncu-speech ncu-streaming '
readonly PROBE='
import torch
if not torch.cuda.is_available():
    raise SystemExit(f"torch {torch.__version__} finds no GPU (built for CUDA: {torch.version.cuda})")
torch.zeros(1, device="cuda").add_(1).item()
print(torch.cuda.get_device_name(), *torch.cuda.get_device_capability(), sep="\t")'
readonly EXTENSION='
import leakypar
from leakypar import ops
print(leakypar.build_info())
if not ops.is_available("cuda"):
    raise SystemExit(ops.unavailable_reason("cuda"))
print(leakypar.plan(250, 256, 700, 512))'
# Rivals that need no compiler at every shape: the others would take the time of all.
readonly TIMED='nn.RNN,nn.Linear,leakypar fused,snntorch LeakyParallel,spikingjelly'

begin() { # results in folder $1, under the heading $2, of the steps named after them, or of all
  out=$1 chosen=" ${*:3} " number=0 failed=() running='' end=0 SECONDS=0
  logs=$(mktemp -d)
  trap 'rm -rf "$logs"' EXIT
  trap 'kill "$running" 2>/dev/null; exit 130' INT TERM
  # Unbuffered, what a command says last stands last, whichever stream it says it on.
  export PYTHONUNBUFFERED=1
  echo "$2" | tee "$out/summary.txt"
}

step() { # named $1, of $2 seconds; then NAME=VALUE of its environment, and a command. @seconds is 90% of the limit
  local name=$1 began=$SECONDS status=passed reason='' limit log code
  [[ $chosen == '  ' || $chosen == *" $name "* ]] || return 0
  ((number += 1, end += $2, limit = end > SECONDS ? end - SECONDS : 1))
  shift 2
  set -- "${@//@seconds/$((limit > 1 ? limit * 9 / 10 : 1))}"
  log=$logs/$(printf '%02d-%s.log' "$number" "$name")
  echo "\$ ${*@Q}" >"$log"
  timeout --kill-after=5 "$limit" env "$@" </dev/null >>"$log" 2>&1 &
  running=$!
  wait "$running" || code=$?
  case ${code:-0} in
    0) ;;
    124 | 137) status='timed out' reason="stopped at its limit of $limit s" ;;
    *) status=failed reason="exit code $code; last line: $(tail -n 1 "$log" | cut -c 1-200)" ;;
  esac
  if [[ ${code:-0} -eq 127 && $OPTIONAL == *" $name "* ]]; then status=skipped; fi
  if [[ $status == failed || $status == 'timed out' ]]; then failed+=("$name"); fi
  printf '%-16s %-9s %4d s  %s\n' "$name" "$status" $((SECONDS - began)) "$reason" | tee -a "$out/summary.txt"
  tar -C "$logs" -czf "$out/logs.tar.gz" .
}

finish() {
  echo "$SECONDS s in all; ${#failed[@]} of $number steps failed: ${failed[*]:-none}" | tee -a "$out/summary.txt"
  [[ ${#failed[@]} -eq 0 ]]
}

main() {
  local python found name major minor stem toolkit tool only workers=() sections=() sizes method each
  for each in "$@"; do
    [[ " ${STEPS[*]} " == *" $each "* ]] || { echo "step: got $each, expected some of ${STEPS[*]}" >&2; exit 1; }
  done
  # Absolute, for the steps that go elsewhere; a link of a virtual environment stays one.
  python=$(cd "$caller" && realpath --no-symlinks "$(command -v "${PYTHON:-python3}")") || exit 2
  found=$(timeout 120 "$python" -c "$PROBE") || { echo 'no usable GPU' >&2; exit 2; }
  IFS=$'\t' read -r name major minor <<<"$found"
  stem=$(tr '[:upper:]' '[:lower:]' <<<"$name" | sed -E 's/[^a-z0-9]+/-/g; s/^-|-$//g')
  OUT=${OUT:-$PWD/results}
  OUT=$(cd "$caller" && realpath --canonicalize-missing "$OUT") && mkdir -p "$OUT" || exit 1
  # pip puts ninja beside Python; NVIDIA's tools are in the toolkit.
  toolkit=$("$python" -c 'from toolchain import find_cuda_toolkit; print(find_cuda_toolkit().root)' 2>/dev/null)
  PATH=$PATH:$(dirname "$python"):$toolkit/bin:$toolkit/compute-sanitizer
  export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$major.$minor} LEAKYPAR_BUILD=${LEAKYPAR_BUILD:-cuda}
  "$python" -c 'import xdist' 2>/dev/null && workers=(-n "$(($(nproc) < 8 ? $(nproc) : 8))")
  begin "$OUT" "$name, compute capability $major.$minor" "$@"

  step machine 5 nvidia-smi
  step build 90 "$python" setup.py build_ext --inplace
  step extension 15 "$python" -c "$EXTENSION"
  # The rest of the suite needs no GPU, and runs where there is none.
  step tests 150 OMP_NUM_THREADS=2 "$python" -m pytest -q -p no:cacheprovider "${workers[@]}" -m cuda
  # The vendor's kernels are left out, but of the last tool, which must see every write: memory that an unwatched kernel
  # has written would count as uninitialized. It takes the longest, and comes last. Each tensor is an allocation of its
  # own, so that reading past its end is seen. torch asks the driver for what it may not have, and goes on without: no
  # error of an API call is ours.
  for tool in racecheck synccheck memcheck initcheck; do
    only=(--kernel-regex kns=leakypar)
    [[ $tool == initcheck ]] && only=()
    step "$tool" 35 PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool="$tool" --error-exitcode=1 \
      --report-api-errors=no "${only[@]}" "$python" -m pytest -q -p no:cacheprovider -m 'sanitizer and cuda' \
      tests/test_every_kernel.py
  done
  step benchmark-quick 35 LEAKYPAR_TUNING=off "$python" -m benchmarks --device cuda --implementations "$TIMED" \
    --time-limit @seconds --output "$OUT/$stem-quick.csv" --quick --case-seconds 0.5
  step benchmark 75 LEAKYPAR_TUNING=off "$python" -m benchmarks --device cuda --implementations "$TIMED" \
    --time-limit @seconds --output "$OUT/$stem.csv" --case-seconds 1
  step plans 24 LEAKYPAR_TUNING="$OUT/$stem-plans.json" "$python" -m benchmarks.tuning --random 0 --time-limit @seconds \
    --output "$OUT/$stem-tuning.csv"
  # Many channels, which the sequential scan takes, and few over a long time, which look_back splits. The GPU's clocks are
  # not ours to set.
  for each in SpeedOfLight MemoryWorkloadAnalysis LaunchStats Occupancy WarpStateStats SchedulerStats SourceCounters; do
    sections+=(--section "$each")
  done
  for each in speech:250x256x700x512:sequential streaming:16384x1x64x512:look_back; do
    IFS=: read -r each sizes method <<<"$each"
    step "ncu-$each" 28 ncu --clock-control none "${sections[@]}" --kernel-name-base demangled \
      --kernel-name regex:leakypar "$python" -m benchmarks.training_steps cuda "$sizes" "$method" project_scan
  done
  finish
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
