# Minutes on a CPU, from a pretrained backbone. Of the learning rates 7e-4 to 5.6e-3 the best for
# all images of Clothing Co-Parsing.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2.8e-3, weight_decay=0.01),
    clip_grad=None,
)
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=500, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=500, val_interval=500)
