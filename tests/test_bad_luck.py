"""Full and read-only disks, killed processes, NaN and overflow: what was recorded before is intact.

After each, the run resumes to the same end as an undisturbed one, or ends with a sentence.
"""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from demo_runs import demo_config, train
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from pfb_mmseg.report import SelectionRecord

RECORD = 'pfb_record.npz'
EVERY_SECOND = {
    'default_hooks.checkpoint.interval': 2,
    'default_hooks.checkpoint.max_keep_ckpts': 2,
}
HOOK = dict(custom_hooks=[dict(type='PFBHook', begin=1, end=1.0)])


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own; `resize(size='64k')` or `resize(ro=True)` change it."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount(folder, '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs')
    yield folder
    subprocess.run(['umount', '--lazy', folder], check=True)


def mount(folder, *options):
    try:
        run = subprocess.run(['mount', *options, folder], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip('there is no mount on this system')
    if run.returncode:
        pytest.skip(f'a disk of its own cannot be mounted here: {run.stderr.strip()}')


def remount(folder, option):
    mount(folder, '-o', f'remount,{option}')


def used(folder):
    return sum(os.stat(path).st_blocks * 512 for path in folder.rglob('*') if path.is_file())


def config_for(work_dir, max_iters=8, **options):
    return demo_config(work_dir, max_iters=max_iters, **EVERY_SECOND, **HOOK, **options)


def resume(work_dir, **options):
    config = config_for(work_dir, **options)
    config.resume = True
    return train(config)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('undisturbed')
    return work_dir, train(config_for(work_dir)).model.state_dict()


def check_same_end(work_dir, runner, undisturbed):
    whole_dir, whole = undisturbed
    for name, value in runner.model.state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0, msg=name)
    expected, record = (
        SelectionRecord.load(whole_dir / RECORD),
        SelectionRecord.load(work_dir / RECORD),
    )
    assert record.paths == expected.paths
    np.testing.assert_array_equal(record.candidates, expected.candidates)
    np.testing.assert_array_equal(record.kept, expected.kept)


def last_checkpoint(work_dir):
    return Path((work_dir / 'last_checkpoint').read_text())


@HOOKS.register_module()
class FillDisk(Hook):
    """Leaves no room on the disk for a second checkpoint, but for some lines of the log."""

    def __init__(self, disk):
        self.disk = Path(disk)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if (self.disk / 'last_checkpoint').is_file():
            remount(self.disk, f'size={used(self.disk) // 1024 + 40}k')


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_the_run_resumes(disk, undisturbed):
    config = config_for(disk)
    config.custom_hooks.append(dict(type='FillDisk', disk=str(disk)))
    with pytest.raises(OSError, match='No space left on device'):
        train(config)
    assert last_checkpoint(disk).is_file()
    if (disk / RECORD).exists():
        SelectionRecord.load(disk / RECORD)
    remount(disk, 'size=64m')
    check_same_end(disk, resume(disk), undisturbed)


def test_a_record_that_does_not_fit_on_the_disk_leaves_the_old_one(disk, undisturbed):
    record = SelectionRecord.load(undisturbed[0] / RECORD)
    record.save(disk / RECORD)
    before = (disk / RECORD).read_bytes()
    (disk / 'ballast').write_bytes(b'x')
    remount(disk, f'size={used(disk) // 1024}k')
    with pytest.raises(OSError, match='No space left') as error:
        record.save(disk / RECORD)
    assert error.value.errno == errno.ENOSPC
    assert (disk / RECORD).read_bytes() == before


def test_a_read_only_work_dir_ends_the_run_before_the_first_iteration(disk):
    remount(disk, 'ro')
    with pytest.raises(OSError, match='Read-only file system') as error:
        train(config_for(disk / 'run'))
    assert str(disk) in str(error.value)


def test_a_record_on_a_read_only_disk_is_told_with_its_path(disk, undisturbed):
    record = SelectionRecord.load(undisturbed[0] / RECORD)
    remount(disk, 'ro')
    with pytest.raises(OSError, match=f'Read-only file system.*{disk}'):
        record.save(disk / RECORD)


TRAIN = """
import sys
from demo_runs import train
from test_bad_luck import config_for
train(config_for(sys.argv[1]))
"""


def test_a_run_that_is_told_to_end_while_it_saves_resumes_to_the_same_end(tmp_path, undisturbed):
    process = subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-c', TRAIN, str(tmp_path)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    limit = time.monotonic() + 120
    while not (tmp_path / 'iter_4.pth').exists():  # at the latest now, it is being written
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.002)
    process.terminate()
    process.communicate()
    assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
    if (tmp_path / RECORD).exists():
        assert SelectionRecord.load(tmp_path / RECORD).candidates.sum() <= 4 * 4
    options = {}
    if last_checkpoint(tmp_path) == Path():  # was being written
        options['load_from'] = str(tmp_path / 'iter_4.pth')
    else:
        assert last_checkpoint(tmp_path).name in ('iter_2.pth', 'iter_4.pth')
    check_same_end(tmp_path, resume(tmp_path, **options), undisturbed)


def test_an_empty_note_of_the_last_checkpoint_names_the_way_out(tmp_path, undisturbed):
    folder = tmp_path / 'run'
    shutil.copytree(undisturbed[0], folder)
    (folder / 'last_checkpoint').write_text('')
    with pytest.raises(RuntimeError, match='last_checkpoint is empty.*--resume .* load_from='):
        resume(folder)
    load_from = str(folder / 'iter_8.pth')
    check_same_end(folder, resume(folder, load_from=load_from), undisturbed)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_process_killed_while_it_writes_the_record_leaves_the_old_or_the_new_one(
    tmp_path, undisturbed
):
    record = SelectionRecord.load(undisturbed[0] / RECORD)
    expected = record.candidates.sum()
    path = tmp_path / RECORD
    record.save(path)
    delay = random.Random(0)
    for _ in range(20):
        child = os.fork()
        if child == 0:
            while True:
                record.save(path)
        time.sleep(delay.uniform(0.001, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert SelectionRecord.load(path).candidates.sum() == expected
    record.save(path)  # what the killed ones left in the folder is in nobody's way
    assert SelectionRecord.load(path).candidates.sum() == expected


def test_a_loss_that_turns_nan_is_seen_in_the_log_and_spoils_no_estimate(tmp_path):
    runner = train(config_for(tmp_path, max_iters=12, **{'optim_wrapper.optimizer.lr': 1e12}))
    assert not np.isfinite(runner.message_hub.get_scalar('train/loss').data[0][-1])
    estimator = runner.model.pfb.pruner.estimator
    assert estimator.centroids.isfinite().all()
    record = SelectionRecord.load(tmp_path / RECORD)
    assert not np.isinf(record.mean_score).any()


@pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='needs torch >= 2.3')
def test_overflowing_gradients_skip_the_step_and_the_next_ones_are_blocked_as_ever():
    model = tiny.build()
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**126, backoff_factor=2.0**-126)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    moved = []
    for seed in range(3):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.zero_grad()
        loss = 8 * tiny.total(model.loss(tiny.images(seed=seed), tiny.samples(seed=seed)))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        moved.append(any(not torch.equal(p, before[n]) for n, p in model.named_parameters()))
        assert len(model.pfb.selection.indices) == 4
    assert moved == [False, True, True]
    assert all(p.isfinite().all() for p in model.parameters())
    assert model.pfb.pruner.estimator.centroids.isfinite().all()
