_base_ = './mask2former_r18_1xb16-300i_demo-64x64.py'
model = dict(type='PFBEncoderDecoder', pfb=dict(prune_ratio=0.5, criterion='hard'))
custom_hooks = [dict(type='PFBHook', begin=0.025, end=0.9)]
