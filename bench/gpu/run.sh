#!/usr/bin/env bash
# On a machine with a GPU and no package registry, in the repository's root:
#   SITE=FOLDER bash bench/gpu/run.sh SECONDS [OPTION ...] STAGE ...
# SITE holds vLLM, Ray, DeepSpeed and what they import, unpacked, or as FOLDER/site.tar.xz, which is unpacked once to
# /tmp/site. Without SITE the installed packages are used. Figures go to $OUT (default /tmp/out).
set -u
began=$(date +%s)
export OUT=${OUT:-/tmp/out}
mkdir -p "$OUT"
seconds=$1
shift
site=${SITE:-}
if [ -n "$site" ] && [ -e "$site/site.tar.xz" ] || [ -e /tmp/site/.ready ]; then
    archive=$site/site.tar.xz site=/tmp/site
    if [ ! -e $site/.ready ]; then
        mkdir -p $site
        { command -v xz >/dev/null && xz -dc "$archive" || python3 -c "import lzma, shutil, sys
shutil.copyfileobj(lzma.open('$archive'), sys.stdout.buffer, 1 << 24)"; } | tar x --strip-components=1 -C $site || exit 3
        # Ray gives its agents 15 s to come up: uncompiled Python can miss that.
        timeout 60 python3 -m compileall -q -j 16 $site >/dev/null 2>&1
        touch $site/.ready
    fi
    echo "unpacked after $(($(date +%s) - began)) s: $(du -sm $site | cut -f1) MiB"
fi
export PYTHONPATH=${site:+$site:}$PWD PYTHONUNBUFFERED=1
# FlashInfer is not among the packages. Compiled kernels are kept between two calls.
export VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_CACHE_ROOT=/tmp/vllm_cache
export RAY_agent_register_timeout_ms=90000 RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
export TORCHINDUCTOR_CACHE_DIR=/tmp/inductor TRITON_CACHE_DIR=/tmp/triton
# Nothing large is written, but a run refuses to start where a checkpoint would not fit. The models stay for a second call.
room() { df --output=avail "$1" | tail -n 1; }
work=/tmp
[ "$(room /dev/shm)" -gt "$(room /tmp)" ] && work=/dev/shm
exec "${PYTHON:-python3}" -m bench.gpu --seconds $((seconds - $(date +%s) + began)) --work $work/bench_gpu_work "$@"
