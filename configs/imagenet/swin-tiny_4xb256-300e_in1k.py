# Table 2 of the paper, by the supplement (Sec. B.1, Table S5): 79.6 % with all images. AutoAugment,
# stochastic depth and clipped gradients are what it names; MMPretrain's own Swin config, which
# reaches 81.2 %, has RandAugment, random erasing, Mixup and CutMix in place of the first.
_base_ = [
    '../_base_/models/swin-tiny_in1k.py',
    '../_base_/datasets/imagenet_224_autoaugment.py',
    '../_base_/schedules/imagenet_300e_adamw.py',
    '../_base_/mmpretrain_runtime.py',
]
