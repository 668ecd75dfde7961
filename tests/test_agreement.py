"""How well an exit ranks images: the correlation, and what a run leaves of it."""

import json
import subprocess
import sys

import pytest
import torch
from demo_runs import DEMO_CONFIG, ROOT, demo_config, train
from scipy import stats

from benchmarks.lab.agreement_hook import AGREEMENT_NAME, AgreementHook, spearman


def test_spearman_is_scipys():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, generator=generator)
    b += 0.5 * a
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def agreement(**options):
    return dict(type='AgreementHook', **options)


def config(work_dir, hook, criterion):
    options = {'model.pfb.criterion': criterion, 'custom_hooks': [dict(type='PFBHook'), hook]}
    return demo_config(work_dir, max_iters=5, **options)


def test_a_run_leaves_one_line_for_each_batch_that_was_looked_at(tmp_path):
    train(config(tmp_path, agreement(interval=2, pools=(1, 2)), 'hard'))
    rows = json.loads((tmp_path / AGREEMENT_NAME).read_text())
    assert [row['iteration'] for row in rows] == [0, 2, 4]
    assert all(-1 <= row[pool] <= 1 for row in rows for pool in ('pool_1', 'pool_2'))


def test_looking_changes_nothing_of_the_run(tmp_path):
    looked = train(config(tmp_path / 'looked', agreement(interval=1), 'hard'))
    plain = train(config(tmp_path / 'plain', dict(type='IterTimerHook'), 'hard'))
    expected = plain.model.state_dict()
    for name, value in looked.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize('options', [dict(interval=0), dict(pools=(0,)), dict(pools=(1.5,))])
def test_a_bad_option_is_refused(options):
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        AgreementHook(**options)


def test_a_model_without_an_exit_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="model.pfb.criterion='hard'"):
        train(config(tmp_path, agreement(), 'rare'))


def test_the_tool_shows_a_line_for_each_third_of_the_run(tmp_path):
    options = ['train_cfg.max_iters=3', 'train_dataloader.batch_size=4']
    options += ['train_dataloader.dataset.length=8', 'val_dataloader.dataset.length=2']
    command = [sys.executable, str(ROOT / 'tools/agreement.py'), str(DEMO_CONFIG)]
    command += ['--interval', '1', '--pools', '1', '--work-dir', str(tmp_path)]
    done = subprocess.run(
        [*command, '--cfg-options', *options], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert all(line in done.stdout for line in ('0 to 0', '1 to 1', '2 to 2'))
