"""Build and install centripetalnet with its compiled operators.

The CUDA kernels are built where a GPU and the CUDA toolkit are found; FORCE_CUDA=1 builds them
without a GPU, for a machine that only compiles. CENTRIPETALNET_SANITIZE=1 makes a library that
finds wrong addresses and undefined operations, which `make sanitize` tests with.
"""

import os
import sys
from pathlib import Path

import torch
from setuptools import find_packages, setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

# Paths of sources must be relative to this file, or setuptools writes objects beside the sources.
CSRC = Path("centripetalnet/layers/csrc")
# An undefined operation ends the process as a wrong address does, or nobody would see it in a test.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


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
    with_cuda = (torch.cuda.is_available() and CUDA_HOME is not None) or (
        os.environ.get("FORCE_CUDA") == "1"
    )
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
    # BuildExtension takes ninja where it is installed.
    cmdclass={"build_ext": BuildExtension},
    zip_safe=False,
)
