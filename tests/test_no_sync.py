"""A blocked step must not make the host wait for the device. Watched on the CPU, op by op."""

from collections import Counter
from types import SimpleNamespace

import pytest
import tiny
import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import RuntimeInfoHook
from mmengine.logging import MessageHub
from mmengine.runner import get_priority
from mmseg.models.decode_heads import decode_head
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from pfb_mmseg.core import BatchPruner, Candidates
from pfb_mmseg.data.places import PLACE
from pfb_mmseg.hooks import PFBHook, PFBLogHook, PFBRecordHook
from pfb_mmseg.models import samples as samples_module
from pfb_mmseg.models.samples import select_samples

# Their result, or its shape, is a value that lies on the device.
SYNCING_OPS = {
    'aten::_local_scalar_dense',  # item, int, float, bool, and iterating or indexing with a scalar
    'aten::is_nonzero',
    'aten::nonzero',
    'aten::masked_select',
    'aten::equal',
    'aten::bincount',
    'aten::_unique2',
    'aten::unique_dim',
    'aten::unique_consecutive',
    'aten::repeat_interleave.Tensor',
}
# What no op shows: a tensor on the CPU is handed to the host as it is.
SYNCING_METHODS = {
    torch.Tensor.tolist,
    torch.Tensor.cpu,
    torch.Tensor.numpy,
    torch.Tensor.__array__,
}
# A copy of pageable memory to the device waits for it too.
UPLOADS = {torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor}
INDEXING_OPS = {'aten::index.Tensor', 'aten::index_put', 'aten::index_put_'}


class WatchOps(TorchDispatchMode):
    """Names of the ops that would wait."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name in SYNCING_OPS or (name in INDEXING_OPS and has_mask(args[1])):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class WatchMethods(TorchFunctionMode):
    """Names of the methods that would wait."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if (
            func in SYNCING_METHODS
            or func in UPLOADS
            # Named outright: a device that another tensor is on would be the same one here.
            or (func is torch.Tensor.to and any(is_cpu(arg) for arg in args[1:]))
            # The number would be sent to the device first.
            or (func is torch.Tensor.__setitem__ and has_index(args[1]) and is_number(args[2]))
        ):
            self.seen.append(resolve_name(func) or func.__name__)
        return func(*args, **(kwargs or {}))


def has_mask(indices):
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


def has_index(key):
    return any(isinstance(k, torch.Tensor) for k in (key if isinstance(key, tuple) else (key,)))


def is_cpu(argument):
    return isinstance(argument, str) and argument == 'cpu'


def is_number(value):
    return not isinstance(value, torch.Tensor)


def syncs(function, *args):
    """Names of all that waits for the device in ``function(*args)``, in order of kind."""
    with WatchMethods() as methods, WatchOps() as ops:
        function(*args)
    return sorted(ops.seen + methods.seen)


X = torch.arange(4.0)


class TestTheWatch:
    @pytest.mark.parametrize(
        'wait',
        [
            lambda: X.sum().item(),
            lambda: int(X[0]),
            lambda: float(X[0]),
            lambda: bool((X > 1).any()),
            lambda: 1 if X[1] > 0 else 2,
            lambda: [0, 1, 2, 3][X[1].long()],
            lambda: X.tolist(),
            lambda: X.cpu(),
            lambda: X.to('cpu'),
            lambda: X.numpy(),
            lambda: __import__('numpy').asarray(X),
            lambda: X.nonzero(),
            lambda: X[X > 1],
            lambda: X.clone()[None, X > 1],
            lambda: X.clone().__setitem__(X > 1, X[2:]),
            lambda: X.clone().__setitem__(X.long(), 1.0),
            lambda: X.masked_select(X > 1),
            lambda: torch.where(X > 1),
            lambda: torch.equal(X, X),
            lambda: X.unique(),
            lambda: torch.tensor([1, 2]),
        ],
    )
    def test_sees_what_waits(self, wait):
        assert syncs(wait)

    @pytest.mark.parametrize(
        'go_on',
        [
            lambda: X.sum() + 1,
            lambda: X[1:3],
            lambda: X[X.long()],
            lambda: X.index_select(0, X.long()),
            lambda: torch.where(X > 1, X, 0),
            lambda: X.masked_fill(X > 1, 0),
            lambda: X.clone().index_fill_(0, X.long(), 1),
            lambda: (len(X), X.shape, X.device),
            lambda: X.argsort(stable=True).double(),
        ],
    )
    def test_lets_pass_what_does_not(self, go_on):
        assert syncs(go_on) == []


def pruner(**options):
    criterion = dict(type='rare') | options
    if criterion['type'] in ('rare', 'common'):
        criterion['estimator'] = tiny.RARE['estimator'] | criterion.get('estimator', {})
    return BatchPruner(0.5, criterion)


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch):
    """On the CPU the labels of kept images are looked up, since that waits for nothing there."""
    monkeypatch.setattr(samples_module, '_pick', samples_module._gather)


class TestPruner:
    @pytest.mark.parametrize(
        'options',
        [
            {},
            {'exploration': 0},
            {'type': 'common'},
            {'type': 'random'},
            *({'estimator': {'bandwidth': rule}} for rule in ('scott', 'identity')),
            {'estimator': {'weighted': False}},
            {'estimator': {'revive_after': None}},
            {'estimator': {'revive_after': 1}},
        ],
        ids=str,
    )
    def test_never_waits_while_seeding_or_later(self, options):
        chosen = pruner(**options)
        features = torch.rand(8, 8, 4, 4)
        for _ in range(4):
            assert syncs(chosen, features) == []
        assert chosen.ready


class TestSelectSamples:
    def test_never_waits(self):
        chosen = pruner(type='random')
        decision = chosen.select(Candidates(8, torch.device('cpu')))
        assert syncs(select_samples, tiny.samples(8), decision) == []


class WaitingPruner(BatchPruner):
    """What a careless change would be."""

    def select(self, candidates, trial=False):
        decision = super().select(candidates, trial)
        decision.selection.indices.tolist()
        return decision


@pytest.fixture
def no_accuracy(monkeypatch):
    """MMSegmentation's accuracy indexes with a mask; the rest of its training step never waits."""
    monkeypatch.setattr(decode_head, 'accuracy', lambda *args, **kwargs: torch.zeros(1))


STEPS = {
    'two_pass': {},
    'two_pass, half the size': {'score_scale': 0.5},
    'two_pass, random': {'criterion': 'random'},
    'two_pass, skip': {'criterion': dict(type='hard', skip=0.2)},
    'two_pass, loss_topk': {'criterion': 'loss_topk'},
    'two_pass, divbs': {'criterion': 'divbs'},
    'single_pass': {'strategy': 'single_pass'},
    **{
        f'{strategy}, {exit} exit{taught}': {
            'strategy': strategy,
            'criterion': 'hard',
            'exit': exit,
            'exit_loss_weight': weight,
        }
        for strategy in ('two_pass', 'single_pass')
        for exit in ('auxiliary', 'own')
        for weight, taught in ((1.0, ' teaches'), (0.0, ''))
    },
}


def build(pfb):
    """The next step is blocked."""
    model = tiny.build(pfb)
    return tiny.warm(model) if pfb.get('exit') == 'own' else model


@pytest.mark.parametrize('pfb', STEPS.values(), ids=STEPS)
class TestLoss:
    def test_never_waits(self, pfb, no_accuracy):
        model = build(pfb)
        images, samples = tiny.images(), tiny.samples()
        for _ in range(2):
            assert syncs(model.loss, images, samples) == []
            assert len(model.pfb.selection.indices) == 4

    def test_waits_no_more_than_the_plain_model_where_that_one_does(self, pfb):
        model = build(pfb)
        plain = syncs(tiny.plain_twin(model).loss, tiny.images(4), tiny.samples(4))
        assert plain
        # An auxiliary head that teaches computes no accuracy, for which the plain one waits.
        assert Counter(syncs(model.loss, tiny.images(), tiny.samples())) <= Counter(plain)

    def test_is_caught_where_the_pruner_waits(self, pfb, no_accuracy):
        model = build(pfb)
        model.pfb.pruner.__class__ = WaitingPruner
        assert 'torch.Tensor.tolist' in syncs(model.loss, tiny.images(), tiny.samples())


class Images(list):
    """A data set, as far as the hook asks, also for the step that it tries before training."""

    metainfo = {'classes': tuple('abcde')}

    def __getitem__(self, index):
        return dict(inputs=tiny.images(1)[0], data_samples=tiny.samples(1)[0])


class Trainer:
    """What PFBHook and its bookkeeping need of a runner between two entries in the log."""

    def __init__(self, model):
        self.model, self.iter, self.max_iters, self.hooks = model, 0, 1000, []
        self.train_dataloader = DataLoader(
            Images(range(8)), batch_size=8, collate_fn=pseudo_collate
        )
        self.train_loop = self  # with its length
        self.record_hook = PFBRecordHook()
        self.hooks += [PFBHook(begin=0), PFBLogHook(), self.record_hook]
        self.call('before_train')

    def call(self, method, *args):
        for hook in self.hooks:
            getattr(hook, method)(self, *args)


@pytest.mark.parametrize('strategy', ['two_pass', 'single_pass'])
class TestHook:
    def test_leaves_the_step_without_a_wait_and_reads_it_when_it_is_over(
        self, strategy, no_accuracy
    ):
        model = tiny.build({'strategy': strategy})
        trainer = Trainer(model)
        images, samples = tiny.images(), tiny.samples()
        for place, sample in enumerate(samples):
            sample.set_metainfo({PLACE: place})
        batch = dict(inputs=images, data_samples=samples)

        def step():
            trainer.call('before_train_iter', trainer.iter, batch)
            model.loss(images, samples)

        for trainer.iter in range(4):
            assert syncs(step) == []
            trainer.call('after_train_iter', trainer.iter, batch)
        seen = trainer.record_hook._fresh
        assert seen.candidates.tolist() == [4] * 8
        assert seen.kept.sum() == 4 * 4
        assert seen.class_counts.sum() == 4 * 8 * 64 * 64


def test_the_bookkeeping_comes_after_mmengine_has_waited_for_the_losses():
    """So it costs no wait that was not there to read what has become of the step."""
    info = RuntimeInfoHook()
    for hook in (PFBLogHook, PFBRecordHook):
        assert get_priority(info.priority) < get_priority(hook.priority)
    trainer = SimpleNamespace(
        message_hub=MessageHub('test-no-sync'), optim_wrapper=SimpleNamespace(get_lr=dict)
    )
    loss = torch.ones(())
    assert syncs(info.after_train_iter, trainer, 0, None, {'loss': loss})


@pytest.mark.cuda
class TestOnCuda:
    @pytest.fixture(autouse=True)
    def _complain(self):
        yield
        torch.cuda.set_sync_debug_mode('default')

    @pytest.mark.parametrize('pfb', STEPS.values(), ids=STEPS)
    def test_whole_step_never_waits(self, pfb, no_accuracy):
        model = build(pfb).cuda()
        trainer = Trainer(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, foreach=True)
        images = tiny.images().cuda()
        samples = [sample.to('cuda') for sample in tiny.samples()]
        batch = dict(inputs=images, data_samples=samples)
        for trainer.iter in range(6):
            if trainer.iter >= 3:  # libraries and caches are set up by now
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode('error')
            trainer.call('before_train_iter', trainer.iter, batch)
            tiny.total(model.loss(images, samples)).backward()
            optimizer.step()
            optimizer.zero_grad()
            torch.cuda.set_sync_debug_mode('default')
            trainer.call('after_train_iter', trainer.iter, batch)
        assert len(model.pfb.selection.indices) == 4

    def test_is_caught_where_the_pruner_waits(self, no_accuracy):
        model = tiny.build().cuda()
        images = tiny.images().cuda()
        samples = [sample.to('cuda') for sample in tiny.samples()]
        model.loss(images, samples)
        model.pfb.pruner.__class__ = WaitingPruner
        torch.cuda.set_sync_debug_mode('error')
        with pytest.raises(RuntimeError, match='synchroniz'):
            model.loss(images, samples)
