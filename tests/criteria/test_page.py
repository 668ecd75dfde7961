"""The page on criteria runs as it stands, and its criteria choose in real training steps."""

import re
from pathlib import Path

import pytest
import tiny
import torch

import pfb_mmseg
from pfb_mmseg.core import CRITERIA, BatchPruner
from pfb_mmseg.core.criterion import Criterion

PAGE = Path(pfb_mmseg.__file__).parent / 'criteria' / 'README.md'
SHIPPED = ['rare', 'common', 'divbs', 'hard', 'loss_topk', 'random']


@pytest.fixture
def page():
    """Everything that the page defines, after its code has run from top to bottom."""
    names = {'__name__': 'page'}
    known = dict(CRITERIA._classes)
    try:
        for block in re.findall(r'^```python\n(.*?)^```$', PAGE.read_text(), flags=re.M | re.S):
            exec(compile(block, str(PAGE), 'exec'), names)
        yield names
    finally:
        CRITERIA._classes = known


def train(model, num_steps=3):
    """The state before each step, what it saw and which images it kept."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for seed in range(num_steps):
        images, samples = tiny.images(seed=seed), tiny.samples(seed=seed)
        loss = tiny.total(model.loss(images, samples))
        optimizer.zero_grad()
        loss.backward()
        assert loss.isfinite()
        optimizer.step()
        yield model.pfb.selection


@pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
def test_ten_lines_decide_which_images_a_model_is_trained_on(page, strategy):
    model = tiny.build({**page['pfb'], 'strategy': strategy})
    assert type(model.pfb.pruner.criterion) is page['Strong']
    features = []
    model.backbone.layer3.register_forward_hook(
        lambda module, args, output: features.append(output.detach().double().mean((2, 3)))
    )
    for selection in train(model):
        strength = features[0].norm(dim=1)
        assert selection.indices.tolist() == sorted(strength.argsort()[4:].tolist())
        assert selection.score_name == 'strength'
        assert selection.log_density is None
        torch.testing.assert_close(selection.score.double(), strength, rtol=1e-4, atol=1e-5)
        features.clear()


def test_a_criterion_that_learns_is_told_of_the_kept_images_and_is_saved(page):
    model = tiny.build(page['pfb_with_options'])
    expected = torch.zeros(32, dtype=torch.float64)
    features = []
    model.backbone.layer3.register_forward_hook(
        lambda module, args, output: features.append(output.detach().double().mean((2, 3)))
    )
    for selection in train(model):
        distance = (features[0] - expected).norm(dim=1)
        assert selection.indices.tolist() == sorted(distance.argsort()[4:].tolist())
        expected = 0.99 * expected + 0.01 * features[0][selection.indices].mean(0)
        features.clear()
    assert model.pfb.pruner.criterion.momentum == 0.99
    restored = tiny.build(page['pfb_with_options'])
    restored.load_state_dict(model.state_dict())
    for one in (model, restored):
        mean = one.pfb.pruner.criterion.mean
        torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_criteria_of_the_page_need_no_openmmlab(page):
    pruner = BatchPruner(0.5, criterion='strong')
    features = torch.arange(1.0, 9)[:, None] * torch.ones(8, 3)
    assert pruner(features).indices.tolist() == [4, 5, 6, 7]


def test_the_page_names_all_criteria_and_their_options():
    text = PAGE.read_text()
    assert sorted(CRITERIA) == sorted(SHIPPED)
    for name in [*SHIPPED, *CRITERIA.options]:
        assert f'`{name}`' in text or f"`'{name}'`" in text, name


class TestRegistry:
    def test_takes_the_name_of_the_class_where_none_is_given(self, page):
        @CRITERIA.register_module()
        class Everything(Criterion):
            def observe(self, candidates):
                return torch.zeros(candidates.num)

        assert BatchPruner(0.5, criterion='Everything')(torch.rand(4, 2)).indices.tolist() == [0, 1]

    def test_refuses_what_is_no_criterion(self):
        with pytest.raises(TypeError, match='expected a subclass of Criterion'):
            CRITERIA.register_module('mine')(torch.nn.Linear)

    def test_refuses_a_name_that_another_class_has(self):
        class Rare(Criterion):
            observe = None

        with pytest.raises(KeyError, match="'rare' is .*already"):
            CRITERIA.register_module('rare')(Rare)
        assert BatchPruner().criterion.score_name == 'log_density'
