"""Every config key that this project adds to Detectron2's, with its default."""

from typing import Sequence

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from .config_files import find_config
from .data.own_datasets import register_own_datasets


def add_centripetalnet_config(cfg: CfgNode) -> None:
    """Adds the keys of CentripetalNet to ``cfg``; call it before merging a config file.

    The defaults are those of the released Hourglass-104 model. Keys of Detectron2 that the project
    needs other values of are set by ``configs/Base-CentripetalNet.yaml``.

    Args:
        cfg: what ``detectron2.config.get_cfg`` returns; changed in place.
    """
    # ---------------------------------------------------------------- backbone
    cfg.MODEL.HOURGLASS = hourglass = CfgNode()
    # Hourglasses one after the other: two make Hourglass-104, one Hourglass-52.
    hourglass.NUM_STACKS = 2
    # Channels of the stem's 7x7 convolution.
    hourglass.STEM_CHANNELS = 128
    # Channels at each resolution of an hourglass, one more than its depth. The first is the width
    # at stride 4, each further entry halves the resolution.
    hourglass.CHANNELS = [256, 256, 384, 384, 384, 512]
    # Residual blocks at each of these resolutions.
    hourglass.BLOCKS = [2, 2, 2, 2, 2, 4]
    # Channels of the feature map that each stack gives to its head.
    hourglass.OUT_CHANNELS = 256
    # Norm of the backbone: "BN", "SyncBN", "FrozenBN", "GN" or any of detectron2.layers.get_norm.
    hourglass.NORM = "BN"

    # ---------------------------------------------------------------- head
    cfg.MODEL.CENTRIPETALNET = net = CfgNode()
    # Number of classes; must be that of the dataset.
    net.NUM_CLASSES = 80
    # Channels of the two branches that corner pooling takes its maxima of.
    net.POOL_CHANNELS = 128
    # Channels of the hidden convolution of each prediction.
    net.HEAD_CHANNELS = 256
    # Norm of the corner pooling module.
    net.NORM = "BN"
    # Initial logit of every heat-map cell; -2.19 is a probability of 0.1.
    net.HEATMAP_BIAS = -2.19

    # ---------------------------------------------------------------- targets and losses
    # IoU that a box keeps when its corners move by the radius of the Gaussian bumps.
    net.GAUSSIAN_MIN_OVERLAP = 0.3
    # Exponents of the heat-map loss: alpha on the probability, beta on one minus the target.
    net.FOCAL_ALPHA = 2.0
    net.FOCAL_BETA = 4.0
    # Where the smooth L1 losses turn from quadratic to linear, in their unit (cells, log cells).
    net.SMOOTH_L1_BETA = 1.0
    # Weights of the losses in the total.
    net.HEATMAP_WEIGHT = 1.0
    net.OFFSET_WEIGHT = 1.0
    net.GUIDING_SHIFT_WEIGHT = 0.05
    net.CENTRIPETAL_SHIFT_WEIGHT = 1.0

    # ---------------------------------------------------------------- corner matching
    # Corners of each kind kept in an image, over all classes and cells.
    net.TOPK = 100
    # A corner is the largest of its class in a window of so many cells (odd).
    net.LOCAL_MAXIMUM_KERNEL = 3
    # Boxes of more square pixels than this are large.
    net.LARGE_AREA = 3500.0
    # Side of the central region as a share of the box's, for large and for other boxes.
    net.CENTRAL_REGION_LARGE = 1 / 2.1
    net.CENTRAL_REGION_SMALL = 1 / 2.4
    # Largest area spanned by the two pointed-to centres as a share of the central region's.
    net.MAX_CENTER_AREA = 0.5
    # True: multiply scores by exp(-that share), as in the paper. The released model does not.
    net.WEIGHT_SCORES = False

    # ---------------------------------------------------------------- soft-NMS
    # Boxes of an image that enter it, the best by score; TEST.DETECTIONS_PER_IMAGE leave it.
    net.MAX_CANDIDATES = 1000
    net.SOFT_NMS = CfgNode()
    # Decay of the scores: "gaussian", exp(-IoU^2 / SIGMA), or "linear", 1 - IoU over IOU_THRESHOLD.
    net.SOFT_NMS.METHOD = "gaussian"
    net.SOFT_NMS.SIGMA = 0.5
    net.SOFT_NMS.IOU_THRESHOLD = 0.5
    # Boxes whose score falls under this are dropped.
    net.SOFT_NMS.MIN_SCORE = 0.001

    # ---------------------------------------------------------------- masks, with MODEL.MASK_ON
    # Layers and RoIAlign are Detectron2's: MODEL.ROI_MASK_HEAD has their keys.
    net.MASK = CfgNode()
    # Decoded boxes of an image, the best by score, that masks are trained on beside the objects'
    # own boxes, and the IoU with an object that they need for it.
    net.MASK.NUM_PROPOSALS = 32
    net.MASK.IOU_THRESHOLD = 0.5
    # Iteration from which masks are trained: boxes have to be found first.
    net.MASK.START_ITER = 0
    # Weight of the mask loss in the total.
    net.MASK.LOSS_WEIGHT = 1.0

    # ---------------------------------------------------------------- input
    # At test time an image lies in the middle of a canvas of size (height | BITS, width | BITS); a
    # number one less than a power of two, so that the hourglass halves it evenly.
    net.TEST_CANVAS_BITS = 127
    # Training: random crop around a random centre, padded with the mean colour where it leaves the
    # image, then resized to SIZE.
    cfg.INPUT.CENTER_CROP_PAD = crop = CfgNode()
    # Height and width of the training canvas in pixels.
    crop.SIZE = [511, 511]
    # The crop is SIZE times one of these.
    crop.RATIOS = [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3]
    # The crop's centre keeps so many pixels from the image's edge, halved for small images.
    crop.BORDER = 128
    # Centres that are tried until one has the centre of a box inside the crop.
    crop.MAX_TRIES = 50
    # Training: colour distortion, each step with probability 1/2.
    cfg.INPUT.COLOR_DISTORTION = color = CfgNode()
    # False leaves the colours as they are.
    color.ENABLED = True
    # Added to all channels, of 255.
    color.BRIGHTNESS = 32.0
    # Ranges that all channels, and the saturation, are multiplied by.
    color.CONTRAST = [0.5, 1.5]
    color.SATURATION = [0.5, 1.5]
    # Degrees that the hue is turned by.
    color.HUE = 18.0
    # Random order of the channels.
    color.SWAP_CHANNELS = True

    # Datasets of your own in COCO format, to be named in DATASETS.TRAIN and DATASETS.TEST: of each
    # [name, annotation file, image folder].
    cfg.DATASETS.COCO_FORMAT = []
    # Annotations and training images that cannot be used: an error, or left out and counted in the
    # log. centripetalnet-check names them all.
    cfg.DATALOADER.SKIP_UNUSABLE = False

    # ---------------------------------------------------------------- test-time augmentation
    # Scales of the image whose boxes are put together when TEST.AUG.ENABLED; with TEST.AUG.FLIP
    # each with its mirror image. The paper's multi-scale result uses 0.6, 1, 1.2, 1.5 and 1.8.
    cfg.TEST.AUG.SCALES = [1.0]

    # ---------------------------------------------------------------- computation
    # What evaluation and prediction convolve in: "float32", "bfloat16" or "float16". Scores, shifts
    # and matching stay in float32.
    cfg.TEST.PRECISION = "float32"
    # Training: keep only what comes into each block of the network, and compute the rest a second
    # time for the gradient. Less memory, more time, the same gradients.
    net.CHECKPOINT_ACTIVATIONS = False
    # Layout of the feature maps: channels last is faster on CPUs, and on GPUs in half precision.
    # PyTorch 2.3 on the CPU dies in the float32 backward of a 1x1 convolution with stride 2 from 8
    # to 16 channels laid out so; other widths tried there were right.
    net.CHANNELS_LAST = False

    # ---------------------------------------------------------------- solver
    # "ADAM" or "SGD".
    cfg.SOLVER.OPTIMIZER = "ADAM"
    # Periodic checkpoints that are kept, the newest; 0 keeps all. model_final.pth and, with
    # TEST.EVAL_PERIOD, the best by box AP (model_best.pth) stay anyway.
    cfg.SOLVER.CHECKPOINTS_KEPT = 0
    # Steps of a training whose loss may be infinite or no number: they are left out, and their
    # losses and images are logged. The next one saves the state as model_diverged.pth and stops.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 0


# Keys of Detectron2 that nothing here follows, and what does their work.
_NOT_FOLLOWED = {
    "INPUT.CROP.ENABLED": "INPUT.CENTER_CROP_PAD is the crop of CentripetalNet",
    "MODEL.KEYPOINT_ON": "CentripetalNet has no keypoints of objects",
    "MODEL.LOAD_PROPOSALS": "CentripetalNet takes no proposals",
    "TEST.AUG.MIN_SIZES": "TEST.AUG.SCALES has the scales of test-time augmentation",
    "TEST.AUG.MAX_SIZE": "TEST.AUG.SCALES has the scales of test-time augmentation",
}

# What a message ends with.
_KEYS_ARE_IN = "Detectron2's keys are in its config reference, those of CentripetalNet in config.py"


def _reason(error: Exception) -> str:
    """The text of an exception; that of a KeyError comes in quotes otherwise."""
    return str(error.args[0]) if error.args else type(error).__name__


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """The config that a file and ``KEY VALUE`` pairs describe, not yet frozen.

    The datasets that it brings along are registered.

    Args:
        config_file: path of a yaml file, or the name of one that comes with the package,
            "centripetal_hg104" say.
        opts: keys and values in turn, as on the command line.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file asks for Python objects, which could run code, is not YAML or holds
            an unknown key, likewise of ``opts``; if it sets a key of Detectron2 that CentripetalNet
            does not follow; or if a dataset that it brings along has another form than expected.
    """
    config_file = find_config(config_file)
    cfg = get_cfg()
    add_centripetalnet_config(cfg)
    try:
        # Detectron2 would by itself run what the file has of Python.
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
    register_own_datasets(cfg.DATASETS.COCO_FORMAT)
    return cfg


def check_device(device: str) -> None:
    """Raises ValueError if ``MODEL.DEVICE`` is a GPU and PyTorch finds none."""
    if torch.device(device).type != "cuda" or torch.cuda.is_available():
        return
    reason = "finds no GPU" if torch.version.cuda else "was built without CUDA"
    raise ValueError(
        f"MODEL.DEVICE is {device!r}, but PyTorch {torch.__version__} {reason}. Mend the "
        "installation of CUDA, or set MODEL.DEVICE cpu."
    )


def _refuse_what_is_not_followed(cfg: CfgNode) -> None:
    defaults = get_cfg()
    for key, instead in _NOT_FOLLOWED.items():
        value, default = cfg, defaults
        for name in key.split("."):
            value, default = value[name], default[name]
        if value != default:
            raise ValueError(f"{key} is {value!r}, which has no effect here: {instead}")
