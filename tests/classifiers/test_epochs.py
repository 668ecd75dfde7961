"""Methods that choose what is loaded, in runs of a classifier that count epochs."""

import copy
import json

import pytest
import torch
from classifier_runs import NUM_IMAGES, run_config
from demo_runs import train
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.nn import functional as F
from torch.testing import assert_close

from pfb_mmseg.compare import orderdp
from pfb_mmseg.compare.methods import apply_method
from pfb_mmseg.report import read_scalars

NUM_EPOCHS = 5


@HOOKS.register_module()
class WatchHook(Hook):
    """Notes which images each epoch is trained on, and their losses in the step that is to come."""

    priority = 'VERY_HIGH'

    def __init__(self):
        self.epochs, self.last_loss = [], {}

    def before_train_epoch(self, runner):
        self.epochs.append([])

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        model = copy.deepcopy(runner.model)
        data = model.data_preprocessor(copy.deepcopy(data_batch), training=True)
        with torch.no_grad():
            scores = model.head(model.extract_feat(data['inputs']))
        labels = torch.cat([sample.gt_label for sample in data['data_samples']])
        losses = F.cross_entropy(scores, labels, reduction='none').tolist()
        names = [sample.sample_idx for sample in data['data_samples']]
        self.epochs[-1] += names
        self.last_loss |= dict(zip(names, losses, strict=True))


@pytest.mark.parametrize(
    'method', ['infobatch', 'infobatch_mean', 'orderdp', 'seta', 'random_once']
)
def test_epochs_keep_their_number_and_are_shorter(tmp_path, images, method):
    hooks = [dict(type='BudgetHook'), dict(type='WatchHook')]
    config = run_config(images, tmp_path, NUM_EPOCHS, hooks=hooks)
    apply_method(config, method, 0.5)
    runner = train(config)
    [watch] = [hook for hook in runner.hooks if isinstance(hook, WatchHook)]
    lengths = [len(epoch) for epoch in watch.epochs]
    assert runner.epoch == len(lengths) == NUM_EPOCHS
    assert 0 < min(lengths) < NUM_IMAGES
    for epoch in watch.epochs:
        assert len(set(epoch)) == len(epoch)
    if method == 'random_once':
        assert lengths == [9] * NUM_EPOCHS and len({frozenset(e) for e in watch.epochs}) == 1
    elif method == 'orderdp':
        kept = orderdp.num_kept(NUM_IMAGES, *orderdp.pool_and_share(0.5))
        assert lengths == [kept] * NUM_EPOCHS
    elif method != 'seta':  # its random part is left out of the first epoch, too
        assert lengths[0] == NUM_IMAGES

    budget = json.loads((tmp_path / 'budget.json').read_text())
    assert budget['candidates'] == NUM_IMAGES * NUM_EPOCHS
    counts = [budget[name] for name in ('loaded', 'shallow', 'deep', 'backward')]
    assert counts == [sum(lengths)] * 4
    name = 'infobatch' if method in ('infobatch', 'infobatch_mean') else 'sampling'
    entries, _ = read_scalars(tmp_path)
    logged = [sum(e.get(f'{name}/{key}', 0) for e in entries) for key in ('kept', 'candidates')]
    assert logged == pytest.approx([sum(lengths), NUM_IMAGES * NUM_EPOCHS])

    scores = runner.train_dataloader.sampler.scores.tolist()
    assert_close({i: s for i, s in enumerate(scores) if s == s}, watch.last_loss)
