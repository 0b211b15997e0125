"""Says why objects were missed, over a whole dataset, in one HTML page.

    %(prog)s --config-file FILE MODEL.WEIGHTS model.pth --output FOLDER

It writes FOLDER/report.html and report.json of the dataset of DATASETS.TEST, without masks.
"""

import argparse
import time

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from pycocotools.coco import COCO

from centripetalnet.commands.common import command
from centripetalnet.data import CentripetalNetDatasetMapper
from centripetalnet.engine import Trainer, setup
from centripetalnet.engine.evaluation import with_usable_tests
from centripetalnet.engine.launch import argument_parser, launch_processes
from centripetalnet.engine.train_net import share_cores
from centripetalnet.modeling import CentripetalNet, CentripetalNetWithTTA
from centripetalnet.predictor import Predictor
from centripetalnet.report import Objects, SceneEvaluator, write_report


def get_parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="path or name of a config file")
    add("--output", required=True, metavar="FOLDER", help="folder of the report")
    add("--tta", action="store_true", help="with the flips and scales of TEST.AUG")
    add("--speed", action="store_true", help="also AP and time with and without TEST.AUG")
    add("--num-gpus", type=int, default=1, help="processes, on the CPU too (default 1)")
    add("opts", nargs="*", help="changes to the config as KEY VALUE pairs, with MODEL.WEIGHTS")
    return parser


def run(args: argparse.Namespace) -> None:
    """Writes the report. Args: of :func:`get_parser`."""
    opts = [*args.opts, "OUTPUT_DIR", args.output, "TEST.AUG.ENABLED", str(args.tta)]
    defaults = vars(argument_parser().parse_args([]))
    launch_processes(write, argparse.Namespace(**{**defaults, **vars(args), "opts": opts}))


def write(args: argparse.Namespace) -> None:
    """Evaluates and writes the report; runs in each process."""
    cfg = setup(args)
    share_cores(cfg, args.num_gpus)
    if len(cfg.DATASETS.TEST) != 1:
        raise ValueError(f"DATASETS.TEST is {cfg.DATASETS.TEST}; expected one, as ('name',)")
    usable = with_usable_tests(cfg)
    name = usable.DATASETS.TEST[0]
    detector = Predictor(cfg).model
    model = detector.model if args.tta else detector
    model.mask_head = None
    loader, metadata = Trainer.build_test_loader(usable, name), MetadataCatalog.get(name)
    # Writes the annotation file of a dataset without one.
    Trainer.build_evaluator(usable, name)
    names = metadata.thing_classes
    class_of = metadata.get("thing_dataset_id_to_contiguous_id", {i: i for i in range(len(names))})
    objects = Objects(COCO(metadata.json_file), class_of, names)
    about = {"folder": args.output, "dataset": cfg.DATASETS.TEST[0], "weights": cfg.MODEL.WEIGHTS}
    # Before the model is observed, which takes time.
    about["settings"] = _measure_settings(cfg, usable, model) if args.speed else []
    about["tta"] = args.tta
    scenes = inference_on_dataset(detector, loader, SceneEvaluator(detector, objects))
    if comm.is_main_process():
        records = {x["image_id"]: x for x in DatasetCatalog.get(name)}
        mapper = CentripetalNetDatasetMapper(cfg, is_train=False)
        print(write_report(about, objects, scenes, model, lambda x: mapper(records[x])))


def _measure_settings(cfg: CfgNode, usable: CfgNode, model: CentripetalNet) -> list[dict]:
    """AP and seconds per image, the evaluation included, with and without flips and scales."""
    scales, name, measured = list(cfg.TEST.AUG.SCALES), usable.DATASETS.TEST[0], []
    settings = {"none": (False, []), "flips": (True, [1.0])}
    if scales != [1.0]:
        settings.update({"scales": (False, scales), "flips and scales": (True, scales)})
    for key, (flip, scales) in settings.items():
        detector = CentripetalNetWithTTA(model, flip=flip, scales=scales) if scales else model
        loader, start = Trainer.build_test_loader(usable, name), time.perf_counter()
        found = inference_on_dataset(detector, loader, Trainer.build_evaluator(usable, name))
        seconds = (time.perf_counter() - start) / max(len(loader.dataset), 1)
        measured.append({"name": key, "AP": found.get("bbox", {}).get("AP"), "seconds": seconds})
    return measured


main = command(get_parser, run)
