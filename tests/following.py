"""What each iteration of a run left behind, and averages over it: for runs that are compared."""

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Follow(Hook):
    """What each iteration left behind: its loss, which images it kept, the network's state."""

    def __init__(self):
        self.losses, self.selections, self.states = [], [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs['loss']))
        self.selections.append(runner.model.pfb.selection)
        self.states.append(network(runner.model))

    @property
    def kept(self):
        return [None if s is None else s.indices.tolist() for s in self.selections]


def network(model):
    """Weights and statistics of all but the estimate."""
    return network_state(model.state_dict())


def network_state(state):
    """The same, of a state_dict."""
    state = {k: v for k, v in state.items() if not k.startswith('pfb.') and torch.is_tensor(v)}
    return {k: v.clone().cpu() for k, v in state.items() if v.is_floating_point()}


def exponential_average(states, momentum, names):
    """Of these names over the states of all steps, in float64; the others are the last ones."""
    first, *others = ({k: v.double() for k, v in state.items()} for state in states)
    average = dict(first)
    for state in others:
        for name, value in state.items():
            weight = momentum if name in names else 1
            average[name] = (1 - weight) * average[name] + weight * value
    return average
