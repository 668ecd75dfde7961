"""What a decision asks of the device: on a GPU, each of these operations is a launch."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pfb_mmseg.core import AdaptiveDensityEstimator, pool_features
from pfb_mmseg.core.selection import explored_log_density, keep_highest

ALLOCATIONS = {'aten::empty', 'aten::empty_like', 'aten::empty.memory_format', 'aten::new_empty'}


class Operations(TorchDispatchMode):
    """Names of the operations that compute something, composite ones taken apart."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        if not func.is_view and func.name() not in ALLOCATIONS:
            self.names.append(func.name())
        return func(*args, **kwargs)


def test_the_count_sees_through_composite_operations_and_leaves_views_out():
    with Operations() as operations:
        x = torch.ones(2, 3).isfinite()[0]
    assert len(operations.names) == 5  # ones; abs, != inf, == itself, and
    assert x.all()


def operations_of_a_decision(device):
    """From a feature map on, all included; the review of idle centroids by its share."""
    estimator, draws = AdaptiveDensityEstimator(), torch.Generator().manual_seed(0)
    maps = torch.rand(16, 1024, 2, 4, device=device)
    estimator.update(torch.rand(64, 128, device=device))

    def decide():
        x = pool_features(maps, estimator.dim)
        importance = -explored_log_density(estimator.log_density(x), generator=draws)
        estimator.update(x.index_select(0, keep_highest(importance, 8)))

    with Operations() as operations:
        for _ in range(96):  # as many as it takes for the review to come round
            decide()
    copies = sum('copy' in name for name in operations.names)
    return len(operations.names) / 96, copies / 96


def test_a_decision_takes_at_most_48_operations_on_an_accelerator():
    """On a meta device everything is called as on an accelerator, and nothing computed."""
    operations, copies = operations_of_a_decision('meta')
    assert operations <= 48
    assert copies <= 2.07  # the rest comes of the review


def test_a_decision_takes_at_most_56_operations_on_a_cpu_where_some_are_slower_than_their_parts():
    operations, copies = operations_of_a_decision('cpu')
    assert operations <= 56
    assert copies <= 2.07  # the rest comes of the review
