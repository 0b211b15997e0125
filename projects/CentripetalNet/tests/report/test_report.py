"""The report of a dataset: its figures agree with COCOEvaluator's, and its page is complete."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from conftest import PROJECT, finding_detector
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from planting import SIDE, made_up, objects_of, scenes_of
from training import run

from centripetalnet.commands import report as command
from centripetalnet.modeling import CentripetalNetWithTTA
from centripetalnet.report import summarize, write_report
from centripetalnet.report.figures import SIZES, gather
from centripetalnet.report.oracles import NETWORK, ORACLES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
NAMES = [f"class {i}" for i in range(4)]


@pytest.fixture(scope="module")
def made():
    objects, scenes = made_up(40)
    return objects, scenes, summarize(objects, scenes)


def test_every_ap_is_that_of_the_evaluator(made, tmp_path):
    objects, scenes, (figures, _, _) = made
    file = tmp_path / "made_up.json"
    file.write_text(json.dumps(objects.coco.dataset))
    metadata = MetadataCatalog.get("made_up")
    metadata.set(json_file=str(file), thing_classes=NAMES)
    metadata.thing_dataset_id_to_contiguous_id = objects.class_of
    evaluator = COCOEvaluator("made_up", distributed=False)
    evaluator.reset()
    for scene in scenes:
        found = torch.from_numpy(scene.detections[NETWORK])
        instances = Instances((320, 320), pred_boxes=Boxes(found[:, :4]), scores=found[:, 4])
        instances.pred_classes = found[:, 5].long()
        evaluator.process([{"image_id": scene.image_id}], [{"instances": instances}])

    expected = evaluator.evaluate()["bbox"]

    MetadataCatalog.remove("made_up")
    assert 5 < expected["AP"] < 95
    found = {**figures["ap"], **{f"AP-{x['name']}": x["AP"] for x in figures["by_class"]}}
    assert found == pytest.approx(expected, abs=1e-6)
    assert None not in found.values()
    assert figures["oracles"]["all"] == figures["ap"]


def test_the_sum_of_reasons_is_the_number_of_missed_objects(made):
    objects, scenes, (figures, data, precision) = made
    num_objects = sum(len(objects.of(x.image_id)) for x in scenes)
    assert figures["objects"] == num_objects
    for i, row in enumerate(figures["missed"].values()):
        # The highest recall whose precision is known, of pycocotools.
        found = len(set(data.match[i][data.match[i] >= 0].tolist()))
        assert row["sum"] == num_objects - found > 0
        assert sum(x["all"] for x in row["reasons"].values()) == row["sum"]
        for reason in row["reasons"].values():
            assert sum(reason[size] for size in SIZES) == reason["all"] == sum(reason["classes"])
    for i, row in enumerate(figures["false_detections"].values()):
        assert sum(x["all"] for x in row["reasons"].values()) == row["sum"] > 0
        false = (data.match[i] == -1).sum()
        assert sum(x["all"] for x in row["of_any_score"].values()) == false


def test_the_recall_of_the_matches_is_that_of_pycocotools(made):
    objects, scenes, (figures, data, precision) = made
    for i, row in zip((0, 5), figures["missed"].values()):
        for cls in range(len(NAMES)):
            recalled = (precision[i, :, cls, 0] > 0).sum() - 1
            missed = sum(x["classes"][cls] for x in row["reasons"].values())
            recall = 1 - missed / (data.classes == cls).sum()
            assert recalled == int(np.floor(recall * 100 + 1e-9))


def test_calibration_and_confusion_count_every_detection(made):
    _, _, (figures, data, _) = made
    calibration, matrix = figures["calibration"], np.array(figures["confusion"])
    assert sum(calibration["count"]) == (data.match[0] > -2).sum()
    assert 0 < calibration["expected_calibration_error"] < 1
    assert matrix[:-1].sum(axis=1).tolist() == np.bincount(data.classes).tolist()
    assert (matrix >= 0).all() and matrix[-1, -1] == 0


def test_a_score_is_calibrated_if_it_is_the_share_of_true_detections():
    objects = objects_of(*[[(10, 10, 50, 50, 0)]] * 10)
    _, scenes = made_up(10, detections=0)
    box = np.array([[10, 10, 50, 50, 0.75, 0]], dtype=np.float32)
    found = [box if i % 4 else box + np.float32([0, 60, 0, 60, 0, 0]) for i in range(10)]
    none = {"stages": np.zeros(1, dtype=np.int8), "is_wrong_pair": np.zeros(1, dtype=bool)}
    scenes = [
        x._replace(**none, detections=dict.fromkeys(ORACLES, y)) for x, y in zip(scenes, found)
    ]

    calibration = summarize(objects, scenes)[0]["calibration"]

    assert calibration["precision"][7] == pytest.approx(0.7)
    assert calibration["expected_calibration_error"] == pytest.approx(0.05)


def test_the_detections_of_all_views_are_observed():
    model = finding_detector("hourglass")
    objects = objects_of([(20, 20, 80, 80, 0), (40, 10, 120, 120, 1)])
    detector = CentripetalNetWithTTA(model, flip=True, scales=[1.0, 1.4])

    (scene,) = scenes_of(detector, objects)

    image = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    expected = CentripetalNetWithTTA(finding_detector("hourglass"), flip=True, scales=[1.0, 1.4])
    with torch.no_grad():
        instances = expected([{"image": image, "height": SIDE, "width": SIDE}])[0]["instances"]
    found = torch.from_numpy(scene.detections[NETWORK])
    torch.testing.assert_close(found[:, :4], instances.pred_boxes.tensor)
    data, _ = gather(objects, [scene])
    assert len(data.reason[0]) == 2
    # Both views of both scales find both objects at one place.
    assert len(scene.detections["all"]) >= 2


def test_images_of_several_sizes_in_a_batch_keep_their_corners():
    objects = objects_of([(20, 20, 80, 80, 0)], [(20, 20, 80, 80, 0)], [(20, 20, 80, 80, 0)])
    sizes = {0: (100, 90), 1: (140, 200), 2: (90, 100)}
    generator = torch.Generator().manual_seed(0)
    inputs = [
        {
            "image_id": i,
            "image": torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator),
            "height": size[0],
            "width": size[1],
        }
        for i, size in sizes.items()
    ]

    def scenes(batches):
        detector = finding_detector("hourglass")
        evaluator = command.SceneEvaluator(detector, objects)
        with torch.no_grad():
            for batch in batches:
                evaluator.process(batch, detector(batch))
        return evaluator.evaluate()

    for one, other in zip(scenes([inputs]), scenes([[x] for x in inputs])):
        assert one.stages.tolist() == other.stages.tolist()
        for oracle in ORACLES:
            np.testing.assert_allclose(one.detections[oracle], other.detections[oracle], atol=1e-3)


@pytest.fixture(scope="module")
def arguments(datasets, untrained):
    """Of a report of a few silhouettes."""
    files = datasets / "silhouettes" / "annotations" / "val.json", datasets / "silhouettes" / "val"
    # In the config, other processes know the dataset, too.
    opts = ["DATASETS.COCO_FORMAT", str([["few_val", *map(str, files)]])]
    opts += ["DATASETS.TEST", "('few_val',)", "MODEL.WEIGHTS", str(untrained / "model.pth")]
    return ["--config-file", str(untrained / "config.yaml"), *opts]


@pytest.fixture(scope="module")
def folder(arguments, tmp_path_factory):
    """A report of a few silhouettes, with the settings of TTA."""
    folder = tmp_path_factory.mktemp("report")
    assert command.main([*arguments, "--output", str(folder), "--speed"]) == 0
    return folder


def test_the_report_has_figures_and_pictures(folder):
    report = json.loads((folder / "report.json").read_text())
    page = (folder / "report.html").read_text()

    assert report["images"] == 7 and report["objects"] > 7
    assert [x["name"] for x in report["settings"]] == ["none", "flips"]
    assert report["settings"][0]["AP"] == pytest.approx(report["ap"]["AP"], abs=1e-6)
    assert 0 < len(report["pictures"]) <= 7 and len(report["false_pictures"]) == 20
    assert len(page) < 15e6
    # Nothing is loaded from elsewhere.
    assert set(re.findall(r'(?:src|href)="([^#:]*)', page)) <= {"data", ""}
    assert page.count("data:image/jpeg") >= 20 + 2 * len(report["pictures"])
    assert "nan" not in re.sub(r'src="[^"]*"', "", page).lower().split()


def in_browser(page, tmp_path, *options):
    """Opens a page in Chromium; returns what it printed, with messages of the console."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *options]
    command = [CHROMIUM, *options, f"--user-data-dir={tmp_path}/profile", page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result


@needs_chromium
def test_a_browser_opens_the_page_without_errors(folder, tmp_path):
    picture = tmp_path / "page.png"

    result = in_browser(
        folder / "report.html", tmp_path, f"--screenshot={picture}", "--window-size=1000,2000"
    )

    assert "CONSOLE" not in result.stderr
    assert picture.stat().st_size > 50_000


@needs_chromium
def test_the_browser_check_sees_an_error_of_a_script(folder, tmp_path):
    page = tmp_path / "broken.html"
    page.write_text(
        (folder / "report.html").read_text().replace("</script>", "nothing();</script>")
    )

    assert "nothing is not defined" in in_browser(page, tmp_path, "--dump-dom").stderr


@needs_chromium
def test_a_click_sorts_a_table(folder, tmp_path):
    page = tmp_path / "sorted.html"
    text = (folder / "report.html").read_text()
    click = "document.querySelectorAll('#classes ~ div table')[0].tHead.rows[0].cells[1].click();"
    page.write_text(text.replace("</script>", click + "</script>"))

    dom = in_browser(page, tmp_path, "--dump-dom").stdout

    table = dom[dom.index('id="classes"') :]
    table = table[table.index("<tbody>") : table.index("</tbody>")]
    values = [int(x) for x in re.findall(r"<tr><td>\w+</td><td>(\d+)<", table)]
    assert len(values) == 5 and values == sorted(values, reverse=True)


def is_close(a, b):
    """For JSON; scores depend on the number of threads in their last digits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_close(a[x], b[x]) for x in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(is_close, a, b))
    return a == (pytest.approx(b, rel=1e-5, abs=1e-6) if isinstance(a, float) else b)


def test_two_processes_write_the_report_of_one(folder, arguments, tmp_path):
    options = ["--output", tmp_path, "--num-gpus", "2"]

    result = run(PROJECT / "tools" / "report.py", *arguments, *options)

    assert result.returncode == 0, result.stderr
    one, two = (json.loads((x / "report.json").read_text()) for x in (folder, tmp_path))
    for key in ("ap", "missed", "false_detections", "oracles", "calibration", "pictures"):
        assert is_close(one[key], two[key]), key


def test_a_dataset_without_annotations_gets_a_report_that_says_so(tmp_path):
    objects, scenes = made_up(3)
    del objects.coco.dataset["annotations"]
    objects = command.Objects(objects.coco, objects.class_of, objects.names)
    scenes = [x._replace(detections={NETWORK: x.detections[NETWORK]}) for x in scenes]
    about = {"folder": str(tmp_path), "dataset": "", "weights": "", "tta": False, "settings": []}

    page = write_report(about, objects, scenes, None, None)

    text = open(page).read()
    assert "The dataset has no annotations" in text and "cannot say what was missed" in text
    report = json.loads((tmp_path / "report.json").read_text())
    assert sum(all_ for all_, _ in report["detected"]) == report["detections"] == 300
    assert "ap" not in report


def test_a_scene_of_a_dataset_without_annotations_has_its_detections():
    model = finding_detector("hourglass")
    objects = objects_of([])
    del objects.coco.dataset["annotations"]
    objects = command.Objects(objects.coco, objects.class_of, objects.names)

    (scene,) = scenes_of(model, objects)

    assert list(scene.detections) == [NETWORK] and len(scene.detections[NETWORK]) > 0


def test_several_test_datasets_are_refused(untrained, tmp_path, capsys):
    args = ["--config-file", untrained / "config.yaml", "--output", tmp_path, "MODEL.WEIGHTS"]
    args += [untrained / "model.pth", "DATASETS.TEST", "('a', 'b')"]

    assert command.main([str(x) for x in args]) == 1

    assert "DATASETS.TEST is ('a', 'b'); expected one" in capsys.readouterr().err


@pytest.mark.slow
def test_5000_images_take_two_minutes_and_two_gigabytes(tmp_path):
    code = """
import sys, time
from planting import made_up
from centripetalnet.report import summarize
objects, scenes = made_up(5000, num_classes=80)
start = time.perf_counter()
figures, *_ = summarize(objects, scenes)
seconds = time.perf_counter() - start
# Not ru_maxrss, which includes the process that started this one.
lines = open("/proc/self/status").read().splitlines()
print(seconds, next(int(x.split()[1]) / 1e6 for x in lines if x.startswith("VmHWM")))
print(figures["objects"], sum(len(x.is_wrong_pair) for x in scenes), file=sys.stderr)
"""
    result = run("-c", code, PYTHONPATH=f"{PROJECT}:{PROJECT / 'tests'}")

    assert result.returncode == 0, result.stderr
    seconds, gigabytes = map(float, result.stdout.split()[-2:])
    print(seconds, gigabytes, result.stderr)
    assert seconds < 120
    assert gigabytes < 2
