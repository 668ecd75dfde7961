# Table 1 of the paper, by Table S5: 95.6 % with all images.
_base_ = [
    '../_base_/models/resnet18_cifar.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/cifar_200e_onecycle.py',
    '../_base_/mmpretrain_runtime.py',
]
