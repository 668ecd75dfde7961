"""The page on loops of one's own runs as it stands."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[1] / 'docs/guide/your-own-loop.md'
PLAIN, TAUGHT, ACCELERATE = re.findall(
    r'^```python\n(.*?)^```$', PAGE.read_text(), flags=re.M | re.S
)


def run(*blocks):
    torch.manual_seed(0)
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), 'exec'), names)
    return names


def test_the_three_lines_block_half_of_each_batch_once_the_centroids_are_seeded():
    names = run(PLAIN)
    assert names['pruner'].step == 8 and names['pruner'].ready
    assert names['kept'].num_kept == len(names['images']) == 16
    assert names['loss'].isfinite()


def test_the_early_exit_chooses_the_highest_losses_and_teaches_with_all_images():
    names = run(PLAIN, TAUGHT)
    losses = names['exit_losses']
    assert names['kept'].indices.tolist() == losses.topk(16).indices.sort().values.tolist()
    assert names['scores'].shape == (16, 10)
    [gradient] = torch.autograd.grad(
        torch.nn.functional.cross_entropy(
            names['exit'](names['model'].shallow(names['images']).mean((2, 3))), names['labels']
        ),
        [names['model'].shallow[0].weight],
    )
    assert gradient.abs().sum() > 0 and names['exit'].weight.grad.abs().sum() > 0


def test_accelerate_takes_the_same_lines(tmp_path, monkeypatch):
    # MMEngine's launchers, as other tests call them, leave it in the environment.
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    names = run(PLAIN, ACCELERATE)
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
