"""A classifier small enough to train in a test, its twin without PFB, and batches for both."""

import torch
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample

import pfb_mmseg  # noqa: F401  registers the classifiers

NUM_CLASSES = 5
RARE = dict(type='rare', estimator=dict(num_centroids=6))


def model_cfg(model_type='PFBImageClassifier', pfb=None, head=None, **options):
    """ResNet-18 for small images, of an eighth of its width."""
    cfg = dict(
        type=model_type,
        data_preprocessor=dict(num_classes=NUM_CLASSES, mean=[0] * 3, std=[1] * 3),
        backbone=dict(type='ResNet_CIFAR', depth=18, stem_channels=8, base_channels=8),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=NUM_CLASSES, in_channels=64) | (head or {}),
    )
    if model_type.startswith('PFB'):
        cfg['pfb'] = dict(prune_ratio=0.5, criterion=RARE) | (pfb or {})
    return cfg | options


def build(pfb=None, head=None, model_type='PFBImageClassifier', **options):
    """In training mode, with scores that tell images apart; the next step is blocked."""
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = MODELS.build(model_cfg(model_type, pfb, head, **options)).train()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
    if isinstance(getattr(model.head, 'fc', None), torch.nn.Linear):
        torch.nn.init.normal_(model.head.fc.weight)
    if hasattr(model, 'pfb'):
        model.pfb.prepare()
        generator = torch.Generator().manual_seed(1)
        while model.pfb.estimator is not None and not model.pfb.pruner.ready:
            model.pfb.pruner(torch.rand(6, model.pfb.point.num_channels, generator=generator))
    return model


def warm(model, data_samples=None):
    """The same after as many batches as its exit learns from before it decides."""
    with torch.no_grad():
        for seed in range(100, 110):
            model.loss(images(seed=seed), data_samples or samples())
    assert model.pfb.ready
    return model


def plain_twin(model, head=None, **options):
    """An ImageClassifier with the weights of ``model``, as a checkpoint would give it."""
    twin = MODELS.build(model_cfg('ImageClassifier', head=head, **options)).train()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith('pfb.')}
    twin.load_state_dict(state)
    return twin


def images(num=8, size=32, seed=0):
    """(num, 3, size, size), each of its own brightness and contrast."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(num, 3, 1, 1, generator=generator)
    return level + torch.randn(num, 3, size, size, generator=generator) * level.abs()


def samples(num=8):
    """One data sample an image, with a class each."""
    return [
        DataSample(metainfo=dict(img_path=f'{i}.png')).set_gt_label(i * 2 % NUM_CLASSES)
        for i in range(num)
    ]


def mixed_samples(num=8):
    """The same, after Mixup: shares of two classes each."""
    out = samples(num)
    for index, sample in enumerate(out):
        scores = torch.zeros(NUM_CLASSES)
        scores[sample.gt_label] += 0.3 + 0.05 * index
        scores[(int(sample.gt_label) + 1) % NUM_CLASSES] += 0.7 - 0.05 * index
        sample.set_gt_score(scores)
    return out


def some_of(data_samples, indices):
    return [data_samples[i] for i in indices.tolist()]
