"""A run in processes of its own, for test_resume.py to kill.

It goes on from the latest checkpoint in the work dir, and says when an iteration begins.
"""

from pathlib import Path

from demo_runs import demo_config, distributed, train
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

ITERATIONS = 40


@HOOKS.register_module()
class Announce(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 0:
            print(f'iteration {runner.iter}', flush=True)


def interruptible_config(work_dir, **options):
    """Without chance, with log intervals that do not end where checkpoints are written."""
    options = {
        'custom_hooks': [dict(type='PFBHook', begin=3, end=36)],
        'default_hooks.logger.interval': 3,
        'default_hooks.checkpoint.interval': 4,
        **options,
    }
    config = demo_config(work_dir, ITERATIONS, **options)
    # Not repeated by several ranks: BatchNorm's running statistics are each rank's own, and a
    # checkpoint holds the first one's.
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.resume = True
    return config


def run(work_dir):
    config = interruptible_config(work_dir)
    config.custom_hooks.append(dict(type='Announce'))
    note = Path(work_dir, 'last_checkpoint')
    if note.is_file() and not note.read_text():  # killed in that moment: what PFBHook says to do
        saved = Path(work_dir).glob('*.pth')
        config.load_from = str(max(saved, key=lambda path: path.stat().st_mtime))
    train(distributed(config))
