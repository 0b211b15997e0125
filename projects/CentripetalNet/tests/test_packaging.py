"""A wheel and a source distribution work outside the repository."""

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

COMMANDS = ["check", "convert", "demo", "export", "train"]
# Built, cached or downloaded files in the source tree.
LEFTOVERS = ("*.so", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
LEFTOVER_FOLDERS = {"build", "dist", "datasets", "output"}

USE = """
import importlib
import os
import sys

import torch

import centripetalnet
from centripetalnet.config_files import packaged_configs
from centripetalnet.config import load_config
from centripetalnet.layers import corner_pool
from centripetalnet.layers.extension import PROBLEM

library = importlib.import_module("centripetalnet._C").__file__
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
    """Runs a command that must succeed, without variables that lead to the repository."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    # PyTorch compiles on all cores only with ninja on the PATH.
    environment["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
    return result.stdout


def make_environment(folder):
    """A virtual environment with the packages of this one, except editable installations.

    Returns:
        Its folder of executables.
    """
    venv.create(folder, with_pip=True)
    executables = folder / ("Scripts" if os.name == "nt" else "bin")
    found = [x for x in sys.path if Path(x).name in ("site-packages", "dist-packages")]
    # These may be editable installations.
    found += [str(Path(x.__file__).parents[1]) for x in (torch, detectron2)]
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = call(executables / "python", "-c", code, cwd=folder).strip()
    # Python ignores .pth files in folders that a .pth file adds.
    Path(packages, "packages_of_tests.pth").write_text("\n".join(dict.fromkeys(found)))
    return executables


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the project without built files."""
    copy = tmp_path_factory.mktemp("source") / "CentripetalNet"

    def left_out(folder, names):
        found = shutil.ignore_patterns(*LEFTOVERS)(folder, names)
        return found | (LEFTOVER_FOLDERS if Path(folder) == PROJECT else set())

    return shutil.copytree(PROJECT, copy, ignore=left_out)


@pytest.fixture(params=["wheel", "sdist"])
def installed(request, source, tmp_path):
    """The executables of an environment into which the project was installed."""
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
    # Does not touch an installation outside this environment.
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

    paths = CONFIGS.rglob("centripetal_*.yaml")
    assert sorted(names) == sorted(x.stem for x in paths)
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = Path(call(installed / "python", "-c", code, cwd=elsewhere).strip())
    (license,) = packages.glob("centripetalnet-*.dist-info/**/LICENSE")
    assert license.read_bytes() == (PROJECT / "LICENSE").read_bytes()
    assert os.listdir(elsewhere) == []


def test_the_license_is_that_of_the_repository():
    if not (PROJECT.parents[1] / "dev").is_dir():
        pytest.skip("the project is outside its repository")

    assert (PROJECT / "LICENSE").read_bytes() == (PROJECT.parents[1] / "LICENSE").read_bytes()
