"""What PFBHook warns of, seen in runs that go wrong in that way."""

import pytest
import torch
from demo_runs import demo_config, train

from pfb_mmseg.core import AdaptiveDensityEstimator, BatchPruner
from pfb_mmseg.hooks.health import Health


def log_of(work_dir):
    (log,) = work_dir.glob('*/*.log')
    return log.read_text()


def warnings_of(work_dir):
    return [line for line in log_of(work_dir).splitlines() if 'WARNING - PFB' in line]


HOOK = [dict(type='PFBHook', begin=1, end=1.0)]


def test_equal_images_are_told_of_once(tmp_path):
    options = {
        'train_dataloader.dataset.indices': 1,
        'model.pfb.estimator.num_centroids': 4,
        'default_hooks.logger.interval': 10,
    }
    train(demo_config(tmp_path, max_iters=30, custom_hooks=HOOK, **options))
    equal, one = sorted(warnings_of(tmp_path))
    assert 'same score' in equal and 'block_after' in equal
    assert 'one of 4 centroids stands for' in one and 'revive_after' in one


def test_a_batch_too_small_to_prune_is_told_of_where_the_data_loader_did_not_tell(tmp_path):
    # Two images are a batch that can be pruned, but this data set has only one.
    config = demo_config(tmp_path, max_iters=8, custom_hooks=HOOK)
    config.model.pfb.estimator.num_centroids = 2
    config.train_dataloader.batch_size = 2
    config.train_dataloader.dataset.indices = 1
    config.train_dataloader.sampler = dict(type='DefaultSampler')
    train(config)
    told = [line for line in warnings_of(tmp_path) if 'nothing can be pruned' in line]
    assert len(told) == 1 and '1 image(s)' in told[0] and 'batch_size' in told[0]


def test_a_run_as_it_should_be_warns_of_nothing(tmp_path):
    train(demo_config(tmp_path, max_iters=20, custom_hooks=HOOK, log_level='INFO'))
    assert [line for line in warnings_of(tmp_path) if 'more time' not in line] == []
    assert 'PFB: kept 50% of 4 images, time saved so far' in log_of(tmp_path)


class TestHealth:
    @pytest.fixture
    def said(self, monkeypatch):
        said = []
        monkeypatch.setattr(
            'pfb_mmseg.hooks.health.print_log', lambda message, **_: said.append(message)
        )
        return said

    def test_lost_time_is_told_of_once_there_are_enough_steps(self, said):
        health, pruner = Health(), BatchPruner(0.5)
        health.check(pruner.quota, pruner.estimator, 8, time_saved=-0.25, num_blocked=10)
        assert said == []
        for _ in range(2):
            health.check(pruner.quota, pruner.estimator, 8, time_saved=-0.25, num_blocked=60)
        (sentence,) = said
        assert '25% more time' in sentence and 'score_scale=0.5' in sentence

    def test_one_centroid_is_told_of_only_with_enough_images(self, said):
        pruner = BatchPruner(0.5, AdaptiveDensityEstimator(num_centroids=4, dim=2))
        health, counts = Health(), pruner.estimator.counts
        counts.copy_(torch.tensor([20, 0, 0, 0]))
        health.check(pruner.quota, pruner.estimator, 8, None, 0)
        counts.copy_(torch.tensor([85, 5, 5, 5]))
        health.check(pruner.quota, pruner.estimator, 8, None, 0)
        assert said == []
        counts.copy_(torch.tensor([97, 1, 1, 1]))
        health.check(pruner.quota, pruner.estimator, 8, None, 0)
        assert '97% of the kept images' in said[0]

    def test_a_step_that_keeps_all_by_its_turn_is_no_sign(self, said):
        health = Health()
        health.see_step(ready=True, num_kept=8, num_candidates=8)
        health.check(BatchPruner(0.05).quota, None, 8, None, 0)
        assert said == []
