"""launch/bagssl_colab.ipynb: it is what its source says, and every cell runs in its short form."""

import json
import os

import jupytext
import nbclient
import nbformat
import pytest
from conftest import REPOSITORY
from tiny import xla_flags

NOTEBOOK = REPOSITORY / 'launch' / 'bagssl_colab.ipynb'


@pytest.fixture(scope='module')
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_agrees_with_its_source(notebook):
    source = jupytext.read(NOTEBOOK.with_suffix('.py'))
    again = 'run jupytext --update --to ipynb launch/bagssl_colab.py'
    cells = [[(cell.cell_type, cell.source) for cell in book.cells] for book in (notebook, source)]
    assert cells[0] == cells[1], again


def test_it_holds_no_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get('outputs')
        assert cell.get('execution_count') is None


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # of Jupyter's own
def test_every_cell_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv('BAGSSL_SHORT', '1')
    monkeypatch.setenv('XLA_FLAGS', xla_flags(1))
    monkeypatch.setenv('JUPYTER_PLATFORM_DIRS', '1')
    python_path = os.pathsep.join([str(REPOSITORY), os.environ.get('PYTHONPATH', '')])
    monkeypatch.setenv('PYTHONPATH', python_path)
    where = {'metadata': {'path': tmp_path}}
    ran = nbclient.NotebookClient(notebook, timeout=240, resources=where).execute()
    outputs = [[out for out in cell.get('outputs', [])] for cell in ran.cells]
    pages = [out['data']['text/html'] for cell in outputs for out in cell if 'data' in out]
    *pictures, report = pages
    assert len(pictures) == 2  # of convergence
    assert all('<img src="data:image/png;base64,' in picture for picture in pictures)
    assert report.startswith('<div><iframe srcdoc="&lt;!DOCTYPE html&gt;')
    said = ''.join(out.get('text', '') for cell in outputs for out in cell)
    assert 'photos, step 12: top-1 on 40 test images' in said
    assert said.count('left out') == 2  # the published encoder, and CIFAR-10
    results = json.loads((tmp_path / 'runs' / 'quickstart' / 'results.json').read_text())
    assert {row['space'] for row in results['rows']} == {'h', 'z'}
