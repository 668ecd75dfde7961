_base_ = [
    '../_base_/models/fcn_efficientnet-lite0.py',
    '../_base_/datasets/ccp_384x256.py',
    '../_base_/lab_runtime.py',
    '../_base_/schedules/schedule_4k_adamw.py',
]
model = dict(
    data_preprocessor=dict(size=(384, 256)),
    decode_head=dict(num_classes=42),
    auxiliary_head=dict(num_classes=42),
)
