"""Steps that call loss several times, batches of other kinds, and PFB inside another model."""

import copy

import numpy as np
import pytest
import torch
from demo_runs import demo_config, train
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pfb_mmseg import PFBMixin
from pfb_mmseg.hooks.model import find_filter
from pfb_mmseg.report import SelectionRecord, read_scalars

OTHERS = 6  # pseudo-labelled images in a step


class SelfTraining(EncoderDecoder):
    """Trains on labelled images and then on others, labelled by itself, and writes it all down."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []  # (paths, kept or None) of each call

    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        samples = data['data_samples']
        labelled = self(**data, mode='loss')
        self.note([sample.img_path for sample in samples])
        pseudo = [SegDataSample(gt_sem_seg=copy.copy(samples[0].gt_sem_seg))] * OTHERS
        images = torch.randn(OTHERS, *data['inputs'].shape[1:])
        others = self(images, pseudo, mode='loss')
        self.note([None] * OTHERS)
        losses = labelled | {f'pseudo.{name}': value for name, value in others.items()}
        loss, log = self.parse_losses(losses)
        optim_wrapper.update_params(loss)
        return log

    def note(self, paths):
        selection = self.pfb.selection if self.pfb.pruning else None
        self.seen.append((paths, None if selection is None else selection.kept.tolist()))


@MODELS.register_module(force=True)
class PFBSelfTraining(PFBMixin, SelfTraining):
    pass


def self_training(work_dir, **options):
    config = demo_config(work_dir, 10, **options)
    config.model.type = 'PFBSelfTraining'
    config.custom_hooks = [dict(type='PFBHook', begin=2, end=1.0)]
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    return config


class TestSeveralCalls:
    @pytest.fixture(scope='class')
    def run(self, tmp_path_factory):
        work_dir = tmp_path_factory.mktemp('run')
        config = self_training(work_dir)
        config.model.pfb.criterion = 'hard'
        return train(config), work_dir

    def test_the_log_counts_all_images_of_all_calls(self, run):
        runner, work_dir = run
        kept = [len(paths) if k is None else sum(k) for paths, k in runner.model.seen]
        entries, _ = read_scalars(work_dir)
        assert [entry['pfb/candidates'] for entry in entries] == [4 + OTHERS] * 10
        steps = np.array(kept).reshape(10, 2).sum(axis=1)
        assert [entry['pfb/kept'] for entry in entries] == steps.tolist()
        assert steps[-1] < 4 + OTHERS

    def test_the_record_has_rows_of_the_labelled_images_alone(self, run):
        runner, work_dir = run
        expected = {}
        for paths, kept in runner.model.seen:
            if kept is None or all(kept):
                continue
            for path, stays in zip(paths, kept, strict=True):
                if path is not None:
                    expected.setdefault(path, np.zeros(2, int))[:] += 1, stays
        record = SelectionRecord.load(work_dir / 'pfb_record.npz')
        counts = zip(record.paths, record.candidates.tolist(), record.kept.tolist(), strict=True)
        found = {path: [candidates, kept] for path, candidates, kept in counts}
        assert found == {path: row.tolist() for path, row in expected.items()}

    def test_the_memory_of_the_batch_sampler_is_of_the_labelled_images(self, tmp_path):
        config = self_training(tmp_path)
        config.model.pfb.update(prune_ratio=0.75, criterion='hard')
        loader = config.train_dataloader
        loader.dataset.length = 8
        loader.batch_sampler = dict(type='PFBBatchSampler', skip_loading=0.5)
        runner = train(config)
        state = runner.train_dataloader.batch_sampler.state_dict()
        assert len(state['standing']) == 8 and state['standing'].isfinite().all()
        assert min(len(paths) for paths, _ in runner.model.seen) == 2  # of four


class Pairs(Dataset):
    """Images and classes as tensors, in whatever form."""

    def __init__(self, form):
        self.form = form
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(16, 3, 8, 8, generator=generator)

    def __len__(self):
        return 16

    def __getitem__(self, index):
        image, label = self.images[index], torch.tensor(index % 2)
        return dict(image=image, label=label) if self.form is dict else (image, label)


class Plain(BaseModel):
    """Not of OpenMMLab's kinds of models: an encoder and a linear layer."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
        self.fc = nn.Linear(4, 2)

    def forward(self, image, label=None, mode='tensor'):
        return self.loss(image, label) if mode == 'loss' else self.scores(image)

    def scores(self, images):
        return self.fc(self.backbone(images).mean(dim=(2, 3)))

    def loss(self, inputs, data_samples):
        return dict(loss=nn.functional.cross_entropy(self.scores(inputs), data_samples))


class PFBPlain(PFBMixin, Plain):
    pass


@pytest.mark.parametrize('form', [tuple, dict])
def test_batches_of_any_form_are_counted(tmp_path, form):
    pfb = dict(criterion='random', prune_ratio=0.5, block_after='backbone.0')
    runner = Runner(
        model=PFBPlain(pfb=pfb),
        work_dir=str(tmp_path),
        train_dataloader=DataLoader(Pairs(form), batch_size=4, shuffle=True),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='PFBHook', begin=2, end=6)],
        experiment_name=f'pairs-{form.__name__}',
        default_scope='mmengine',
    )
    runner.train()
    entries, _ = read_scalars(tmp_path)
    assert [entry['pfb/candidates'] for entry in entries] == [4] * 8
    assert [entry['pfb/kept'] for entry in entries] == [4, 4, 2, 2, 2, 2, 4, 4]
    record = SelectionRecord.load(tmp_path / 'pfb_record.npz')
    assert len(record) == 0  # labels do not tell whose they are


@MODELS.register_module(force=True)
class Distiller(BaseModel):
    """A student that is blocked, and a teacher that looks at it."""

    def __init__(self, student, data_preprocessor, teacher=None):
        super().__init__(data_preprocessor=MODELS.build(data_preprocessor))
        self.student = MODELS.build(student)
        self.teacher = None if teacher is None else MODELS.build(teacher)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'loss':
            return self.student.loss(inputs, data_samples)
        return self.student(inputs, data_samples, mode)


def distillation(work_dir, **options):
    config = demo_config(work_dir, 8, **options)
    student = config.model
    config.model = dict(
        type='Distiller', student=student, data_preprocessor=student.pop('data_preprocessor')
    )
    config.custom_hooks = [dict(type='PFBHook', begin=1, end=1.0)]
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    return config


def test_the_student_of_a_distillation_is_blocked(tmp_path):
    runner = train(distillation(tmp_path, **{'default_hooks.checkpoint.interval': 8}))
    entries, _ = read_scalars(tmp_path)
    assert [entry['pfb/kept'] for entry in entries] == [4] * 3 + [2] * 5
    record = SelectionRecord.load(tmp_path / 'pfb_record.npz')
    assert record.candidates.sum() == 5 * 4 and record.kept.sum() == 5 * 2
    assert find_filter(runner.model) is runner.model.student.pfb


def test_two_models_with_pfb_inside_are_refused(tmp_path):
    config = distillation(tmp_path)
    config.model.teacher = copy.deepcopy(config.model.student)
    with pytest.raises(ValueError, match='Distiller has 2 models with PFBMixin inside'):
        train(config)
