# Tables 2 and 3 of the paper, by Table S5: 76.4 % with all images.
_base_ = [
    '../_base_/models/resnet50_in1k.py',
    '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/imagenet_90e_lars_onecycle.py',
    '../_base_/mmpretrain_runtime.py',
]
