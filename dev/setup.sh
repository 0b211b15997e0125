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
    local message=$1 started=$SECONDS
    shift
    printf '%s ... ' "$message"
    printf '\n== %s: %s\n' "$message" "$*" >>"$log"
    if "$@" >>"$log" 2>&1 </dev/null; then
        printf '%d s\n' $((SECONDS - started))
    else
        printf 'failed after %d s\n' $((SECONDS - started))
        return 1
    fi
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
    local stamp=$1 wanted=$2
    [[ -f $stamp && $(<"$stamp") == "$wanted" ]]
}

can_make_venv() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 8))' &>/dev/null </dev/null
}

# --- .tools -------------------------------------------------------------------------------------------

fill_tools() {
    "$1" -m venv "$tools" &&
        "$tools/bin/python" -m pip install --require-hashes --no-deps --only-binary :all: -r dev/tools.txt
}

install_tools() {
    local wanted python
    wanted=$(digest <dev/tools.txt)
    if is_current "$tools_stamp" "$wanted" && "$tools/bin/ruff" --version &>/dev/null; then
        return
    fi
    # Neither tool is a Python program, so any Python works.
    for python in "$(dev/find_python.sh || true)" python3 python; do
        if can_make_venv "$python"; then
            rm -rf "$tools"
            mkdir "$tools"
            log=$tools/setup.log
            step "Installing uv and ruff into $tools" fill_tools "$python" || return 1
            echo "$wanted" >"$tools_stamp"
            return
        fi
    done
    echo "No Python from 3.8 can create a virtual environment (apt install python3-venv)."
    return 1
}

# The locked uv, otherwise the one on the PATH.
find_uv() {
    if [[ -x $tools/bin/uv ]]; then
        echo "$tools/bin/uv"
    else
        type -P uv
    fi
}

# --- .venv --------------------------------------------------------------------------------------------

find_python() {
    local uv
    dev/find_python.sh && return
    if [[ -n ${PYTHON:-} ]]; then
        die "PYTHON=$PYTHON is not a working CPython 3.10" \
            "Set PYTHON to one, or leave it unset to search for one."
    fi
    if uv=$(find_uv) && "$uv" python install --quiet --no-bin 3.10 &>/dev/null </dev/null; then
        "$uv" python find --managed-python 3.10 && return
    fi
    die "there is no CPython 3.10 on the PATH or under pyenv, and uv could not get one" \
        "Install it (apt install python3.10-dev python3.10-venv, pyenv install 3.10, or uv python install" \
        "3.10) or set PYTHON=/path/to/python3.10. The environment takes 5.5 GB of disk. If PyTorch and" \
        "Detectron2 are already installed, ENV=current uses those instead."
}

check_machine() {
    local free_megabytes
    if [[ $(uname -sm) != "Linux x86_64" ]]; then
        die "the locked environment is for Linux on x86-64, this is $(uname -sm)" \
            "Install PyTorch and Detectron2 yourself and use ENV=current."
    fi
    free_megabytes=$(df -Pm . | awk 'NR == 2 { print $4 }')
    if ((free_megabytes < needed_megabytes)); then
        die "$free_megabytes MB of disk are free in $root, the environment needs $needed_megabytes MB"
    fi
}

# Checked before the downloads, since the extension is built last.
check_compiler() {
    local python=$1 compiler=${CXX:-c++}
    # Unquoted, since CXX may be "ccache g++".
    # shellcheck disable=SC2086
    if ! $compiler -std=c++17 -x c++ -fsyntax-only - <<<'#include <optional>' &>/dev/null; then
        die "\"$compiler\" does not compile C++17, which the extension needs" \
            "Install a compiler (apt install g++) or select one with CXX=..."
    fi
    "$python" - <<'PYTHON' || die "$python has no C headers to compile against (apt install python3-dev)"
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))
PYTHON
}

make_venv() {
    local python=$1 uv
    if can_make_venv "$python"; then
        "$python" -m venv "$venv"
    else
        uv=$(find_uv) && "$uv" venv --allow-existing --python "$python" "$venv"
    fi
}

# lock_entries NAME...: the lines of these packages in the lock file.
lock_entries() {
    awk -v names=" $* " '/^[a-z0-9]/ { split($1, head, "=="); keep = index(names, " " head[1] " ") } keep' \
        dev/requirements.txt
}

# Some packages are source only. The locked setuptools builds them, so it is installed first.
fill_venv_with_uv() {
    local uv
    uv=$(find_uv) &&
        lock_entries setuptools wheel >"$venv/build-requirements.txt" &&
        "$uv" pip install --python "$venv" --require-hashes --no-deps -r "$venv/build-requirements.txt" &&
        "$uv" pip sync --python "$venv" --require-hashes --no-build-isolation dev/requirements.txt
}

fill_venv_with_pip() {
    local pip_install=("$venv/bin/python" -m pip install --require-hashes --no-deps)
    lock_entries setuptools wheel >"$venv/build-requirements.txt" &&
        "${pip_install[@]}" -r "$venv/build-requirements.txt" &&
        "${pip_install[@]}" --no-build-isolation -r dev/requirements.txt
}

# Without bytecode imports take 10 s longer, each time if PYTHONDONTWRITEBYTECODE is set. Files of packages
# for other Python versions fail to compile, which is ignored.
compile_bytecode() {
    "$venv/bin/python" -m compileall -q -j 0 "$venv/lib" || true
}

# What a virtual environment depends on: its location and its base interpreter.
identity() {
    echo "$root"
    "$1" -c 'import os, sys; print(os.path.realpath(sys._base_executable), *sys.version_info[:3])' 2>/dev/null
}

install_dependencies() {
    local lock bound_to python
    lock=$(digest <dev/requirements.txt)
    bound_to=$(identity "${PYTHON:-$venv/bin/python}" || true)
    if is_current "$venv_stamp" "$bound_to"$'\n'"$lock"; then
        return
    fi

    # pip is the fallback without uv.
    install_tools || true
    if [[ -f $venv_stamp && $(head -n 2 "$venv_stamp") == "$bound_to" ]]; then
        log=$venv/setup.log
    else
        python=$(find_python)
        if [[ -d $venv && ! -f $venv/setup.log ]]; then
            die "$root/$venv was not created by this Makefile: move or remove it"
        fi
        if ! can_make_venv "$python" && ! find_uv >/dev/null; then
            die "$python lacks ensurepip and cannot create a virtual environment" \
                "Install it (apt install python3.10-venv), or install uv."
        fi
        check_compiler "$python"
        rm -rf "$venv"
        check_machine
        mkdir "$venv"
        log=$venv/setup.log
        must "Creating $venv with $python" make_venv "$python"
    fi
    rm -f "$venv_stamp" "$extension_stamp"
    # If a mirror is only configured for pip, uv fails and pip works.
    if ! find_uv >/dev/null || ! step "Installing the locked packages with uv" fill_venv_with_uv; then
        must "Installing the locked packages with pip" fill_venv_with_pip
    fi
    must "Compiling bytecode" compile_bytecode
    printf '%s\n' "$(identity "$venv/bin/python")" "$lock" >"$venv_stamp"
}

# --- the extension ------------------------------------------------------------------------------------

extension_state() {
    local python=$1
    {
        identity "$python"
        "$python" - <<'PYTHON'
import sys
from importlib.metadata import version
print(sys.prefix, version("torch"))
PYTHON
        printf '%s\n' "${CXX:-}" "${CXXFLAGS:-}" "${CUDA_HOME:-}" "${FORCE_CUDA:-}" \
            "${TORCH_CUDA_ARCH_LIST:-}"
        find "$project/setup.py" "$project/centripetalnet/layers/csrc" -type f -print0 | sort -z |
            xargs -0 sha256sum
    } | digest
}

# -v shows the build's output: if the operators do not compile, the package is installed without them.
build_extension() {
    local python=$1 uv
    local options=(-v --no-build-isolation --no-deps --editable "$project")
    if "$python" -m pip --version; then
        "$python" -m pip install "${options[@]}"
    else
        uv=$(find_uv) && "$uv" pip install --python "$python" "${options[@]}"
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
    mkdir -p "$(dirname "$extension_stamp")"
    rm -f "$extension_stamp" "$project"/centripetalnet/_C*.so
    # PyTorch compiles on all cores only if ninja is on the PATH.
    PATH=$("$python" -c 'import os, sys; print(os.path.dirname(sys.executable))'):$PATH \
        must "Building the extension" build_extension "$python"
    has_library || {
        grep -B 30 'The operators were not compiled' "$log" | tail -n 30 >&2
        die "the operators were not compiled; the reason, from $root/$log, is above"
    }
    echo "$state" >"$extension_stamp"
}

# ------------------------------------------------------------------------------------------------------

use_current() {
    local python=${PYTHON:-python}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' &>/dev/null </dev/null; then
        die "ENV=current: \"$python\" is not a working Python from 3.8" \
            "Activate an environment, or set PYTHON to its interpreter."
    fi
    "$python" dev/check_environment.py "$purpose" >&2 || exit 1
    if [[ $purpose != lint ]]; then
        mkdir -p "$project/build"
        log=$project/build/setup.log
        install_project "$python"
    fi
}

# Parallel targets must not set up the same environment at the same time.
if type flock &>/dev/null; then
    exec 9<dev
    flock 9 || true
fi

if [[ ${ENV:-} == current ]]; then
    use_current
elif [[ $purpose == lint ]]; then
    if ! install_tools; then
        tail -n 30 "$log" >&2
        die "ruff could not be installed"
    fi
else
    install_dependencies
    log=$venv/setup.log
    install_project "$venv/bin/python"
fi
