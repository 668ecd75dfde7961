"""What a decision asks of the device: on a GPU, each of these operations is a launch."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pfb_mmseg.core import AdaptiveDensityEstimator, pool_features, select_rare

ALLOCATIONS = {'aten::empty', 'aten::empty_like', 'aten::empty.memory_format'}


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


def test_a_decision_takes_at_most_60_operations():
    """From a feature map on, all included; the review of idle centroids by its share."""
    estimator, draws = AdaptiveDensityEstimator(), torch.Generator().manual_seed(0)
    maps = torch.randn(16, 1024, 2, 4, generator=torch.Generator().manual_seed(1)).abs()
    estimator.update(torch.randn(64, 128, generator=torch.Generator().manual_seed(2)))

    def decide():
        x = pool_features(maps, estimator.dim)
        kept = select_rare(estimator.log_density(x), 8, generator=draws)
        estimator.update(x.index_select(0, kept))

    for _ in range(4):
        decide()
    with Operations() as operations:
        for _ in range(100):  # as many as it takes for the review to come round
            decide()
    assert len(operations.names) <= 60 * 100
    copies = sum(name == 'aten::_to_copy' for name in operations.names)
    assert copies <= 5 * 100
