# For a CPU: a quarter of the width, and maps of 8x8 in the first stage; they need no wide stem.
_base_ = '../../../../configs/_base_/models/resnet18_cifar.py'
model = dict(
    backbone=dict(stem_channels=8, base_channels=16, strides=(4, 2, 2, 2)),
    head=dict(in_channels=128),
)
