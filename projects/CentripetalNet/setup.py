"""Build and install centripetalnet with its compiled operators.

The CUDA kernels are built where a GPU and the CUDA toolkit are found; FORCE_CUDA=1 builds them
without a GPU, for a machine that only compiles. Where no operator can be compiled, the build says
why and the package is installed without them; with FORCE_CUDA=1 that is an error.
CENTRIPETALNET_SANITIZE=1 makes a library that
finds wrong addresses and undefined operations, which `make sanitize` tests with.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import find_packages, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

# Paths of sources must be relative to this file, or setuptools writes objects beside the sources.
CSRC = Path("centripetalnet/layers/csrc")
# An undefined operation ends the process as a wrong address does, or nobody would see it in a test.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# Compute capabilities to compile for where no GPU says which: Turing, Ampere, Hopper.
CUDA_ARCHITECTURES = ("7.5", "8.0", "8.6", "9.0")


def cuda_architectures(nvcc):
    """TORCH_CUDA_ARCH_LIST for GPUs that are not there: what nvcc knows, and PTX for newer ones."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = re.findall(r"compute_(\d+)(\d)$", listed.stdout, re.MULTILINE)
    architectures = [x for x in CUDA_ARCHITECTURES if tuple(x.split(".")) in known]
    if not architectures:
        raise RuntimeError(
            f"{nvcc} compiles for none of the architectures {', '.join(CUDA_ARCHITECTURES)}; set "
            "TORCH_CUDA_ARCH_LIST"
        )
    return ";".join(architectures) + "+PTX"


class BuildKernels(BuildExtension):
    """PyTorch's build, whose failure is the end of the installation only if so asked."""

    def run(self):
        # What an earlier build left would be taken for this one's.
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
            # PyTorch asks the GPUs.
            if has_cuda and not torch.cuda.device_count():
                if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
                    architectures = cuda_architectures(os.path.join(CUDA_HOME, "bin", "nvcc"))
                    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures
                    print(f"No GPU is visible: TORCH_CUDA_ARCH_LIST is {architectures}")
            super().build_extensions()
        # Every compiler and build tool fails in its own way.
        except Exception as error:
            if not extension.optional:
                raise
            print(
                f"The operators were not compiled: {type(error).__name__}: {error}\n"
                "centripetalnet is installed without them and runs in PyTorch's own operators."
            )


def get_extension():
    sources = sorted(str(path) for path in CSRC.glob("*.cpp"))
    # Without debug information the build takes half the time and the library a tenth of the size.
    compile_args = {"cxx": ["-O3", "-g0"]}
    sanitized = os.environ.get("CENTRIPETALNET_SANITIZE") == "1"
    if sanitized:
        # Python's own flags define what an overflow does, so that none would be found.
        checked = ["-fno-omit-frame-pointer", "-fno-wrapv", *SANITIZERS]
        compile_args["cxx"] = ["-O1", "-g", *checked]
    if sys.platform.startswith("linux"):
        # For at::parallel_for. Compiling only: linking would bring a second OpenMP runtime beside
        # the one that torch has loaded.
        compile_args["cxx"].append("-fopenmp")
    forced = os.environ.get("FORCE_CUDA") == "1"
    with_cuda = (torch.cuda.is_available() and CUDA_HOME is not None) or forced
    # The sanitizers see the CPU's memory alone.
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
        # Who asks for these has no use for an installation without them.
        optional=not (forced or sanitized),
    )


setup(
    name="centripetalnet",
    version="0.1.0",
    description="CentripetalNet object detection for Detectron2",
    license="Apache-2.0",
    python_requires=">=3.8",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=[
        *find_packages(include=["centripetalnet", "centripetalnet.*"]),
        "centripetalnet.configs",
    ],
    # In the repository the configs lie beside the package, as in Detectron2's other projects.
    package_dir={"centripetalnet.configs": "configs"},
    package_data={"centripetalnet.configs": ["*.yaml", "*/*.yaml"]},
    entry_points={
        "console_scripts": [
            "centripetalnet-check = centripetalnet.commands.check:main",
            "centripetalnet-convert = centripetalnet.commands.convert:main",
            "centripetalnet-demo = centripetalnet.commands.demo:main",
            "centripetalnet-export = centripetalnet.commands.export:main",
            "centripetalnet-train = centripetalnet.commands.train:main",
        ]
    },
    # Detectron2 and OpenCV are needed too, but each is distributed under several names (its own
    # main branch or a rebuilt wheel; opencv-python, -headless, -contrib), and naming one here would
    # install it over the one that is already there.
    install_requires=[
        "torch>=2.1",
        "fvcore",
        "pycocotools",
        "numpy",
        "Pillow",
        "PyYAML",
        "safetensors",
        "tqdm",
    ],
    ext_modules=[get_extension()],
    # It takes ninja where that is installed.
    cmdclass={"build_ext": BuildKernels},
    zip_safe=False,
)
