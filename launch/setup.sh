#!/usr/bin/env bash
# Makes .venv and installs the locked packages and this package into it. A second call installs nothing.
#
#   launch/setup.sh                 GPU packages where a GPU is visible (or as .venv already is), else CPU packages
#   PROFILE=cpu launch/setup.sh     CPU packages; PROFILE=gpu: GPU packages where a GPU is visible
#   FORCE_PROFILE=1                 with PROFILE=gpu: GPU packages even so, as when an image is built
#
# PyTorch's CPU build is not on PyPI. It is taken from a folder of wheels that pip is told of (PIP_FIND_LINKS or
# pip's configuration), else from TORCH_CPU_INDEX, by default PyTorch's own index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

UV_VERSION=0.13.9
TORCH_CPU_INDEX=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
STAMP=.venv/expo_ray.stamp
PY=.venv/bin/python

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

choose_profile() {
    local wanted=${PROFILE:-auto}
    case $wanted in
        cpu) echo cpu ;;
        gpu | auto)
            if [[ $wanted == auto && -f $STAMP ]]; then
                cut -d' ' -f1 "$STAMP"
            elif [[ $wanted == gpu && -n ${FORCE_PROFILE:-} ]] || nvidia-smi -L >/dev/null 2>&1; then
                echo gpu
            else
                [[ $wanted == auto ]] || say "PROFILE=gpu, but nvidia-smi shows no GPU: taking the CPU packages"
                echo cpu
            fi ;;
        *) fail "PROFILE is '$wanted'; it can be cpu, gpu or auto" ;;
    esac
}

find_python() {
    local candidate
    for candidate in python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 is needed and was not found; install it (python3.11 with its venv module) and run again"
}

make_venv() {
    local python
    python=$(find_python)
    say "making .venv with $("$python" --version)"
    "$python" -m venv .venv || fail "'$python -m venv' failed; on Debian or Ubuntu: apt install python3.11-venv"
}

install_uv() {
    [[ "$(.venv/bin/uv --version 2>/dev/null || true)" == "uv $UV_VERSION"* ]] && return
    "$PY" -m pip --version >/dev/null 2>&1 || "$PY" -m ensurepip >/dev/null
    "$PY" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
}

# pip_setting NAME: what pip was told of NAME (index-url, find-links), from its environment or configuration.
pip_setting() {
    local variable=PIP_${1^^}
    variable=${variable//-/_}
    printf '%s ' "${!variable:-}"
    "$PY" -m pip config get "global.$1" 2>/dev/null || "$PY" -m pip config get "install.$1" 2>/dev/null || true
}

# torch_source: prints uv's options, one a line, for the place where the CPU build of PyTorch is.
torch_source() {
    local version folder
    version=$(sed -n 's/^torch==//p' requirements/cpu.lock)
    for folder in $(pip_setting find-links) ${UV_FIND_LINKS:-}; do
        folder=${folder#file://}
        if compgen -G "$folder/torch-$version-*.whl" >/dev/null || compgen -G "$folder/torch-${version/+/%2B}-*.whl" >/dev/null; then
            printf '%s\n' --find-links "$folder"
            return
        fi
    done
    # Every version is pinned, so the best match over both indexes is the pinned one.
    printf '%s\n' --index "$TORCH_CPU_INDEX" --index-strategy unsafe-best-match
}

install_packages() {
    local profile=$1 options=() index
    [[ $profile == gpu ]] || mapfile -t options < <(torch_source)
    index=$(pip_setting index-url | awk '{print $1}')
    if [[ -n $index && -z ${UV_DEFAULT_INDEX:-} ]]; then export UV_DEFAULT_INDEX=$index; fi
    say "installing requirements/$profile.lock"
    # Each of a run's processes loads thousands of modules. Where Python may not write byte code (as in many
    # containers), every one of them would compile them again at every start: a minute here saves one a run.
    VIRTUAL_ENV=$PWD/.venv .venv/bin/uv pip install --quiet --no-deps --compile-bytecode "${options[@]}" -r "requirements/$profile.lock" ||
        fail "the packages could not be installed (see above); where PyTorch's CPU index is not in reach, set" \
            "PIP_FIND_LINKS to a folder with the wheel of torch $(sed -n 's/^torch==//p' "requirements/$profile.lock")," \
            "or TORCH_CPU_INDEX to another index"
    VIRTUAL_ENV=$PWD/.venv .venv/bin/uv pip install --quiet --no-deps --no-build-isolation -e .
}

main() {
    local profile stamp
    profile=$(choose_profile)
    stamp="$profile $PWD $(cat "requirements/$profile.lock" setup.cfg pyproject.toml launch/setup.sh | sha256sum | cut -d' ' -f1)"
    if [[ -x $PY && -f $STAMP && "$(<"$STAMP")" == "$stamp" ]]; then return; fi
    # The CPU and the GPU build of vLLM are two packages with the same files, and a moved .venv does not work.
    if [[ -f $STAMP && "$(cut -d' ' -f1,2 "$STAMP")" != "$profile $PWD" ]]; then
        say ".venv was made for '$(cut -d' ' -f1,2 "$STAMP")': making it again"
        rm -rf .venv
    fi
    [[ -x $PY ]] || make_venv
    rm -f "$STAMP"
    install_uv
    install_packages "$profile"
    echo "$stamp" >"$STAMP"
    say ".venv is ready ($profile)"
}

main
