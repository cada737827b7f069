#!/usr/bin/env bash
# What a CPU cannot carry, on one CUDA GPU for a limited time: bash results/gpu.sh [MINUTES], 13 by default.
#
# First the GPU tests, then the times of results/gpu_speed, then the trainings of results/gpu, JOBS (6) side by side. Run it again
# to go on: a stopped training resumes from its checkpoint, and what has a record is not trained again. The data are read from
# $CORSD_DATA, and `corsd` must be on the PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

minutes=${1:-13}
[[ $minutes =~ ^[1-9][0-9]{0,3}$ ]] || { echo "MINUTES is '$minutes'; allowed: a whole number from 1 to 9999" >&2; exit 2; }
end=$((SECONDS + 60 * minutes - 20)) # 20 s for the last checkpoints
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "PyTorch finds no CUDA GPU" >&2; exit 2; }
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# Until the end of the time: SIGTERM makes a training write a checkpoint and stop. 124: the time was over.
limited() {
  local left=$((end - SECONDS)) status=0
  ((left > 0)) || { echo "the time is over before: $*"; exit 0; }
  timeout --signal=TERM --kill-after=15 "$left" "$@" || status=$?
  ((status == 124)) && { echo "the time is over; run again to go on"; exit 0; }
  return "$status"
}

[ -f build/gpu_tests_passed ] || {
  limited python -m pytest -q tests/test_cuda.py
  mkdir -p build && touch build/gpu_tests_passed
}
limited corsd compare results/gpu_speed --jobs 1
limited corsd compare results/gpu --jobs "${JOBS:-6}"
