"""train_net.py on a few images, in separate processes that a test may disturb.

    DATASET=folder train_few.py [options of train_net.py]

The environment variable DISTURB injects a fault: "stall_while_saving NAME" stops in the middle of
writing a checkpoint, "hang RANK ITERATION" stops one process, "kill RANK ITERATION" kills it unless
torchrun has restarted it. Each process writes its weights before and after the training, and its
last gradients, to OUTPUT_DIR/rankN.pth, its id to rankN.pid, and whether its process group is
initialised at exit to rankN.end. OUTPUT_DIR/results.json contains the return value of main().
"""

import atexit
import json
import os
import signal
import time
from pathlib import Path

# First: PyTorch ignores a Ctrl-C while it imports NumPy itself.
import numpy  # noqa: F401
import torch
import torch.distributed as dist
from detectron2.utils import comm
from few_images import FEW

from centripetalnet import engine
from centripetalnet.checkpoint import checkpointer
from centripetalnet.data.datasets import register_silhouettes
from centripetalnet.engine.launch import argument_parser, launch_processes


def wait_to_be_killed(output: Path) -> None:
    (output / "disturbed").touch()
    time.sleep(600)


def disturb(output: Path, what: str, *details: str) -> None:
    if what == "stall_while_saving":
        save = torch.save

        def save_half(data, file):
            save(data, file)
            if file.name.endswith(f"{details[0]}.pth.part"):
                file.truncate(file.tell() // 2)
                wait_to_be_killed(output)

        checkpointer.torch.save = save_half
    elif what in ("hang", "kill"):
        rank, iteration = map(int, details)
        run_step = engine.Trainer.run_step

        def run_until_then(self):
            if (comm.get_rank(), self.iter) == (rank, iteration):
                if what == "hang":
                    wait_to_be_killed(output)
                elif os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                    os.kill(os.getpid(), signal.SIGKILL)
            run_step(self)

        engine.Trainer.run_step = run_until_then
    else:
        raise ValueError(f"DISTURB: unknown {what!r}")


def work(args) -> None:
    register_silhouettes(os.environ["DATASET"], FEW)
    output = Path(args.opts[args.opts.index("OUTPUT_DIR") + 1])
    (output / f"rank{comm.get_rank()}.pid").write_text(str(os.getpid()))
    end = output / f"rank{comm.get_rank()}.end"
    atexit.register(lambda: end.write_text(f"initialized {dist.is_initialized()}"))
    if os.environ.get("DISTURB"):
        disturb(output, *os.environ["DISTURB"].split())
    trainers = []
    init = engine.Trainer.__init__

    def note(self, cfg):
        init(self, cfg)
        trainers.append(self)
        self.first_weights = {k: v.clone() for k, v in self.model.state_dict().items()}

    engine.Trainer.__init__ = note
    results = engine.main(args)
    if comm.is_main_process():
        (output / "results.json").write_text(json.dumps(results))
    for trainer in trainers:
        content = {
            "first": trainer.first_weights,
            "last": trainer.model.state_dict(),
            "gradients": {name: x.grad for name, x in trainer.model.named_parameters()},
        }
        torch.save(content, output / f"rank{comm.get_rank()}.pth")


if __name__ == "__main__":
    args = argument_parser().parse_args()
    if args.num_gpus and not args.num_machines:
        args.dist_url = "auto"
    launch_processes(work, args)
