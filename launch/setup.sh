#!/usr/bin/env bash
# Makes .venv with the locked packages and this package. A second call installs nothing.
#
#   launch/setup.sh                 GPU packages if a GPU is visible (or .venv already has them), else CPU packages
#   PROFILE=cpu launch/setup.sh     CPU packages; PROFILE=gpu: GPU packages if a GPU is visible
#   FORCE_PROFILE=1                 with PROFILE=gpu: GPU packages even without a GPU, to build an image
#
# The packages run on Python 3.11 and 3.12. Any Python from 3.8 on is enough to start: it brings uv, and uv finds or
# downloads a Python that fits (UV_PYTHON_INSTALL_MIRROR: where from).
# PyTorch's CPU build is not on PyPI. It comes from a folder of wheels that pip is configured to use (PIP_FIND_LINKS or
# find-links), else from TORCH_CPU_INDEX, by default PyTorch's own index.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

UV_VERSION=0.13.9
PYTHONS=(3.11 3.12)
TORCH_CPU_INDEX=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
STAMP=.venv/expo_ray.stamp # one line: profile, folder, checksum
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
                [[ $wanted == auto ]] || say "PROFILE=gpu, but nvidia-smi shows no GPU: installing the CPU packages"
                echo cpu
            fi ;;
        *) fail "PROFILE is '$wanted'; it can be cpu, gpu or auto" ;;
    esac
}

# any_python MODULE: prints a Python from 3.8 on that can import the module.
any_python() {
    local candidate
    for candidate in "$PY" python3 python python3.{11,12,13,14,10,9,8}; do
        if "$candidate" -c "import sys, $1; sys.exit(sys.version_info < (3, 8))" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# get_uv: sets UV to a uv of the pinned version: .venv's, the one on PATH, or a new one in a temporary folder.
get_uv() {
    local candidate python said=''
    for candidate in .venv/bin/uv uv; do
        if [[ $candidate == .venv/* && ! -x $PY ]]; then continue; fi # it would delete itself with .venv
        if [[ "$("$candidate" --version 2>/dev/null || true)" == "uv $UV_VERSION"* ]]; then UV=$candidate && return; fi
    done
    TEMPORARY=$(mktemp -d)
    trap 'rm -rf "$TEMPORARY"' EXIT
    UV=$TEMPORARY/bin/uv
    # `pip install --target` also works where Debian protects the system's Python, and needs no venv module.
    if python=$(any_python pip); then
        said=$("$python" -m pip install --quiet --disable-pip-version-check --target "$TEMPORARY" "uv==$UV_VERSION" 2>&1) || true
    elif python=$(any_python ensurepip) && "$python" -m venv "$TEMPORARY" >/dev/null 2>&1; then
        said=$("$TEMPORARY/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION" 2>&1) || true
    elif command -v uv >/dev/null; then
        UV=uv # another version is good enough to find a Python and install the packages
    else
        fail "Python with pip is needed, any version from 3.8 on: install it (Debian, Ubuntu: apt install python3-pip)"
    fi
    "$UV" --version >/dev/null 2>&1 || fail "pip could not install uv $UV_VERSION: $(tail -n 1 <<<"${said:-no reason given}")"
}

# pip_setting NAME: what pip is configured to use as NAME (index-url, find-links), by its environment or its files.
pip_setting() {
    local variable=PIP_${1^^} python
    variable=${variable//-/_}
    printf '%s ' "${!variable:-}"
    python=$(any_python pip) || return 0
    "$python" -m pip config get "global.$1" 2>/dev/null || "$python" -m pip config get "install.$1" 2>/dev/null || true
}

# torch_wheels PYTHON: prints the folder that holds the CPU build of PyTorch for a version of Python; '' is any version.
torch_wheels() {
    local version folder tag=${1:+cp${1/./}}
    version=$(sed -n 's/^torch==//p' requirements/cpu.lock)
    for folder in $(pip_setting find-links) ${UV_FIND_LINKS:-}; do
        folder=${folder#file://}
        if compgen -G "$folder/torch-$version-$tag*.whl" >/dev/null ||
            compgen -G "$folder/torch-${version/+/%2B}-$tag*.whl" >/dev/null; then
            echo "$folder"
            return
        fi
    done
    return 1
}

make_venv() {
    local version versions=() names because='' said
    for version in "${PYTHONS[@]}"; do
        if [[ $1 == cpu ]] && torch_wheels "" >/dev/null && ! torch_wheels "$version" >/dev/null; then continue; fi
        versions+=("$version")
    done
    if ((${#versions[@]} == 0)); then versions=("${PYTHONS[@]}"); fi
    if ((${#versions[@]} == 1)); then because=" ($(torch_wheels "${versions[0]}") has PyTorch for no other)"; fi
    for version in "${versions[@]}"; do
        if "$UV" venv --quiet --clear --no-python-downloads --python "$version" .venv 2>/dev/null; then return; fi
    done
    names=$(printf ' or %s' "${versions[@]}") && names="Python ${names# or }"
    say "no $names found$because: downloading ${versions[0]}"
    said=$("$UV" venv --quiet --clear --managed-python --python "${versions[0]}" .venv 2>&1 | tr -s ' \n' ' ') ||
        fail "$names is needed$because and could not be downloaded: install it and run again (${said:0:250})"
}

install_packages() {
    local profile=$1 options=() folder
    if [[ $profile == cpu ]]; then
        if folder=$(torch_wheels "$("$PY" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"); then
            options=(--find-links "$folder")
        else # Every version is pinned, so the best match over both indexes is the pinned one.
            options=(--index "$TORCH_CPU_INDEX" --index-strategy unsafe-best-match)
        fi
    fi
    say "installing requirements/$profile.lock"
    # Each of a run's processes loads thousands of modules. Where Python may not write byte code (as in many
    # containers), every one of them would compile them again at every start: a minute here saves one a run.
    "$UV" pip install --python "$PY" --quiet --no-deps --compile-bytecode "${options[@]}" -r "requirements/$profile.lock" ||
        fail "the packages could not be installed (see above); where PyTorch's CPU index is out of reach, set" \
            "PIP_FIND_LINKS to a folder with the wheel of torch $(sed -n 's/^torch==//p' "requirements/$profile.lock")," \
            "or TORCH_CPU_INDEX to another index"
    "$UV" pip install --python "$PY" --quiet --no-deps --no-build-isolation -e .
}

main() {
    local profile checksum line='' folder index cert
    profile=$(choose_profile)
    checksum=$(cat "requirements/$profile.lock" setup.cfg setup.py pyproject.toml launch/setup.sh | sha256sum | cut -d' ' -f1)
    if [[ -f $STAMP ]]; then line=$(<"$STAMP"); fi
    folder=${line#* } && folder=${folder% *}
    # The same folder may have another path (a symbolic link, a bind mount): -ef decides, not the text.
    if [[ -x $PY && ${line%% *} == "$profile" && $folder -ef . && ${line##* } == "$checksum" ]]; then return; fi
    # The CPU and the GPU build of vLLM are two packages with the same files, and a moved .venv does not work.
    if [[ -n $line ]] && ! [[ ${line%% *} == "$profile" && $folder -ef . ]]; then
        say ".venv was made for '${line% *}': making it again"
        rm -rf .venv
    fi
    get_uv
    # uv does not read pip's configuration.
    index=$(pip_setting index-url | awk '{print $1}') && cert=$(pip_setting cert | awk '{print $1}')
    if [[ -n $index && -z ${UV_DEFAULT_INDEX:-} ]]; then export UV_DEFAULT_INDEX=$index; fi
    if [[ -n $cert && -z ${SSL_CERT_FILE:-} ]]; then export SSL_CERT_FILE=$cert; fi
    if [[ ! -x $PY ]]; then
        make_venv "$profile"
        "$PY" -m ensurepip >/dev/null 2>&1 || say "$("$PY" --version) brings no pip: use .venv/bin/uv pip"
        say "made .venv with $("$PY" --version)"
    elif ! "$PY" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'; then
        fail ".venv has $("$PY" --version), and the packages run on 3.11 and 3.12: remove .venv and run again"
    fi
    rm -f "$STAMP"
    install_packages "$profile"
    [[ .venv/bin/uv -ef $UV ]] || cp "$(command -v "$UV")" .venv/bin/uv
    echo "$profile $PWD $checksum" >"$STAMP"
    say ".venv is ready ($profile)"
}

main
