"""What torch has no public name for still means what blocking/torch_internals.py takes it for."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from pfb_mmseg.blocking.torch_internals import at_end_of_backward, in_backward, is_checkpointed


@pytest.mark.parametrize('reentrant', [True, False])
def test_a_pass_that_will_be_run_again_is_told_from_one_that_will_not(reentrant):
    seen = []

    def function(x):
        seen.append((is_checkpointed(), in_backward()))
        return x * x

    x = torch.ones(2, requires_grad=True)
    function(x)
    checkpoint(function, x, use_reentrant=reentrant).sum().backward()
    plain, first, again = seen
    assert plain == (False, False)
    assert first == (True, False)
    assert again[1]


def test_what_is_to_be_called_when_a_backward_pass_is_over_finds_its_gradients():
    x = torch.ones(2, requires_grad=True)
    seen = []
    y = x * 2
    y.register_hook(lambda gradient: at_end_of_backward(lambda: seen.append(x.grad.clone())))
    y.sum().backward()
    assert len(seen) == 1 and torch.equal(seen[0], torch.full((2,), 2.0))
