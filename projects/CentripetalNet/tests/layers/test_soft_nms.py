import pytest
import torch

from centripetalnet.layers import batched_soft_nms, soft_nms_reference


def test_matches_the_reference_on_every_case(golden):
    for case in golden("soft_nms.pt"):
        classes = torch.zeros(1, len(case["scores"]), dtype=torch.long)

        keep, scores = batched_soft_nms(
            case["boxes"][None], case["scores"][None], classes, 10_000, **case["args"]
        )

        taken = scores[0] >= 0
        assert torch.equal(keep[0][taken], case["keep"])
        torch.testing.assert_close(scores[0][taken], case["dets"][:, 4], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(case["boxes"][keep[0][taken]], case["dets"][:, :4])


def random_boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(1, count, 4, generator=generator) * 20
    boxes[..., 2:] += boxes[..., :2] + 1
    scores = torch.rand(1, count, generator=generator)
    return boxes, scores, torch.randint(0, 3, (1, count), generator=generator)


@pytest.mark.parametrize("method", ["gaussian", "linear"])
def test_the_operator_takes_the_boxes_that_the_reference_takes(method, device):
    boxes, scores, classes = (torch.cat(x) for x in zip(*(random_boxes(300, s) for s in (3, 4))))
    scores[1, 250:] = -1
    boxes[0, 7] = boxes[0, 8, [0, 1, 0, 1]]
    options = (200, method, 0.4, 0.3, 0.01)

    keep, lowered = (
        x.cpu()
        for x in batched_soft_nms(*(x.to(device) for x in (boxes, scores, classes)), *options)
    )

    expected_keep, expected = soft_nms_reference(boxes, scores, classes, *options)
    torch.testing.assert_close(lowered, expected)
    assert torch.equal(keep[lowered >= 0], expected_keep[expected >= 0])


def test_linear_decay_of_equal_boxes_never_brings_them_back():
    boxes = torch.tensor([[[0.0, 0, 10, 10]] * 3])
    scores = torch.tensor([[0.9, 0.8, 0.7]])

    _, kept = batched_soft_nms(
        boxes, scores, torch.zeros(1, 3, dtype=torch.long), 3, method="linear", min_score=0.0
    )

    assert kept[0].tolist() == pytest.approx([0.9, 0.0, 0.0])


@pytest.mark.parametrize(
    "changed, error, message",
    [
        ({"boxes": torch.zeros(1, 3, 5)}, ValueError, r"boxes of shape \(N, M, 4\)"),
        ({"boxes": torch.zeros(1, 2, 4)}, ValueError, r"boxes of shape \(N, M, 4\)"),
        ({"boxes": torch.zeros(1, 3, 4).double()}, TypeError, "one floating point dtype"),
        ({"scores": torch.zeros(3)}, ValueError, r"scores of shape \(N, M\)"),
        ({"classes": torch.zeros(1, 2, dtype=torch.long)}, ValueError, "shape of scores"),
        ({"classes": torch.zeros(1, 3)}, TypeError, "int64"),
        ({"classes": torch.zeros(1, 3, dtype=torch.long, device="meta")}, ValueError, "one device"),
        ({"max_detections": -1}, ValueError, "max_detections >= 0"),
    ],
)
def test_operator_checks_its_arguments(changed, error, message):
    inputs = {
        "boxes": torch.zeros(1, 3, 4),
        "scores": torch.zeros(1, 3),
        "classes": torch.zeros(1, 3, dtype=torch.long),
        "max_detections": 3,
        **changed,
    }

    with pytest.raises(error, match=message):
        torch.ops.centripetalnet.soft_nms(*inputs.values(), True, 0.5, 0.5, 0.001)


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("method", ["gaussian", "linear"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_float32_with_rounded_results(dtype, method):
    boxes, scores, classes = random_boxes(200, seed=5)
    boxes, scores = boxes.to(dtype), scores.to(dtype)

    results = [
        function(boxes, scores, classes, 150, method, 0.5, 0.5, 0.001)
        for function in (batched_soft_nms, soft_nms_reference)
    ]

    expected_keep, expected = batched_soft_nms(boxes.float(), scores.float(), classes, 150, method)
    for keep, lowered in results:
        assert torch.equal(keep, expected_keep)
        assert lowered.dtype == dtype
        torch.testing.assert_close(lowered, expected.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_operator_passes_opcheck(dtype, opcheck, device):
    boxes, scores, classes = (x.to(device) for x in random_boxes(12, seed=0))

    for limit in (0, 5, 100):
        arguments = (boxes.to(dtype), scores.to(dtype), classes, limit, True, 0.5, 0.5, 0.001)
        opcheck(torch.ops.centripetalnet.soft_nms.default, arguments)


class SoftNMS(torch.nn.Module):
    def forward(self, boxes, scores, classes):
        return batched_soft_nms(boxes, scores, classes, 20)


def test_compiles_to_one_graph_for_any_number_of_boxes():
    compiled = torch.compile(SoftNMS(), fullgraph=True, dynamic=True, backend="aot_eager")

    for count in (30, 50, 10):
        inputs = random_boxes(count, seed=count)
        for actual, expected in zip(compiled(*inputs), SoftNMS()(*inputs)):
            assert torch.equal(actual, expected)


def test_is_exported_for_any_number_of_boxes():
    # PyTorch before 2.4 cannot export min(count, 20) without knowing which is smaller.
    count = torch.export.Dim("count", min=20, max=1000)
    shapes = ({1: count}, {1: count}, {1: count})

    program = torch.export.export(SoftNMS(), random_boxes(30, seed=0), dynamic_shapes=shapes)

    for count in (50, 20):
        inputs = random_boxes(count, seed=count)
        for actual, expected in zip(program.module()(*inputs), SoftNMS()(*inputs)):
            assert torch.equal(actual, expected)


def both_ways(boxes, scores, classes, sigma=0.5, min_score=0.001, method="gaussian"):
    """Scores of the operator and of the reference for the same boxes."""
    options = (3, method, sigma, 0.5, min_score)
    return [
        function(boxes, scores, classes, *options)[1]
        for function in (batched_soft_nms, soft_nms_reference)
    ]


@pytest.mark.parametrize("function", [batched_soft_nms, soft_nms_reference])
@pytest.mark.parametrize(
    "changed, message",
    [
        ({"method": "hard"}, "hard"),
        ({"sigma": 0.0}, "sigma > 0, got 0"),
        ({"sigma": -1.0}, "sigma > 0, got -1"),
        ({"sigma": float("nan")}, "sigma > 0, got nan"),
        ({"min_score": float("nan")}, "min_score to be a number"),
    ],
)
def test_invalid_options_are_named(function, changed, message):
    options = {"method": "gaussian", "sigma": 0.5, "iou_threshold": 0.5, "min_score": 0.001}

    with pytest.raises(ValueError, match=message):
        function(*random_boxes(3, seed=0), 3, **{**options, **changed})


@pytest.mark.parametrize("sigma", [1e-40, 1e-300])
def test_a_sigma_too_small_for_float32_keeps_boxes_that_do_not_overlap(sigma):
    boxes = torch.tensor([[[0.0, 0, 1, 1], [5, 5, 6, 6], [5, 5, 6, 7]]])
    scores = torch.tensor([[0.9, 0.8, 0.7]])

    for kept in both_ways(boxes, scores, torch.zeros(1, 3, dtype=torch.long), sigma=sigma):
        torch.testing.assert_close(kept, torch.tensor([[0.9, 0.8, -1]]))


@pytest.mark.parametrize("score", [float("nan"), -0.5, -float("inf")])
def test_a_negative_or_nan_score_is_padding(score):
    boxes, _, classes = random_boxes(3, seed=0)
    scores = torch.tensor([[0.5, score, 0.6]])

    for kept in both_ways(boxes + torch.arange(3)[:, None] * 100, scores, classes):
        torch.testing.assert_close(kept, torch.tensor([[0.6, 0.5, -1]]))


def test_operator_refuses_empty_tensors_that_are_not_floating_point():
    none = torch.zeros(0, 0, 4, dtype=torch.bool)

    with pytest.raises(TypeError, match="floating point"):
        batched_soft_nms(none, none[..., 0], none[..., 0].long(), 3)
