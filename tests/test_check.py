"""`pfb check` says what training meets: each case is a data set of files, loaded by its config."""

import numpy as np
import pytest
from demo_runs import ROOT
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmseg.registry import DATASETS, TRANSFORMS
from PIL import Image

from pfb_mmseg.commands.main import read
from pfb_mmseg.data.check import check_config

LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
PACK = dict(type='PackSegInputs')
RNG = np.random.default_rng(0)


@TRANSFORMS.register_module()
class LoadFiveBands(BaseTransform):
    def transform(self, results):
        results['img'] = np.load(results['img_path'])
        return results


@TRANSFORMS.register_module()
class OneFor254(BaseTransform):
    """Labels of 0 and 254 become 0 and 1; in place, as users write it."""

    def transform(self, results):
        results['gt_seg_map'][results['gt_seg_map'] == 254] = 1
        return results


@TRANSFORMS.register_module()
class SkipTheSecond(BaseTransform):
    def transform(self, results):
        return None if results['img_path'].endswith('b.png') else results


@DATASETS.register_module()
class SamplesOfItsOwn(BaseDataset):
    """Does not make samples from `get_data_info` and the pipeline alone."""

    METAINFO = dict(classes=('a', 'b'))

    def load_data_list(self):
        return [dict(), dict()]

    def prepare_data(self, index):
        image = np.zeros((8, 8, 3), np.uint8)
        return self.pipeline(dict(img=image, gt_seg_map=2 * np.eye(8, dtype=np.uint8)))


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def picture(path, size=(16, 24), **options):
    write(path, RNG.integers(0, 255, (*size, 3)), **options)


def labels(path, values=(0, 1), size=(16, 24)):
    write(path, np.resize(values, size))


def leaf(root, pipeline=(*LOAD, PACK), **options):
    return (
        dict(
            type='BaseSegDataset',
            data_root=str(root),
            data_prefix=dict(img_path='images', seg_map_path='labels'),
            img_suffix='.png',
            metainfo=dict(classes=('a', 'b')),
            pipeline=[*pipeline],
        )
        | options
    )


def config_of(dataset, part='train', **head):
    config = {'default_scope': 'mmseg', f'{part}_dataloader': dict(dataset=dataset)}
    if head:
        config['model'] = dict(decode_head=head)
    return Config(config)


def problems(dataset, part='train', **head):
    good, bad, _ = check_config(config_of(dataset, part, **head))
    assert bool(good) != bool(bad)
    return bad


def advice(dataset, num_read=200):
    _, bad, found = check_config(config_of(dataset), num_read)
    assert bad == []
    return found


@pytest.fixture
def root(tmp_path):
    for name in 'abc':
        picture(tmp_path / 'images' / f'{name}.png')
        labels(tmp_path / 'labels' / f'{name}.png')
    return tmp_path


class TestAsTrainingLoads:
    """Where a look at the files alone would say something else."""

    @pytest.mark.parametrize(('size', 'fits'), [((16, 24), False), ((24, 16), True)])
    def test_a_photograph_is_turned_by_its_exif_orientation(self, tmp_path, size, fits):
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(tmp_path / 'images/a.jpg', exif=exif)
        labels(tmp_path / 'labels/a.png', size=size)
        found = problems(leaf(tmp_path, img_suffix='.jpg'))
        assert found == [] if fits else 'labels of another size than their image' in found[0]

    @pytest.mark.parametrize(('values', 'ignored'), [((0, 255), 255), ((0, 250), 250)])
    def test_a_binary_mask_whose_object_is_the_ignored_value(self, root, values, ignored):
        for name in 'abc':
            labels(root / f'labels/{name}.png', values)
        [fault] = problems(leaf(root), num_classes=2, ignore_index=ignored)
        assert 'all labels of 3 samples are 0 or ignored' in fault

    def test_one_bit_masks_are_fine_by_pillow_and_not_by_cv2(self, root):
        for name in 'abc':
            mask = Image.open(root / f'labels/{name}.png').point(lambda value: 255 * value)
            mask.convert('1').save(root / f'labels/{name}.png')
        assert problems(leaf(root)) == []
        by_cv2 = [LOAD[0], dict(LOAD[1], imdecode_backend='cv2'), PACK]
        [fault] = problems(leaf(root, by_cv2))
        assert 'are 0 or ignored' in fault

    def test_palettes_are_fine_by_pillow_and_not_by_cv2(self, root):
        for name in 'abc':
            mask = Image.open(root / f'labels/{name}.png')
            mask.putpalette([0, 0, 0, 128, 0, 0])
            mask.save(root / f'labels/{name}.png')
        assert problems(leaf(root)) == []
        [fault] = problems(leaf(root, [LOAD[0], dict(LOAD[1], imdecode_backend='cv2'), PACK]))
        assert '3 of 3 samples have labels in several channels' in fault

    def test_a_loader_of_one_s_own_reads_what_others_cannot(self, root):
        for name in 'abc':
            np.save(root / f'images/{name}.npy', RNG.random((16, 24, 5), np.float32))
        pipeline = [dict(type='LoadFiveBands'), LOAD[1], PACK]
        assert problems(leaf(root, pipeline, img_suffix='.npy')) == []

    def test_a_transform_of_one_s_own_may_give_labels_their_meaning(self, root):
        for name in 'abc':
            labels(root / f'labels/{name}.png', (0, 254))
        assert 'have the labels 254' in problems(leaf(root))[0]
        crop = dict(type='RandomCrop', crop_size=(8, 8))
        assert problems(leaf(root, [*LOAD, dict(type='OneFor254'), crop, PACK])) == []

    def test_a_crop_hides_neither_a_value_nor_a_size(self, root):
        pipeline = [*LOAD, dict(type='RandomCrop', crop_size=(2, 2)), PACK]
        spoilt = np.resize((0, 1), (16, 24))
        spoilt[5, 7] = 9
        write(root / 'labels/c.png', spoilt)
        [fault] = problems(leaf(root, pipeline))
        assert '1 of 3 samples have the labels 9' in fault and 'c.png' in fault
        labels(root / 'labels/c.png', size=(16, 25))
        [fault] = problems(leaf(root, pipeline))
        assert '1 of 3 samples have labels of another size' in fault

    def test_zero_may_be_reduced(self, root):
        for name in 'abc':
            labels(root / f'labels/{name}.png', (0, 1, 2))
        assert 'have the labels 2' in problems(leaf(root))[0]
        assert problems(leaf(root, reduce_zero_label=True)) == []

    def test_test_images_are_resized_without_their_labels_and_training_images_are_not(self, root):
        resize = dict(type='Resize', scale=(48, 32))
        pipeline = [LOAD[0], resize, LOAD[1], PACK]
        assert problems(leaf(root, pipeline), 'val') == []
        [fault] = problems(leaf(root, pipeline), 'train')
        assert 'leave the pipeline with labels of another size' in fault

    def test_a_step_that_fails_behind_the_loaders_is_named(self, root):
        pad = dict(type='BioMedical3DPad', pad_shape=(1, 1, 1))
        [fault] = problems(leaf(root, [*LOAD, pad, PACK]))
        assert '3 of 3 samples cannot be loaded: BioMedical3DPad raises' in fault

    def test_samples_that_the_pipeline_leaves_out_are_no_problem(self, root):
        pipeline = [*LOAD, dict(type='SkipTheSecond'), PACK]
        [note] = advice(leaf(root, pipeline))
        assert '1 of 3 samples are left out' in note
        for options in (dict(test_mode=True), dict(indices=[1])):
            assert 'are left out' in problems(leaf(root, pipeline, **options))[0]

    def test_a_data_set_that_makes_samples_itself_is_asked_for_them(self):
        dataset = dict(type='SamplesOfItsOwn', pipeline=[PACK])
        assert '2 of 2 samples have the labels 2' in problems(dataset)[0]
        assert problems(dataset, num_classes=3) == []


class TestLabels:
    def test_are_what_the_head_tells_apart(self, root):
        assert problems(leaf(root), num_classes=2) == []
        for name in 'abc':
            labels(root / f'labels/{name}.png', (0, 1, 2, 250))
        assert problems(leaf(root), num_classes=3, ignore_index=250) == []
        [fault] = problems(leaf(root), num_classes=2, ignore_index=250)
        assert 'have the labels 2 once loaded, but only 0 to 1 and 250 (ignored)' in fault

    def test_of_one_channel_are_two(self, root):
        assert problems(leaf(root), num_classes=1) == []
        assert problems(leaf(root), num_classes=2, out_channels=1) == []

    def test_that_are_all_ignored_teach_nothing(self, root):
        labels(root / 'labels/a.png', (255,))
        [note] = advice(leaf(root))
        assert '1 of 3 samples have no label that is not ignored' in note and 'a.png' in note
        for name in 'bc':
            labels(root / f'labels/{name}.png', (255,))
        [fault] = problems(leaf(root))
        assert 'all labels of 3 samples are 255, which is ignored' in fault

    def test_of_classes_that_never_occur_are_mentioned(self, root):
        [note] = advice(leaf(root, metainfo=dict(classes=('a', 'b', 'c', 'd'))))
        assert 'of 4 classes these never occur in 3 samples: c, d' in note

    def test_of_one_class_in_some_samples_may_be_followed_by_the_others(self, root):
        for name in 'ac':
            labels(root / f'labels/{name}.png', (0,))
        [fault] = check_config(config_of(leaf(root)), 2)[1]
        assert 'all labels of 2 samples are 0' in fault and '--read 0' in fault
        assert problems(leaf(root)) == []

    def test_that_nobody_loads_are_missed_where_they_are_needed(self, root):
        unlabelled = leaf(root, [LOAD[0], PACK])
        for part in ('train', 'val'):
            assert 'come without labels' in problems(unlabelled, part)[0]
        assert problems(unlabelled, 'test') == []

    def test_of_classifiers_are_checked_too(self, tmp_path):
        for name in ('x', 'y'):
            picture(tmp_path / name / '0.png')
        dataset = dict(
            type='mmpretrain.CustomDataset',
            data_prefix=str(tmp_path),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
        )
        config = Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dataset)))
        pytest.importorskip('mmpretrain')
        assert check_config(config)[1:] == ([], [])
        config.model = dict(head=dict(num_classes=1 + 2))
        assert 'never occur in 2 samples: 2' in check_config(config)[2][0]
        picture(tmp_path / 'z' / '0.png')
        picture(tmp_path / 'zz' / '0.png')
        assert 'have the labels 3 once loaded' in check_config(config)[1][0]


class TestFiles:
    def test_of_data_sets_in_data_sets_are_looked_at(self, root):
        other = leaf(root / 'absent')
        repeated = dict(type='RepeatDataset', times=3, dataset=other)
        nested = dict(type='ConcatDataset', datasets=[leaf(root), repeated])
        good, bad, _ = check_config(config_of(nested))
        assert len(good) == 1 and 'absent/images, is missing' in bad[1]

    def test_of_data_sets_that_do_not_go_together_are_in_order_but_the_whole_is_not(self, root):
        other = leaf(root, metainfo=dict(classes=('x', 'y')))
        both = dict(type='ConcatDataset', datasets=[leaf(root), other])
        good, [fault], _ = check_config(config_of(both))
        assert len(good) == 2 and 'ConcatDataset gives no sample' in fault

    def test_that_are_missing_are_all_counted(self, root):
        (root / 'labels/b.png').unlink()
        _, [fault], _ = check_config(config_of(leaf(root)), num_read=1)
        assert '1 of 3 samples lack the file of their seg_map_path' in fault
        assert 'labels/b.png' in fault and 'is there and holds a.png, c.png.' in fault

    def test_that_a_list_names_and_nobody_has(self, root):
        (root / 'list.txt').write_text('a\nz\n')
        faults = problems(leaf(root, ann_file='list.txt'))
        assert '1 of 2 samples lack the file of their img_path' in faults[0]
        assert 'z.png' in faults[0]

    def test_that_are_broken(self, root):
        (root / 'labels/a.png').write_bytes(b'nothing')
        (root / 'images/b.png').write_bytes(b'')
        faults = problems(leaf(root))
        assert '1 of 3 samples cannot be loaded: LoadAnnotations raises' in faults[0]
        assert '1 of 3 samples cannot be loaded: LoadImageFromFile raises' in faults[1]

    def test_of_another_suffix_are_told(self, root):
        faults = problems(leaf(root, img_suffix='.jpg'))
        assert 'images, holds a.png, b.png, c.png. Compare the suffixes' in faults[1]

    def test_that_are_made_by_code_need_not_be_there(self):
        config = Config.fromfile(next((ROOT / 'configs/demo').glob('*p50*.py')))
        good, bad, _ = check_config(config, num_read=40)
        assert bad == [] and '2,000 samples, 40 loaded, all in order' in good[0]
        config.model.decode_head.num_classes = 2
        assert 'have the labels 2, 3' in check_config(config, num_read=40)[1][0]


@pytest.mark.parametrize(('there', 'status'), [(True, 0), (False, 1)])
def test_the_command_tells_by_its_exit_status(root, capsys, there, status):
    config_of(leaf(root if there else root / 'absent')).dump(root / 'config.py')
    with pytest.raises(SystemExit) as stop:
        read(['check', str(root / 'config.py')])()
    assert stop.value.code == status
    assert ('all in order' if there else 'is missing') in capsys.readouterr().out


def test_an_unknown_data_set_is_told():
    assert 'NoSuchDataset' in problems(dict(type='NoSuchDataset'))[0]


def test_a_config_without_data_is_told():
    assert 'has no train_dataloader' in check_config(Config(dict()))[1][0]
