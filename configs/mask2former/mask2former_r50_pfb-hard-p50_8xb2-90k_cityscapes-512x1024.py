_base_ = './mask2former_r50_8xb2-90k_cityscapes-512x1024.py'
model = dict(type='PFBEncoderDecoder', pfb=dict(prune_ratio=0.5, criterion='hard'))
custom_hooks = [dict(type='PFBHook', begin=0.025, end=0.9)]
