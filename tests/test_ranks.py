"""Processes that share images or a short batch: groups of their own, over gloo."""

import copy
import pickle

import group_rank
import processes
import pytest
import tiny
import torch
from demo_runs import read_diaries
from mmengine.config import Config
from torch.testing import assert_close

from pfb_mmseg.core import BatchPruner
from pfb_mmseg.core.ranks import Ranks
from pfb_mmseg.report import SelectionRecord


def launch(scenario, num_ranks, folder):
    """What each rank saw."""
    processes.run(scenario, folder, num_ranks=num_ranks)
    return [torch.load(folder / f'{rank}.pt', weights_only=False) for rank in range(num_ranks)]


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp('two')
    return launch(group_rank.two, 2, folder), folder / 'run'


@pytest.fixture(scope='module')
def four(tmp_path_factory):
    folder = tmp_path_factory.mktemp('four')
    return launch(group_rank.four, 4, folder), folder / 'run'


def log_of(work_dir):
    (log,) = work_dir.glob('*/*.log')
    return log.read_text()


class TestTwoGroupsOfTwo:
    def test_each_group_chooses_and_learns_as_if_it_were_alone(self, two, four):
        for rank, seen in enumerate(four[0]):
            alone = two[0][rank // 2]['streams'][rank % 2]
            for step, expected in zip(seen['stream']['steps'], alone['steps'], strict=True):
                assert all(map(torch.equal, step, expected))
            assert seen['stream']['state'].keys() == alone['state'].keys()
            for name, value in seen['stream']['state'].items():
                assert torch.equal(value, alone['state'][name]), name
        one, other = (seen['stream']['steps'] for seen in four[0][:2])
        assert any(not torch.equal(a, b) for (a, _), (b, _) in zip(one, other, strict=True))

    def test_the_function_that_a_path_names_is_called_once(self, four):
        assert [seen['calls'] for seen in four[0]] == [1] * 4

    def test_a_run_trains_as_one_with_a_process_for_each_group_member(self, two, four):
        for seen in four[0]:
            assert_close(seen['network'], two[0][0]['network'], rtol=1e-9, atol=1e-9)
        whole, parts = read_diaries(two[1]), read_diaries(four[1])
        for rank, diary in enumerate(parts):
            for iteration, entry in diary.items():
                choice, expected = (
                    [(image['path'], image['kept']) for image in of['images']]
                    for of in (entry, whole[rank // 2][iteration])
                )
                assert choice == expected, iteration

    def test_the_record_counts_no_image_for_each_process_that_holds_a_part(self, two, four):
        record, expected = (SelectionRecord.load(f / 'pfb_record.npz') for f in (four[1], two[1]))
        assert record.paths == expected.paths and len(record)
        assert record.candidates.tolist() == expected.candidates.tolist()
        assert record.kept.tolist() == expected.kept.tolist()
        assert record.class_counts.tolist() == expected.class_counts.tolist()

    def test_the_log_and_the_checkpoint_count_the_processes_of_a_group(self, four):
        assert 'Each of 2 process(es) keeps 2 of 4 images' in log_of(four[1])
        checkpoint = torch.load(four[1] / 'iter_20.pth', weights_only=False)
        assert checkpoint['pfb']['world_size'] == 2

    def test_synchronised_statistics_of_parts_of_one_model_are_no_more_images(self, four):
        for seen in four[0]:
            assert seen['least'] == [1, 1, 2]

    def test_a_process_outside_of_the_group_is_refused(self, four):
        inside, outside = four[0][::2], four[0][1::2]
        assert [seen['refused'] for seen in inside] == [None, None]
        for seen in outside:
            assert 'process_group=<function of_others' in seen['refused']
            assert 'that this process is in' in seen['refused']

    def test_a_group_is_not_pickled_and_never_becomes_all_processes(self, four):
        for seen in four[0]:
            assert 'pickle' in seen['unpicklable']


class TestOption:
    def test_nothing_is_called_in_a_process_that_is_alone(self):
        ranks = Ranks(lambda: pytest.fail('called'))
        assert (ranks.size, ranks.rank, ranks.collect('x')) == (1, 0, ['x'])

    def test_a_config_takes_the_path_of_a_function(self, tmp_path):
        cfg = tiny.model_cfg(pfb=dict(process_group=group_rank.GROUP))
        (tmp_path / 'config.py').write_text(Config(dict(model=cfg)).pretty_text)
        config = Config.fromfile(tmp_path / 'config.py')
        assert config.model.pfb.process_group == group_rank.GROUP
        model = tiny.build(dict(process_group=config.model.pfb.process_group))
        losses = model.loss(tiny.images(), tiny.samples())
        assert tiny.total(losses).isfinite()

    @pytest.mark.parametrize('path', ['group_rank.no_such_function', 'no_such_package.group'])
    def test_a_path_that_leads_nowhere_is_refused_when_the_group_is_needed(self, path):
        with pytest.raises(ValueError, match=f"process_group='{path}' cannot be imported"):
            _ = Ranks(path).group

    def test_a_function_that_returns_something_else_is_refused(self):
        with pytest.raises(TypeError, match='stands for 4: expected a torch.distributed.Process'):
            _ = Ranks(lambda: 4).group

    def test_anything_else_is_refused_at_once(self):
        with pytest.raises(TypeError, match='process_group=2: expected'):
            BatchPruner(process_group=2)

    def test_a_copy_talks_to_the_same_processes_and_a_pickle_remembers_the_path(self):
        pruner = BatchPruner(process_group=group_rank.data_parallel_group)
        assert copy.deepcopy(pruner).ranks is pruner.ranks
        assert pickle.loads(pickle.dumps(Ranks())).group is None
        ranks = pickle.loads(pickle.dumps(Ranks('group_rank.no_such_function')))
        with pytest.raises(ValueError, match='no_such_function'):
            _ = ranks.group


def test_the_first_blocked_batch_may_be_a_short_one(tmp_path):
    for rank, seen in enumerate(launch(group_rank.short, 2, tmp_path)):
        steps = read_diaries(tmp_path / 'run')[rank]
        assert [len(steps[t]['images']) for t in range(6)] == [4, 4, 2, 4, 4, 2]
        kept = [sum(image['kept'] for image in steps[t]['images']) for t in range(8)]
        # Seeded with the short batch; of the next short one all stay, as many as of a full one.
        assert kept == [4, 4, 2, 2, 2, 2, 2, 2]
        assert [steps[t]['blocked'] for t in range(8)] == 3 * [False] + [
            True,
            True,
            False,
            True,
            True,
        ]
        assert seen['state'] == [6, 4]
        assert seen['kept'] == [2, 2, 2, 2]
