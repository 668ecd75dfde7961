_base_ = [
    '../_base_/models/upernet_r50.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_160k.py',
]
model = dict(data_preprocessor=dict(size=(512, 512)))
default_hooks = dict(checkpoint=dict(interval=16000))
