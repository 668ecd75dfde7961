_base_ = './cifar_8e_onecycle.py'
param_scheduler = dict(total_steps=40)
train_cfg = dict(max_epochs=40, val_interval=20)
