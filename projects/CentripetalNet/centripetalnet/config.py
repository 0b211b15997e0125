"""Every config key that this project adds to Detectron2's, with its default."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Callable, Union

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import get_norm
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager


def add_centripetalnet_config(cfg: CfgNode) -> None:
    """Adds the keys of CentripetalNet to ``cfg``. Call it before merging a config file.

    The defaults are those of the released Hourglass-104 model. Keys of Detectron2 that the project
    needs other values of are set by ``configs/Base-CentripetalNet.yaml``.

    Args:
        cfg: what ``detectron2.config.get_cfg`` returns; changed in place.
    """
    # ---------------------------------------------------------------- backbone
    cfg.MODEL.HOURGLASS = hourglass = CfgNode()
    # Number of stacked hourglasses: two in Hourglass-104, one in Hourglass-52.
    hourglass.NUM_STACKS = 2
    # Channels of the stem's 7x7 convolution.
    hourglass.STEM_CHANNELS = 128
    # Channels at each resolution of an hourglass, one more than its depth. The first is at stride
    # 4, each further entry halves the resolution.
    hourglass.CHANNELS = [256, 256, 384, 384, 384, 512]
    # Residual blocks at each of these resolutions.
    hourglass.BLOCKS = [2, 2, 2, 2, 2, 4]
    # Channels of the feature map between a stack and its head.
    hourglass.OUT_CHANNELS = 256
    # Norm of the backbone: "BN", "SyncBN", "FrozenBN", "GN" or any of detectron2.layers.get_norm.
    hourglass.NORM = "BN"

    cfg.MODEL.TIMM = CfgNode()
    # Network of "build_timm_fpn_backbone", one of timm.list_models() with feature maps. MODEL.FPN
    # has the keys of its FPN, MODEL.WEIGHTS "timm://NAME" are its pretrained weights.
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # "BN": the network's own norms. "FrozenBN": batch norms with fixed statistics and weights.
    # "SyncBN": batch norms with the statistics of all GPUs.
    cfg.MODEL.TIMM.NORM = "BN"

    # ---------------------------------------------------------------- averaged weights
    cfg.MODEL.EMA = CfgNode()
    # True: exponential moving average of the weights and norm statistics. Evaluation and prediction
    # use the average. The raw weights are saved and, in training, evaluated beside it.
    cfg.MODEL.EMA.ENABLED = False
    # Share of the old average that each step keeps.
    cfg.MODEL.EMA.DECAY = 0.999

    # ---------------------------------------------------------------- head
    cfg.MODEL.CENTRIPETALNET = net = CfgNode()
    # Feature maps of the backbone that have a head, all of one stride. The last one decides in
    # inference. Empty: all.
    net.IN_FEATURES = []
    # Number of classes of the dataset.
    net.NUM_CLASSES = 80
    # Channels of the two branches of corner pooling.
    net.POOL_CHANNELS = 128
    # Channels of the hidden convolution of each prediction.
    net.HEAD_CHANNELS = 256
    # Norm of the corner pooling module.
    net.NORM = "BN"
    # How corners are paired. "CentripetalShiftMatching": by the centres that they point to, as in
    # CentripetalNet. "EmbeddingMatching": by associative embeddings, as in CornerNet. Keys that
    # only the other follows must keep their defaults.
    net.MATCHING = "CentripetalShiftMatching"
    # Whether guiding shifts are predicted, and the convolution before the centripetal shift:
    # "cross_star" (deformable, steered by the guiding shift), "deformable" (with freely learnt
    # offsets) or "plain".
    net.GUIDING_SHIFT = True
    net.SHIFT_CONV = "cross_star"
    # Initial logit of every heatmap cell; -2.19 is a probability of 0.1.
    net.HEATMAP_BIAS = -2.19

    # ---------------------------------------------------------------- targets and losses
    # IoU with its original that a box keeps if its corners move by the radius of the Gaussians.
    net.GAUSSIAN_MIN_OVERLAP = 0.3
    # Exponents of the heatmap loss: alpha on the probability, beta on one minus the target.
    net.FOCAL_ALPHA = 2.0
    net.FOCAL_BETA = 4.0
    # Where the smooth L1 losses change from quadratic to linear, in their unit (cells, log cells).
    net.SMOOTH_L1_BETA = 1.0
    # Weights of the losses in the total.
    net.HEATMAP_WEIGHT = 1.0
    net.OFFSET_WEIGHT = 1.0
    net.GUIDING_SHIFT_WEIGHT = 0.05
    net.CENTRIPETAL_SHIFT_WEIGHT = 1.0
    # Of matching by embeddings. These are sums over the images of a process, the others means.
    net.PULL_WEIGHT = 0.1
    net.PUSH_WEIGHT = 0.1

    # ---------------------------------------------------------------- corner matching
    # Corners of each kind that are kept per image, over all classes and cells.
    net.TOPK = 100
    # A corner is the maximum of its class in a window of this many cells (odd).
    net.LOCAL_MAXIMUM_KERNEL = 3
    # Boxes with a larger area in pixels count as large.
    net.LARGE_AREA = 3500.0
    # Side of the central region relative to the box's, for large and for other boxes.
    net.CENTRAL_REGION_LARGE = 1 / 2.1
    net.CENTRAL_REGION_SMALL = 1 / 2.4
    # Largest area spanned by the two predicted centres, relative to the central region's.
    net.MAX_CENTER_AREA = 0.5
    # True: multiply scores by exp(-relative area), as in the paper. The released model does not.
    net.WEIGHT_SCORES = False
    # Largest difference of two corners' embeddings, in matching by embeddings.
    net.MAX_EMBEDDING_DISTANCE = 0.5

    # True: a corner's position is the mean of the 3x3 cells around the peak of the heatmap, with
    # their squared probability as weight. False: the peak's cell plus the predicted offset, as in
    # the paper and the released model. After short trainings on few images the mean is better.
    net.AVERAGE_CELLS = False

    # ---------------------------------------------------------------- soft-NMS
    # Boxes per image before soft-NMS, the best by score. TEST.DETECTIONS_PER_IMAGE is the number
    # after it.
    net.MAX_CANDIDATES = 1000
    net.SOFT_NMS = CfgNode()
    # Decay of the scores: "gaussian", exp(-IoU^2 / SIGMA), or "linear", 1 - IoU over IOU_THRESHOLD.
    net.SOFT_NMS.METHOD = "gaussian"
    net.SOFT_NMS.SIGMA = 0.5
    net.SOFT_NMS.IOU_THRESHOLD = 0.5
    # Boxes whose score falls below are dropped.
    net.SOFT_NMS.MIN_SCORE = 0.001

    # ---------------------------------------------------------------- masks, with MODEL.MASK_ON
    # MODEL.ROI_MASK_HEAD has the keys of the layers and of RoIAlign.
    net.MASK = CfgNode()
    # Masks are trained on the ground-truth boxes and on this many decoded boxes per image, the best
    # by score, that have at least this IoU with an object.
    net.MASK.NUM_PROPOSALS = 32
    net.MASK.IOU_THRESHOLD = 0.5
    # Iteration from which masks are trained, since the detector has to find boxes first.
    net.MASK.START_ITER = 0
    # Weight of the mask loss in the total.
    net.MASK.LOSS_WEIGHT = 1.0

    # ---------------------------------------------------------------- input
    # At test time the image is centred on a canvas of size (height | BITS, width | BITS). One less
    # than a power of two, so that the hourglass halves it evenly.
    net.TEST_CANVAS_BITS = 127
    # Training: random crop around a random centre, padded with the mean colour outside the image,
    # then resized to SIZE.
    cfg.INPUT.CENTER_CROP_PAD = crop = CfgNode()
    # Height and width of the training canvas in pixels.
    crop.SIZE = [511, 511]
    # The crop is SIZE times one of these.
    crop.RATIOS = [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3]
    # Distance in pixels of the crop's centre from the image's edge, halved for small images.
    crop.BORDER = 128
    # Number of centres tried until the crop contains the centre of a box.
    crop.MAX_TRIES = 50
    # Training: colour distortion, each step with probability 1/2.
    cfg.INPUT.COLOR_DISTORTION = color = CfgNode()
    # False: no colour distortion.
    color.ENABLED = True
    # Largest value added to or subtracted from all channels, of 255.
    color.BRIGHTNESS = 32.0
    # Ranges of the factor of all channels, and of the saturation.
    color.CONTRAST = [0.5, 1.5]
    color.SATURATION = [0.5, 1.5]
    # Largest change of the hue in degrees.
    color.HUE = 18.0
    # Random order of the channels.
    color.SWAP_CHANNELS = True

    # Datasets in COCO format to register, for DATASETS.TRAIN and DATASETS.TEST: a list of
    # [name, annotation file, image folder].
    cfg.DATASETS.COCO_FORMAT = []
    # Invalid annotations and unreadable training images are an error (False), or are skipped and
    # counted in the log (True). centripetalnet-check lists them all.
    cfg.DATALOADER.SKIP_UNUSABLE = False

    # ---------------------------------------------------------------- test-time augmentation
    # Scales of test-time augmentation, relative to the image after INPUT.MIN_SIZE_TEST.
    # TEST.AUG.FLIP adds the mirror image of each. The paper's multi-scale result uses 0.6, 1, 1.2,
    # 1.5 and 1.8.
    cfg.TEST.AUG.SCALES = [1.0]

    # ---------------------------------------------------------------- computation
    # Precision of convolutions in evaluation and prediction: "float32", "bfloat16" or "float16".
    # Scores, shifts and matching stay in float32.
    cfg.TEST.PRECISION = "float32"
    # Training: store only the input of each block and recompute the rest in the backward pass. Less
    # memory, more time, the same gradients and norm statistics. Of a timm network each stage is
    # recomputed, of Detectron2's backbones nothing; of all the heads.
    net.CHECKPOINT_ACTIVATIONS = False
    # Training in the channels-last memory format, which is faster on CPUs. In evaluation and
    # prediction the device and the precision decide. PyTorch 2.3 on the CPU crashes in the float32
    # backward of a 1x1 convolution with stride 2 from 8 to 16 channels in this format; other widths
    # that were tried worked.
    net.CHANNELS_LAST = False

    # ---------------------------------------------------------------- solver
    # "ADAM", "ADAMW" (decoupled weight decay) or "SGD".
    cfg.SOLVER.OPTIMIZER = "ADAM"
    # Factor of BASE_LR for the backbone, with an FPN only for the network below it.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Batches of IMS_PER_BATCH images whose gradients are added up for a step. The step is that of
    # one batch with all their images; only batch norms see them separately.
    cfg.SOLVER.ACCUMULATE = 1
    # Precision of convolutions with SOLVER.AMP.ENABLED: "float16", for GPUs alone, or "bfloat16",
    # which needs no gradient scaler. "": float16 on GPUs, on CPUs bfloat16 if the CPU has it.
    cfg.SOLVER.AMP.PRECISION = ""
    # Number of evaluations without a better box AP after which the training ends; 0 for never.
    cfg.SOLVER.PATIENCE = 0
    # Number of periodic checkpoints to keep, the newest; 0 keeps all. model_final.pth and, with
    # TEST.EVAL_PERIOD, model_best.pth (best box AP) are kept besides.
    cfg.SOLVER.CHECKPOINTS_KEPT = 0
    # Number of steps with a NaN or infinite loss or gradient that are skipped and logged. The next
    # one saves the state before it as model_diverged.pth and ends the training.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 0


# Keys of Detectron2 without effect here, and what to set instead.
_NOT_FOLLOWED = {
    "INPUT.CROP.ENABLED": "set INPUT.CENTER_CROP_PAD",
    "MODEL.KEYPOINT_ON": "CentripetalNet detects no keypoints",
    "MODEL.LOAD_PROPOSALS": "CentripetalNet takes no proposals",
    "MODEL.ROI_HEADS.NUM_CLASSES": "set MODEL.CENTRIPETALNET.NUM_CLASSES",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "set MODEL.CENTRIPETALNET.SOFT_NMS.MIN_SCORE",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "set MODEL.CENTRIPETALNET.SOFT_NMS",
    "TEST.AUG.MIN_SIZES": "set TEST.AUG.SCALES",
    "TEST.AUG.MAX_SIZE": "set TEST.AUG.SCALES",
}

_CHOICES = {
    "INPUT.FORMAT": ("RGB", "BGR"),
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupMultiStepLR",
        "WarmupCosineLR",
        "WarmupStepWithFixedGammaLR",
    ),
    "SOLVER.AMP.PRECISION": ("", "float16", "bfloat16"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("full_model", "value", "norm"),
    "DATALOADER.SAMPLER_TRAIN": (
        "TrainingSampler",
        "RepeatFactorTrainingSampler",
        "WeightedTrainingSampler",
        "RandomSubsetTrainingSampler",
    ),
}

_PACKAGE = Path(__file__).resolve().parent
_BASE = "Base-CentripetalNet.yaml"
# In a wheel the configs are inside the package, in the repository beside it.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def packaged_configs() -> dict[str, str]:
    """Paths of the config files of the package by name, such as "centripetal_hg104"."""
    folder = next((x for x in _FOLDERS if (x / _BASE).is_file()), None)
    if folder is None:
        return {}
    paths = (path for path in folder.rglob("*.yaml") if path.name != _BASE)
    return {path.stem: str(path) for path in sorted(paths)}


def find_config(config: Union[str, "os.PathLike[str]"]) -> str:
    """Returns the path of a config file.

    Args:
        config: a path, also a remote one that Detectron2's PathManager handles, or the name of a
            config of the package. An existing path comes first.

    Raises:
        FileNotFoundError: if it is neither; the message lists the names.
    """
    config = os.fspath(config)
    # The handler of https:// addresses has no isfile.
    with suppress(NotImplementedError):
        if PathManager.isfile(config):
            return config
    packaged = packaged_configs()
    if config in packaged:
        return packaged[config]
    raise FileNotFoundError(
        f"there is no config file {config!r} (relative to {os.getcwd()}), and the package has no "
        f"config of that name. Give the path of a yaml file or one of these names: "
        f"{', '.join(packaged) or '(none: the installation lacks its configs, install it again)'}"
    )


# What a message ends with.
_KEYS_ARE_IN = "Detectron2's keys are in its config reference, those of CentripetalNet in config.py"


def _reason(error: Exception) -> str:
    """The text of an exception, without the quotes that a KeyError adds."""
    return str(error.args[0]) if error.args else type(error).__name__


def read_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """The config of a file and ``KEY VALUE`` pairs, not yet frozen.

    Args:
        config_file: path of a yaml file, or the name of one that comes with the package,
            "centripetal_hg104" say.
        opts: keys and values in turn, as on the command line.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file asks for Python objects, which could run code, is not YAML or holds
            an unknown key, likewise of ``opts``; or if it sets a key of Detectron2 that
            CentripetalNet does not follow.
    """
    config_file = find_config(config_file)
    cfg = get_cfg()
    add_centripetalnet_config(cfg)
    try:
        # Detectron2 by default runs Python code in the file.
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except yaml.constructor.ConstructorError as error:
        raise ValueError(
            f"{config_file} is not a config file of plain values: {error}. Files that ask for "
            "Python objects are not read."
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{config_file} is not a config file in YAML: {error}") from error
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"{config_file} is not a config file: expected keys with values, as in the files of "
            f"configs/ ({error})"
        ) from error
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"{config_file}: {_reason(error)}. {_KEYS_ARE_IN}") from error
    try:
        cfg.merge_from_list(list(opts))
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"changes to the config are KEY VALUE pairs: {_reason(error)}. {_KEYS_ARE_IN}"
        ) from error
    _refuse_what_is_not_followed(cfg)
    return cfg


def check_device(device: str) -> None:
    """Raises ValueError if ``MODEL.DEVICE`` is no device, or a GPU and PyTorch finds none."""
    try:
        is_gpu = torch.device(device).type == "cuda"
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE is {device!r}, expected 'cpu' or 'cuda'") from error
    if not is_gpu or torch.cuda.is_available():
        return
    reason = "finds no GPU" if torch.version.cuda else "was built without CUDA"
    raise ValueError(
        f"MODEL.DEVICE is {device!r}, but PyTorch {torch.__version__} {reason}. Mend the "
        "installation of CUDA, or set MODEL.DEVICE cpu."
    )


def check_values(cfg: CfgNode) -> None:
    """Raises ValueError for values that would fail later with an error that does not name the key.

    Args:
        cfg: for Detectron2's trainer and its subclass here.
    """

    check_device(cfg.MODEL.DEVICE)

    def check(key: str, is_valid: Callable, expected: object) -> None:
        value = cfg
        for name in key.split("."):
            value = value[name]
        if not is_valid(value):
            raise ValueError(f"{key} is {value!r}, expected {expected}")

    def is_norm(name: str) -> bool:
        try:
            get_norm(name, 32)
        except (AssertionError, KeyError):
            return False
        return True

    for key in ("MODEL.HOURGLASS.NORM", "MODEL.CENTRIPETALNET.NORM"):
        check(key, is_norm, "a norm of detectron2.layers.get_norm")
    check("MODEL.BACKBONE.NAME", lambda x: x in BACKBONE_REGISTRY, "a registered backbone")
    check("MODEL.META_ARCHITECTURE", lambda x: x in META_ARCH_REGISTRY, "a registered model")
    for key, choices in _CHOICES.items():
        check(key, choices.__contains__, "one of " + ", ".join(map(repr, choices)))
    for key in ("SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD"):
        check(key, lambda x: x >= 1, "1 or more")
    check("SOLVER.ACCUMULATE", lambda x: x >= 1, "1 or more")
    check("SOLVER.PATIENCE", lambda x: x >= 0, "0 or more")
    if cfg.SOLVER.PATIENCE and not (cfg.TEST.EVAL_PERIOD > 0 and cfg.DATASETS.TEST):
        raise ValueError(
            f"SOLVER.PATIENCE is {cfg.SOLVER.PATIENCE}, which counts evaluations during the "
            "training: set TEST.EVAL_PERIOD and DATASETS.TEST"
        )
    if cfg.MODEL.EMA.ENABLED and cfg.TEST.PRECISE_BN.ENABLED:
        raise ValueError(
            "TEST.PRECISE_BN changes the raw weights only, and MODEL.EMA evaluates their average: "
            "use one of them"
        )
    three = "three numbers, one for each channel"
    check("MODEL.PIXEL_MEAN", lambda x: len(x) == 3, three)
    check("MODEL.PIXEL_STD", lambda x: len(x) == 3 and min(x) > 0, f"{three}, positive")
    crop = "INPUT.CENTER_CROP_PAD"
    check(f"{crop}.SIZE", lambda x: len(x) == 2 and min(x) >= 1, "height and width in pixels")
    check(f"{crop}.RATIOS", lambda x: len(x) > 0 and min(x) > 0, "positive numbers")


def _refuse_what_is_not_followed(cfg: CfgNode) -> None:
    defaults = get_cfg()
    for key, instead in _NOT_FOLLOWED.items():
        value, default = cfg, defaults
        for name in key.split("."):
            value, default = value[name], default[name]
        if value != default:
            raise ValueError(f"{key} is {value!r}, which has no effect here: {instead}")
