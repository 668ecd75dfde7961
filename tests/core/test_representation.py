"""Sec. 3.4: from feature maps to vectors, and images that do not fill their map."""

import numpy as np
import pytest
import torch

from pfb_mmseg.core import AdaptiveDensityEstimator, pool_features, spatial_mean
from pfb_mmseg.core.representation import token_grid

from . import oracle
from .test_operation_count import Operations

# Height and width of the images, in cells of a map of 12 x 16.
SIZES = [(12, 16), (8, 16), (12, 11), (5, 3), (1, 1), (9, 16), (12, 8), (7, 7)]
HEIGHT, WIDTH, CHANNELS = 12, 16, 6


def padded_maps(seed=0, padding=50.0):
    """Maps of several sizes, the same in a batch whose rest is something else, and their shares."""
    rng = np.random.default_rng(seed)
    maps = [rng.normal(size=(1, CHANNELS, *size)) + rng.normal() for size in SIZES]
    batch = np.full((len(maps), CHANNELS, HEIGHT, WIDTH), padding)
    for whole, part in zip(batch, maps, strict=True):
        whole[:, : part.shape[2], : part.shape[3]] = part[0]
    valid = torch.tensor(SIZES) / torch.tensor([HEIGHT, WIDTH])
    return maps, torch.from_numpy(batch), valid


def assert_same(actual, expected, rtol=1e-5, atol=1e-6):
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), expected, rtol, atol)


LAYOUTS = {
    'NCHW': lambda x, valid: spatial_mean(x, valid=valid),
    'channels_last': lambda x, valid: spatial_mean(
        x.to(memory_format=torch.channels_last), valid=valid
    ),
    'NHWC': lambda x, valid: spatial_mean(x.movedim(1, -1), -1, valid),
    'NLC': lambda x, valid: spatial_mean(x.flatten(2).mT, -1, valid, (HEIGHT, WIDTH)),
    'NCL': lambda x, valid: spatial_mean(x.flatten(2), 1, valid, (HEIGHT, WIDTH)),
}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('padding', [50.0, float('nan'), float('inf')])
def test_padding_does_not_enter_the_mean(layout, padding):
    maps, batch, valid = padded_maps(padding=padding)
    expected = np.concatenate([oracle.pool(part) for part in maps])
    assert_same(LAYOUTS[layout](batch, valid), expected)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_without_padding_it_is_the_mean_of_everything(layout):
    batch = padded_maps()[1]
    for valid in (None, torch.ones(len(batch), 2)):
        assert_same(LAYOUTS[layout](batch, valid), oracle.pool(batch))


def test_padded_maps_rank_as_unpadded_ones_do():
    estimator = AdaptiveDensityEstimator(num_centroids=8, dim=CHANNELS)
    estimator.update(torch.randn(64, CHANNELS, generator=torch.Generator().manual_seed(0)))
    for seed in range(10):
        maps, batch, valid = padded_maps(seed)
        alone = torch.cat([torch.from_numpy(oracle.pool(part)) for part in maps]).float()
        expected = estimator.log_density(alone)
        ranked = estimator.log_density(spatial_mean(batch, valid=valid))
        assert ranked.argsort().tolist() == expected.argsort().tolist()
        blind = estimator.log_density(spatial_mean(batch))
        assert blind.argsort().tolist() != expected.argsort().tolist()


@pytest.mark.parametrize(
    'share, cells', [(1.0, 8), (0.95, 8), (0.93, 7), (0.5, 4), (0.56, 4), (0.57, 5), (0.01, 1)]
)
def test_a_cell_counts_if_its_centre_lies_in_the_image(share, cells):
    maps = torch.arange(8.0).expand(1, 1, 8, 8)
    expected = (cells - 1) / 2
    assert spatial_mean(maps, valid=torch.tensor([[1.0, share]])).item() == expected
    assert spatial_mean(maps.mT, valid=torch.tensor([[share, 1.0]])).item() == expected


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_added_up_in_float32(dtype):
    maps, batch, valid = padded_maps()
    batch = batch.to(dtype)
    expected = [
        oracle.pool(whole[None, :, : part.shape[2], : part.shape[3]].double().numpy())
        for whole, part in zip(batch, maps, strict=True)
    ]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert_same(spatial_mean(batch, valid=valid), np.concatenate(expected))


def test_the_host_sees_that_nothing_is_padded_and_computes_nothing_more():
    maps = torch.rand(4, 8, 4, 6)
    names = []
    for valid in (None, torch.ones(4, 2)):
        with Operations() as operations:
            spatial_mean(maps, valid=valid)
        names.append([name for name in operations.names if 'mean' in name])
    assert names[0] == names[1] == ['aten::mean.dim']


@pytest.mark.parametrize('grid', [None, (3, 5)])
def test_tokens_whose_places_are_unknown_are_refused(grid):
    tokens, valid = torch.rand(2, 16, 8), torch.full((2, 2), 0.5)
    with pytest.raises(ValueError, match=r'\(2, 16, 8\) have no height and width'):
        spatial_mean(tokens, -1, valid, grid)


@pytest.mark.parametrize(
    'image, num_tokens, grid',
    [
        ((512, 1024), 16 * 32, (16, 32)),
        ((512, 1024), 16 * 32 + 1, None),  # a class token
        ((500, 333), 16 * 11, (16, 11)),  # the last patches are filled up
        ((64, 64), 1, (1, 1)),
        ((64, 64), 5000, None),
    ],
)
def test_the_grid_of_tokens_follows_from_their_number(image, num_tokens, grid):
    assert token_grid(num_tokens, *image) == grid


def test_averaged_features_stay_as_they_are():
    features = torch.rand(3, 8)
    assert torch.equal(spatial_mean(features, valid=torch.full((3, 2), 0.5)), features)


@pytest.mark.parametrize('dim', [1, 3, 4, 5, 6])
def test_channels_are_averaged_over_neighbours(dim):
    maps = padded_maps()[1]
    expected = oracle.downsample_channels(oracle.pool(maps), dim)
    assert_same(pool_features(maps, dim), expected)
    assert_same(pool_features(spatial_mean(maps), dim), expected)
