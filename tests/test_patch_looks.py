"""The looks at single patches, as a person takes them."""

import json

import cv2
import numpy as np
import pytest
from conftest import save_run
from tiny import TINY

SMALL = (
    '--config.analysis.neighbours.max_images=12',
    '--config.analysis.neighbours.shown=2',
    '--config.analysis.locality.max_images=6',
    '--config.analysis.locality.windows=36',
    '--config.analysis.locality.shown=1',
    '--config.analysis.locality.shown_windows=36',
    '--config.analysis.map.max_images=12',
    '--config.analysis.map.shown=2',
    '--config.analysis.map.shown_windows=36',
)
LOOKS = '--what=neighbours,locality,map'


def look(program, workdir, *arguments):
    status, out, err = program('analyze', f'--workdir={workdir}', LOOKS, *SMALL, *arguments)
    assert status == 0, err
    found = json.loads((workdir / 'analysis.json').read_text())['looks']
    assert list(found) == ['neighbours', 'locality', 'map']
    assert found['neighbours']['table'] in out
    for one in found.values():
        for figure in one['figures']:
            assert cv2.imread(str(workdir / figure['file'])).std() > 1
            assert len(figure['alt']) > 40
            assert figure['caption'].endswith('.')
    return found, out


@pytest.mark.slow
def test_a_run_is_looked_at_in_h_and_z(program, tmp_path):
    save_run(tmp_path, *TINY)
    found, _ = look(program, tmp_path)
    for one in found.values():
        assert {(row['encoder'], row['space']) for row in one['rows']} >= {
            (name, space) for name in ('trained', 'untrained') for space in 'hz'
        }
        assert one['notes'] == []
    shares = {row['of'] for row in found['neighbours']['rows']}
    assert shares == {'image', 'class'}
    summary = [row for row in found['locality']['rows'] if row['part'] == 'summary']
    assert all(0 < row['apart'] < 1 for row in summary if row['space'] != 'z-h')
    names = [figure['file'] for figure in found['map']['figures']]
    assert names == ['figures/map_h.png', 'figures/map_z.png', 'figures/map_colours.png']
    once_more = '--what=neighbours', '--config.analysis.neighbours.chosen=(7,20,20)'
    again, _ = look(program, tmp_path, *once_more)
    assert again['neighbours']['rows'] == found['neighbours']['rows']
    assert again['neighbours']['figures'][0]['alt'].startswith('1 patch, ')


@pytest.mark.slow
def test_an_encoder_alone_is_looked_at_in_h_on_photographs(program, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        pixels = cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), (40 + i, 50))
        assert cv2.imwrite(str(tmp_path / f'{i}.png'), pixels)
    workdir = tmp_path / 'run'
    save_run(workdir, *TINY, '--config.projector.widths=()')
    of_photographs = f'--images={tmp_path}', '--config.probe.whole_size=24'
    found, out = look(program, workdir, *of_photographs, '--config.analysis.size=16')
    for one in found.values():
        assert {row['space'] for row in one['rows']} == {'h'}
        assert one['notes'] == ['h alone: the encoder has no z']
    assert out.count('h alone: the encoder has no z') == 3
    assert {row['of'] for row in found['neighbours']['rows']} == {'image'}
    # Patches of 16 of 24 pixels are half a side apart at most; the training's would be 2.
    assert 0.3 < max(row.get('distance', 0) for row in found['locality']['rows']) <= 0.5


def test_patches_that_do_not_fit_are_refused(refusal, tmp_path):
    workdir = save_run(tmp_path, *TINY)
    line = refusal('analyze', f'--workdir={workdir}', '--config.analysis.size=49')
    assert 'a patch of 49x49 pixels' in line
