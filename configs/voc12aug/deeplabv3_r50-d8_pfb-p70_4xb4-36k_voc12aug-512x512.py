_base_ = './deeplabv3_r50-d8_4xb4-36k_voc12aug-512x512.py'
model = dict(
    type='PFBEncoderDecoder',
    pfb=dict(
        prune_ratio=0.7,
        criterion=dict(
            type='rare',
            estimator=dict(num_centroids=64, dim=128),
            exploration=0.01,
        ),
        # One image on each of four GPUs is enough: SyncBN normalises over all of them.
    ),
)
custom_hooks = [dict(type='PFBHook', begin=0.025, end=0.9)]
