#!/usr/bin/env bash
# On a machine with a GPU and no package registry, in the repository's root:
#   SITE=FOLDER bash bench/gpu/run.sh SECONDS [OPTION ...] STAGE ...
# SITE holds vLLM, Ray, DeepSpeed and what they import: unpacked, or as FOLDER/site.tar.xz, which is unpacked once to
# UNPACKED and found there by later calls. Without either the installed packages are used. Figures go to OUT.
set -u
began=$(date +%s)
export OUT=${OUT:-/tmp/out}
mkdir -p "$OUT"
seconds=$1
shift
site=${SITE:-} unpacked=${UNPACKED:-/tmp/site} python=${PYTHON:-python3}
if [ -e "$site/site.tar.xz" ] && [ ! -e "$unpacked/.ready" ]; then
    mkdir -p "$unpacked"
    { command -v xz >/dev/null && xz -dc "$site/site.tar.xz" || "$python" -c "import lzma, shutil, sys
shutil.copyfileobj(lzma.open('$site/site.tar.xz'), sys.stdout.buffer, 1 << 24)"; } |
        tar x --strip-components=1 -C "$unpacked" || exit 3
    # Ray gives its agents 15 s to come up: uncompiled Python can miss that.
    timeout 60 "$python" -m compileall -q -j 16 "$unpacked" >/dev/null 2>&1
    touch "$unpacked/.ready"
    echo "unpacked after $(($(date +%s) - began)) s: $(du -sm "$unpacked" | cut -f1) MiB"
fi
[ -e "$unpacked/.ready" ] && site=$unpacked
export PYTHONPATH=${site:+$site:}$PWD PYTHONUNBUFFERED=1
# FlashInfer is not among the packages. Compiled kernels are kept between two calls.
export VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_CACHE_ROOT=/tmp/vllm_cache
export RAY_agent_register_timeout_ms=90000 RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
export TORCHINDUCTOR_CACHE_DIR=/tmp/inductor TRITON_CACHE_DIR=/tmp/triton
# Nothing large is written, but a run refuses to start where a checkpoint would not fit. The models stay for a second call.
room() { df --output=avail "$1" | tail -n 1; }
work=/tmp
[ "$(room /dev/shm)" -gt "$(room /tmp)" ] && work=/dev/shm
exec "$python" -m bench.gpu --seconds $((seconds - $(date +%s) + began)) --work "$work/bench_gpu_work" "$@"
