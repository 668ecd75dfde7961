_base_ = [
    '../../../configs/_base_/models/deeplabv3_r50-d8.py',
    '../_base_/datasets/camvid_360x480.py',
    '../_base_/lab_runtime.py',
    '../_base_/schedules/schedule_2k.py',
]
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(360, 480)),
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(num_classes=11, norm_cfg=norm_cfg),
    auxiliary_head=dict(num_classes=11, norm_cfg=norm_cfg),
)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=2000))
