_base_ = [
    '../_base_/models/fcn_r18-d8_demo.py',
    '../_base_/datasets/demo_64x64.py',
    '../_base_/default_runtime.py',
    '../_base_/schedules/schedule_300i.py',
]
model = dict(data_preprocessor=dict(size=(64, 64)))
# Of 0.025 to 0.8 the least that suits all images.
optim_wrapper = dict(optimizer=dict(lr=0.2))
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=300),
    visualization=dict(backend_args=dict(backend='demo_scenes')),  # the images are no files
)
