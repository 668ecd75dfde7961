"""A blocked step of a classifier never waits for the device; see tests/test_no_sync.py."""

import pytest
import tiny_classifier
from test_no_sync import syncs

from pfb_mmseg.models import samples as samples_module

SOFT = dict(loss=dict(type='CrossEntropyLoss', use_soft=True))


HARD = dict(type='hard', warmup=0)


@pytest.mark.parametrize(
    ('criterion', 'strategy'),
    [
        ('rare', 'two_pass'),
        ('random', 'two_pass'),
        (HARD, 'two_pass'),
        ('loss_topk', 'two_pass'),
        ('divbs', 'two_pass'),
        ('rare', 'single_pass'),
        (HARD, 'single_pass'),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ('head', 'samples'),
    [({}, tiny_classifier.samples), (SOFT, tiny_classifier.mixed_samples)],
    ids=['classes', 'mixtures'],
)
def test_never_waits(monkeypatch, head, samples, criterion, strategy):
    monkeypatch.setattr(samples_module, '_on_host', lambda tensor: False)
    model = tiny_classifier.build(dict(criterion=criterion, strategy=strategy), head)
    assert syncs(model.loss, tiny_classifier.images(), samples()) == []
    assert len(model.pfb.selection.indices) == 4
