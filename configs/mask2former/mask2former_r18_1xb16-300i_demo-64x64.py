_base_ = [
    '../_base_/models/mask2former_r18_demo.py',
    '../_base_/datasets/demo_64x64.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_300i.py',
]
model = dict(data_preprocessor=dict(size=(64, 64)))
# Of 0.001, 0.003 and 0.01 the best rate for all images.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.003, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [dict(type='PolyLR', eta_min=0, power=0.9, begin=0, end=300, by_epoch=False)]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=300),
    visualization=dict(backend_args=dict(backend='demo_scenes')),  # the images are no files
)
