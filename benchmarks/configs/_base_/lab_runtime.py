_base_ = '../../../configs/_base_/default_runtime.py'
custom_imports = dict(imports=['pfb_mmseg', 'benchmarks.lab'])
