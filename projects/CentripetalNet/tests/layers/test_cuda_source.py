"""CUDA kernels without a GPU: compiled with nvcc, and emulated by CPU threads."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import centripetalnet.layers

CSRC = Path(centripetalnet.layers.__file__).parent / "csrc"
KERNELS = ("corner_pool", "gaussian_focal_loss")
# Instantiations as in the .cu files.
INSTANCES = {
    "corner_pool": """
        template __global__ void centripetalnet::gpu::corner_pool_kernel<float, float, true>(
            const float*, float*, ScanLayout);
        template __global__ void centripetalnet::gpu::corner_pool_kernel<double, double, false>(
            const double*, double*, ScanLayout);
        template __global__ void
        centripetalnet::gpu::corner_pool_backward_kernel<float, float, true>(
            const float*, const float*, float*, Marks*, ScanLayout);
        template __global__ void
        centripetalnet::gpu::corner_pool_backward_kernel<double, double, false>(
            const double*, const double*, double*, Marks*, ScanLayout);
    """,
    "gaussian_focal_loss": """
        template __global__ void centripetalnet::gpu::gaussian_focal_loss_kernel<float, float>(
            const float*, Heatmaps, float, float, double*);
        template __global__ void
        centripetalnet::gpu::gaussian_focal_loss_backward_kernel<double, double>(
            const double*, const double*, Heatmaps, double, double, double*);
    """,
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_architecture_that_nvcc_lists_is_compiled_for(kernel, tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    numbers = [int(x) for x in re.findall(r"compute_(\d+)$", listed.stdout, re.MULTILINE)]
    numbers = [x for x in numbers if 75 <= x <= 90]
    assert numbers
    source = tmp_path / "kernels.cu"
    source.write_text(
        f'#include "{kernel}_kernel.cuh"\n'
        "using namespace centripetalnet;\nusing namespace centripetalnet::gpu;\n"
        + INSTANCES[kernel]
    )

    targets = [f"-gencode=arch=compute_{x},code=sm_{x}" for x in numbers]
    command = [nvcc, "-std=c++17", "-O3", "--threads", "2", f"-I{CSRC}", *targets]
    command += ["-c", str(source), "-o", str(tmp_path / "kernels.o")]
    result = subprocess.run(command, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def run_on_cpu(tmp_path_factory):
    """Compiles kernels for the CPU and runs them, with one CPU thread per CUDA thread."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs g++ or clang++ on Linux")

    def run(kernel, source, *options, quick=False):
        folder = tmp_path_factory.mktemp("cuda_on_cpu")
        (folder / f"{kernel}_kernel.cuh").write_text(source)
        command = [compiler, "-std=c++20", "-O1", "-g", "-w", "-pthread", *options]
        test = Path(__file__).with_name(f"{kernel}_cuda_on_cpu.cpp")
        binary = folder / "test"
        folders = [f"-I{folder}", f"-I{CSRC}"]
        subprocess.run([*command, *folders, str(test), "-o", str(binary)], check=True)
        arguments = ["quick"] if quick else []
        return subprocess.run([str(binary), *arguments], capture_output=True, text=True)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_are_right_and_free_of_races_on_the_cpu(kernel, run_on_cpu):
    source = (CSRC / f"{kernel}_kernel.cuh").read_text()

    result = run_on_cpu(kernel, source, "-fsanitize=thread")

    assert result.returncode == 0, result.stdout + result.stderr


def barriers_in(kernel):
    source = (CSRC / f"{kernel}_kernel.cuh").read_text()
    return [match.span() for match in re.finditer(r"__syncthreads\(\);", source)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel, index", [(kernel, i) for kernel in KERNELS for i in range(len(barriers_in(kernel)))]
)
def test_each_missing_barrier_is_detected(kernel, index, run_on_cpu):
    source = (CSRC / f"{kernel}_kernel.cuh").read_text()
    start, end = barriers_in(kernel)[index]

    result = run_on_cpu(kernel, source[:start] + source[end:], "-fsanitize=thread", quick=True)

    assert "data race" in result.stderr
