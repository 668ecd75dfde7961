"""The page on loops of one's own runs as it stands, in one process and in the middle of a run."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[1] / 'docs' / 'your-own-loop.md'
BLOCKS = re.findall(r'^```python\n(.*?)^```$', PAGE.read_text(), flags=re.M | re.S)


def run(blocks):
    torch.manual_seed(0)
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), 'exec'), names)
    return names


def test_the_three_lines_block_half_of_each_batch_once_the_centroids_are_seeded():
    names = run(BLOCKS[:1])
    assert names['pruner'].step == 8 and names['pruner'].ready
    assert names['kept'].num_kept == len(names['images']) == 16
    assert names['loss'].isfinite()


def test_one_pass_keeps_the_scores_of_those_that_stay():
    names = run(BLOCKS[:2])
    assert names['scores'].shape == (16, 10)


def test_hard_keeps_the_images_of_highest_loss_at_the_exit_and_the_exit_learns():
    names = run(BLOCKS[:3])
    losses = names['batch'].losses_with_graph
    assert names['kept'].indices.tolist() == losses.topk(16).indices.sort().values.tolist()
    assert names['exit'].weight.grad.abs().sum() > 0


def test_accelerate_takes_the_same_lines(tmp_path, monkeypatch):
    # MMEngine's launchers, as other tests call them, leave it in the environment.
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    names = run([BLOCKS[0], BLOCKS[3]])
    assert names['kept'].num_kept == 16 and names['loss'].isfinite()
    accelerator, pruner = names['accelerator'], names['pruner']
    accelerator.register_for_checkpointing(pruner)
    accelerator.save_state(tmp_path)
    centroids = pruner.estimator.centroids.clone()
    images, _ = names['loader'][0]
    pruner(names['point'].candidates(images))
    assert not torch.equal(pruner.estimator.centroids, centroids)
    accelerator.load_state(tmp_path)
    assert pruner.step == 8 and torch.equal(pruner.estimator.centroids, centroids)
