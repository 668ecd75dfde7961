"""How often a run kept wrong labels."""

import numpy as np
import pytest
from demo_runs import demo_config, read_diaries, train

from benchmarks.lab.label_noise import kept_rates
from pfb_mmseg.report import RECORD_NAME, SelectionRecord
from pfb_mmseg.report.images import ImageSet


class TestKeptRates:
    def test_are_kept_over_candidates_of_either_kind(self):
        record = SelectionRecord()
        record.add(['a', 'b', 'c'], np.array([True, False, True]))
        record.add(['a', 'c'], np.array([False, True]))
        infos = {path: dict(img_path=path) for path in 'abcd'}
        infos['c']['labels_of'] = infos['d']['labels_of'] = 'a'
        assert kept_rates(record, infos) == (1, 1 / 3)

    def test_of_what_was_no_candidate_there_is_no_rate(self):
        record = SelectionRecord()
        record.add(['a', 'b'], np.array([True, False]))
        rates = kept_rates(record, {path: dict(img_path=path) for path in 'ab'})
        assert np.isnan(rates.wrong) and rates.right == 0.5

    def test_of_a_run_are_those_that_its_steps_show(self, tmp_path):
        options = {
            'model.pfb.criterion': 'hard',
            'train_dataloader.dataset.type': 'LabDemoDataset',
            'train_dataloader.dataset.pipeline.1.type': 'LabLoadDemoLabels',
            'train_dataloader.dataset.wrong_labels': 0.25,
        }
        hooks = [dict(type='DiaryHook'), dict(type='PFBHook', begin=2, end=1.0)]
        config = demo_config(tmp_path, custom_hooks=hooks, **options)
        train(config)
        images = ImageSet(config)
        infos = dict(zip(images.paths, images.infos, strict=True))
        (diary,) = read_diaries(tmp_path)
        seen = {True: [], False: []}
        for entry in diary.values():
            for image in entry['images'] if entry['blocked'] else ():
                seen['labels_of' in infos[image['path']]].append(image['kept'])
        assert len(seen[True]) > 5
        expected = np.mean(seen[True]), np.mean(seen[False])
        record = SelectionRecord.load(tmp_path / RECORD_NAME)
        assert kept_rates(record, infos) == pytest.approx(expected)
