import json

import pytest

from bagssl_jax.errors import InputError
from bagssl_jax.evaluation.results import accuracy_by_patches, read, table, write
from bagssl_jax.runs import Run


@pytest.fixture
def results():
    rows = [
        {
            'encoder': encoder,
            'view': view,
            'patches': patches,
            'space': 'h',
            'aggregation': 'mean',
            'labels': 'all',
            'probe': probe,
            'top1': top1 + 0.01 * (probe == 'linear'),
            'top5': None,
            'n_train': 3200,
            'n_test': 800,
        }
        for encoder, base in (('untrained', 0.2), ('trained', 0.5))
        for view, patches, top1 in (('whole', 1, base), ('bag', 16, base + 0.2), ('bag', 1, base))
        for probe in ('linear', 'knn')
    ]
    return {'dataset': 'photos', 'step': 1200, 'rows': rows}


def test_the_table_has_a_line_for_each_view_and_a_column_for_each_probe(results):
    title, head, *body = table(results).splitlines()
    assert title == 'photos, step 1,200: top-1 on 800 test images, 3,200 to train on'
    columns = ['encoder', 'space', 'view', 'patches', 'of', 'labels']
    assert head.split() == [*columns, 'linear', 'knn']
    assert [line.split() for line in body] == [
        ['trained', 'h', 'bag', '1', 'mean', 'all', '0.510', '0.500'],
        ['trained', 'h', 'bag', '16', 'mean', 'all', '0.710', '0.700'],
        ['trained', 'h', 'whole', '1', 'mean', 'all', '0.510', '0.500'],
        ['untrained', 'h', 'bag', '1', 'mean', 'all', '0.210', '0.200'],
        ['untrained', 'h', 'bag', '16', 'mean', 'all', '0.410', '0.400'],
        ['untrained', 'h', 'whole', '1', 'mean', 'all', '0.210', '0.200'],
    ]


def test_measures_without_labels_have_a_column_too(results):
    row = {**results['rows'][0], 'probe': 'rankme', 'top1': None, 'value': 12.5}
    results['rows'].append(row)
    _, head, *body = table(results).splitlines()
    assert head.split()[-1] == 'rankme'
    assert [line.split()[-1] for line in body if line.startswith('untrained')][-1] == '12.500'


def test_results_and_figure_are_written(results, tmp_path):
    write(Run.at(tmp_path), results)
    assert json.loads((tmp_path / 'results.json').read_text()) == results
    assert (tmp_path / 'figures' / 'accuracy_by_patches.png').read_bytes()[:4] == b'\x89PNG'


def test_another_probe_adds_its_rows_and_replaces_those_of_the_same_measurement(results, tmp_path):
    run = Run.at(tmp_path)
    write(run, results)
    again = {**results['rows'][0], 'top1': 0.9}
    further = {**again, 'patches': 64}
    write(run, {**results, 'rows': [again, further]})
    assert read(run)['rows'] == [*results['rows'][1:], again, further]


def test_results_of_another_step_or_data_set_are_kept_aside(results, tmp_path):
    run, [first, second, *_] = Run.at(tmp_path), results['rows']
    write(run, {**results, 'rows': [first]})
    write(run, {**results, 'rows': [first], 'step': 2400})
    assert read(run)['step'] == 2400
    write(run, {**results, 'rows': [second]})
    write(run, {**results, 'rows': [first], 'dataset': 'a/b'})
    assert read(run, 'results-photos-1200.json')['rows'] == [first, second]
    assert read(run, 'results-photos-2400.json')['rows'] == [first]
    assert read(run)['dataset'] == 'a/b'


@pytest.mark.parametrize('text', ['{"rows"', '[]', '{}', '{"rows": 3}', '{"rows": [3]}'])
def test_damaged_results_are_named_and_stay(results, tmp_path, text):
    (tmp_path / 'results.json').write_text(text)
    with pytest.raises(InputError, match=r'results\.json is damaged'):
        write(Run.at(tmp_path), results)
    assert (tmp_path / 'results.json').read_text() == text


def test_the_figure_draws_every_accuracy(results):
    [axes] = accuracy_by_patches(results).axes
    curves = {line.get_label(): line for line in axes.get_lines()}
    assert curves['trained, linear'].get_xydata().tolist() == [[1, 51], [16, 71]]
    assert curves['untrained, kNN'].get_ydata() == pytest.approx([20, 40])
    assert [label.get_text() for label in axes.get_xticklabels()] == ['1', '16', 'whole\nimage']
