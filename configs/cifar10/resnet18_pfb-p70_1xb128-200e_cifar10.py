# Table S5; 95.2 % in the paper.
_base_ = './resnet18_pfb-p30_1xb128-200e_cifar10.py'
model = dict(pfb=dict(prune_ratio=0.7))
