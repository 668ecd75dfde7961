"""Hypothesis over options, shapes and dtypes: a sentence, or a step that keeps its promises.

`make test` tries the same hundred examples every time; `make fuzz` new ones, many more.
"""

import os
import re

import hypothesis.strategies as st
import pytest
import tiny
import torch
from hypothesis import HealthCheck, example, given, settings
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from pfb_mmseg.core import AdaptiveDensityEstimator, BatchPruner
from pfb_mmseg.core.criteria import Common, Random, Rare

TIMES = int(os.environ.get('PFB_FUZZ', 0))
NAN = float('nan')
CHOICES = ['rare', 'common', 'random', 'hard', 'loss_topk', 'divbs']
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def examples(number):
    return settings(
        max_examples=number * max(TIMES, 1),
        derandomize=not TIMES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def mostly(strategy):
    """Values that fit, and now and then any others."""
    odd = st.one_of(
        st.none(), st.booleans(), st.integers(-2, 300), st.floats(width=32), st.text(max_size=8)
    )
    return st.integers(0, 19).flatmap(lambda number: odd if number == 13 else strategy)


ESTIMATOR = st.fixed_dictionaries(
    {},
    optional={
        'num_centroids': mostly(st.integers(1, 9)),
        'dim': mostly(st.integers(1, 32)),
        'bandwidth': mostly(st.sampled_from(['silverman', 'scott', 'identity'])),
        'weighted': mostly(st.booleans()),
        'momentum': mostly(st.floats(0, 0.999)),
        'revive_after': mostly(st.none() | st.integers(1, 5)),
    },
)
CRITERION = (
    st.sampled_from(CHOICES)
    | st.fixed_dictionaries(
        {'type': mostly(st.sampled_from(['rare', 'common']))},
        optional={'exploration': mostly(st.floats(0, 1e6)), 'estimator': mostly(ESTIMATOR)},
    )
    | st.fixed_dictionaries(
        {'type': st.just('hard')}, optional={'skip': mostly(st.floats(0, 0.999))}
    )
)
PFB = st.fixed_dictionaries(
    {},
    optional={
        'prune_ratio': mostly(st.floats(0, 0.999)),
        'strategy': mostly(st.sampled_from(['two_pass', 'single_pass'])),
        'block_after': mostly(st.sampled_from(['backbone.layer1', 'backbone.layer3.0.conv1'])),
        'criterion': mostly(CRITERION),
        'exit_loss_weight': mostly(st.none() | st.floats(0, 9)),
        'exit': mostly(st.sampled_from([None, 'auxiliary', 'own'])),
        'min_keep': mostly(st.integers(2, 9)),  # the head normalises single pixels
        'score_scale': mostly(st.floats(0.1, 1)),
        'input_shape': mostly(st.tuples(st.just(3), st.integers(1, 99), st.integers(1, 99))),
        'seed': mostly(st.integers(0, 2**70)),
    },
)


@pytest.mark.usefixtures('one_thread')
@examples(15)
@given(
    pfb=PFB,
    num=st.integers(2, 7),
    size=st.sampled_from([32, 40, 64]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    channels_last=st.booleans(),
)
def test_any_options_give_a_sentence_or_a_step_on_some_of_the_images(
    pfb, num, size, dtype, channels_last
):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    cfg = {**tiny.model_cfg(), 'pfb': pfb}
    try:
        model = MODELS.build(cfg).train().to(dtype)
        model.pfb.prepare()
    except (TypeError, ValueError) as error:
        assert re.search('expected|[Ss]et |[Uu]se |leave |choose ', str(error)), error
        return
    pruner = model.pfb.pruner
    for step in range(3):
        images = tiny.images(num, size, seed=step, dtype=dtype)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        promised = pruner.num_keep(num) if model.pfb.ready else num
        loss = tiny.total(model.loss(images, tiny.samples(num, size, seed=step)))
        loss.backward()
        assert loss.isfinite()
        selection = model.pfb.selection
        if selection is None:
            assert promised == num
            continue
        indices = selection.indices.tolist()
        assert len(indices) == promised and indices == sorted(set(indices))
        assert 0 <= indices[0] and indices[-1] < num
    if pruner.estimator is not None:
        assert pruner.estimator.centroids.isfinite().all()
    assert pruner.step == 3


def features(draw, num, channels, dtype):
    """(N, C) or (N, C, H, W) of any size, offset and scale; some entries NaN or infinite."""
    space = draw(st.sampled_from([(), (1, 1), (2, 3)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(num, channels, *space, generator=generator, dtype=torch.float64)
    x = x * 10.0 ** draw(st.integers(-30, 30)) + draw(st.sampled_from([0, 1, -1e4]))
    if draw(st.booleans()):
        x = x[:1].expand_as(x).clone()
    for _ in range(draw(st.integers(0, 2))):
        x[draw(st.integers(0, num - 1)), draw(st.integers(0, channels - 1))] = draw(
            st.sampled_from([float('nan'), float('inf'), -float('inf'), 1e300])
        )
    return x.to(dtype)


@st.composite
def streams(draw):
    channels = draw(st.integers(1, 12))
    dtype = draw(st.sampled_from(DTYPES))
    return [
        features(draw, draw(st.integers(1, 6)), channels, dtype)
        for _ in range(draw(st.integers(1, 6)))
    ]


@examples(60)
# Found: noise on a density at the edge of float32 made a finite image as bad as a NaN.
@example(
    stream=[torch.tensor(rows)[:, None] for rows in ([NAN], [NAN], [NAN, -0.3, -2.2, 0.6, -1.1])],
    ratio=0.25,
    criterion=Rare,
    exploration=1e9,
    bandwidth='silverman',
    num_centroids=1,
    revive=None,
)
@given(
    stream=streams(),
    ratio=st.floats(0, 0.999),
    criterion=st.sampled_from([Rare, Common, Random]),
    exploration=st.sampled_from([0, 0.01, 1e9]),
    bandwidth=st.sampled_from(['silverman', 'scott', 'identity']),
    num_centroids=st.integers(1, 5),
    revive=st.sampled_from([None, 1, 3]),
)
def test_any_stream_of_features_keeps_finite_images_first_and_the_estimate_finite(
    stream, ratio, criterion, exploration, bandwidth, num_centroids, revive
):
    dim = stream[0].shape[1]
    estimator = AdaptiveDensityEstimator(num_centroids, dim, bandwidth, revive_after=revive)
    scored = criterion is not Random
    pruner = BatchPruner(ratio, criterion(estimator, exploration) if scored else Random())
    for x in stream:
        promised = pruner.num_keep(len(x))
        selection = pruner(x)
        kept = selection.indices
        assert len(kept) == promised == len(set(kept.tolist())) and (kept.diff() > 0).all()
        assert estimator.centroids.isfinite().all()
        if selection.score is None:
            continue
        means = x.float().flatten(2).mean(2) if x.ndim > 2 else x.float()
        finite = means.isfinite().all(dim=1)
        assert torch.equal(selection.score.isfinite(), finite)
        # A dropped finite image means that none was kept that is not.
        if finite[~selection.kept].any():
            assert finite[kept].all()
