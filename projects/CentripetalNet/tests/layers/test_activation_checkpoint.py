import pytest
import torch
from torch import nn

from centripetalnet.layers import run_checkpointed


def block():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )


def test_results_gradients_and_statistics_are_those_of_a_plain_call():
    plain, checkpointed = block(), block()
    x = torch.randn(2, 3, 9, 9)

    for _ in range(2):
        expected = plain(x)
        expected.square().sum().backward()
        actual = run_checkpointed(checkpointed, checkpointed, x)
        actual.square().sum().backward()

    assert torch.equal(actual, expected)
    for (name, a), b in zip(checkpointed.named_parameters(), plain.parameters()):
        assert torch.equal(a.grad, b.grad), name
    assert int(checkpointed[1].num_batches_tracked) == 2
    for (name, a), b in zip(checkpointed.named_buffers(), plain.buffers()):
        assert torch.equal(a, b), name


def test_only_the_inputs_are_kept():
    module, kept = block(), []
    x = torch.randn(2, 3, 9, 9)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run_checkpointed(module, module, x)

    assert sum(t.numel() for t in kept) <= x.numel()


def test_norms_are_restored_after_an_error_in_the_backward_pass():
    module = block()
    x = torch.randn(2, 3, 9, 9)

    def fail(gradient):
        raise RuntimeError("on the way back")

    output = run_checkpointed(module, module, x)
    output.register_hook(fail)
    with pytest.raises(RuntimeError, match="on the way back"):
        output.sum().backward()

    assert module[1].momentum == 0.1
    assert module[1].num_batches_tracked == 1
