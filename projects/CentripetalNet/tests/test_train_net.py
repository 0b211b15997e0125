"""Training and evaluation from the command line, on a few images."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from training import ANYWHERE, TINY, TINY_MASK, arguments

from centripetalnet.data import load_config
from centripetalnet.engine import Trainer, main, setup
from centripetalnet.modeling import optimize_for_inference
from centripetalnet.predictor import Predictor


@pytest.fixture(scope="module")
def trained(datasets, tmp_path_factory):
    """The folder of a short training."""
    output = tmp_path_factory.mktemp("trained")
    main(arguments(output, "SOLVER.MAX_ITER", "6", "SOLVER.IMS_PER_BATCH", "2", *ANYWHERE))
    return output


def test_training_leaves_a_checkpoint_finite_losses_and_results(trained):
    lines = (trained / "metrics.json").read_text().splitlines()
    losses = [json.loads(line) for line in lines if "total_loss" in line]
    assert losses and all(np.isfinite(x["total_loss"]) for x in losses)
    names = {"loss_heatmap", "loss_offset", "loss_guiding_shift", "loss_centripetal_shift"}
    assert names <= set(losses[-1])
    checkpoint = torch.load(trained / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 5
    last = {key: value for line in lines for key, value in json.loads(line).items()}
    assert {"bbox/AP", "bbox_TTA/AP"} <= set(last)
    assert (trained / "training.png").exists()


@pytest.mark.parametrize(
    "sizes", [(), ("INPUT.MIN_SIZE_TEST", "48", "INPUT.MAX_SIZE_TEST", "60")], ids=["kept", "small"]
)
def test_result_file_has_the_boxes_of_each_image(trained, tmp_path, sizes):
    opts = ["MODEL.WEIGHTS", str(trained / "model_final.pth"), *ANYWHERE, *sizes]
    main(arguments(tmp_path, *opts, eval_only=True))

    for folder, tta in (("inference", False), ("inference_TTA", True)):
        cfg = load_config(str(TINY), [*opts, "TEST.AUG.ENABLED", tta])
        predictor = Predictor(cfg)
        detections = json.loads((tmp_path / folder / "coco_instances_results.json").read_text())
        for record in DatasetCatalog.get("silhouettes_val"):
            instances = predictor(cv2.imread(record["file_name"]))["instances"]
            found = [x for x in detections if x["image_id"] == record["image_id"]]
            corners = instances.pred_boxes.tensor
            boxes = torch.cat((corners[:, :2], corners[:, 2:] - corners[:, :2]), dim=1)
            assert len(found) == len(boxes) > 0
            torch.testing.assert_close(
                torch.tensor([x["bbox"] for x in found]), boxes, atol=1e-3, rtol=0
            )
            # Category ids in the file start at 1.
            classes = [x["category_id"] - 1 for x in found]
            assert classes == instances.pred_classes.tolist()


def test_a_dataset_without_annotations_gets_its_submission_file(datasets, trained, tmp_path):
    content = json.loads((datasets / "silhouettes" / "annotations" / "val.json").read_text())
    del content["annotations"]
    (tmp_path / "info.json").write_text(json.dumps(content))
    register_coco_instances(
        "no_annotations", {}, str(tmp_path / "info.json"), str(datasets / "silhouettes" / "val")
    )
    weights = str(trained / "model_final.pth")

    opts = ["MODEL.WEIGHTS", weights, "DATASETS.TEST", "('no_annotations',)"]
    main(arguments(tmp_path, *opts, eval_only=True))

    log = (tmp_path / "log.txt").read_text()
    for folder in ("inference", "inference_TTA"):
        path = tmp_path / folder / "coco_instances_results.json"
        assert json.loads(path.read_text())
        assert f"{path} holds the detections to submit" in log


@pytest.fixture
def damaged_val(datasets, tmp_path):
    """A dataset with an invalid annotation."""
    content = json.loads((datasets / "silhouettes" / "annotations" / "val.json").read_text())
    content["annotations"][0]["category_id"] = 77
    file = tmp_path / "damaged.json"
    file.write_text(json.dumps(content))
    register_coco_instances("damaged_val", {}, str(file), str(datasets / "silhouettes" / "val"))
    yield "damaged_val"
    for name in ("damaged_val", "damaged_val_usable"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    "tests, metric",
    [
        ("('silhouettes_val',)", "bbox/AP"),
        ("('silhouettes_val', 'silhouettes_train')", "silhouettes_val/bbox/AP"),
        ("('damaged_val', 'silhouettes_val')", "damaged_val/bbox/AP"),
    ],
)
def test_the_best_checkpoint_by_box_ap_is_kept(datasets, damaged_val, tmp_path, tests, metric):
    opts = ["SOLVER.MAX_ITER", "4", "SOLVER.IMS_PER_BATCH", "2", "TEST.EVAL_PERIOD", "2"]
    opts += ["DATASETS.TEST", tests, "DATALOADER.SKIP_UNUSABLE", "True"]

    main(arguments(tmp_path, *opts, "TEST.AUG.ENABLED", "False", *ANYWHERE))

    best = torch.load(tmp_path / "model_best.pth", weights_only=True)["trainer"]
    found = {
        x["iteration"]: x[metric]
        for x in map(json.loads, (tmp_path / "metrics.json").read_text().splitlines())
        if metric in x
    }
    assert best["hooks"]["BestCheckpointer"]["best_metric"] == max(found.values())
    assert best["iteration"] in (1, 3)


def test_averaged_weights_are_evaluated_and_saved_beside_the_raw_ones(datasets, tmp_path):
    opts = ["SOLVER.MAX_ITER", "4", "SOLVER.IMS_PER_BATCH", "2", "MODEL.EMA.ENABLED", "True"]
    opts += ["MODEL.EMA.DECAY", "0.5", *ANYWHERE]
    trained = tmp_path / "trained"
    main(arguments(trained, *opts))
    weights = str(trained / "model_final.pth")
    found = {}
    for folder, enabled in (("averaged", True), ("raw", False)):
        args = ["MODEL.WEIGHTS", weights, *opts, "MODEL.EMA.ENABLED", enabled]
        found[folder] = main(arguments(tmp_path / folder, *args, eval_only=True))

    checkpoint = torch.load(weights, weights_only=True)
    assert checkpoint["ema"]["updates"] == 4
    assert checkpoint["ema"]["weights"].keys() == checkpoint["model"].keys()
    last = json.loads((trained / "metrics.json").read_text().splitlines()[-1])
    for name in ("AP", "AP50"):
        assert last[f"bbox/{name}"] == pytest.approx(found["averaged"]["bbox"][name], nan_ok=True)
        assert last[f"bbox_raw/{name}"] == pytest.approx(found["raw"]["bbox"][name], nan_ok=True)
    detections = {
        folder: json.loads((path / "coco_instances_results.json").read_text())
        for folder, path in {
            "trained": trained / "inference",
            "trained raw": trained / "inference_raw",
            "trained TTA": trained / "inference_TTA",
            "averaged": tmp_path / "averaged" / "inference",
            "averaged TTA": tmp_path / "averaged" / "inference_TTA",
            "raw": tmp_path / "raw" / "inference",
        }.items()
    }
    assert detections["trained"] == detections["averaged"] != detections["raw"]
    assert detections["trained raw"] == detections["raw"]
    assert detections["trained TTA"] == detections["averaged TTA"] != []
    cfg = load_config(str(TINY), ["MODEL.WEIGHTS", weights, *opts])
    stem = Predictor(cfg).model.model.backbone.stem[0].bias
    model = Trainer.build_model(cfg)
    model.load_state_dict(checkpoint["ema"]["weights"])
    assert torch.equal(stem, optimize_for_inference(model).backbone.stem[0].bias)


def test_a_training_without_progress_ends(datasets, tmp_path, monkeypatch):
    scores = iter([10.0, 30.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr(
        Trainer, "test", lambda *args, **options: {"bbox": {"AP": next(scores)}}, raising=True
    )
    opts = ["SOLVER.MAX_ITER", "12", "SOLVER.IMS_PER_BATCH", "2", "TEST.EVAL_PERIOD", "2"]
    opts += ["SOLVER.PATIENCE", "2", "TEST.AUG.ENABLED", "False"]

    main(arguments(tmp_path, *opts))

    assert next(scores) == 40.0
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 7
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["iteration"] == 3
    log = (tmp_path / "log.txt").read_text()
    assert "ends after iteration 7" in log and "Traceback" not in log
    assert (tmp_path / "training.png").exists()
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_a_damaged_dataset_is_refused_or_trained_on_without_invalid_entries(datasets, tmp_path):
    shutil.copytree(datasets / "silhouettes", tmp_path / "damaged")
    file = tmp_path / "damaged" / "annotations" / "train.json"
    content = json.loads(file.read_text())
    gone, cut = (tmp_path / "damaged" / "train" / content["images"][i]["file_name"] for i in (0, 1))
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-200])
    content["annotations"][-1]["bbox"][0] = -1000
    file.write_text(json.dumps(content))
    register_coco_instances("damaged", {}, str(file), str(cut.parent))
    opts = ["DATASETS.TRAIN", "('damaged',)", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "12"]

    with pytest.raises(ValueError, match=f"{gone.name}(.|\n)*SKIP_UNUSABLE True"):
        main(arguments(tmp_path, *opts))
    main(arguments(tmp_path, *opts, "DATALOADER.SKIP_UNUSABLE", "True"))

    log = (tmp_path / "log.txt").read_text()
    assert "Left out 1 of 16 images of damaged" in log
    assert f"Skipped an image: cannot read the image {cut}" in log
    lines = map(json.loads, (tmp_path / "metrics.json").read_text().splitlines())
    # 96 samples are six passes over the other fifteen images.
    assert max(x.get("images_left_out", 0) for x in lines) >= 5


def test_a_damaged_dataset_is_refused_or_evaluated_without_invalid_entries(
    damaged_val, trained, tmp_path
):
    opts = ["DATASETS.TEST", "('damaged_val',)", "MODEL.WEIGHTS", trained / "model_final.pth"]

    with pytest.raises(ValueError, match="category_id is 77"):
        main(arguments(tmp_path, *opts, eval_only=True))
    results = main(arguments(tmp_path, *opts, "DATALOADER.SKIP_UNUSABLE", "True", eval_only=True))

    assert set(results) == {"bbox", "bbox_TTA"}
    log = (tmp_path / "log.txt").read_text()
    assert len(re.findall(r"Left out 1 of \d+ annotations", log)) == 1


@pytest.mark.parametrize(
    "opts, error, message",
    [
        (["MODEL.CENTRIPETALNET.NUM_CLASSES", "80"], ValueError, "silhouettes_.*has 5 classes"),
        (["DATASETS.TRAIN", "('no_such_set',)"], LookupError, "no_such_set"),
        (["SOLVER.OPTIMIZER", "LION"], ValueError, "LION"),
        (["SOLVER.AMP.PRECISION", "float16"], ValueError, "AMP.PRECISION is 'float16'.*cpu"),
    ],
)
def test_a_config_that_cannot_be_trained_is_an_error_at_once(
    datasets, tmp_path, opts, error, message
):
    with pytest.raises(error, match=message):
        main(arguments(tmp_path, *opts))


def test_evaluation_without_a_checkpoint_is_an_error(datasets, tmp_path):
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS"):
        main(arguments(tmp_path, "MODEL.WEIGHTS", "", eval_only=True))


def test_the_norm_of_the_whole_gradient_is_clipped_as_the_config_says(datasets, tmp_path):
    trainer = Trainer(setup(arguments(tmp_path, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "7.0")))

    assert trainer._trainer.max_gradient_norm == 7.0


def test_the_released_recipe_is_scaled_to_the_number_of_workers():
    cfg = Trainer.auto_scale_workers(config(), 8)

    assert cfg.SOLVER.IMS_PER_BATCH == 48
    assert cfg.SOLVER.BASE_LR == pytest.approx(2.5e-4)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (513040, (464170,))


@pytest.mark.parametrize("reference", [16, -2])
def test_a_batch_size_that_the_reference_workers_do_not_divide_is_refused(reference):
    cfg = config(SOLVER__IMS_PER_BATCH=20, SOLVER__REFERENCE_WORLD_SIZE=reference)

    with pytest.raises(ValueError, match=rf"is 20.*{reference}.*REFERENCE_WORLD_SIZE 0"):
        Trainer.auto_scale_workers(cfg, 8)


def test_a_training_logs_its_scaled_batch_size_and_learning_rate(datasets, tmp_path):
    opts = ["SOLVER.MAX_ITER", "2", "SOLVER.BASE_LR", "0.004", "DATASETS.TEST", "()"]
    opts += ["SOLVER.IMS_PER_BATCH", "8", "SOLVER.REFERENCE_WORLD_SIZE", "4"]
    main(arguments(tmp_path, *opts))

    log = (tmp_path / "log.txt").read_text()
    assert "Iterations 0 to 8: 2 images each (1 processes with 2), base learning rate 0.001" in log
    assert "scaled from SOLVER.IMS_PER_BATCH 8, BASE_LR 0.004 and MAX_ITER 2" in log


def test_masks_are_trained_and_evaluated(datasets, tmp_path):
    opts = ["SOLVER.MAX_ITER", "6", "SOLVER.IMS_PER_BATCH", "2", *ANYWHERE]
    opts += ["MODEL.CENTRIPETALNET.MASK.START_ITER", "3", "DATASETS.TEST", "()"]
    main(arguments(tmp_path, *opts, config_file=TINY_MASK))

    opts = ["MODEL.WEIGHTS", str(tmp_path / "model_final.pth"), *ANYWHERE]
    results = main(arguments(tmp_path, *opts, eval_only=True, config_file=TINY_MASK))

    assert set(results) == {"bbox", "segm", "bbox_TTA", "segm_TTA"}
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert any(json.loads(line).get("loss_mask", 0) > 0 for line in lines)
    for folder in ("inference", "inference_TTA"):
        detections = json.loads((tmp_path / folder / "coco_instances_results.json").read_text())
        assert detections and all("counts" in x["segmentation"] for x in detections)
