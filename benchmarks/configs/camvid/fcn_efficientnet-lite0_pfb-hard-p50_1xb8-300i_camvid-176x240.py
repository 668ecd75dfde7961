_base_ = './fcn_efficientnet-lite0_1xb8-300i_camvid-176x240.py'
model = dict(
    type='PFBEncoderDecoder',
    pfb=dict(
        prune_ratio=0.5,
        # The exit is the auxiliary head, which reads stage 3.
        criterion='hard',
    ),
)
custom_hooks = [dict(type='PFBHook', begin=0.025, end=0.9), dict(type='LabChannelsLastHook')]
