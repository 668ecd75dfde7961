"""The record of what was kept, against counts made by hand; on disk and merged."""

import os

import collect_rank
import numpy as np
import processes
import pytest
import torch
from mmengine.structures import BaseDataElement, PixelData
from mmseg.structures import SegDataSample

from pfb_mmseg.report import SelectionRecord, class_counts, image_name, read_scalars

CLASSES = ['road', 'sky']


def add_first(record):
    record.add(['a', 'b', 'c'], np.array([1, 0, 1], bool), np.array([1.5, 2.0, np.nan]),
               np.array([[5, 0], [1, 7], [0, 2]]))  # fmt: skip


def add_rest(record):
    record.add(['b', 'd'], np.array([1, 0], bool))
    record.add(['a', 'b'], np.array([0, 1], bool), np.array([3.5, 5e9]),
               np.array([[10, 0], [0, 100]]))  # fmt: skip


def hand_counted():
    record = SelectionRecord(CLASSES)
    add_first(record)
    add_rest(record)
    return record


def check(record):
    assert record.paths == ['a', 'b', 'c', 'd']
    assert record.candidates.tolist() == [2, 3, 1, 1]
    assert record.kept.tolist() == [1, 2, 1, 0]
    assert record.kept_share == 4 / 7
    assert record.score_name == 'log_density'
    np.testing.assert_allclose(record.mean_score, [2.5, (2 + 5e9) / 2, np.nan, np.nan])
    assert (record.classes, record.class_unit) == (CLASSES, 'pixels')
    assert record.class_counts.tolist() == [[11, 7], [5, 102]]  # dropped, kept


def test_counts_match_a_hand_counted_run():
    check(hand_counted())


def test_a_file_holds_all_of_it(tmp_path):
    hand_counted().save(tmp_path / 'record.npz')
    check(SelectionRecord.load(tmp_path / 'record.npz'))
    assert os.listdir(tmp_path) == ['record.npz']


def test_a_file_of_another_schema_is_refused_in_words(tmp_path):
    hand_counted().save(tmp_path / 'record.npz')
    with np.load(tmp_path / 'record.npz') as arrays:
        state = dict(arrays)
    for changes, found in ((dict(schema=np.array(99)), 99), (dict(), 0)):
        arrays = {k: v for k, v in state.items() if k != 'schema'} | changes
        np.savez(tmp_path / 'other.npz', **arrays)
        with pytest.raises(ValueError, match=f'record has schema {found}, expected 1.*version'):
            SelectionRecord.load(tmp_path / 'other.npz')


def test_samples_of_one_file_are_rows_of_their_own_and_others_have_none(tmp_path):
    """Slices 0 and 1 of one file, a sample without a file, and an image of no data set."""
    record = SelectionRecord()
    paths = ['volume', 'volume', 'image 2', 'volume']
    kept = np.array([1, 0, 1, 0], bool)
    for _ in range(2):
        scores = np.array([1.0, 2.0, 3.0, 9.0])
        record.add(paths, kept, scores, places=np.array([0, 1, 2, -1]))
    other = SelectionRecord()
    other.add(['volume'], np.array([True]), np.array([4.0]), places=np.array([1]))
    record.merge(other)
    record.save(tmp_path / 'record.npz')
    record = SelectionRecord.load(tmp_path / 'record.npz')
    assert (record.paths, record.places.tolist()) == (['volume', 'volume', 'image 2'], [0, 1, 2])
    assert record.candidates.tolist() == [2, 3, 2]
    assert record.kept.tolist() == [2, 1, 2]
    assert record.mean_score.tolist() == [1.0, 8 / 3, 3.0]


def test_scores_by_another_name_take_the_place_of_the_former_ones_and_counts_go_on():
    record, later = hand_counted(), SelectionRecord(CLASSES)
    later.add(['a', 'd'], np.array([1, 0], bool), np.array([0.5, np.nan]), score_name='exit_loss')
    record.merge(later)
    assert record.score_name == 'exit_loss'
    assert record.candidates.tolist() == [3, 3, 1, 2]
    np.testing.assert_array_equal(record.mean_score, [0.5, np.nan, np.nan, np.nan])
    plain = SelectionRecord(CLASSES)
    plain.add(['a'], np.array([True]))  # a step in which nothing was scored changes nothing
    record.merge(plain)
    assert (record.score_name, record.mean_score[0]) == ('exit_loss', 0.5)


def test_counting_goes_on_behind_a_file(tmp_path):
    record = SelectionRecord(CLASSES)
    add_first(record)
    record.save(tmp_path / 'record.npz')
    record = SelectionRecord.load(tmp_path / 'record.npz')
    add_rest(record)
    check(record)


def test_an_empty_record_survives_its_file(tmp_path):
    SelectionRecord().save(tmp_path / 'record.npz')
    record = SelectionRecord.load(tmp_path / 'record.npz')
    assert record.paths == record.classes == []
    assert record.kept_share is None


def test_paths_of_any_characters_survive_a_file(tmp_path):
    paths = ['ä/b c\n.png', os.fsdecode(b'not utf-8: \xff'), '<b>&', '']
    record = SelectionRecord()
    record.add(paths, np.array([1, 0, 1, 0], bool))
    record.save(tmp_path / 'record.npz')
    assert SelectionRecord.load(tmp_path / 'record.npz').paths == paths


def test_merging_adds_the_counts_of_two_processes():
    one, other = SelectionRecord(CLASSES), SelectionRecord(CLASSES)
    add_first(one)
    add_rest(other)
    one.merge(other)
    check(one)


def test_merging_into_an_empty_record_takes_everything():
    record = SelectionRecord()
    record.merge(hand_counted())
    check(record)


def test_other_classes_take_the_place_of_the_former_ones():
    record = hand_counted()
    other = SelectionRecord(['car', 'sky'])
    other.add(['a'], np.array([True]), class_counts=np.array([[3, 4]]))
    record.merge(other)
    assert record.classes == ['car', 'sky']
    assert record.class_counts.tolist() == [[0, 0], [3, 4]]


def test_what_is_counted_of_the_classes_survives_a_file_and_merging(tmp_path):
    record, whole = SelectionRecord(CLASSES), SelectionRecord(CLASSES)
    assert record.class_unit is None
    record.add(['a'], np.array([True]), class_counts=np.array([[0, 1]]), class_unit='images')
    record.save(tmp_path / 'record.npz')
    whole.merge(SelectionRecord.load(tmp_path / 'record.npz'))
    whole.merge(SelectionRecord(CLASSES))  # of a process that has counted nothing yet
    assert whole.class_unit == 'images'
    assert whole.class_counts.tolist() == [[0, 0], [0, 1]]


def test_an_image_twice_in_a_batch_counts_twice():
    record = SelectionRecord()
    record.add(['a', 'a'], np.array([1, 1], bool), np.array([1.0, 3.0]))
    assert (record.candidates[0], record.kept[0], record.mean_score[0]) == (2, 2, 2.0)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'record.npz'
    hand_counted().save(path)

    def fail(*args):
        raise OSError('no space left')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError):
        SelectionRecord().save(path)
    check(SelectionRecord.load(path))


def test_many_images_stay_small_on_disk(tmp_path):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, [1000, 60000], (20000, 2))
    paths = [f'data/ILSVRC/train/n{1440000 + a}/n{1440000 + a}_{b}.JPEG' for a, b in numbers]
    record = SelectionRecord()
    record.add(paths, rng.random(20000) < 0.7, rng.normal(size=20000))
    record.save(tmp_path / 'record.npz')
    # 1.3 million images in tens of MB
    assert (tmp_path / 'record.npz').stat().st_size < 20000 * 30


def test_processes_hand_in_little_and_only_the_first_one_gets_it(tmp_path):
    """100 iterations of 16 new images each, 150 classes, nothing logged: two collections."""
    processes.run(collect_rank.run, tmp_path, num_ranks=2)
    first, other = (torch.load(tmp_path / f'{rank}.pt') for rank in range(2))
    assert (first['candidates'], first['kept']) == (2 * 100 * 16, 2 * 100 * 8)
    assert other['candidates'] == 0
    for one in (first, other):
        assert one['calls'] == 2 * 2
        assert 2 * 5_000 < one['sent'] < 2 * 25_000
    assert other['received'] == 2 * 8 * 2  # the sizes
    assert first['received'] < 2 * 2 * 25_000


def sample(labels):
    return SegDataSample(gt_sem_seg=PixelData(data=torch.as_tensor(labels)[None]))


class TestClassPixels:
    def test_counts_each_image_and_leaves_out_what_is_no_class(self):
        one, other = [[0, 1, 1], [2, 255, 1]], [[3, -1], [0, 0]]
        unit, counts = class_counts([sample(one), sample(other)], 3)
        assert (unit, counts.tolist()) == ('pixels', [[1, 3, 1], [2, 0, 0]])

    def test_estimates_the_pixels_of_a_large_map(self):
        labels = torch.zeros(512, 1024, dtype=torch.long)
        labels[:, 256:] = 1
        (counts,) = class_counts([sample(labels)], 2)[1].tolist()
        assert counts[0] / 512 / 256 == pytest.approx(1, rel=0.03)
        assert counts[1] / 512 / 768 == pytest.approx(1, rel=0.03)

    def test_counts_the_label_maps_of_panoptic_samples(self):
        labels = torch.tensor([[[0, 1, 1, 255]]])
        panoptic = SegDataSample(gt_sem_seg=PixelData(sem_seg=labels))
        assert class_counts([panoptic], 3)[1].tolist() == [[1, 2, 0]]
        assert class_counts([SegDataSample(gt_sem_seg=PixelData(other=labels))], 3) is None


def labelled(**fields):
    return BaseDataElement(**{name: torch.tensor(value) for name, value in fields.items()})


class TestClassImages:
    def test_of_classes_are_images_which_may_be_of_several_or_none(self):
        labels = ([1], [2, 0, 2], [], [-1], [3])
        unit, counts = class_counts([labelled(gt_label=label) for label in labels], 3)
        assert unit == 'images'
        assert counts.tolist() == [[0, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]

    def test_the_class_that_an_image_was_loaded_with_counts_and_not_what_was_mixed_into_it(self):
        mixed = labelled(gt_label=[1], gt_score=[0.7, 0.3])
        assert class_counts([mixed], 2)[1].tolist() == [[0, 1]]

    def test_there_are_none_without_labels_or_classes(self):
        assert class_counts([labelled()], 3) is None
        assert class_counts([labelled(gt_label=[0]), labelled()], 3) is None
        assert class_counts([labelled(gt_label=[0])], 0) is None


def test_an_image_goes_by_its_path_or_else_by_its_place_in_the_data_set():
    assert image_name('a/b.png', 3) == 'a/b.png'
    assert image_name(None, 3) == 'image 3'


def test_scalars_of_a_folder_without_a_run_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='is it the work dir of a run'):
        read_scalars(tmp_path)


def test_scalars_of_one_step_make_one_entry_and_a_resumed_run_counts(tmp_path):
    for start, lines in {
        '1': ['{"pfb/kept": 3, "step": 1}', '{"loss": 9, "step": 1}', '{"loss": 8, "step": 2}'],
        '2': ['{"loss": 7, "step": 2}', '{"mIoU": 5, "step": 2}'],
    }.items():
        folder = tmp_path / start / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('\n'.join(lines) + '\n')
    train, val = read_scalars(tmp_path)
    assert train == [{'pfb/kept': 3, 'loss': 9, 'step': 1}, {'loss': 7, 'step': 2}]
    assert val == [{'mIoU': 5, 'step': 2}]
