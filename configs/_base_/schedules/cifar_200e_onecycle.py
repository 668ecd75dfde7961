# Table S5, for CIFAR-10; for CIFAR-100 its learning rate is 0.05. Only the learning rate goes
# through the cycle: torch's own scheduler would move the momentum too, in the other direction.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.0005))
param_scheduler = dict(
    type='OneCycleLR', eta_max=0.1, total_steps=200, by_epoch=True, convert_to_iter_based=True
)
train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=10)
auto_scale_lr = dict(base_batch_size=128)
