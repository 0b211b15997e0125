"""Installed wheels and source distributions work outside the repository."""

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import detectron2
import pytest
import torch
from conftest import CONFIGS, PROJECT

COMMANDS = ["ablation", "analyze", "benchmark", "check", "compare", "convert", "demo", "explain"]
COMMANDS += ["export", "plot", "report", "run-onnx", "train", "visualize-data"]
# Build results, caches and downloads next to the sources.
LEFTOVERS = ("*.so", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
LEFTOVER_FOLDERS = {"build", "dist", "datasets", "output"}

USE = """
import importlib
import os
import sys

import torch

import centripetalnet
from centripetalnet.config import packaged_configs
from centripetalnet.data import load_config
from centripetalnet.layers import corner_pool
from centripetalnet.layers.extension import PROBLEM

library = importlib.import_module("centripetalnet._C").__file__
template = os.path.join(os.path.dirname(centripetalnet.__file__), "report", "template.html")
assert os.path.isfile(template)
for file in (centripetalnet.__file__, library, *packaged_configs().values()):
    assert os.path.realpath(file).startswith(os.path.realpath(sys.prefix)), file
assert PROBLEM is None, PROBLEM
pooled = corner_pool(torch.tensor([[[[1.0], [3.0], [2.0]]]]), "top")
assert pooled.flatten().tolist() == [3, 3, 2], pooled
for name in packaged_configs():
    config = load_config(name, ["MODEL.DEVICE", "cpu"])
    assert config.MODEL.META_ARCHITECTURE == "CentripetalNet"
    print(name)
"""


def call(*command, cwd):
    """Runs a command that has to succeed, without environment variables of the repository."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    # PyTorch compiles on all cores only if ninja is on the PATH.
    environment["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
    return result.stdout


def make_environment(folder):
    """Makes a virtual environment with this one's packages, except those installed in place.

    Returns:
        Its folder of executables.
    """
    venv.create(folder, with_pip=True)
    executables = folder / ("Scripts" if os.name == "nt" else "bin")
    found = [x for x in sys.path if Path(x).name in ("site-packages", "dist-packages")]
    # These may be installed in place.
    found += [str(Path(x.__file__).parents[1]) for x in (torch, detectron2)]
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = call(executables / "python", "-c", code, cwd=folder).strip()
    # Python does not process .pth files in folders added this way.
    Path(packages, "packages_of_tests.pth").write_text("\n".join(dict.fromkeys(found)))
    return executables


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the project without build results."""
    copy = tmp_path_factory.mktemp("source") / "CentripetalNet"

    def left_out(folder, names):
        found = shutil.ignore_patterns(*LEFTOVERS)(folder, names)
        return found | (LEFTOVER_FOLDERS if Path(folder) == PROJECT else set())

    return shutil.copytree(PROJECT, copy, ignore=left_out)


@pytest.fixture(params=["wheel", "sdist"])
def installed(request, source, tmp_path):
    """The executables of an environment with the project installed."""
    executables = make_environment(tmp_path / "environment")
    python = executables / "python"
    distributions = tmp_path / "distributions"
    if request.param == "wheel":
        options = ["--no-build-isolation", "--no-deps", "-w", distributions]
        call(python, "-m", "pip", "wheel", *options, source, cwd=tmp_path)
    else:
        call(python, "setup.py", "-q", "sdist", "-d", distributions, cwd=source)
    (distribution,) = distributions.iterdir()
    assert distribution.name.endswith(".whl" if request.param == "wheel" else ".tar.gz")
    # The project may already be visible from outside; that one must not be uninstalled.
    options = ["--no-build-isolation", "--no-deps", "--ignore-installed"]
    call(python, "-m", "pip", "install", *options, distribution, cwd=tmp_path)
    return executables


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ensurepip") is None,
    reason="this Python lacks ensurepip and cannot create an environment with pip",
)
def test_an_installation_has_its_commands_configs_operators_and_license(installed, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    for name in COMMANDS:
        usage = call(installed / f"centripetalnet-{name}", "--help", cwd=elsewhere)
        assert f"centripetalnet-{name}" in usage
    names = call(installed / "python", "-c", USE, cwd=elsewhere).split()

    paths = [x for x in CONFIGS.rglob("*.yaml") if not x.stem.startswith("Base-")]
    assert sorted(names) == sorted(x.stem for x in paths)
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = Path(call(installed / "python", "-c", code, cwd=elsewhere).strip())
    (license,) = packages.glob("centripetalnet-*.dist-info/**/LICENSE")
    assert license.read_bytes() == (PROJECT / "LICENSE").read_bytes()
    assert os.listdir(elsewhere) == []


def executable(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def build(source, tmp_path):
    """Builds the package with a failing compiler; returns the result and the folder."""
    fails = "echo this compiler knows no C++ >&2; exit 1"
    # PyTorch checks its name and version.
    script = f'case " $* " in *" -c "*) {fails};; *) echo 11.4.0;; esac'
    compiler = executable(tmp_path / "g++", script)

    def run(**environment):
        result = subprocess.run(
            [sys.executable, "setup.py", "build", "-b", tmp_path, "--build-lib", tmp_path / "lib"],
            cwd=source,
            env={**os.environ, "CXX": str(compiler), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return result, tmp_path / "lib"

    return run


@pytest.mark.skipif(os.name == "nt", reason="the compiler is a shell script")
def test_without_a_compiler_the_package_is_built_without_operators_and_runs(build, tmp_path):
    result, library = build()

    assert result.returncode == 0, result.stdout
    assert result.stdout.count("The operators were not compiled: ") == 1
    assert "this compiler knows no C++" in result.stdout
    # Without the finders of installations in place, whose library would be found.
    code = (
        "import sys, torch;"
        "sys.meta_path = [x for x in sys.meta_path if '__editable__' not in x.__module__];"
        "from centripetalnet.layers import corner_pool;"
        "print(corner_pool(torch.tensor([[[[1.0], [3.0], [2.0]]]]), 'top').flatten().tolist())"
    )
    used = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(library)},
        capture_output=True,
        text=True,
    )
    assert used.stdout == "[3.0, 3.0, 2.0]\n", used.stderr
    assert used.stderr.count("centripetalnet._C is not built.") == 1


@pytest.mark.skipif(os.name == "nt", reason="nvcc is a shell script")
@pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch was built without CUDA")
def test_cuda_is_built_for_the_usual_architectures_where_there_is_no_gpu(build, tmp_path):
    nvcc = (
        f'case "$1" in --version) echo release {torch.version.cuda},;;'
        "--list-gpu-arch) printf 'compute_70\ncompute_75\ncompute_80\ncompute_90\ncompute_100\n';;"
        "*) exit 1;; esac"
    )
    executable(tmp_path / "cuda" / "bin" / "nvcc", nvcc)
    forced = {"FORCE_CUDA": "1", "CUDA_HOME": str(tmp_path / "cuda"), "CUDA_VISIBLE_DEVICES": ""}

    chosen, _ = build(**forced, TORCH_CUDA_ARCH_LIST="")
    given, _ = build(**forced, TORCH_CUDA_ARCH_LIST="8.6")

    assert chosen.stdout.count("TORCH_CUDA_ARCH_LIST is 7.5;8.0;9.0+PTX") == 1
    assert "TORCH_CUDA_ARCH_LIST is" not in given.stdout
    # With FORCE_CUDA a failure is an error.
    for result in (chosen, given):
        assert result.returncode != 0
        assert "this compiler knows no C++" in result.stdout
        assert "IndexError" not in result.stdout


@pytest.mark.skipif(os.name == "nt", reason="nvcc is a shell script")
@pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch was built without CUDA")
def test_an_nvcc_that_fails_or_is_missing_is_named_with_its_message(build, tmp_path):
    fails = 'case "$1" in --list-gpu-arch) echo no license for nvcc >&2; exit 3;; esac'
    nvcc = executable(tmp_path / "cuda" / "bin" / "nvcc", fails)
    forced = {"FORCE_CUDA": "1", "CUDA_HOME": str(tmp_path / "cuda"), "CUDA_VISIBLE_DEVICES": ""}

    failed, _ = build(**forced, TORCH_CUDA_ARCH_LIST="")
    nvcc.unlink()
    missing, _ = build(**forced, TORCH_CUDA_ARCH_LIST="")

    assert failed.returncode != 0 and missing.returncode != 0
    assert f"{nvcc} --list-gpu-arch failed: no license for nvcc" in failed.stdout
    assert f"{nvcc} cannot be run: " in missing.stdout
    assert f"CUDA_HOME is {nvcc.parents[1]}. Set it to" in missing.stdout


def test_the_license_is_that_of_the_repository():
    if not (PROJECT.parents[1] / "dev").is_dir():
        pytest.skip("the project is not in its repository")

    assert (PROJECT / "LICENSE").read_bytes() == (PROJECT.parents[1] / "LICENSE").read_bytes()
