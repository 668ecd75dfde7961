_base_ = './resnet18-small_1xb128-15e_cifar10tenth-jpeg.py'
model = dict(
    type='PFBImageClassifier',
    pfb=dict(
        prune_ratio=0.5,
        block_after='backbone.layer1',
        criterion=dict(
            type='rare',
            estimator=dict(num_centroids=64),
            exploration=0.01,
        ),
    ),
)
custom_hooks = [
    dict(type='LabChannelsLastHook'),
    dict(type='PFBHook', begin=1, end=13, by_epoch=True),
]
