"""Ranks that choose together agree, however their hashes and their roundings differ."""

import os
import subprocess
import sys
from pathlib import Path

import processes
import tiny
import torch

from . import global_rank
from .global_rank import ITERATIONS, NUM

TESTS = Path(__file__).parents[1]
# Under these, MMEngine's sets tell the two fields in different orders.
HASH_SEEDS = (0, 1)


def launch(function, folder):
    """What each of two ranks saw, with a hash seed of its own."""
    module, name = function.__module__, function.__name__
    code = f'import processes, {module}; processes.enter({module}.{name}, {str(folder)!r})'
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    started = []
    for rank, seed in zip(processes.group(2), HASH_SEEDS, strict=True):
        env = {**os.environ, **processes.ENVIRONMENT, **rank}
        env |= dict(PYTHONHASHSEED=str(seed), PYTHONPATH=path)
        with open(folder / f'{rank["RANK"]}.log', 'w') as log:
            command = [sys.executable, '-c', code]
            started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(codes), '\n'.join(log.read_text() for log in sorted(folder.glob('*.log')))
    return [torch.load(folder / f'{rank}.pt', weights_only=False) for rank in range(2)]


def test_label_fields_of_one_shape_are_not_mistaken_for_each_other(tmp_path):
    seen = launch(global_rank.two_fields, tmp_path)
    orders = [one['order'] for one in seen]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    for one in seen:
        assert len(one['seen']) == ITERATIONS * NUM // 2
        for image, labels, edges in one['seen']:
            assert image == labels == edges - 100
    # Images have changed hands.
    assert any(image >= NUM for image, *_ in seen[0]['seen'])


def test_ranks_that_differ_by_rounding_lose_no_image_and_double_none(tmp_path):
    seen = launch(global_rank.disturbed, tmp_path)
    assert seen[0]['choices'] != seen[1]['choices'], 'the disturbance disturbs nothing'
    for step in range(ITERATIONS):
        taken = [one['taken'][step] for one in seen]
        assert len(taken[0]) == len(taken[1]) == NUM // 2
        assert len({*taken[0], *taken[1]}) == NUM
        # What is trained on is what each rank believes to be kept of its own.
        assert sorted(taken[0] + taken[1]) == seen[0]['own'][step] + seen[1]['own'][step]
        assert sorted(taken[0] + taken[1]) == seen[0]['choices'][step]


def test_the_hardest_of_all_ranks_stay(tmp_path):
    seen = launch(global_rank.hard, tmp_path)
    score = torch.cat([one['score'] for one in seen])
    expected = score.argsort()[4:].sort().values
    assert (
        torch.cat([one['kept'] for one in seen]).nonzero().flatten().tolist() == expected.tolist()
    )
    images, labels = tiny.images(), torch.stack([s.gt_sem_seg.data for s in tiny.samples()])
    for rank, one in enumerate(seen):
        assert torch.equal(one['images'], images[expected[rank::2]])
        assert torch.equal(one['labels'], labels[expected[rank::2]])
