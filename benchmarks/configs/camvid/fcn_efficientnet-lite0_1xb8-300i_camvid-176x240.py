_base_ = [
    '../_base_/models/fcn_efficientnet-lite0.py',
    '../_base_/datasets/camvid_176x240.py',
    '../_base_/lab_runtime.py',
    '../../../configs/_base_/schedules/schedule_300i.py',
]
model = dict(data_preprocessor=dict(size=(176, 240)))
# Of 0.02, 0.04, 0.08, 0.16 and 0.32 the best for all images.
optim_wrapper = dict(optimizer=dict(lr=0.08))
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=300))
# Convolutions are faster so on a CPU.
custom_hooks = [dict(type='LabChannelsLastHook')]
