"""The record of what was kept, on disk and merged."""

import os

import numpy as np
import pytest

from pfb_mmseg.reporting import SelectionRecord, read_scalars


def hand_counted():
    record = SelectionRecord()
    record.add(['a', 'b', 'c'], np.array([1, 0, 1], bool), np.array([1.0, 2.0, np.nan]))
    record.add(['b', 'd'], np.array([1, 0], bool))
    record.add(['a', 'b'], np.array([0, 1], bool), np.array([3.0, 5.0]))
    return record


def check(record):
    assert record.paths == ['a', 'b', 'c', 'd']
    assert record.candidates.tolist() == [2, 3, 1, 1]
    assert record.kept.tolist() == [1, 2, 1, 0]
    np.testing.assert_allclose(record.mean_log_density, [2.0, 3.5, np.nan, np.nan])


def test_counts_match_a_hand_counted_run():
    check(hand_counted())


def test_a_file_holds_all_of_it(tmp_path):
    hand_counted().save(tmp_path / 'record.npz')
    check(SelectionRecord.load(tmp_path / 'record.npz'))
    assert os.listdir(tmp_path) == ['record.npz']


def test_an_empty_record_survives_its_file(tmp_path):
    SelectionRecord().save(tmp_path / 'record.npz')
    assert SelectionRecord.load(tmp_path / 'record.npz').paths == []


def test_merging_adds_the_counts_of_two_processes():
    one, other = SelectionRecord(), SelectionRecord()
    one.add(['a', 'b', 'c'], np.array([1, 0, 1], bool), np.array([1.0, 2.0, np.nan]))
    other.add(['b', 'd'], np.array([1, 0], bool))
    other.add(['a', 'b'], np.array([0, 1], bool), np.array([3.0, 5.0]))
    one.merge(other)
    check(one)


def test_an_image_twice_in_a_batch_counts_twice():
    record = SelectionRecord()
    record.add(['a', 'a'], np.array([1, 1], bool), np.array([1.0, 3.0]))
    assert (record.candidates[0], record.kept[0], record.mean_log_density[0]) == (2, 2, 2.0)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'record.npz'
    hand_counted().save(path)
    monkeypatch.setattr(np, 'savez_compressed', lambda *a, **k: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        SelectionRecord().save(path)
    check(SelectionRecord.load(path))


def test_many_images_stay_small_on_disk(tmp_path):
    record = SelectionRecord()
    paths = [f'leftImg8bit/train/city{i % 50}/frame_{i:07d}_leftImg8bit.png' for i in range(20000)]
    record.add(paths, np.arange(20000) % 2 == 0, np.random.default_rng(0).normal(size=20000))
    record.save(tmp_path / 'record.npz')
    # 1.3 million images in tens of MB
    assert (tmp_path / 'record.npz').stat().st_size < 20000 * 30


def test_scalars_of_a_folder_without_a_run_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='is it the work dir of a run'):
        read_scalars(tmp_path)
