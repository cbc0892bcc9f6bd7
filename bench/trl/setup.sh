#!/usr/bin/env bash
# Makes .venv-trl with TRL for `python -m bench.trl`. A second call installs nothing.
# TRL has a separate environment because it would change versions of packages that the pipeline pins.
# PyTorch's CPU build comes from a folder of wheels in pip's settings (PIP_FIND_LINKS), else from TORCH_CPU_INDEX.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/../.."

UV=.venv/bin/uv
LOCK=requirements/bench-trl.lock
STAMP=.venv-trl/bench_trl.stamp
TORCH_CPU_INDEX=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

if [[ ! -x $UV ]]; then
    echo "bench/trl/setup.sh: .venv does not exist: run make setup first" >&2
    exit 1
fi
stamp="$PWD $(cat "$LOCK" bench/trl/setup.sh | sha256sum | cut -d' ' -f1)"
if [[ -f $STAMP && "$(<"$STAMP")" == "$stamp" ]]; then exit 0; fi

# As in launch/setup.sh: a folder in pip's settings that has the wheel, else PyTorch's index.
version=$(sed -n 's/^torch==//p' "$LOCK")
options=(--index "$TORCH_CPU_INDEX" --index-strategy unsafe-best-match)
for folder in ${PIP_FIND_LINKS:-} $(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true) ${UV_FIND_LINKS:-}; do
    folder=${folder#file://}
    if compgen -G "$folder/torch-$version-*.whl" >/dev/null || compgen -G "$folder/torch-${version/+/%2B}-*.whl" >/dev/null; then
        options=(--find-links "$folder")
        break
    fi
done
index=${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}
if [[ -n $index && -z ${UV_DEFAULT_INDEX:-} ]]; then export UV_DEFAULT_INDEX=$index; fi

"$UV" venv --quiet --clear --python .venv/bin/python .venv-trl
VIRTUAL_ENV=$PWD/.venv-trl "$UV" pip install --quiet --no-deps --compile-bytecode "${options[@]}" -r "$LOCK"
echo "$stamp" >"$STAMP"
echo ".venv-trl is ready (trl $(sed -n 's/^trl==//p' "$LOCK"))" >&2
