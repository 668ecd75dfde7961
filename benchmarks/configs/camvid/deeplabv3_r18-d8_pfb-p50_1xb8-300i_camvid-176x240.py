_base_ = './deeplabv3_r18-d8_1xb8-300i_camvid-176x240.py'
model = dict(
    type='PFBEncoderDecoder',
    pfb=dict(
        prune_ratio=0.5,
        criterion=dict(
            type='rare',
            estimator=dict(num_centroids=64, dim=128),
            exploration=0.01,
        ),
    ),
)
custom_hooks = [dict(type='PFBHook', begin=0.025, end=0.9)]
