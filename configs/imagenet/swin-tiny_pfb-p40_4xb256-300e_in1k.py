# Table S5; 79.2 % in the paper.
_base_ = './swin-tiny_pfb-p30_4xb256-300e_in1k.py'
model = dict(pfb=dict(prune_ratio=0.4))
