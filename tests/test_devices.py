"""Devices that are neither a CPU nor CUDA, as far as one can tell without having one."""

from types import SimpleNamespace

import pytest
import torch
from tiny import host
from torch import nn

from pfb_mmseg.blocking import BlockingPoint, step_cost
from pfb_mmseg.blocking.devices import forget_peak_memory, peak_memory, random_state_kept


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 9, 1)
    )


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_the_point_is_looked_at_on_the_models_device(device):
    encoder = network().to(device)
    point = BlockingPoint(host(encoder), '2')
    point.prepare()
    assert point.num_channels == 4
    assert point.score(torch.zeros(2, 3, 8, 8, device=device)).device.type == device
    assert step_cost(encoder, point, encoder).share_behind == pytest.approx(36 / (12 + 16 + 36))


class Accelerator:
    """The module of a device, such as torch.npu, with a generator that counts its draws."""

    state = 0
    peak = 0

    def get_rng_state(self, device):
        return self.state

    def set_rng_state(self, state, device):
        self.state = state

    def max_memory_allocated(self, device):
        return self.peak

    def reset_peak_memory_stats(self, device):
        self.peak = 0


class Metal:
    """As torch.mps: one device, of which nothing is asked by name, and no peak is kept."""

    state = 0

    def get_rng_state(self):
        return self.state

    def set_rng_state(self, state):
        self.state = state

    def driver_allocated_memory(self):
        return 2**20


DEVICE = SimpleNamespace(type='another')


@pytest.fixture(params=[Accelerator, Metal])
def module(request, monkeypatch):
    monkeypatch.setattr(torch, DEVICE.type, request.param(), raising=False)
    return getattr(torch, DEVICE.type)


def test_random_numbers_of_host_and_device_are_kept(module):
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match='in between'), random_state_kept(DEVICE):
        torch.rand(3)
        module.state = 7
        raise RuntimeError('in between')
    assert module.state == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_is_measured_from_when_the_last_was_forgotten(module):
    module.peak = 5
    forget_peak_memory(DEVICE)
    module.peak += 2**20
    assert peak_memory(DEVICE) == 2**20


def test_of_a_device_without_a_count_the_memory_of_the_process_is_taken():
    forget_peak_memory(DEVICE)
    held = torch.ones(2**22)
    assert held.nbytes < peak_memory(DEVICE) < 2**40
