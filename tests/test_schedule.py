"""When pruning begins and ends: fractions, iterations and epochs."""

import pytest
from demo_runs import demo_config, train

from pfb_mmseg import PFBHook
from pfb_mmseg.compare.methods import apply_method
from pfb_mmseg.report import read_scalars


def epochs(config, num, batches):
    """The run in epochs of so many batches."""
    config.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=num)
    config.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    config.train_dataloader.dataset.length = batches * config.train_dataloader.batch_size
    config.default_hooks.checkpoint.by_epoch = True
    config.default_hooks.logger.log_metric_by_epoch = True
    config.param_scheduler = []
    return config


def kept(work_dir):
    entries, _ = read_scalars(work_dir)
    return [round(entry['pfb/kept']) for entry in entries if 'pfb/kept' in entry]


@pytest.mark.parametrize(
    'schedule',
    [
        dict(begin=3, end=12),
        dict(begin=1, end=0.8, by_epoch=True),
    ],
    ids=str,
)
def test_epochs_iterations_and_fractions_of_an_epoch_based_run(tmp_path, schedule):
    config = demo_config(tmp_path, custom_hooks=[dict(type='PFBHook', **schedule)])
    train(epochs(config, num=5, batches=3))
    # 8 centroids from 4 images a step: of iterations 3 to 11 the first two seed.
    assert kept(tmp_path) == [4] * 5 + [2] * 7 + [4] * 3


def test_epochs_are_refused_where_the_loop_counts_iterations(tmp_path):
    hook = dict(type='PFBHook', begin=1, end=4, by_epoch=True)
    with pytest.raises(ValueError, match='IterBasedTrainLoop counts iterations; give begin'):
        train(demo_config(tmp_path, custom_hooks=[hook]))


def test_a_schedule_of_epochs_behind_the_end_of_the_run_is_refused(tmp_path):
    hook = dict(type='PFBHook', begin=5, end=9, by_epoch=True)
    config = epochs(demo_config(tmp_path, custom_hooks=[hook]), num=5, batches=3)
    with pytest.raises(ValueError, match='begin=5 is iteration 15, end=9 is iteration 27 of 15'):
        train(config)


@pytest.mark.parametrize('begin', [0, 0.0, 0.025])
def test_an_end_at_iteration_1_is_taken_for_the_slip_that_it_is(begin):
    with pytest.raises(ValueError, match=r'end=1 is iteration 1 .*write end=1\.0'):
        PFBHook(begin=begin, end=1)
    PFBHook(begin=begin, end=1.0)
    PFBHook(begin=begin, end=1, by_epoch=True)


@pytest.mark.parametrize('named', ['PFBHook', 'mmseg.PFBHook', PFBHook], ids=str)
def test_a_rival_keeps_the_schedule_however_the_hook_is_named(tmp_path, named):
    config = demo_config(tmp_path)
    config.custom_hooks = [dict(type=named, begin=3, end=7)]
    apply_method(config, 'loss_topk', 0.5)
    [hook] = config.custom_hooks
    assert (hook['begin'], hook['end']) == (3, 7)
