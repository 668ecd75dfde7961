"""A blocked step of a classifier never waits for the device; see tests/test_no_sync.py."""

import pytest
import tiny_classifier
from test_no_sync import syncs

from pfb_mmseg.models import samples as samples_module

SOFT = dict(loss=dict(type='CrossEntropyLoss', use_soft=True))


@pytest.mark.parametrize(
    'pfb',
    [
        *(dict(criterion=name) for name in ('rare', 'random', 'loss_topk', 'divbs')),
        dict(strategy='single_pass'),
        *(
            dict(criterion='hard', strategy=strategy, exit_loss_weight=weight)
            for strategy in ('two_pass', 'single_pass')
            for weight in (0.0, 1.0)
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ('head', 'samples'),
    [({}, tiny_classifier.samples), (SOFT, tiny_classifier.mixed_samples)],
    ids=['classes', 'mixtures'],
)
def test_never_waits(monkeypatch, head, samples, pfb):
    monkeypatch.setattr(samples_module, '_pick', samples_module._gather)
    model = tiny_classifier.build(pfb, head)
    if pfb.get('criterion') == 'hard':
        tiny_classifier.warm(model, samples())
    assert syncs(model.loss, tiny_classifier.images(), samples()) == []
    assert len(model.pfb.selection.indices) == 4
