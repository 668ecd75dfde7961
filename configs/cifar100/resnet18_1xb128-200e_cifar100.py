# Table 1 of the paper, by Table S5: 78.2 % with all images.
_base_ = [
    '../_base_/models/resnet18_cifar.py',
    '../_base_/datasets/cifar100.py',
    '../_base_/schedules/cifar_200e_onecycle.py',
    '../_base_/mmpretrain_runtime.py',
]
model = dict(head=dict(num_classes=100))
optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = dict(eta_max=0.05)
