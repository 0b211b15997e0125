#!/usr/bin/env bash
# Tests the operators with AddressSanitizer and UndefinedBehaviorSanitizer, which end the run where a
# kernel reads or writes outside its memory or does what C++ leaves undefined.
#
#     dev/sanitize.sh PYTHON [PYTEST_ARG...]
#
# The library for it lies in output/sanitize beside a copy of the package; the one among the sources stays
# as it is.
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
    # What the compiler does not have it names without a folder.
    [[ $path == */* ]] || die "\"${CXX:-c++}\" has no $name" \
        "The sanitizers take GCC on Linux and its runtimes (apt install g++), or name one with CXX=..."
    runtimes+=("$path")
done

# The objects stay for the next time; what is no longer among the sources must not.
rm -rf "$built/lib"
mkdir -p "$built"
printf 'Building the extension with sanitizers ... '
started=$SECONDS
(cd "$project" && CENTRIPETALNET_SANITIZE=1 \
    "$python" setup.py -q build --build-base "$built/build" --build-lib "$built/lib") \
    >"$built/build.log" 2>&1 || {
    tail -n 30 "$built/build.log" >&2
    die "the build failed; above is the end of its log, $built/build.log"
}
printf '%d s\n' $((SECONDS - started))

sanitized() {
    # Python's own leaks are not what is looked for; PyTorch answers for memory that there is not.
    # The runtimes and C++'s exceptions have to be there before PyTorch.
    env LD_PRELOAD="${runtimes[*]}" PYTHONPATH="$built/lib${PYTHONPATH:+:$PYTHONPATH}" \
        ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
        CUDA_VISIBLE_DEVICES= "$@"
}

# A run in which nothing is watched would find nothing.
printf 'Reading memory that is marked as no one'\''s ... '
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
    die "the kernel read it and was not stopped, so the sanitizers do not watch it; see $built/live.log"
fi
if ! grep -q '^marked' "$built/live.log" || ! grep -q 'use-after-poison' "$built/live.log"; then
    cat "$built/live.log" >&2
    die "the check ended for another reason than the one it is for; above is what it said"
fi
printf 'found\n'

run_tests() {
    local status=0
    # What pytest had caught on its way to the terminal would be lost where the process ends.
    sanitized "$python" -m pytest -m "not slow" --timeout 900 --capture=sys -p no:cacheprovider "$@" ||
        status=$?
    # 5: the arguments that came with the target choose none of these tests.
    ((status == 0 || status == 5)) || die "a test failed, or above is what the sanitizers found"
}

# Left out: what compiles and runs programs of its own, which do not bear other runtimes preloaded
# (test_cuda_source.py, with nvcc and ThreadSanitizer); it does not run the library either.
readonly tests=$project/tests/layers
run_tests "$tests" --ignore "$tests/test_cuda_source.py" "$@"

# The kernels of lesser instruction sets, with the arguments that are made up.
for capability in baseline avx2; do
    export CENTRIPETALNET_CPU_CAPABILITY=$capability
    run_tests -q "$tests/test_fuzzed_arguments.py" "$@"
done
