"""Images of several sizes in a batch: what chooses sees the images, and no padding."""

import pytest
import tiny
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch.nn import functional as F

RARE = dict(type='rare', estimator=dict(num_centroids=6, dim=8))
SIZE, SMALL, TILE = 192, 128, 32
NUM = 24


def build(pfb, over_labelled=False):
    """Its preprocessor pads images to 192x192 pixels, and their labels with 255."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    loss = dict(type='CrossEntropyLoss', avg_non_ignore=over_labelled)
    cfg = tiny.model_cfg(pfb=pfb, head=dict(loss_decode=loss), norm_eval=True)
    cfg['data_preprocessor'] = dict(
        type='SegDataPreProcessor',
        mean=[0.0] * 3,
        std=[1.0] * 3,
        size=(SIZE, SIZE),
        pad_val=0,
        seg_pad_val=255,
    )
    model = MODELS.build(cfg).train()
    model.pfb.prepare()
    with torch.no_grad():
        for seed in range(20):
            if model.pfb.ready:
                break
            scores(model, whole_batch(seed))
    assert model.pfb.ready
    return model


def whole_batch(seed):
    """Images that say the same in any part of them: each repeats a tile of its own, and so do its
    labels, of which a share that differs from image to image is of the last class."""
    tiles = tiny.images(NUM, TILE, seed=seed) + 3.0
    shares = torch.randperm(NUM, generator=torch.Generator().manual_seed(seed))
    labels = torch.where(torch.arange(TILE) < shares[:, None], tiny.NUM_CLASSES - 1, 0)
    times = SIZE // TILE
    return [
        (tile.repeat(1, times, times), row.repeat(1, SIZE, times))
        for tile, row in zip(tiles, labels, strict=True)
    ]


def cut_batch(seed):
    """The same, every other one cut to two thirds of its height and width."""
    return [
        (image[:, :SMALL, :SMALL], labels[:, :SMALL, :SMALL]) if i % 2 else (image, labels)
        for i, (image, labels) in enumerate(whole_batch(seed))
    ]


def scores(model, pairs, padded_by='the preprocessor'):
    """What a training step on images and labels compares them by."""
    samples = []
    for index, (image, labels) in enumerate(pairs):
        metainfo = dict(img_path=f'{index}.png', img_shape=tuple(image.shape[-2:]))
        sample = SegDataSample(metainfo=metainfo, gt_sem_seg=PixelData(data=labels))
        samples.append(sample)
    data = dict(inputs=[image for image, _ in pairs], data_samples=samples)
    if padded_by == 'the preprocessor':
        data = model.data_preprocessor(data, training=True)
    else:  # as that of MMDetection does, or a pipeline
        data['inputs'] = torch.stack([fill(image, 0) for image in data['inputs']])
        for sample in samples:
            sample.gt_sem_seg = PixelData(data=fill(sample.gt_sem_seg.data, 255))
            sample.set_metainfo(dict(pad_shape=(SIZE, SIZE)))
    model.loss(data['inputs'], data['data_samples'])
    return model.pfb.selection.score


def fill(tensor, value):
    height, width = tensor.shape[-2:]
    return F.pad(tensor, (0, SIZE - width, 0, SIZE - height), value=value)


def rank_correlation(a, b):
    ranks = torch.stack([one.argsort().argsort().double() for one in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


@pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
@pytest.mark.parametrize('padded_by', ['the preprocessor', 'others'])
def test_padded_batches_rank_by_density_as_unpadded_ones_do(strategy, padded_by):
    """Averaged over the padding, too, their correlation is 0.6."""
    model = build(dict(criterion=RARE, strategy=strategy))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = scores(model, cut_batch(50), padded_by)
    model.load_state_dict(state)
    assert rank_correlation(found, scores(model, whole_batch(50))) > 0.9


@pytest.mark.parametrize('exit', ['auxiliary', 'own'])
@pytest.mark.parametrize('over_labelled', [True, False])
def test_the_loss_at_an_early_exit_leaves_padding_out(exit, over_labelled):
    model = build(dict(criterion='hard', exit=exit, exit_loss_weight=0), over_labelled)
    last = model.auxiliary_head.conv_seg if exit == 'auxiliary' else model.pfb.exit.layers[-1]
    with torch.no_grad():
        last.bias.copy_(torch.linspace(4, -4, tiny.NUM_CLASSES))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = scores(model, cut_batch(50))
    model.load_state_dict(state)
    if not over_labelled:  # as in training, it is the mean over all pixels, padding counts as 0
        found[1::2] *= SIZE**2 / SMALL**2
    assert rank_correlation(found, scores(model, whole_batch(50))) > 0.95
