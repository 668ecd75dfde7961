"""A segmentor small enough to train in a test, its twin without PFB, and batches for both."""

import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import pfb_mmseg  # noqa: F401  registers the segmentors

NUM_CLASSES = 5
RARE = dict(type='rare', estimator=dict(num_centroids=6, dim=8))


def model_cfg(model_type='PFBEncoderDecoder', pfb=None, head=None, **backbone):
    """ResNetV1c-18 of an eighth of its width, output stride 8, ASPP and FCN heads with dropout."""
    norm_cfg = dict(type='BN', requires_grad=True)
    head = dict(
        num_classes=NUM_CLASSES, norm_cfg=norm_cfg, align_corners=False, dropout_ratio=0.1
    ) | (head or {})
    cfg = dict(
        type=model_type,
        data_preprocessor=dict(
            type='SegDataPreProcessor', mean=[127.5] * 3, std=[64.0] * 3, size=(64, 64)
        ),
        backbone=dict(
            type='ResNetV1c',
            depth=18,
            stem_channels=8,
            base_channels=8,
            dilations=(1, 1, 2, 4),
            strides=(1, 2, 1, 1),
            norm_cfg=norm_cfg,
            **backbone,
        ),
        decode_head=dict(
            type='ASPPHead', in_channels=64, in_index=3, channels=8, dilations=(1, 6), **head
        ),
        auxiliary_head=dict(
            type='FCNHead', in_channels=32, in_index=2, channels=8, num_convs=1, **head
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    if model_type.startswith('PFB'):
        cfg['pfb'] = dict(prune_ratio=0.5, criterion=RARE) | (pfb or {})
    return cfg


def build(pfb=None, head=None, **backbone):
    """A PFBEncoderDecoder in training mode, whose estimator is seeded: the next step is blocked."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(model_cfg(pfb=pfb, head=head, **backbone)).train()
    generator = torch.Generator().manual_seed(1)
    model.pfb.prepare()
    num_channels = model.pfb.point.num_channels
    while model.pfb.estimator is not None and not model.pfb.pruner.ready:
        model.pfb.pruner(torch.rand(6, num_channels, generator=generator))
    return model


def warm(model, num=8):
    """The same after as many batches as an exit of its own learns from before it decides."""
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        for seed in range(100, 110):
            model.loss(images(num, seed=seed, dtype=dtype), samples(num, seed=seed))
    assert model.pfb.ready
    return model


def plain_twin(model, head=None, **backbone):
    """An EncoderDecoder with the weights of ``model``, as a user would get it from a checkpoint."""
    twin = MODELS.build(model_cfg('EncoderDecoder', head=head, **backbone)).train()
    shared = {k: v for k, v in model.state_dict().items() if not k.startswith('pfb.')}
    twin.load_state_dict(shared)
    return twin.to(next(model.parameters()).dtype)


def host(encoder):
    """A model that is nothing but its backbone."""
    model = torch.nn.Module()
    model.backbone = encoder
    return model


def images(num=8, size=64, seed=0, dtype=torch.float32):
    """(num, 3, size, size), each of its own brightness and contrast."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(num, 3, 1, 1, generator=generator, dtype=dtype)
    noise = torch.randn(num, 3, size, size, generator=generator, dtype=dtype)
    return level + noise * level.abs()


def samples(num=8, size=64, seed=0):
    """One data sample an image, each with labels of its own."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for index in range(num):
        sample = SegDataSample(metainfo=dict(img_path=f'{index}.png', img_shape=(size, size)))
        labels = torch.randint(0, NUM_CLASSES, (1, size, size), generator=generator)
        sample.gt_sem_seg = PixelData(data=labels)
        out.append(sample)
    return out


def total(losses):
    """Sum of what is trained on, of a dict of losses and accuracies."""
    return sum(value for name, value in losses.items() if 'loss' in name)


def gradients(model):
    """Gradient of every parameter by name; zeros where there is none."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }
