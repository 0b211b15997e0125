#!/usr/bin/env bash
# Prints the path of a CPython 3.10, or exits with 1.
#
# $PYTHON, if set, is the only candidate. Otherwise the PATH comes before pyenv's versions.
set -euo pipefail

# A pyenv shim exists for each installed version but only runs where it is selected, so each candidate is
# run. It prints its base interpreter, so that .venv is not based on another virtual environment.
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
