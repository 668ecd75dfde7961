optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.0005))
param_scheduler = dict(
    type='OneCycleLR', eta_max=0.1, total_steps=8, by_epoch=True, convert_to_iter_based=True
)
train_cfg = dict(by_epoch=True, max_epochs=8, val_interval=4)
auto_scale_lr = dict(base_batch_size=128)
