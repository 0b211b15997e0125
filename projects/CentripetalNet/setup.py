"""Build and install centripetalnet with its compiled operators.

The CUDA kernels are built if a GPU and the CUDA toolkit are found, or with FORCE_CUDA=1 without a
GPU. If the operators cannot be compiled, the build prints the reason and installs the package
without them; with FORCE_CUDA=1 that is an error. CENTRIPETALNET_SANITIZE=1 builds with
AddressSanitizer and UndefinedBehaviorSanitizer, for `make sanitize`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import find_packages, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

# Paths of sources must be relative to this file, or setuptools writes objects next to the sources.
CSRC = Path("centripetalnet/layers/csrc")
# Undefined behaviour ends the process, as a wrong address does, so that tests fail.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# Compute capabilities to compile for without a GPU: Turing, Ampere, Hopper.
CUDA_ARCHITECTURES = ("7.5", "8.0", "8.6", "9.0")


def cuda_architectures(nvcc):
    """TORCH_CUDA_ARCH_LIST without a GPU: what nvcc supports, and PTX for newer GPUs."""
    try:
        listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(
            f"{nvcc} cannot be run: {error}. CUDA_HOME is {CUDA_HOME}. Set it to the folder of the "
            "CUDA toolkit."
        ) from error
    if listed.returncode:
        raise RuntimeError(f"{nvcc} --list-gpu-arch failed: {listed.stderr or listed.stdout}")
    known = re.findall(r"compute_(\d+)(\d)$", listed.stdout, re.MULTILINE)
    architectures = [x for x in CUDA_ARCHITECTURES if tuple(x.split(".")) in known]
    if not architectures:
        raise RuntimeError(
            f"{nvcc} supports none of the architectures {', '.join(CUDA_ARCHITECTURES)}. Set "
            "TORCH_CUDA_ARCH_LIST."
        )
    return ";".join(architectures) + "+PTX"


class BuildKernels(BuildExtension):
    """PyTorch's build; a failure is an error only if the extension is not optional."""

    def run(self):
        # After a failure the library of an earlier build would be installed.
        for extension in self.extensions:
            name = self.get_ext_filename(extension.name)
            for path in [os.path.join(self.build_lib, name), *([name] if self.inplace else [])]:
                if os.path.exists(path):
                    os.remove(path)
        super().run()

    def build_extensions(self):
        (extension,) = self.extensions
        has_cuda = any(x.endswith(".cu") for x in extension.sources)
        try:
            # PyTorch reads the architectures from visible GPUs only.
            if has_cuda and not torch.cuda.device_count():
                if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
                    architectures = cuda_architectures(os.path.join(CUDA_HOME, "bin", "nvcc"))
                    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures
                    print(f"No GPU is visible: TORCH_CUDA_ARCH_LIST is {architectures}")
            super().build_extensions()
        # Compilers and build tools raise many types of errors.
        except Exception as error:
            if not extension.optional:
                raise
            print(
                f"The operators were not compiled: {type(error).__name__}: {error}\n"
                "centripetalnet is installed without them and runs in plain PyTorch, slower."
            )


def get_extension():
    sources = sorted(str(path) for path in CSRC.glob("*.cpp"))
    # Without debug information the build takes half the time and the library a tenth of the size.
    # Nobody reads the flags of floating point exceptions; keeping them exact prevents GCC from
    # vectorising loops with conditions.
    compile_args = {"cxx": ["-O3", "-g0", "-fno-trapping-math"]}
    sanitized = os.environ.get("CENTRIPETALNET_SANITIZE") == "1"
    if sanitized:
        # Python's own -fwrapv would hide signed overflows.
        checked = ["-fno-omit-frame-pointer", "-fno-wrapv", *SANITIZERS]
        compile_args["cxx"] = ["-O1", "-g", *checked]
    if sys.platform.startswith("linux"):
        # For at::parallel_for. Not for linking, which would load a second OpenMP runtime.
        compile_args["cxx"].append("-fopenmp")
    forced = os.environ.get("FORCE_CUDA") == "1"
    with_cuda = (torch.cuda.is_available() and CUDA_HOME is not None) or forced
    # The sanitizers check the CPU's memory only.
    with_cuda = with_cuda and not sanitized
    if with_cuda:
        sources += sorted(str(path) for path in CSRC.glob("*.cu"))
        compile_args["nvcc"] = ["-O3"]
    extension = CUDAExtension if with_cuda else CppExtension
    return extension(
        "centripetalnet._C",
        sources,
        extra_compile_args=compile_args,
        extra_link_args=SANITIZERS if sanitized else [],
        # Explicitly requested builds must not be skipped.
        optional=not (forced or sanitized),
    )


setup(
    name="centripetalnet",
    version="0.1.0",
    description="CentripetalNet object detection for Detectron2",
    license="Apache-2.0",
    python_requires=">=3.9",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=[
        *find_packages(include=["centripetalnet", "centripetalnet.*"]),
        "centripetalnet.configs",
    ],
    # In the repository the configs are next to the package, as in Detectron2's other projects.
    package_dir={"centripetalnet.configs": "configs"},
    package_data={
        "centripetalnet.configs": ["*.yaml", "*/*.yaml"],
        "centripetalnet.report": ["template.html"],
    },
    entry_points={
        "console_scripts": [
            "centripetalnet-ablation = centripetalnet.commands.ablation:main",
            "centripetalnet-analyze = centripetalnet.commands.analyze:main",
            "centripetalnet-benchmark = centripetalnet.commands.benchmark:main",
            "centripetalnet-check = centripetalnet.commands.check:main",
            "centripetalnet-compare = centripetalnet.commands.compare:main",
            "centripetalnet-convert = centripetalnet.commands.convert:main",
            "centripetalnet-demo = centripetalnet.commands.demo:main",
            "centripetalnet-explain = centripetalnet.commands.explain:main",
            "centripetalnet-export = centripetalnet.commands.export:main",
            "centripetalnet-plot = centripetalnet.commands.plot:main",
            "centripetalnet-report = centripetalnet.commands.report:main",
            "centripetalnet-run-onnx = centripetalnet.commands.run_onnx:main",
            "centripetalnet-train = centripetalnet.commands.train:main",
            "centripetalnet-visualize-data = centripetalnet.commands.visualize_data:main",
        ]
    },
    # Detectron2 and OpenCV are needed, too. Each is distributed under several names (main branch or
    # rebuilt wheel; opencv-python, -headless, -contrib); naming one would install it over another.
    install_requires=[
        "torch>=2.3",
        "fvcore",
        "jinja2",
        "pycocotools",
        "numpy",
        "Pillow",
        "PyYAML",
        "safetensors",
        "tqdm",
    ],
    extras_require={"timm": ["timm"]},
    ext_modules=[get_extension()],
    # Uses ninja if it is installed.
    cmdclass={"build_ext": BuildKernels},
    zip_safe=False,
)
