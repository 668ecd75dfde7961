"""What BudgetHook counts in a classifier; in segmentors, see test_baselines.py."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pfb_mmseg.compare import BudgetHook


class Classifier(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = head

    def forward(self, images):
        return self.head(self.backbone(images))


def test_images_are_counted_where_they_enter_the_last_layer_of_a_classifier(tmp_path):
    model = Classifier(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    loader = DataLoader(range(4), batch_size=4)
    runner = SimpleNamespace(model=model, iter=0, work_dir=tmp_path, train_dataloader=loader)
    hook = BudgetHook()
    hook.before_train(runner)
    hook.before_train_iter(runner, 0, dict(inputs=[None] * 4))
    with torch.no_grad():
        model.backbone(torch.rand(4, 3, 2, 2))  # scored at the blocking point
        model(torch.rand(3, 3, 2, 2))  # and by the whole network
    model(torch.rand(2, 3, 2, 2))
    hook.after_train_iter(runner, 0)
    time.sleep(0.2)
    hook.after_train_iter(runner, 0)
    runner.iter = 1
    hook.after_train(runner)
    budget = json.loads((tmp_path / 'budget.json').read_text())
    counted = {key: budget[key] for key in ('loaded', 'shallow', 'deep', 'backward')}
    assert counted == dict(loaded=4, shallow=9, deep=5, backward=2)
    assert budget['seconds'] > 0.2 > budget['cpu_seconds'] > 0  # asleep


@pytest.mark.parametrize('head', [nn.ReLU(), None])
def test_a_model_without_such_a_layer_is_refused(head):
    with pytest.raises(ValueError, match='a linear layer in head, which Classifier lacks'):
        BudgetHook().before_train(SimpleNamespace(model=Classifier(head), iter=0))
