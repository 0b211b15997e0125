#!/usr/bin/env bash
# Makes ready what a Makefile target needs, or sees that it still is.
#
#     dev/setup.sh demo|test|lint|env
#
# .tools holds uv and ruff, .venv everything else, both as locked beside this file. ENV=current uses the
# active Python (or $PYTHON) as it is instead. Either way the project is installed from where it lies.
set -euo pipefail

purpose=$1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"

readonly venv=.venv tools=.tools project=projects/CentripetalNet
# The environment's 5.5 GB, and what its packages need while they are unpacked.
readonly needed_megabytes=6500
# A stamp is removed before the first change to what it vouches for and written after the last one, so
# that what an interrupted run leaves behind is never taken for whole.
readonly tools_stamp=$tools/stamp venv_stamp=$venv/stamp extension_stamp=$project/build/stamp
log=/dev/null
# Installers catch the interrupt and end with an error like any other, to which the answer would be
# another try.
trap 'exit 130' INT

die() {
    printf '%s\n' "error: $1" "${@:2}" >&2
    exit 1
}

# step MESSAGE COMMAND...: one line on the terminal, what the command says in the log.
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
        die "the step \"$1\" failed; above is the end of its log, $root/$log"
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
    # Neither tool is a Python program, so that any Python will do.
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
    echo "No Python 3.8 or newer here can make a virtual environment (apt install python3-venv)."
    return 1
}

# The locked uv, or else the one that the machine has.
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
        die "PYTHON=$PYTHON is not a CPython 3.10 that runs" \
            "Name one, or leave PYTHON unset to have one looked for."
    fi
    if uv=$(find_uv) && "$uv" python install --quiet --no-bin 3.10 &>/dev/null </dev/null; then
        "$uv" python find --managed-python 3.10 && return
    fi
    die "there is no CPython 3.10 on the PATH or under pyenv, and uv could not get one" \
        "Install it (apt install python3.10-dev python3.10-venv, pyenv install 3.10, or uv python install" \
        "3.10) or name it with PYTHON=/path/to/python3.10. The environment that is made with it takes" \
        "5.5 GB of disk. Where PyTorch and Detectron2 are installed already, ENV=current uses those instead."
}

check_machine() {
    local free_megabytes
    if [[ $(uname -sm) != "Linux x86_64" ]]; then
        die "the locked environment is for Linux on x86-64, and this is $(uname -sm)" \
            "Install PyTorch and Detectron2 yourself and use ENV=current."
    fi
    free_megabytes=$(df -Pm . | awk 'NR == 2 { print $4 }')
    if ((free_megabytes < needed_megabytes)); then
        die "$free_megabytes MB of disk are free under $root, and the environment needs $needed_megabytes MB"
    fi
}

# Asked before anything large is downloaded, since the extension is the last thing to be made.
check_compiler() {
    local python=$1 compiler=${CXX:-c++}
    # Unquoted, as CXX may well be "ccache g++".
    # shellcheck disable=SC2086
    if ! $compiler -std=c++17 -x c++ -fsyntax-only - <<<'#include <optional>' &>/dev/null; then
        die "\"$compiler\" does not compile C++17, which the extension is written in" \
            "Install a compiler (apt install g++) or name one with CXX=..."
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

# lock_entries NAME...: the part of the lock that is about these packages.
lock_entries() {
    awk -v names=" $* " '/^[a-z0-9]/ { split($1, head, "=="); keep = index(names, " " head[1] " ") } keep' \
        dev/requirements.txt
}

# Some packages come as source only. The locked setuptools builds them, not whichever is newest today,
# and so has to be there first.
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

# Uncompiled, the imports take 10 s longer, and every time so where PYTHONDONTWRITEBYTECODE is set. Some
# packages carry files for other Pythons that do not compile here: hence no failure.
compile_bytecode() {
    "$venv/bin/python" -m compileall -q -j 0 "$venv/lib" || true
}

# What a virtual environment is bound to: where it lies and which interpreter it was made from.
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

    # Without uv there is still pip.
    install_tools || true
    if [[ -f $venv_stamp && $(head -n 2 "$venv_stamp") == "$bound_to" ]]; then
        log=$venv/setup.log
    else
        python=$(find_python)
        if [[ -d $venv && ! -f $venv/setup.log ]]; then
            die "$root/$venv is not of this Makefile's making: move it out of the way"
        fi
        if ! can_make_venv "$python" && ! find_uv >/dev/null; then
            die "$python lacks ensurepip and cannot make a virtual environment" \
                "Install what it lacks (apt install python3.10-venv), or uv, which can."
        fi
        check_compiler "$python"
        rm -rf "$venv"
        check_machine
        mkdir "$venv"
        log=$venv/setup.log
        must "Making $venv with $python" make_venv "$python"
    fi
    rm -f "$venv_stamp" "$extension_stamp"
    # Where only pip knows of a mirror, uv fails and pip does not.
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

# With -v: where the operators do not compile, the package is installed without them, and only the
# build's own output says why.
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

# One stamp for all environments, as they share the library that lies among the sources.
install_project() {
    local python=$1 state
    state=$(extension_state "$python")
    if is_current "$extension_stamp" "$state" && has_library; then
        return
    fi
    check_compiler "$python"
    mkdir -p "$(dirname "$extension_stamp")"
    rm -f "$extension_stamp" "$project"/centripetalnet/_C*.so
    # PyTorch compiles on all cores only where it finds ninja on the PATH.
    PATH=$("$python" -c 'import os, sys; print(os.path.dirname(sys.executable))'):$PATH \
        must "Building the extension" build_extension "$python"
    has_library || {
        grep -B 30 'The operators were not compiled' "$log" | tail -n 30 >&2
        die "the operators were not compiled; above is why, from $root/$log"
    }
    echo "$state" >"$extension_stamp"
}

# ------------------------------------------------------------------------------------------------------

use_current() {
    local python=${PYTHON:-python}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' &>/dev/null </dev/null; then
        die "ENV=current: \"$python\" is not a Python 3.8 or newer that runs" \
            "Activate the environment to use, or name its interpreter with PYTHON=..."
    fi
    "$python" dev/check_environment.py "$purpose" >&2 || exit 1
    if [[ $purpose != lint ]]; then
        mkdir -p "$project/build"
        log=$project/build/setup.log
        install_project "$python"
    fi
}

# Two targets at once, in two terminals or with make -j, must not fill one environment.
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
