_base_ = './cifar_8e_onecycle.py'
param_scheduler = dict(total_steps=15)
train_cfg = dict(max_epochs=15, val_interval=15)
