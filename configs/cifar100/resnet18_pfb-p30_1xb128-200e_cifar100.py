# Table S5; 79.1 % in the paper. The authors' release, train_online.py, does otherwise: it prunes
# in epochs 16 to 260 of 300, and the ratio grows from 20 % to 100 % of its value until epoch 130.
# It blocks behind layer2 of every ResNet.
_base_ = './resnet18_1xb128-200e_cifar100.py'
model = dict(
    type='PFBImageClassifier',
    pfb=dict(
        prune_ratio=0.3,
        block_after='backbone.layer1',
        criterion=dict(
            type='rare',
            # All channels there are: the 128 of Table S5 are more than stage 1 has.
            estimator=dict(num_centroids=64, dim=64),
            exploration=0.01,
        ),
    ),
)
custom_hooks = [dict(type='PFBHook', begin=5, end=180, by_epoch=True)]
