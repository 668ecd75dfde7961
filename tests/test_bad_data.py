"""Broken images and labels, and too few of them: an error in words, or the right numbers.

Each case is a real run on files; a limit in seconds stands guard against a hang.
"""

import ast
import faulthandler
from pathlib import Path

import cv2
import numpy as np
import pytest
from demo_runs import demo_config, train

from pfb_mmseg.data.check import check_config
from pfb_mmseg.report import SelectionRecord

ROOT = Path(__file__).resolve().parents[1]
SIZE = 32


@pytest.fixture(autouse=True)
def limit():
    """Ends the whole test process, with a traceback, if a run hangs."""
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def write_files(folder, num=8):
    rng = np.random.default_rng(0)
    for name in ('images', 'labels'):
        (folder / name).mkdir(parents=True)
    for index in range(num):
        image = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        write(folder / 'images', index, image)
        write(folder / 'labels', index, image[..., 0] // 128)


def write(folder, index, image):
    assert cv2.imwrite(str(folder / f'{index}.png'), image)


def file_config(folder, max_iters=6, **options):
    """The demo network on the files in this folder, pruned from the first iteration on."""
    config = demo_config(folder / 'run', max_iters=max_iters)
    config.train_dataloader.dataset = dict(
        type='BaseSegDataset',
        metainfo=dict(classes=('dark', 'bright')),
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        img_suffix='.png',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    )
    config.merge_from_dict(
        {
            'model.data_preprocessor.size': (SIZE, SIZE),
            'model.decode_head.num_classes': 2,
            'model.auxiliary_head.num_classes': 2,
            'custom_hooks': [dict(type='PFBHook', begin=0, end=1.0)],
            **options,
        }
    )
    return config


def check_record(folder, num_images):
    record = SelectionRecord.load(folder / 'run' / 'pfb_record.npz')
    assert 0 < record.candidates.sum() <= num_images  # centroids are seeded without a choice
    assert (record.kept <= record.candidates).all()


def truncate(folder):
    path = folder / 'images' / '3.png'
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shrink_labels(folder):
    write(folder / 'labels', 3, np.zeros((SIZE // 2, SIZE // 2), np.uint8))


def foreign_labels(folder):
    write(folder / 'labels', 3, np.full((SIZE, SIZE), 7, np.uint8))


def lose_labels(folder):
    (folder / 'labels' / '3.png').unlink()


def one_pixel(folder):
    write(folder / 'images', 3, np.zeros((1, 1, 3), np.uint8))
    write(folder / 'labels', 3, np.zeros((1, 1), np.uint8))


@pytest.mark.parametrize(
    ('spoil', 'workers', 'sentence'),
    [
        (truncate, 1, 'failed to load image.*3.png'),
        (lose_labels, 0, 'No such file.*3.png'),
        (shrink_labels, 0, r'\[1, 16, 16\].*\[1, 32, 32\]|\[1, 32, 32\].*\[1, 16, 16\]'),
        (foreign_labels, 0, 'Target 7 is out of bounds'),
        (one_pixel, 0, 'dim of value must be 2 or 3'),
    ],
)
def test_a_broken_image_ends_the_run_with_what_is_wrong(tmp_path, spoil, workers, sentence):
    write_files(tmp_path)
    spoil(tmp_path)
    config = file_config(tmp_path, **{'train_dataloader.num_workers': workers})
    assert 'images/3.png' in (told := check_config(config)[1][0]) or 'labels/3.png' in told
    with pytest.raises(Exception, match=f'(?s){sentence}'):
        train(config)
    assert not list((tmp_path / 'run').glob('*.npz*'))


def test_images_without_a_single_labelled_pixel_cost_nothing_and_are_counted(tmp_path):
    write_files(tmp_path)
    for index in range(8):
        write(tmp_path / 'labels', index, np.full((SIZE, SIZE), 255, np.uint8))
    config = file_config(tmp_path)
    assert 'are 255, which is ignored' in check_config(config)[1][0]
    runner = train(config)
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert (losses == 0).all()
    check_record(tmp_path, 6 * 4)


def test_images_of_one_channel_are_trained_on_as_grey_ones(tmp_path):
    write_files(tmp_path)
    for index in range(8):
        write(tmp_path / 'images', index, np.full((SIZE, SIZE), 30 * index, np.uint8))
    config = file_config(tmp_path)
    assert not any(fault.startswith('train') for fault in check_config(config)[1])
    runner = train(config)
    assert np.isfinite(runner.message_hub.get_scalar('train/loss').data[0]).all()
    check_record(tmp_path, 6 * 4)


def test_equal_images_are_as_good_as_each_other(tmp_path):
    write_files(tmp_path)
    for index in range(8):
        write(tmp_path / 'images', index, np.full((SIZE, SIZE, 3), 99, np.uint8))
    runner = train(file_config(tmp_path))
    assert runner.model.pfb.pruner.estimator.centroids.isfinite().all()
    assert np.isfinite(runner.message_hub.get_scalar('train/loss').data[0]).all()
    check_record(tmp_path, 6 * 4)


def test_a_data_set_smaller_than_a_batch_fills_batches_with_repetitions(tmp_path):
    write_files(tmp_path, num=3)
    train(file_config(tmp_path))
    check_record(tmp_path, 6 * 4)


def test_a_last_batch_that_is_smaller_is_counted_as_what_it_is(tmp_path):
    write_files(tmp_path, num=6)
    train(file_config(tmp_path, **{'train_dataloader.sampler.type': 'DefaultSampler'}))
    check_record(tmp_path, 3 * (4 + 2))


@pytest.mark.parametrize('serialize', [True, False])
def test_an_empty_data_set_is_refused_instead_of_waited_for(tmp_path, serialize):
    write_files(tmp_path, num=0)
    config = file_config(tmp_path, **{'train_dataloader.dataset.serialize_data': serialize})
    sentence = 'need at least one array' if serialize else 'training data set is empty; check'
    with pytest.raises(ValueError, match=sentence):
        train(config)


class Trap:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_a_record_with_code_in_it_is_refused_and_not_run(tmp_path):
    trap = np.array([Trap(tmp_path / 'sprung')], dtype=object)
    np.savez(tmp_path / 'record.npz', paths=trap, counts=trap, log_density=trap)
    with pytest.raises(ValueError, match='allow_pickle=False'):
        SelectionRecord.load(tmp_path / 'record.npz')
    assert not (tmp_path / 'sprung').exists()


def test_no_checkpoint_or_array_is_unpickled_by_code_of_this_package():
    """What users load by MMEngine, they name themselves; nothing else may run a file's code."""
    safe = {'load': {'torch': ('weights_only', True), 'np': ('allow_pickle', False)}}
    for path in [*(ROOT / 'pfb_mmseg').rglob('*.py'), *(ROOT / 'tools').glob('*.py')]:
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            module = getattr(call.func.value, 'id', None)
            assert module != 'pickle', f'{path}:{call.lineno}'
            if option := safe.get(call.func.attr, {}).get(module):
                given = [(k.arg, getattr(k.value, 'value', None)) for k in call.keywords]
                assert option in given, f'{path}:{call.lineno}'
