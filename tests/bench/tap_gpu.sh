#!/usr/bin/env bash
# tests/bench/tap_gpu.py on a bare GPU machine: CPython 3.12, torch 2.11+cu130, no network.
# vLLM 0.26.0 comes as a bundle in two halves, for one call carries half of it: a tar of what a
# site-packages folder needs beside torch and transformers, packed by zstd --long=27 and cut by split.
#   tap_gpu.sh first   keeps build/gpu/a (half of the bundle, zstd, make_model.py) for the next call
#   tap_gpu.sh run     unpacks both halves (build/gpu/b, build/gpu/tap are there) and measures; the
#                      measurement goes on when this call ends, which it does after WAIT_S at the latest
#   tap_gpu.sh rest    waits for the end of it
# run and rest copy log and results to $OUT. build/gpu/tap is made by: pip install --no-deps
# --no-compile --target build/gpu/tap .   Further arguments of run go to tap_gpu.py.
set -euo pipefail
work=${WORK:-/tmp/opsctl-gpu}; wait_s=${WAIT_S:-540}; out=${OUT:-$work/out}
mkdir -p "$work" "$out"

follow() { # until the measurement is over, or the time is
  local until=$((SECONDS + wait_s))
  while [ ! -e "$work/ended" ] && [ $SECONDS -lt $until ]; do sleep 2; done
  cat "$work/log"; cp "$work/log" "$out/"; cp -r "$work/results/." "$out/" 2>/dev/null || true
  if [ -e "$work/ended" ]; then echo "ended with $(cat "$work/ended")"; else echo "not yet: call tap_gpu.sh rest"; fi
}

case ${1:?first, run or rest} in
first)
  cp -r build/gpu/a "$work/"; ls -l "$work/a"; nproc; nvidia-smi || true ;;
run)
  shift
  site=$work/site; mkdir -p "$site"
  cat "$work/a/part.00" build/gpu/b/part.01 |
    LD_LIBRARY_PATH=$work/a "$work/a/zstd" -d --long=27 -c | tar xf - -C "$site"
  PYTHONPATH=$site python3 "$work/a/make_model.py" "$work/model"
  # a copy: the tree may be sent anew while the measurement goes on
  rm -rf "$work/tree" "$work/ended"; mkdir -p "$work/tree/build"
  cp -r tests "$work/tree/"; cp -r build/gpu/tap "$work/tap"; cd "$work/tree"
  export PYTHONPATH=$site:$work/tap:$work/tree/tests PYTHONUNBUFFERED=1 TRANSFORMERS_OFFLINE=1
  export VLLM_USE_FLASHINFER_SAMPLER=0 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=2
  ulimit -n 20000 || true
  setsid bash -c 'python3 tests/bench/tap_gpu.py "$@" >"$0/log" 2>&1; echo $? >"$0/ended"' "$work" \
    --site "$site" --tap "$work/tap" --model "$work/model" --out "$work/results" \
    --flags "--max-model-len 2048 --max-num-batched-tokens 4096 --kv-cache-memory-bytes $((8 << 30)) \
      --gpu-memory-utilization 0.05 --attention-backend FLASH_ATTN --seed 0 --compilation-config \
      '{\"mode\":0,\"cudagraph_mode\":\"FULL_DECODE_ONLY\",\"cudagraph_capture_sizes\":[1,8,32,64,128,192,224,240,256]}'" \
    "$@" </dev/null &
  follow ;;
rest) follow ;;
esac
