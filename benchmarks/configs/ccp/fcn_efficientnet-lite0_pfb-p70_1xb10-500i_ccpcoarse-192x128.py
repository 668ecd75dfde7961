_base_ = './fcn_efficientnet-lite0_1xb10-500i_ccpcoarse-192x128.py'
model = dict(
    type='PFBEncoderDecoder',
    pfb=dict(
        prune_ratio=0.7,
        criterion=dict(
            type='rare',
            # Stage 3 has 112 channels here, not 1024.
            estimator=dict(num_centroids=64, dim=112),
            exploration=0.01,
        ),
    ),
)
custom_hooks = [dict(type='PFBHook', begin=0.025, end=0.9), dict(type='LabChannelsLastHook')]
