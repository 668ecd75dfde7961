# Table S5; 77.0 % in the paper. The authors' release, train_online.py, does otherwise: it prunes
# in epochs 16 to 260 of 300, and the ratio grows from 20 % to 100 % of its value until epoch 130.
_base_ = './resnet50_4xb256-90e_in1k.py'
model = dict(
    type='PFBImageClassifier',
    pfb=dict(
        prune_ratio=0.3,
        block_after='backbone.layer2',
        criterion=dict(
            type='rare',
            estimator=dict(num_centroids=64, dim=128),
            exploration=0.001,
        ),
    ),
)
custom_hooks = [dict(type='PFBHook', begin=5, end=80, by_epoch=True)]
