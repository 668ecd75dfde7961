# For a CPU: a quarter of the width, and maps of 16x16 in the first stage.
_base_ = './resnet18_cifar_small.py'
model = dict(backbone=dict(strides=(2, 2, 2, 2)))
