#!/usr/bin/env bash
# Tests the operators with AddressSanitizer and UndefinedBehaviorSanitizer, which end the run at an access
# outside a kernel's memory or at undefined behaviour.
#
#     dev/sanitize.sh PYTHON [PYTEST_ARG...]
#
# The library is built in output/sanitize with a copy of the package; the one next to the sources is kept.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=$1
shift
root=$PWD
readonly project=projects/CentripetalNet built=$root/output/sanitize
[[ $python != */* ]] || python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")

die() {
    printf '%s\n' "error: $1" "${@:2}" >&2
    exit 1
}

# Unquoted, as CXX may well be "ccache g++".
runtimes=()
for name in libasan.so libubsan.so libstdc++.so; do
    # shellcheck disable=SC2086
    path=$(${CXX:-c++} "-print-file-name=$name")
    # For a missing library the compiler prints the name without a folder.
    [[ $path == */* ]] || die "\"${CXX:-c++}\" has no $name" \
        "The sanitizers need GCC on Linux and its runtimes (apt install g++). CXX=... selects a compiler."
    runtimes+=("$path")
done

# Objects are reused; the copy of the package is not, since it may have files that were deleted.
rm -rf "$built/lib"
mkdir -p "$built"
printf 'Building the extension with sanitizers ... '
started=$SECONDS
(cd "$project" && CENTRIPETALNET_SANITIZE=1 \
    "$python" setup.py -q build --build-base "$built/build" --build-lib "$built/lib") \
    >"$built/build.log" 2>&1 || {
    tail -n 30 "$built/build.log" >&2
    die "the build failed; the end of its log, $built/build.log, is above"
}
printf '%d s\n' $((SECONDS - started))

sanitized() {
    # Python's own leaks are ignored, and PyTorch handles failed allocations. The runtimes and libstdc++
    # have to be loaded before PyTorch.
    env LD_PRELOAD="${runtimes[*]}" PYTHONPATH="$built/lib${PYTHONPATH:+:$PYTHONPATH}" \
        ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
        CUDA_VISIBLE_DEVICES= "$@"
}

# Checks that the sanitizers are active.
printf 'Reading poisoned memory ... '
if sanitized "$python" - "$built" >"$built/live.log" 2>&1 <<'PYTHON'
import ctypes
import importlib
import sys

import torch
from centripetalnet.layers import corner_pool

library = importlib.import_module("centripetalnet._C").__file__
if not library.startswith(sys.argv[1]):
    sys.exit(f"the library of {library} was loaded")
values = torch.zeros(1, 1, 8, 64)
corner_pool(values, "top")
print("marked", flush=True)
runtime = ctypes.CDLL(None)
runtime.__asan_poison_memory_region(ctypes.c_void_p(values.data_ptr()), ctypes.c_size_t(64))
corner_pool(values, "top")
PYTHON
then
    die "the sanitizers did not stop the kernel, so they are not active; see $built/live.log"
fi
if ! grep -q '^marked' "$built/live.log" || ! grep -q 'use-after-poison' "$built/live.log"; then
    cat "$built/live.log" >&2
    die "the check failed for another reason; its output is above"
fi
printf 'found\n'

run_tests() {
    local status=0
    # With pytest's default capture the output would be lost when the process ends.
    sanitized "$python" -m pytest -m "not slow" --timeout 900 --capture=sys -p no:cacheprovider "$@" ||
        status=$?
    # 5: PYTEST_ARGS selects none of these tests.
    ((status == 0 || status == 5)) || die "a test or a sanitizer failed; the output is above"
}

# test_cuda_source.py compiles and runs programs of its own, which do not work with preloaded runtimes, and
# does not use the library.
readonly tests=$project/tests/layers
run_tests "$tests" --ignore "$tests/test_cuda_source.py" "$@"

# The kernels for older instruction sets, with generated arguments.
for capability in baseline avx2; do
    export CENTRIPETALNET_CPU_CAPABILITY=$capability
    run_tests -q "$tests/test_fuzzed_arguments.py" "$@"
done
