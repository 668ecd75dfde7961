"""MMEngine's EMAHook beside PFBHook, in whole runs of a classifier."""

import pytest
import torch
from classifier_runs import run_config
from demo_runs import train
from following import Follow, exponential_average, network_state
from mmengine.registry import MODELS
from torch.testing import assert_close


@pytest.mark.parametrize('update_buffers', [False, True], ids=['parameters', 'buffers too'])
def test_a_checkpoint_holds_averaged_weights_and_the_live_estimate(
    tmp_path, images, update_buffers
):
    ema = dict(type='EMAHook', momentum=0.3, update_buffers=update_buffers)
    config = run_config(images, tmp_path, hooks=[ema, dict(type='Follow')])
    runner = train(config)
    [follow] = [hook for hook in runner.hooks if isinstance(hook, Follow)]
    assert [selection.num_kept for selection in follow.selections[4:]] == [3] * 5
    saved = torch.load(tmp_path / 'epoch_3.pth', map_location='cpu', weights_only=False)

    averaged = network_state(saved['state_dict'])
    names = averaged if update_buffers else dict(runner.model.named_parameters())
    expected = exponential_average(follow.states, 0.3, names)
    assert_close(averaged, expected, rtol=1e-5, atol=1e-6, check_dtype=False)

    loaded = MODELS.build(config.model)
    loaded.load_state_dict(saved['state_dict'])
    pruner, live = loaded.pfb.pruner, runner.model.pfb.pruner
    assert int(pruner.step) == int(live.step) > 0
    for name in ('centroids', 'counts', 'idle'):
        found, expected = (getattr(one.estimator, name) for one in (pruner, live))
        assert torch.equal(found, expected.cpu()), name
