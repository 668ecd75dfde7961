# For a CPU: about four minutes on one core with all images.
_base_ = [
    '../_base_/models/resnet18_cifar_small.py',
    '../_base_/datasets/cifar10_jpeg.py',
    '../_base_/schedules/cifar_8e_onecycle.py',
    '../_base_/lab_mmpretrain_runtime.py',
]
custom_hooks = [dict(type='LabChannelsLastHook')]
default_hooks = dict(checkpoint=dict(interval=8, save_optimizer=False))
