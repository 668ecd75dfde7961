"""The demo scenes with label noise."""

from mmseg.registry import DATASETS, TRANSFORMS

from benchmarks.lab.wrong_labels import WrongLabelsMixin
from pfb_mmseg.demo import LoadDemoLabels, PFBDemoDataset
from pfb_mmseg.demo.scenes import draw_scene


@DATASETS.register_module()
class LabDemoDataset(WrongLabelsMixin, PFBDemoDataset):
    """:class:`PFBDemoDataset` with the options of :class:`WrongLabelsMixin`.

    Its pipeline loads labels with :class:`LabLoadDemoLabels`.
    """

    LABELS = 'label_scene'

    def load_data_list(self) -> list[dict]:
        """List the scenes; ``label_scene`` tells from which one the labels are drawn."""
        infos = PFBDemoDataset.load_data_list(self)
        for info in infos:
            info['label_scene'] = info['scene']
        return self.exchange_labels(infos)

    def _label_size(self, info: dict) -> tuple[int, int]:
        return info['label_scene']['size']


@TRANSFORMS.register_module()
class LabLoadDemoLabels(LoadDemoLabels):
    """:class:`LoadDemoLabels` of the scene that ``label_scene`` names."""

    def transform(self, results: dict) -> dict:
        if results['label_scene'] != results['scene']:
            _, results['scene_labels'] = draw_scene(**results['label_scene'])
        return super().transform(results)
