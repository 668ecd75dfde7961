"""The page on models and criteria of one's own runs as it stands, and what it shows trains."""

import re
from pathlib import Path

import pytest
import tiny
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

import pfb_mmseg
from pfb_mmseg.core import CRITERIA, BatchPruner

PAGE = Path(__file__).parents[1] / 'docs/guide/your-own-model.md'


@pytest.fixture(scope='module')
def page():
    """Everything that the page defines, after its code has run from top to bottom."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    names = {'__name__': 'page'}
    known = dict(CRITERIA._known)
    try:
        for block in re.findall(r'^```python\n(.*?)^```$', PAGE.read_text(), flags=re.M | re.S):
            exec(compile(block, str(PAGE), 'exec'), names)
        yield names
    finally:
        CRITERIA._known = known
        MODELS.module_dict.pop('MyModel', None)
        pfb_mmseg.blocking.FAMILIES.pop('MyBackbone', None)


def test_the_model_of_the_page_trains_on_half_of_the_batch(page):
    model = MODELS.build(page['model']).train()
    losses = model.loss(tiny.images(), tiny.samples())
    tiny.total(losses).backward()
    assert model.pfb.selection.num_kept == 4
    assert model.backbone.stem[0].weight.grad.any()
    assert isinstance(model, page['Host'])


def test_a_function_decides_which_images_the_classifier_is_trained_on(page):
    classifier = page['classifier'].train()
    images, labels = torch.randn(8, 3, 32, 32), list(torch.arange(8) % 4)
    with torch.no_grad():
        strength = classifier.backbone[:4](images).mean((2, 3)).norm(dim=1)
    losses = classifier.loss(images, labels)
    assert losses['loss'].isfinite()
    kept = classifier.pfb.selection.indices.tolist()
    assert kept == sorted(strength.argsort()[4:].tolist())


def test_a_criterion_that_learns_is_told_of_the_kept_images_and_is_saved(page):
    pruner = BatchPruner(**page['pfb_with_options'])
    assert pruner.criterion.momentum == 0.99
    expected = torch.zeros(6)
    for seed in range(3):
        features = torch.rand(8, 6, generator=torch.Generator().manual_seed(seed))
        kept = pruner(features).indices
        distance = (features - expected).norm(dim=1)
        assert kept.tolist() == sorted(distance.argsort()[4:].tolist())
        expected = 0.99 * expected + 0.01 * features[kept].mean(0)
    again = BatchPruner(**page['pfb_with_options'])
    again.load_state_dict(pruner.state_dict())
    torch.testing.assert_close(again.criterion.mean, expected)


def test_a_registered_function_goes_by_its_name(page):
    pruner = BatchPruner(**page['pfb'])
    features = torch.arange(1.0, 9)[:, None] * torch.ones(8, 3)
    assert pruner(features).indices.tolist() == [4, 5, 6, 7]


def test_a_backbone_of_the_page_is_blocked_behind_the_stage_that_a_head_reads(page):
    assert pfb_mmseg.blocking.default_stage(page['MyBackbone'](), read_indices=[0]) == 'body'
