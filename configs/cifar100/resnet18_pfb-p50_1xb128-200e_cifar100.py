# Table S5; 78.8 % in the paper.
_base_ = './resnet18_pfb-p30_1xb128-200e_cifar100.py'
model = dict(pfb=dict(prune_ratio=0.5))
