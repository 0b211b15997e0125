#!/usr/bin/env bash
# Prints the path of a CPython 3.10, or nothing and exits with 1.
#
# $PYTHON, where set, is the only candidate. Otherwise what is on the PATH comes before pyenv's versions.
set -euo pipefail

# A pyenv shim exists for every version that any project of the machine uses, and refuses to run where
# this directory has not chosen it: a candidate counts only once it has answered. What it answers is the
# interpreter behind it, so that a virtual environment, ours among them, is not built upon.
interpreter_behind() {
    "$1" - 2>/dev/null <<'PYTHON'
import os, platform, sys
if platform.python_implementation() != "CPython" or sys.version_info[:2] != (3, 10):
    sys.exit(1)
print(os.path.realpath(sys._base_executable))
PYTHON
}

candidates() {
    if [[ -n ${PYTHON:-} ]]; then
        echo "$PYTHON"
        return
    fi
    type -aP python3.10 python3 python || true
    local versions=${PYENV_ROOT:-${HOME:-}/.pyenv}/versions
    printf '%s\n' "$versions"/3.10.*/bin/python3.10 | sort --version-sort --reverse
}

while read -r candidate; do
    if interpreter_behind "$candidate"; then
        exit 0
    fi
done < <(candidates)
exit 1
