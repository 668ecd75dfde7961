"""Runs of the tiny classifier by epochs, on images in a folder of each class: a few seconds."""

import cv2
import numpy as np
import tiny_classifier
from mmengine.config import Config

CLASSES = ('cat', 'dog', 'owl')
NUM_IMAGES = 18


def write_images(folder):
    """Six images of each class, 32 pixels wide, in a color of their class."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(NUM_IMAGES // len(CLASSES)):
            image = rng.integers(0, 256, (32, 32, 3)) // 2
            image[..., label] += 80
            cv2.imwrite(str(folder / name / f'{index}.png'), image.astype(np.uint8))


def loader(folder, sampler, **dataset):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    dataset = dict(type='CustomDataset', data_root=str(folder), pipeline=pipeline, **dataset)
    return dict(batch_size=6, num_workers=0, sampler=sampler, dataset=dataset)


def run_config(images, work_dir, max_epochs=3, pfb=None, hooks=(), **options):
    """Three iterations an epoch, all but the first epoch blocked; ``options`` as --cfg-options.

    Args:
        images: where :func:`write_images` wrote.
        pfb: options of the model.
        hooks: beside PFBHook.
    """
    shown = loader(images, dict(type='DefaultSampler', shuffle=False), test_mode=True)
    config = Config(
        dict(
            default_scope='mmpretrain',
            custom_imports=dict(imports=['pfb_mmseg']),
            work_dir=str(work_dir),
            model=tiny_classifier.model_cfg(
                pfb=pfb,
                head=dict(num_classes=len(CLASSES)),
                data_preprocessor=dict(num_classes=len(CLASSES), mean=[127.5] * 3, std=[64] * 3),
            ),
            train_dataloader=loader(images, dict(type='DefaultSampler', shuffle=True)),
            val_dataloader=shown,
            val_evaluator=dict(type='Accuracy', topk=1),
            test_dataloader=shown,
            test_evaluator=dict(type='Accuracy', topk=1),
            test_cfg=dict(),
            train_cfg=dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs),
            val_cfg=dict(),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9)),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(type='CheckpointHook', interval=max_epochs),
            ),
            visualizer=dict(
                type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
            ),
            custom_hooks=[dict(type='PFBHook', begin=1, end=1.0, by_epoch=True), *hooks],
            randomness=dict(seed=0),
            log_level='WARNING',
        ),
        format_python_code=False,
    )
    config.merge_from_dict(options)
    return config
