# InfoBatch's own result in segmentation: r = 0.5, delta = 0.875, 80 % of the iterations.
_base_ = './upernet_r50_4xb4-160k_ade20k-512x512.py'
train_dataloader = dict(
    sampler=dict(_delete_=True, type='InfoBatchSampler', prune_ratio=0.5, percentile=None)
)
custom_hooks = [dict(type='InfoBatchHook', full_iters=160000)]
param_scheduler = [
    dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=128000, by_epoch=False)
]
train_cfg = dict(max_iters=128000, val_interval=12800)
