"""PFB in a training loop without a framework: a ResNet-18 on CIFAR-10. For a CPU: --width 16.

FOLDER holds CIFAR-10's published "binary version", data_batch_1.bin to _5 and test_batch.bin; or,
which takes Pillow, train.tar and val.tar with images as CLASS/NAME. With --prune-ratio 0 all images
are trained on.
"""

import argparse
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, relu

from pfb_mmseg.blocking import BlockingPoint
from pfb_mmseg.core import BatchPruner


def read_cifar10(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    if files := sorted(folder.glob('test*.bin' if split == 'val' else 'data_batch_*.bin')):
        rows = np.concatenate([np.fromfile(file, np.uint8) for file in files]).reshape(-1, 3073)
        labels, images = rows[:, 0], rows[:, 1:].reshape(-1, 3, 32, 32)
    else:
        from PIL import Image

        with tarfile.open(folder / f'{split}.tar') as tar:
            files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
            images = np.stack([Image.open(file) for file in files.values()]).transpose(0, 3, 1, 2)
        labels = np.unique([Path(name).parent.name for name in files], return_inverse=True)[1]
    return torch.from_numpy(images).float() / 63.75 - 2, torch.from_numpy(labels).long()


def augment(images: Tensor) -> Tensor:
    top, left = torch.randint(9, (2,)).tolist()
    crops = pad(images, (4, 4, 4, 4))[:, :, top : top + 32, left : left + 32]
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, crops.flip(3), crops)


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3)
        self.skip = nn.Identity() if stride == 1 else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.second(relu(self.first(x))) + self.skip(x))


def resnet18(width: int) -> nn.Sequential:
    model = nn.Sequential(nn.Sequential(conv(3, width, 3), nn.ReLU()))
    for stage, stride in enumerate((1, 2, 2, 2)):
        outputs = width * 2**stage
        blocks = Block(outputs // stride, outputs, stride), Block(outputs, outputs, 1)
        model.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))
    return model.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(outputs, 10))


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('folder', type=Path)
parser.add_argument('--prune-ratio', type=float, default=0.5)
parser.add_argument('--criterion', choices=['rare', 'common', 'random'], default='rare')
for name, default in (('--width', 64), ('--epochs', 20), ('--seed', 0)):
    parser.add_argument(name, type=int, default=default)
args = parser.parse_args()
torch.manual_seed(args.seed)
device = 'cuda' if torch.cuda.is_available() else 'cpu'
images, labels = (rows.to(device) for rows in read_cifar10(args.folder, 'train'))
model = resnet18(args.width).to(device)
point = BlockingPoint(model, 'layer1')  # as in the paper's supplement
pruner = BatchPruner(args.prune_ratio, criterion=args.criterion, seed=args.seed)
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
batches = [rows for _ in range(args.epochs) for rows in torch.randperm(len(images)).split(128)]
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, len(batches))
start = time.perf_counter()
for step, rows in enumerate(batches):
    x, y = augment(images[rows]), labels[rows]
    if 0.025 <= step / len(batches) < 0.9:  # epochs 5 to 180 of 200
        kept = pruner(point.candidates(x))
        x, y = kept.take(x), kept.take(y)
    loss = cross_entropy(model(x), y, label_smoothing=0.1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
print(f'trained in {time.perf_counter() - start:.0f} s, loss {loss:.3f}')
model.eval()
with torch.no_grad():
    images, labels = (rows.to(device) for rows in read_cifar10(args.folder, 'val'))
    right = torch.cat([model(x).argmax(1) for x in images.split(500)]) == labels
print(f'accuracy {right.float().mean():.2%}')
