# Table S5; 76.9 % in the paper.
_base_ = './resnet50_pfb-p30_4xb256-90e_in1k.py'
model = dict(pfb=dict(prune_ratio=0.4))
