_base_ = [
    '../_base_/models/fcn_efficientnet-lite0.py',
    '../_base_/datasets/ccpcoarse_192x128.py',
    '../_base_/lab_runtime.py',
    '../_base_/schedules/schedule_500i_adamw.py',
]
model = dict(
    data_preprocessor=dict(size=(192, 128)),
    decode_head=dict(num_classes=14),
    auxiliary_head=dict(num_classes=14),
)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=500))
# Convolutions are faster so on a CPU.
custom_hooks = [dict(type='LabChannelsLastHook')]
