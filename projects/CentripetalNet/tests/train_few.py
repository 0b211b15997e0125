"""train_net.py on a few pictures, in processes of its own, which a test may disturb.

    train_few.py FOLDER_OF_THE_DATASET [options of train_net.py]

The environment variable DISTURB makes something go wrong: "stall_while_saving NAME" stops in the
middle of writing a checkpoint, "hang RANK ITERATION" has one process stand still. Each process
leaves its weights before and after the training, and its last gradients, in OUTPUT_DIR/rankN.pth,
and notes its number in OUTPUT_DIR/rankN.pid.
"""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from conftest import FEW
from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm

from centripetalnet import engine
from centripetalnet.checkpoint import checkpointer
from centripetalnet.data.datasets import register_silhouettes

# Of what processes that wait for each other put up with.
TIMEOUT = timedelta(seconds=20)


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
    elif what == "hang":
        rank, iteration = map(int, details)
        run_step = engine.Trainer.run_step

        def hang(self):
            if (comm.get_rank(), self.iter) == (rank, iteration):
                wait_to_be_killed(output)
            run_step(self)

        engine.Trainer.run_step = hang
    else:
        raise ValueError(f"DISTURB: unknown {what!r}")


def work(args, root: str) -> None:
    register_silhouettes(root, FEW)
    output = Path(args.opts[args.opts.index("OUTPUT_DIR") + 1])
    (output / f"rank{comm.get_rank()}.pid").write_text(str(os.getpid()))
    if os.environ.get("DISTURB"):
        disturb(output, *os.environ["DISTURB"].split())
    trainers = []
    init = engine.Trainer.__init__

    def note(self, cfg):
        init(self, cfg)
        trainers.append(self)
        self.first_weights = {k: v.clone() for k, v in self.model.state_dict().items()}

    engine.Trainer.__init__ = note
    engine.main(args)
    for trainer in trainers:
        content = {
            "first": trainer.first_weights,
            "last": trainer.model.state_dict(),
            "gradients": {name: x.grad for name, x in trainer.model.named_parameters()},
        }
        torch.save(content, output / f"rank{comm.get_rank()}.pth")


if __name__ == "__main__":
    args = default_argument_parser().parse_args(sys.argv[2:])
    launch(
        work,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url if args.num_machines > 1 else "auto",
        args=(args, sys.argv[1]),
        timeout=TIMEOUT,
    )
