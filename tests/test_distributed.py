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
from rank import KEPT, NUM, POISONED, SHORT, part, pruner, run_config, whole_batch
from torch.nn import functional as F
from torch.testing import assert_close

from pfb_mmseg.core import KeepQuota
from pfb_mmseg.core.estimator import read_estimate
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
    @pytest.mark.parametrize('scope', ['rank', 'global'])
    def test_every_rank_holds_the_same_state_bit_for_bit(self, seen, scope):
        assert_same_everywhere([one[scope]['state'] for one in seen])

    def test_globally_the_choice_and_the_state_are_those_of_one_process(self, seen):
        alone, num_ranks = pruner('global'), len(seen)
        for iteration in range(ranks.ITERATIONS):
            whole = whole_batch(iteration, num_ranks)
            parts = [part(whole, rank, iteration) for rank in range(num_ranks)]
            # A short batch counts as one with images that are not finite.
            filled = [F.pad(p, (0, 0, 0, NUM - len(p)), value=torch.nan) for p in parts]
            expected = alone(torch.cat(filled)).kept.split(NUM)
            for one, mine, kept in zip(seen, parts, expected, strict=True):
                step = one['global']['steps'][iteration]
                assert torch.equal(step['kept'], kept[: len(mine)]), iteration
        state = seen[0]['global']['state']
        assert seen[0]['global']['step'] == alone.step
        assert_close(
            read_estimate(state, 'criterion.estimator.'),
            read_estimate(alone.estimator.state_dict()),
        )

    def test_globally_the_kept_images_are_dealt_out_each_once(self, seen):
        num_ranks = len(seen)
        for iteration in range(ranks.ITERATIONS):
            whole = whole_batch(iteration, num_ranks)
            parts = [part(whole, rank, iteration) for rank in range(num_ranks)]
            steps = [one['global']['steps'][iteration] for one in seen]
            kept = [p[step['kept']] for p, step in zip(parts, steps, strict=True)]
            got = torch.cat([step['rows'] for step in steps])
            assert sorted(got.tolist()) == sorted(torch.cat(kept).tolist())

    def test_by_rank_the_state_is_what_one_process_learns_from_all_that_was_kept(self, seen):
        alone = pruner().estimator
        for iteration in range(ranks.ITERATIONS):
            alone.update(torch.cat([one['rank']['steps'][iteration]['rows'] for one in seen]))
        state = seen[0]['rank']['state']
        assert_close(
            read_estimate(state, 'criterion.estimator.'), read_estimate(alone.state_dict())
        )

    @pytest.mark.parametrize('scope', ['rank', 'global'])
    def test_all_ranks_keep_the_same_number_and_the_quota_is_exact_in_the_long_run(
        self, seen, scope
    ):
        numbers = [[len(step['rows']) for step in one[scope]['steps']] for one in seen]
        first = next(i for i, n in enumerate(numbers[0]) if n < NUM)
        quota = pruner(scope).quota
        assert numbers[0][first:] == [quota.keep(t, NUM) for t in range(first, ranks.ITERATIONS)]
        assert set(numbers[0][first:]) == ({2, 3} if scope == 'rank' else {2})
        for one in numbers[1:]:
            unequal = [t for t, (a, b) in enumerate(zip(one, numbers[0], strict=True)) if a != b]
            assert unequal in ([], [SHORT])

    def test_of_a_short_batch_as_many_are_kept_as_there_are(self, seen):
        step = seen[1]['rank']['steps'][SHORT]
        assert step['kept'].tolist() == [True] and len(step['rows']) == 1

    @pytest.mark.parametrize('scope', ['rank', 'global'])
    def test_an_image_that_is_not_finite_is_dropped_and_disturbs_no_rank(self, seen, scope):
        steps = [one[scope]['steps'][POISONED] for one in seen]
        assert steps[1]['log_density'].isnan().tolist() == [False, False, True, False]
        assert not steps[1]['kept'][2]
        assert all(step['rows'].isfinite().all() for step in steps)
        assert all(value.isfinite().all() for value in seen[0][scope]['state'].values())

    @pytest.mark.parametrize('scope', ['rank', 'global'])
    def test_no_host_waits_for_its_device_after_the_first_iteration(self, seen, scope):
        assert [one['waits'][scope] for one in seen] == [[[]] * 4] * len(seen)

    def test_a_batch_larger_than_the_agreed_one_is_refused_before_any_rank_waits(self, seen):
        for one in seen:
            assert 'a batch of 5 images' in one['complaints']['grown']

    def test_images_of_different_shapes_are_refused_on_all_ranks(self, seen):
        for rank, one in enumerate(seen):
            sentence = one['complaints']['shapes']
            assert f'on rank {rank}: images (3, {4 * (1 + rank)}, 4) torch.float32' in sentence
            assert "choose 'rank'" in sentence

    def test_labels_that_change_their_type_are_refused(self, seen):
        for one in seen:
            sentence = one['complaints']['later']
            assert 'labels (1, 4, 4) torch.uint8 on rank' in sentence
            assert 'labels (1, 4, 4) torch.int64.' in sentence and "choose 'rank'" in sentence

    def test_a_selection_that_would_have_to_fetch_images_is_asked_for_in_two_halves(self, seen):
        for one in seen:
            assert 'decision.take(...) and decision.commit()' in one['complaints']['called']


class TestExchange:
    def test_each_rank_gets_its_turns_whatever_the_type_and_layout(self, seen):
        for rank, one in enumerate(seen):
            got = one['exchange']
            share = KEPT[len(seen)][rank :: len(seen)]
            assert got['share'].tolist() == share
            for dtype, rows in got['moved'].items():
                assert torch.equal(rows, ranks.labels(torch.tensor(share), dtype)), dtype
            assert torch.equal(got['image'], ranks.labels(torch.tensor(share), torch.float32))

    def test_each_rank_knows_which_of_its_images_are_kept_anywhere(self, seen):
        own = torch.cat([one['exchange']['own'] for one in seen])
        assert own.nonzero().flatten().tolist() == KEPT[len(seen)]


class TestRun:
    def test_estimate_is_the_same_on_all_ranks_after_50_iterations(self, seen):
        runs = [one['run'] for one in seen]
        assert runs[0]['step'] > 40 and runs[0]['estimate']['idle'].any()
        assert_same_everywhere([run['estimate'] for run in runs])
        assert {run['step'] for run in runs} == {runs[0]['step']}

    def test_two_ranks_of_four_images_train_as_one_process_of_eight(self, two, tmp_path):
        """Normalised by GroupNorm, since BatchNorm's statistics are each rank's own."""
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
        # Representations are float32.
        assert_close(one['run']['estimate'], alone['estimate'])
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
        counted = pfb.pruner.estimator.counts.sum() - before['estimate']['counts'].sum()
        assert counted == 3 * 4
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


class TestDescription:
    def test_a_fractional_quota_is_told(self):
        sentence = describe_quota(KeepQuota(0.3), 2, 4)
        assert 'Each of 4 process(es) keeps 1 or 2, on average 1.4, of its 2' in sentence
        assert 'which makes it' not in sentence

    def test_a_minimum_that_raises_the_quota_is_told_with_its_consequence(self):
        sentence = describe_quota(KeepQuota(0.7, min_keep=2), 4, 1)
        assert 'keeps 2 of its 4; at least 2 image(s)' in sentence
        assert 'which makes it 50% that are blocked' in sentence


class TestScope:
    def test_single_pass_refuses_to_move_images(self):
        with pytest.raises(ValueError, match="selection_scope='global'.*strategy='two_pass'"):
            tiny.build(dict(strategy='single_pass', selection_scope='global'))

    def test_a_misspelt_scope_is_refused(self):
        with pytest.raises(ValueError, match="selection_scope='globl'.*did you mean 'global'"):
            tiny.build(dict(selection_scope='globl'))

    def test_in_one_process_both_scopes_do_the_same(self):
        losses = []
        for scope in ('rank', 'global'):
            model = tiny.build(dict(selection_scope=scope), head=dict(dropout_ratio=0))
            losses.append(tiny.total(model.loss(tiny.images(), tiny.samples())))
        assert torch.equal(*losses)


@pytest.mark.cuda
def test_one_rank_trains_with_synchronised_batchnorm_over_nccl(tmp_path):
    config = demo_config(tmp_path, **{'model.backbone.norm_cfg.type': 'SyncBN'})
    config.dump(tmp_path / 'config.py')
    command = ['bash', ROOT / 'tools/dist_train.sh', tmp_path / 'config.py', '1']
    env = {**os.environ, 'PORT': processes.free_port()}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [round(entry['pfb/kept']) for entry in read_scalars(tmp_path)[0]][-3:] == [2, 2, 4]
