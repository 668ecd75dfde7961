_base_ = [
    '../_base_/models/deeplabv3_r18-d8_small.py',
    '../_base_/datasets/camvid_176x240.py',
    '../_base_/lab_runtime.py',
    '../../../configs/_base_/schedules/schedule_300i.py',
]
model = dict(data_preprocessor=dict(size=(176, 240)))
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=300))
