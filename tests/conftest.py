"""What a mark asks for, and what several files need."""

import gc

import pytest
import torch


def pytest_collection_finish():
    """MMEngine collects garbage for each data set that it makes; the modules never become any."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    if item.get_closest_marker('cuda') and not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')


@pytest.fixture(scope='module')
def one_thread():
    """For narrow networks, above all in channels_last: on a CPU with AVX-512, torch 2.13 (oneDNN)
    writes past its memory in the backward pass of a strided 1x1 convolution with 8 input channels,
    if it has several threads. Wider ones are not concerned."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
