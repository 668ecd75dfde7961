"""Several processes: one estimate, equal work, an error instead of a hang. Real ones, over gloo."""

import os
import re
import subprocess
from pathlib import Path

import processes
import pytest
import rank as ranks
import tiny
import torch
from demo_runs import demo_config, float64, read_diaries, train
from rank import NUM, POISONED, SHORT, pruner, run_config
from torch.nn import functional as F
from torch.testing import assert_close

from pfb_mmseg.core import KeepQuota
from pfb_mmseg.hooks.preflight import describe_quota
from pfb_mmseg.report import SelectionRecord, read_scalars

ROOT = Path(__file__).parents[1]


def launch(scenario, num_ranks, folder):
    """What each rank saw."""
    processes.run(scenario, folder, num_ranks=num_ranks)
    return [torch.load(folder / f'{rank}.pt', weights_only=False) for rank in range(num_ranks)]


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp('two')
    return launch(ranks.two, 2, folder), folder


@pytest.fixture(scope='module')
def four(tmp_path_factory):
    folder = tmp_path_factory.mktemp('four')
    return launch(ranks.four, 4, folder), folder


@pytest.fixture(params=['two', 'four'])
def seen(request):
    return request.getfixturevalue(request.param)[0]


def assert_same_everywhere(states):
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        for name, value in state.items():
            assert torch.equal(value, states[0][name]), name


def counts(record):
    """How often each image was a candidate, and kept."""
    rows = zip(record.paths, record.candidates.tolist(), record.kept.tolist(), strict=True)
    return {path: numbers for path, *numbers in rows}


class TestPruner:
    def test_every_rank_holds_the_same_state_bit_for_bit(self, seen):
        assert_same_everywhere([one['core']['state'] for one in seen])

    def test_the_state_is_what_one_process_learns_from_all_that_was_kept(self, seen):
        alone = pruner().estimator
        for iteration in range(ranks.ITERATIONS):
            alone.update(torch.cat([one['core']['steps'][iteration]['rows'] for one in seen]))
        state = seen[0]['core']['state']['criterion.estimator._extra_state']
        found = pruner().estimator
        found.load_state_dict({'_extra_state': state})
        for name in ('centroids', 'counts', 'idle'):
            assert_close(getattr(found, name), getattr(alone, name))

    def test_all_ranks_keep_the_same_number_and_the_quota_is_exact_in_the_long_run(self, seen):
        numbers = [[len(step['rows']) for step in one['core']['steps']] for one in seen]
        first = next(i for i, n in enumerate(numbers[0]) if n < NUM)
        quota = pruner().quota
        assert numbers[0][first:] == [quota.keep(t, NUM) for t in range(first, ranks.ITERATIONS)]
        assert set(numbers[0][first:]) == {2, 3}
        for one in numbers[1:]:
            unequal = [t for t, (a, b) in enumerate(zip(one, numbers[0], strict=True)) if a != b]
            assert unequal in ([], [SHORT])

    def test_of_a_short_batch_as_many_are_kept_as_there_are(self, seen):
        step = seen[1]['core']['steps'][SHORT]
        assert step['kept'].tolist() == [True] and len(step['rows']) == 1

    def test_an_image_that_is_not_finite_is_dropped_and_disturbs_no_rank(self, seen):
        steps = [one['core']['steps'][POISONED] for one in seen]
        assert steps[1]['log_density'].isnan().tolist() == [False, False, True, False]
        assert not steps[1]['kept'][2]
        assert all(step['rows'].isfinite().all() for step in steps)
        assert all(value.isfinite().all() for value in seen[0]['core']['state'].values())

    def test_no_host_waits_for_its_device_after_the_first_iteration(self, seen):
        assert [one['waits'] for one in seen] == [[[]] * 4] * len(seen)

    def test_a_batch_larger_than_the_agreed_one_is_refused_before_any_rank_waits(self, seen):
        for one in seen:
            assert 'a batch of 5 images' in one['grown']


class TestRun:
    def test_estimate_is_the_same_on_all_ranks_after_50_iterations(self, four):
        runs = [one['run'] for one in four[0]]
        assert runs[0]['step'] > 40 and runs[0]['estimate']['idle'].any()
        assert_same_everywhere([run['estimate'] for run in runs])
        assert {run['step'] for run in runs} == {runs[0]['step']}

    def test_two_ranks_of_four_images_train_as_one_process_of_eight(self, two, tmp_path):
        """The hardest two of each four go on, all eight teach the shallow part. Normalised by
        GroupNorm, since BatchNorm's statistics are each rank's own."""
        with float64():
            alone = ranks.result(train(run_config(tmp_path, 8)).model)
        (one, other), folder = two
        assert_same_everywhere([one['run']['network'], other['run']['network']])
        (whole,), halves = read_diaries(tmp_path), read_diaries(folder / 'run')
        for iteration in range(50):
            images = sum((half[iteration]['images'] for half in halves), [])
            choice, expected = (
                [(image['path'], image['kept']) for image in of]
                for of in (images, whole[iteration]['images'])
            )
            assert choice == expected, iteration
        assert_close(one['run']['network'], alone['network'], rtol=1e-9, atol=1e-9)
        merged, expected = (
            SelectionRecord.load(f / 'pfb_record.npz') for f in (folder / 'run', tmp_path)
        )
        assert counts(merged) == counts(expected)

    def test_a_run_goes_on_with_another_number_of_processes_and_says_so(self, two, tmp_path):
        checkpoint = two[1] / 'run' / 'iter_50.pth'
        config = run_config(tmp_path, 8, max_iters=53, log_level='INFO')
        config.load_from, config.resume = str(checkpoint), True
        with float64():
            resumed = train(config)
        *_, log = sorted(tmp_path.glob('*/*.log'))
        assert re.search(r'written by 2 process\(es\), this run has 1', log.read_text())
        pfb = resumed.model.pfb
        before = two[0][0]['run']
        assert pfb.pruner.step == before['step'] + 3
        assert [round(e['pfb/kept']) for e in read_scalars(tmp_path)[0]] == [4, 4, 4]

    def test_a_rank_without_a_single_label_trains_with_the_others(self, four):
        states = [one['run']['network'] for one in four[0]]
        assert all(value.isfinite().all() for value in states[0].values())
        weights = [n for n in states[0] if n.endswith(('weight', 'bias'))]
        assert_same_everywhere([{n: state[n] for n in weights} for state in states])

    def test_two_images_a_rank_at_30_percent_are_one_or_two(self, four):
        scalars = read_scalars(four[1] / 'run')[0]
        kept = [round(entry['pfb/kept']) for entry in scalars[5:]]
        assert set(kept) <= {1, 2} and 1 in kept and 2 in kept

    @pytest.mark.parametrize('end', ['hang', pytest.param('die', marks=pytest.mark.slow)])
    def test_a_rank_that_does_not_come_ends_the_others_within_the_time_limit(self, tmp_path, end):
        started = processes.start(ranks.left_alone, end, tmp_path, num_ranks=2, seconds=8)
        try:
            started[0].wait(timeout=250)
            assert started[0].returncode != 0
            assert 'Error' in started[0].output
            if end == 'hang':  # it was not the other one's end that ended it
                assert started[1].returncode is None and 'imed out' in started[0].output
        finally:
            processes.kill(started)
        assert not list(tmp_path.glob('*.pt'))


@pytest.fixture(scope='module')
def taught(tmp_path_factory):
    return launch(ranks.taught, 2, tmp_path_factory.mktemp('taught'))


def exit_losses(model, state, features, samples):
    """(N, H, W) cross entropy of an early exit in float64, all its weights apart from the model's.

    Args:
        state: of the exit of its own; None: the auxiliary head is the exit.
    """
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    if state is None:
        logits = F.interpolate(model.auxiliary_head([features] * 3), (64, 64), mode='bilinear')
        return F.cross_entropy(logits, labels, reduction='none')
    weights = state[1:].view(torch.float32).double()[: (len(state) - 1) // 3]
    conv, scale, shift, last, bias = weights.split([64 * 32 * 9, 64, 64, 64 * 5, 5])
    hidden = F.conv2d(features, conv.view(64, 32, 3, 3), padding=1)
    hidden = F.batch_norm(hidden, None, None, scale, shift, training=True).relu()
    logits = F.conv2d(hidden, last.view(5, 64, 1, 1), bias)
    return F.cross_entropy(logits, labels[:, 4::8, 4::8], reduction='none')


@pytest.mark.parametrize(('strategy', 'exit'), ranks.TAUGHT)
class TestTeaching:
    def test_all_ranks_hold_the_same_exit_bit_for_bit(self, taught, strategy, exit):
        one, other = ([step['exit'] for step in seen[strategy, exit]] for seen in taught)
        assert all(map(torch.equal, one, other))
        learnt = [int(state[0]) for state in one]
        assert learnt == ([11, 12, 13] if exit == 'own' else [0] * 3)

    @pytest.mark.parametrize('step', range(len(ranks.SIZES)), ids=str)
    def test_the_gradient_is_the_mean_of_what_each_rank_has_to_teach(
        self, taught, strategy, exit, step
    ):
        """In plain torch and float64, all ranks in one process: the exit's loss over all images,
        the model's over those that stay."""
        seen = [one[strategy, exit][step] for one in taught]
        norm = ranks.UNNORMALISED
        twin = tiny.plain_twin(tiny.build(None, norm, norm_eval=True), norm, norm_eval=True)
        twin.double().load_state_dict(seen[0]['before'], strict=False)
        own = exit == 'own'
        for rank, one in enumerate(seen):
            images, samples = ranks.taught_batch(step, rank, ranks.SIZES[step])
            features = twin.backbone(images)
            state = one['exit_before'] if own else None
            losses = exit_losses(twin, state, features[2], samples)
            means = losses.mean((1, 2)).detach()
            num_kept = min(2, len(images))
            assert one['kept'].tolist() == sorted(means.argsort()[-num_kept:].tolist())
            kept = [samples[i] for i in one['kept']]
            narrowed = [x[one['kept']] for x in features]
            total = losses.mean() + tiny.total(twin.decode_head.loss(narrowed, kept, {}))
            if own:
                total = total + tiny.total(twin.auxiliary_head.loss(narrowed, kept, {}))
            (total / len(seen)).backward()
        expected = tiny.gradients(twin)
        # An exit of its own computes in float32; the auxiliary head does so in its loss alone.
        tolerance = dict(rtol=1e-4, atol=1e-7) if own else dict(rtol=1e-5, atol=1e-8)
        for one in seen:
            assert_close(one['gradients'], expected, **tolerance)


class TestDescription:
    def test_a_fractional_quota_is_told(self):
        sentence = describe_quota(KeepQuota(0.3), 2, 4)
        assert 'Each of 4 process(es) keeps 1.4 of 2 images on average, at least 1' in sentence
        assert 'which makes it' not in sentence

    def test_a_minimum_that_raises_the_quota_is_told_with_its_consequence(self):
        sentence = describe_quota(KeepQuota(0.7, min_keep=2), 4, 1)
        assert 'keeps 2 of 4 images on average, at least 2' in sentence
        assert 'which makes it 50% that are blocked' in sentence


@pytest.mark.cuda
def test_one_rank_trains_with_synchronised_batchnorm_over_nccl(tmp_path):
    config = demo_config(tmp_path, **{'model.backbone.norm_cfg.type': 'SyncBN'})
    config.dump(tmp_path / 'config.py')
    command = ['bash', ROOT / 'tools/dist_train.sh', tmp_path / 'config.py', '1']
    env = {**os.environ, 'PORT': processes.free_port()}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [round(entry['pfb/kept']) for entry in read_scalars(tmp_path)[0]][-3:] == [2, 2, 4]
