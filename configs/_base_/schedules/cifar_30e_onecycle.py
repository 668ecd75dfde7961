_base_ = './cifar_8e_onecycle.py'
param_scheduler = dict(total_steps=30)
train_cfg = dict(max_epochs=30, val_interval=15)
