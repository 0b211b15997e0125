#!/usr/bin/env bash
# Sets up what a Makefile target needs, or checks that it is up to date.
#
#     dev/setup.sh demo|test|lint|env
#
# .tools has uv and ruff, .venv everything else, both locked by dev/*.txt. ENV=current uses the active
# Python (or $PYTHON) as it is instead. The project is installed in place.
set -euo pipefail

purpose=$1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"

readonly venv=.venv tools=.tools project=projects/CentripetalNet
# 5.5 GB for the environment, and room to unpack its packages.
readonly needed_megabytes=6500
# A stamp is removed before a set-up step and written after it, so that the result of an interrupted run
# does not count as complete.
readonly tools_stamp=$tools/stamp venv_stamp=$venv/stamp extension_stamp=$project/build/stamp
log=/dev/null
# Installers turn an interrupt into an ordinary error, after which the fallback would be tried.
trap 'exit 130' INT

die() {
    printf '%s\n' "error: $1" "${@:2}" >&2
    exit 1
}

# step MESSAGE COMMAND...: prints one line; the command's output goes to the log.
step() {
    local message=$1 started=$SECONDS status=0
    shift
    printf '%s ... ' "$message"
    printf '\n== %s: %s\n' "$message" "$*" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null || status=1
    ((status)) && printf 'failed after '
    printf '%d s\n' $((SECONDS - started))
    return "$status"
}

must() {
    step "$@" || {
        tail -n 30 "$log" >&2
        die "the step \"$1\" failed; the end of its log, $root/$log, is above"
    }
}

digest() {
    sha256sum | cut -d ' ' -f 1
}

is_current() {
    [[ -f $1 && $(<"$1") == "$2" ]]
}

# --- Python -------------------------------------------------------------------------------------------

# The base interpreter behind a CPython 3.10, so that .venv is not based on another environment. A shim of
# pyenv exists for each installed version but only runs where it is selected, so it is run.
base_of() {
    "$1" - 2>/dev/null <<'PYTHON'
import os, platform, sys
if platform.python_implementation() != "CPython" or sys.version_info[:2] != (3, 10):
    sys.exit(1)
print(os.path.realpath(sys._base_executable))
PYTHON
}

# $PYTHON, if set, is the only candidate. Otherwise the PATH comes before pyenv's versions.
find_python() {
    local candidate uv
    while read -r candidate; do
        base_of "$candidate" && return
    done < <(
        [[ -z ${PYTHON:-} ]] || { echo "$PYTHON" && exit; }
        type -aP python3.10 python3 python || true
        printf '%s\n' "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.10.*/bin/python3.10 | sort -rV
    )
    [[ -z ${PYTHON:-} ]] || die "PYTHON=$PYTHON is not a working CPython 3.10" \
        "Set PYTHON to one, or leave it unset to search for one."
    uv=$(find_uv) && "$uv" python install --quiet --no-bin 3.10 &>/dev/null </dev/null &&
        "$uv" python find --managed-python 3.10 && return
    die "there is no CPython 3.10 on the PATH or under pyenv, and uv could not get one" \
        "Install it (apt install python3.10-dev python3.10-venv, pyenv install 3.10, or uv python install" \
        "3.10) or set PYTHON=/path/to/python3.10. The environment takes 5.5 GB of disk. If PyTorch and" \
        "Detectron2 are already installed, ENV=current uses those instead."
}

# What an environment depends on: its location, its base interpreter, and the locked packages.
environment_state() {
    echo "$root"
    "$1" -c 'import os, sys; print(os.path.realpath(sys._base_executable), sys.version)' 2>/dev/null || true
    digest <dev/requirements.txt
}

# --- .tools -------------------------------------------------------------------------------------------

fill_tools() {
    "$1" -m venv --clear "$tools" &&
        "$tools/bin/python" -m pip install --require-hashes --no-deps --only-binary :all: -r dev/tools.txt
}

install_tools() {
    local wanted python
    wanted=$(digest <dev/tools.txt)
    if is_current "$tools_stamp" "$wanted" && "$tools/bin/ruff" --version &>/dev/null; then
        return
    fi
    log=$(mktemp)
    # Neither tool is a Python program, so any Python works.
    for python in ${PYTHON:+"$PYTHON"} python3.10 python3 python; do
        if "$python" -c 'import venv, ensurepip' &>/dev/null </dev/null; then
            step "Installing uv and ruff into $tools" fill_tools "$python" && echo "$wanted" >"$tools_stamp"
            return
        fi
    done
    echo "No Python can create a virtual environment (apt install python3-venv)." | tee "$log"
    return 1
}

# The locked uv, otherwise the one on the PATH.
find_uv() {
    type -P "$tools/bin/uv" || type -P uv
}

# --- .venv --------------------------------------------------------------------------------------------

check_machine() {
    local free_megabytes
    [[ $(uname -sm) == "Linux x86_64" ]] ||
        die "the locked environment is for Linux on x86-64, this is $(uname -sm)" \
            "Install PyTorch and Detectron2 yourself and use ENV=current."
    free_megabytes=$(df -Pm . | awk 'NR == 2 { print $4 }')
    ((free_megabytes >= needed_megabytes)) ||
        die "$free_megabytes MB of disk are free in $root, the environment needs $needed_megabytes MB"
}

# Checked before the downloads, since the extension is built last.
check_compiler() {
    local python=$1 compiler=${CXX:-c++}
    # Unquoted, since CXX may be "ccache g++".
    # shellcheck disable=SC2086
    $compiler -std=c++17 -x c++ -fsyntax-only - <<<'#include <optional>' &>/dev/null ||
        die "\"$compiler\" does not compile C++17, which the extension needs" \
            "Install a compiler (apt install g++) or select one with CXX=..."
    [[ -f $("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h ]] ||
        die "$python has no C headers to compile against (apt install python3-dev)"
}

# make_venv PYTHON UV: uv is for a Python without ensurepip.
make_venv() {
    "$1" -m venv "$venv" || "${2:-false}" venv --allow-existing --python "$1" "$venv"
}

# The lines of these packages in the lock file.
lock_entries() {
    awk -v names=" $* " '/^[a-z0-9]/ { split($1, head, "=="); keep = index(names, " " head[1] " ") } keep' \
        dev/requirements.txt
}

# fill_venv INSTALLER...: some packages are source only. The locked setuptools builds them, so it is
# installed first.
fill_venv() {
    lock_entries setuptools wheel >"$venv/build-requirements.txt" &&
        "$@" --require-hashes --no-deps -r "$venv/build-requirements.txt" &&
        "$@" --require-hashes --no-deps --no-build-isolation -r dev/requirements.txt
}

install_dependencies() {
    local uv python
    if is_current "$venv_stamp" "$(environment_state "${PYTHON:-$venv/bin/python}")"; then
        return
    fi
    # pip is the fallback without uv.
    install_tools || true
    uv=$(find_uv) || uv=
    python=$(find_python)
    [[ ! -d $venv || -f $venv/setup.log ]] ||
        die "$root/$venv was not created by this Makefile: move or remove it"
    check_compiler "$python"
    rm -rf "$venv" "$extension_stamp"
    check_machine
    mkdir "$venv"
    log=$venv/setup.log
    must "Creating $venv with $python" make_venv "$python" "$uv"
    # If a mirror is only configured for pip, uv fails and pip works.
    [[ $uv ]] && step "Installing the locked packages with uv" \
        fill_venv "$uv" pip install --python "$venv" --compile-bytecode ||
        must "Installing the locked packages with pip" fill_venv "$venv/bin/python" -m pip install
    environment_state "$venv/bin/python" >"$venv_stamp"
}

# --- the extension ------------------------------------------------------------------------------------

extension_state() {
    {
        "$1" -c 'import sys, importlib.metadata as m; print(sys.prefix, sys.version, m.version("torch"))'
        printf '%s\n' "${CXX:-}" "${CXXFLAGS:-}" "${CUDA_HOME:-}" "${FORCE_CUDA:-}" \
            "${TORCH_CUDA_ARCH_LIST:-}"
        find "$project/setup.py" "$project/centripetalnet/layers/csrc" -type f -print0 | sort -z |
            xargs -0 sha256sum
    } | digest
}

# -v shows the build's output: if the operators do not compile, the package is installed without them.
build_extension() {
    local options=(-v --no-build-isolation --no-deps --editable "$project")
    if "$1" -m pip --version; then
        "$1" -m pip install "${options[@]}"
    else
        "$(find_uv)" pip install --python "$1" "${options[@]}"
    fi
}

has_library() {
    compgen -G "$project/centripetalnet/_C*.so" >/dev/null
}

# One stamp for all environments, since they share the library next to the sources.
install_project() {
    local python=$1 state
    state=$(extension_state "$python")
    if is_current "$extension_stamp" "$state" && has_library; then
        return
    fi
    check_compiler "$python"
    rm -f "$extension_stamp" "$project"/centripetalnet/_C*.so
    # PyTorch compiles on all cores only if ninja is on the PATH.
    PATH=$("$python" -c 'import os, sys; print(os.path.dirname(sys.executable))'):$PATH \
        must "Building the extension" build_extension "$python"
    has_library || {
        grep -B 30 'The operators were not compiled' "$log" | tail -n 30 >&2
        die "the operators were not compiled; the reason, from $root/$log, is above"
    }
    mkdir -p "$(dirname "$extension_stamp")"
    echo "$state" >"$extension_stamp"
}

# ------------------------------------------------------------------------------------------------------

# Parallel targets must not set up the same environment at the same time.
if type flock &>/dev/null; then
    exec 9<dev
    flock 9 || true
fi

if [[ ${ENV:-} == current ]]; then
    python=${PYTHON:-python}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' &>/dev/null </dev/null ||
        die "ENV=current: \"$python\" is not a working Python from 3.9" \
            "Activate an environment, or set PYTHON to its interpreter."
    [[ $purpose != lint ]] || exit 0
    "$python" -c 'import torch, detectron2._C, cv2' ||
        die "\"$python\" lacks PyTorch, Detectron2 or OpenCV; README.md says how to install them"
    mkdir -p "$project/build"
    log=$project/build/setup.log
    install_project "$python"
elif [[ $purpose == lint ]]; then
    install_tools || {
        tail -n 30 "$log" >&2
        die "ruff could not be installed"
    }
else
    install_dependencies
    log=$venv/setup.log
    install_project "$venv/bin/python"
fi
