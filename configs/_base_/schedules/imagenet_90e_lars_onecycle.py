# Table S5. The paper trains with mixed precision (Table 3): `--amp`.
optim_wrapper = dict(
    optimizer=dict(type='LARS', lr=6.4, momentum=0.9, weight_decay=0.00005),
    # Not in the paper; the rule for LARS, which scales no gradient of biases and norms.
    paramwise_cfg=dict(
        bias_decay_mult=0.0,
        norm_decay_mult=0.0,
        custom_keys={
            key: dict(decay_mult=0.0, lars_exclude=True) for key in ('bn', 'bias', 'downsample.1')
        },
    ),
)
# The rise takes 5 of 90 epochs.
param_scheduler = dict(
    type='OneCycleLR',
    eta_max=6.4,
    total_steps=90,
    pct_start=5 / 90,
    by_epoch=True,
    convert_to_iter_based=True,
)
train_cfg = dict(by_epoch=True, max_epochs=90, val_interval=5)
auto_scale_lr = dict(base_batch_size=1024)
