"""Builds the operators for this machine's GPU, checks them there and measures the detector.

Each step runs in a process of its own with a time limit; after a failed one come the others. The
results so far are in gpu_report.json and gpu_report.md of the output folder, the output of a step
in STEP.log. The exit status is 1 if a step failed or a goal was missed.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Optional

import detectron2
import torch
from tabulate import tabulate

from centripetalnet.commands.common import command
from centripetalnet.commands.gpu_steps import PROJECT, SANITIZER, STEPS
from centripetalnet.commands.measuring import Row, table
from centripetalnet.io.files import atomic_file

PASSED, MISSED = "passed", "missed a goal"
NEEDS_GPU = ("build", "several_gpus", "sanitizer")
NUM_LAST_LINES = 30


@dataclass
class Result:
    """What came of a step."""

    step: str
    result: str
    # None if it was not run.
    seconds: Optional[float] = None
    limit: Optional[float] = None
    rows: list[Row] = field(default_factory=list)
    # The last lines, if it failed.
    output: str = ""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output/gpu", help="folder of the report")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument(
        "--dry-run", action="store_true", help="run the steps on the CPU with small inputs"
    )
    return parser


def machine(is_dry: bool) -> dict[str, str]:
    """What the figures depend on."""
    gpus = "not used"
    if not is_dry:
        query = "--query-gpu=name,memory.total,driver_version"
        gpus = subprocess.check_output(["nvidia-smi", query, "--format=csv,noheader"], text=True)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "system": f"{platform.system()}, {platform.machine()}, {os.cpu_count()} CPU cores",
        "GPUs, memory, driver": "; ".join(gpus.splitlines()),
        "Python": platform.python_version(),
        "PyTorch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "Detectron2": detectron2.__version__,
    }


def environment_of(folder: str, is_dry: bool) -> dict[str, str]:
    """Environment variables of the steps."""
    datasets = os.path.join(os.path.dirname(folder), "datasets")
    # The default is the folder of `make demo`.
    environment = {"DETECTRON2_DATASETS": datasets, "PYTHONPATH": "", **os.environ}
    environment["PYTHONPATH"] = f"{PROJECT}{os.pathsep}{environment['PYTHONPATH']}"
    if is_dry:
        # For peak_megabytes: freed tensors return to the system.
        return {**environment, "CUDA_VISIBLE_DEVICES": "", "MALLOC_MMAP_THRESHOLD_": "65536"}
    toolkit = environment.get("CUDA_HOME", "/usr/local/cuda")
    environment["PATH"] += os.pathsep + os.path.join(toolkit, "bin")
    return environment


def missing(step: str, is_dry: bool, path: str) -> Optional[str]:
    """What the machine lacks for a step."""
    if is_dry and step in NEEDS_GPU:
        return "needs a GPU"
    if step == "several_gpus" and torch.cuda.device_count() < 2:
        return "needs two GPUs"
    if step == "sanitizer" and shutil.which(SANITIZER, path=path) is None:
        return f"{SANITIZER} is not installed"
    return None


def run_step(
    step: str, call: list[str], limit: float, folder: str, environment: dict[str, str]
) -> Result:
    """Runs a step in a process group that is killed after its time.

    Args:
        step: its name.
        call: its command. ``--rows FILE`` is added, to which it writes its rows.
        limit: seconds.
        folder: of the log.
        environment: its environment variables.
    """
    log, rows = Path(folder, f"{step}.log"), Path(folder, f"{step}.rows")
    rows.write_bytes(b"")
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*call, "--rows", str(rows)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
            result = PASSED if status == 0 else f"failed with exit status {status}"
        except subprocess.TimeoutExpired:
            result = f"killed after {limit:g} s"
        finally:
            # Children of an ended step, too.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.perf_counter() - start
    # The last line of a killed step may be incomplete.
    *complete, _ = rows.read_text(encoding="utf-8").split("\n")
    rows.unlink()
    measured = [Row(**json.loads(x)) for x in complete]
    last_lines = ""
    if result == PASSED:
        result = MISSED if any(x.met is False for x in measured) else PASSED
    else:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        last_lines = "\n".join(lines[-NUM_LAST_LINES:])
    return Result(step, result, seconds, limit, measured, last_lines)


def write_report(folder: str, about: dict[str, str], is_dry: bool, results: list[Result]) -> None:
    """Writes gpu_report.json and gpu_report.md."""
    with atomic_file(os.path.join(folder, "gpu_report.json")) as file:
        content = {"dry_run": is_dry, "machine": about, "steps": [asdict(x) for x in results]}
        json.dump(content, file, indent=2)
    summary = [
        (x.step, x.result, *(f"{y:.0f}" if y else "" for y in (x.seconds, x.limit)))
        for x in results
    ]
    parts = ["# GPU report", tabulate(about.items(), ["machine", ""], "github")]
    if is_dry:
        parts.append("A dry run: small inputs on the CPU. The goals are those of a GPU.")
    parts.append(tabulate(summary, ["step", "result", "seconds", "limit"], "github"))
    for x in results:
        if x.rows or x.output:
            parts += [f"## {x.step}", table(x.rows) if x.rows else ""]
            parts.append(f"```\n{x.output}\n```" if x.output else "")
    with atomic_file(os.path.join(folder, "gpu_report.md")) as file:
        file.write("\n\n".join(filter(None, parts)) + "\n")


def run(args: argparse.Namespace) -> int:
    """Runs the steps.

    Args:
        args: of :func:`get_parser`.

    Returns:
        1 if a step failed or a goal was missed, else 0.

    Raises:
        ValueError: if there is no GPU and this is no dry run.
        FileNotFoundError: outside the repository, whose tests the steps run.
    """
    if not (args.dry_run or torch.cuda.is_available()):
        raise ValueError(
            f"PyTorch {torch.__version__} finds no GPU. --dry-run runs the steps on the CPU."
        )
    if not (PROJECT / "tests").is_dir():
        raise FileNotFoundError(f"there are no tests at {PROJECT}. Call it in the repository.")
    folder = os.path.abspath(args.output)
    os.makedirs(folder, exist_ok=True)
    environment = environment_of(folder, args.dry_run)
    about, results = machine(args.dry_run), []
    for step in (x for x in STEPS if x in args.only):
        print(f"{step} ... ", end="", flush=True)
        lack = missing(step, args.dry_run, environment["PATH"])
        call = [sys.executable, "-m", "centripetalnet.commands.gpu_steps", step]
        call += ["--dry-run"] if args.dry_run else []
        limit = STEPS[step][1]
        results.append(
            Result(step, lack) if lack else run_step(step, call, limit, folder, environment)
        )
        print(f"{results[-1].result}, {results[-1].seconds or 0:.0f} s", flush=True)
        write_report(folder, about, args.dry_run, results)
    print(f"\nreport  {os.path.join(folder, 'gpu_report.md')}")
    return int(any(x.seconds is not None and x.result != PASSED for x in results))


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
