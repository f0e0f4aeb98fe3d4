"""bagssl_jax.report: what it says of a run's files, and that the page needs nothing else."""

import io
import json
import random
import re
import subprocess
import sys

import html5lib
import numpy as np
import pytest
from browser import browser, find_chromium
from conftest import REPOSITORY
from PIL import Image

from bagssl_jax.analysis import ANALYSES
from bagssl_jax.command_line import parse
from bagssl_jax.reporting import write_report
from bagssl_jax.reporting.looks import LOOKS
from bagssl_jax.runs import Run

CLASSES = ['cat', '<script>alert("x")</script>', 'd&g\x00\ud800']
EVIL = '"><img src=http://example.com/x onerror=alert(1)>'


def rows(encoder, shift):
    for probe in ('linear', 'knn'):
        for view, patches in (('bag', 1), ('bag', 4), ('bag', 16), ('whole', 1)):
            top1 = 0.5 + 0.1 * patches**0.25 + shift
            yield {
                'encoder': encoder,
                'view': view,
                'patches': patches,
                'positions': 'grid' if view == 'bag' else None,
                'patch': {'size': 16, 'scale': 0.25, 'resize': 16} if view == 'bag' else None,
                'space': 'h',
                'aggregation': 'mean',
                'flip': False,
                'labels': 'all',
                'probe': probe,
                'top1': top1,
                'top5': 1.0,
                'interval': [top1 - 0.02, top1 + 0.02],
                'per_class': [0.25, 0.5, 0.75],
                'chosen': {'l2': 0.01},
                'n_test': 800,
                'n_train': 3200,
            }


def perturbed(encoder, clean):
    """As rows of robustness: of an attack, of noise, and of two corruptions."""
    about = {'encoder': encoder, 'view': 'bag', 'patches': 16, 'space': 'h', 'aggregation': 'mean'}
    for attack, loss in (('none', 0.0), ('pgd', 0.4), ('noise', 0.1)):
        for radius in (0.0,) if attack == 'none' else (1 / 255, 2 / 255):
            top1 = clean - loss * 255 * radius / 2
            row = {'attack': attack, 'norm': None if attack == 'none' else 'linf', 'radius': radius}
            yield about | row | {'top1': top1, 'interval': [top1 - 0.02, top1 + 0.02]}
    for corruption, severity in (('none', 0), ('snow', 1), ('fog', 1), ('snow', 5), ('fog', 5)):
        top1 = clean - severity * (0.02 if corruption == 'fog' else 0.04)
        yield about | {'corruption': corruption, 'severity': severity, 'top1': top1}


def png(width=60, height=40):
    """Blots of many colours, as photographs have."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(buffer, format='PNG')
    return buffer.getvalue()


def put(workdir, name, content):
    path = workdir / name
    path.parent.mkdir(exist_ok=True)
    content = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def workdir(tmp_path):
    """The files of a finished quickstart, such as programs of this project leave."""
    quickstart = f'--config={REPOSITORY}/configs/quickstart.py'
    config = parse(['main', quickstart], config_file=True, workdir=False)[0].to_dict()
    folder = tmp_path / 'a <b>run'
    folder.mkdir()
    put(folder, 'config.json', config)
    put(folder, 'data.json', {'images': 3200, 'classes': CLASSES, 'fingerprint': 'f'})
    logged = [
        {'step': step, 'loss': -100 - step / 10, 'h_effective_rank': 40.0, 'z_effective_rank': 30.0}
        for step in range(20, 601, 20)
    ]
    logged.insert(15, {'step': 300, 'knn_top1': 0.7})
    put(folder, 'metrics.jsonl', ''.join(f'{json.dumps(row)}\n' for row in logged))
    found = {'dataset': 'photos', 'step': 600}
    found['rows'] = [*rows('trained', 0.2), *rows('untrained', 0.0)]
    found['robustness'] = [*perturbed('trained', 0.9), *perturbed('untrained', 0.7)]
    about = {'encoder': 'trained', 'space': 'h', 'patches': 16, 'aggregation': 'mean'}
    about |= {'view': 'bag', 'less': 'whole', 'difference': 0.05, 'interval': [-0.01, 0.11]}
    found['differences'] = [
        about | {'attack': 'pgd', 'norm': 'linf', 'radius': 2 / 255},
        about | {'corruption': 'mean', 'severity': None},
    ]
    put(folder, 'results.json', found)
    figure = {'file': 'figures/map_h.png', 'alt': 'Patches by colour.', 'caption': 'Near is alike.'}
    look = {'rows': [{'space': 'h', 'share': 0.5}], 'figures': [figure], 'notes': [EVIL]}
    look['images'] = 'photos train'
    put(folder, 'analysis.json', {'dataset': 'photos', 'step': 600, 'looks': {'map': look}})
    put(folder, 'figures/map_h.png', png())
    put(folder, 'figures/other.png', png())
    put(folder, 'errors/process_1.log', f'it ended {EVIL}\n')
    return folder


def report(*workdirs):
    """The page, which a strict parser has read, and its text."""
    write_report(*map(Run.at, workdirs))
    content = (workdirs[0] / 'report.html').read_bytes()
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    tree = parser.parse(content.decode())
    for node in tree.iter():
        node.tag = str(node.tag).removeprefix('{http://www.w3.org/2000/svg}')
    body = tree.find('body')
    return tree, re.sub(r'\s+', ' ', ' '.join(body.itertext()))


def test_the_program_needs_no_jax(workdir):
    code = (
        'import runpy, sys\n'
        f'sys.argv = ["report", "--workdir={workdir}"]\n'
        'runpy.run_module("bagssl_jax.report", run_name="__main__")\n'
        'heavy = {"jax", "jaxlib", "flax", "orbax", "tensorflow", "torch", "matplotlib"}\n'
        'print(sorted(heavy & set(sys.modules)))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert (done.stderr, done.stdout) == ('', f'{workdir}/report.html\n[]\n')


def test_what_is_no_run_is_refused(tmp_path, refusal):
    assert 'no run in' in refusal('report', f'--workdir={tmp_path / "nothing"}')
    assert 'no run in' in refusal('report', f'--workdir={tmp_path}')
    assert '--workdir is missing' in refusal('report')
    (tmp_path / 'config.json').write_text('{')
    assert 'config.json is damaged' in refusal('report', f'--workdir={tmp_path}')


def test_a_finished_run(workdir):
    tree, text = report(workdir)
    assert tree.find('.//h1').text == 'a <b>run'
    assert 'Finished: 600 steps.' in text
    assert '90.0%' in text  # of 16 patches
    assert 'untrained 70.0%' in text
    assert 'photos, 3,200 training images of 3 classes' in text
    assert '88.0\N{EN DASH}92.0' in text
    assert 'At photos train, step 600.' in text
    assert 'Near is alike.' in text
    charts = {svg.get('aria-label') for svg in tree.iter('svg')}
    loss = 'Loss: \N{MINUS SIGN}102 at step 20, \N{MINUS SIGN}160 at step 600, between'
    assert any(label.startswith(loss) for label in charts)
    assert any('trained 1: 80.0, 4: 84.1, 16: 90.0; whole image 80.0' in label for label in charts)
    for figure in tree.iter('figure'):
        assert figure.find('figcaption').text  # how to read it
    # What differs from the defaults comes first, then all of it, in what opens.
    special, opened = tree.find(".//section[@id='settings']")[1:]
    keys = {code.text for code in special.iter('code')}
    assert keys >= {'encoder.name', 'patches.size', 'augment.hue'}
    assert 'seed' not in keys
    assert opened.find('summary').text.startswith('The whole configuration')
    assert {'seed', *keys} < {code.text for code in opened.iter('code')}


def test_words_under_an_axis_do_not_touch(workdir):
    found = {'dataset': 'photos', 'step': 600, 'rows': []}
    for patches in (1, 2, 3, 4, 5, 6, 7, 8, 100, 101, 102, 1000):
        row = {
            'encoder': 'trained',
            'view': 'bag',
            'patches': patches,
            'probe': 'knn',
            'space': 'h',
        }
        found['rows'].append(row | {'top1': 0.5, 'interval': [0.4, 0.6], 'n_test': 9})
    put(workdir, 'results.json', found)
    tree, _ = report(workdir)
    [drawing] = tree.find(".//section[@id='accuracy']").iter('svg')
    words = [text for text in drawing.iter('text') if text.get('text-anchor') == 'middle']
    places = {text.text: float(text.get('x')) for text in words if text.get('class') == 'tick'}
    assert list(places)[:2] == ['1', '2']
    assert '1,000' in places
    assert 4 < len(places) < 12
    gaps = np.diff(list(places.values()))
    assert gaps.min() > 12


def test_robustness_is_drawn(workdir):
    tree, text = report(workdir)
    section = tree.find(".//section[@id='robustness']")
    attacked, corrupted = (svg.get('aria-label') for svg in section.iter('svg'))
    assert 'trained, 16 patches 0: 90.0, 1: 70.0, 2: 50.0; untrained, 16 patches 0:' in attacked
    assert 'trained, 16 patches, random noise 0: 90.0, 1: 85.0, 2: 80.0' in attacked
    assert 'trained, 16 patches 0: 90.0, 1: 87.0, 5: 75.0;' in corrupted
    lines = {row.find('th').text: row for row in section.iter('tr')}
    assert ''.join(lines['L-infinity 2, pgd'].find('td').itertext()) == '50.0 48.0\N{EN DASH}52.0'
    assert lines['snow'].find('td').text == '78.0'
    for name in ('L-infinity 2', 'corrupted, all severities'):
        assert lines[name].find('td').text == '+5.0 [\N{MINUS SIGN}1.0, +11.0]'
    assert '16 patches less whole' in text
    assert 'Robustness against attacks and corruptions:' not in text


def test_the_page_needs_nothing_else(workdir):
    tree, _ = report(workdir)
    assert list(tree.iter('script')) == []
    assert len(list(tree.iter('img'))) == 2
    for node in tree.iter():
        assert not any(name.startswith('on') for name in node.attrib)
        for name in ('src', 'href', 'srcset', 'action'):
            assert node.get(name, '#').startswith(('data:image/webp;base64,', '#'))
    for image in tree.iter('img'):
        assert image.get('alt')
        assert (image.get('width'), image.get('height')) == ('60', '40')
    anchors = [node.get('href')[1:] for node in tree.iter('a')]
    identities = [node.get('id') for node in tree.iter() if node.get('id')]
    assert set(anchors) <= set(identities)
    assert len(identities) == len(set(identities))
    content = (workdir / 'report.html').read_text()
    assert 'url(' not in content
    assert '@import' not in content


def test_whatever_the_files_hold_is_text(workdir):
    tree, text = report(workdir)
    assert '<script>alert("x")</script>' in text
    assert text.count(EVIL) == 2
    assert 'd&g\ufffd\ufffd' in text
    assert tree.find(".//img[@src='http://example.com/x']") is None


def test_what_was_not_measured_is_said(workdir):
    _, text = report(workdir)
    assert 'center was not probed' in text
    assert 'The projection z was not probed' in text
    assert 'this is one training of one seed' in text
    assert 'Looks that were not made: convergence, neighbours' in text
    assert 'nothing monitored it' not in text
    put(workdir, 'results.json', {'dataset': 'photos', 'step': 600, 'rows': []})
    assert 'Robustness against attacks and corruptions:' in report(workdir)[1]
    (workdir / 'checkpoints' / '700').mkdir(parents=True)
    _, text = report(workdir)
    assert 'step 600 was probed, and 700 is the newest' in text
    assert 'Looks at the newest checkpoint, 700: they are of step 600.' in text
    for name in ('results.json', 'analysis.json', 'metrics.jsonl'):
        (workdir / name).unlink()
    _, text = report(workdir)
    assert 'nothing was probed' in text
    put(workdir, 'data.json', {'images': 3200, 'classes': [], 'fingerprint': 'f'})
    assert 'the training images have no labels' in report(workdir)[1]
    assert 'metrics.jsonl has no row' in text
    assert 'Nothing was logged of a training.' in text
    assert 'Looks that were not made: convergence' in text


def test_every_look_has_its_words():
    assert set(ANALYSES) == set(LOOKS)


def test_a_run_under_way(workdir):
    content = (workdir / 'metrics.jsonl').read_text().splitlines()
    put(workdir, 'metrics.jsonl', '\n'.join(content[:5]) + '\n{"step": 120, "lo')
    _, text = report(workdir)
    assert 'At step 100 of 600: the training is under way, or was interrupted.' in text
    assert 'step 100 of 600 is the last that was logged' in text
    assert 'damaged' not in text


def test_what_was_not_finite_leaves_a_gap(workdir):
    logged = [
        {'step': step, 'loss': None if step == 30 else float(step)} for step in range(10, 60, 10)
    ]
    put(workdir, 'metrics.jsonl', ''.join(f'{json.dumps(row)}\n' for row in logged))
    tree, text = report(workdir)
    assert 'Values that were not finite, and leave gaps: 1.' in text
    assert len(tree.findall(".//section[@id='training']//polyline")) == 2


def test_an_imported_encoder(workdir):
    config = json.loads((workdir / 'config.json').read_text())
    config['imported'] = {'file': 'resnet50.pth', 'sha256': 'abcdef', 'prefix': ''}
    config['projector']['widths'] = []
    put(workdir, 'config.json', config)
    (workdir / 'metrics.jsonl').unlink()
    _, text = report(workdir)
    assert 'Imported from resnet50.pth (SHA-256 begins with abcdef), not trained here.' in text
    assert 'there is no projector, so that all is of h alone' in text
    assert 'the encoder was imported, and brought no curves' in text


def test_a_run_of_an_older_version(tmp_path):
    old = (REPOSITORY / 'tests' / 'data' / 'config_of_0_1.json').read_text()
    put(tmp_path, 'config.json', old)
    row = {'encoder': 'trained', 'view': 'bag', 'patches': 4, 'space': 'h', 'probe': 'linear'}
    row |= {'top1': 0.5, 'top5': None, 'n_train': 10, 'n_test': 10}
    put(tmp_path, 'results.json', {'dataset': 'photos', 'step': 6, 'rows': [row]})
    _, text = report(tmp_path)
    assert 'the probe was that of a version that gave none' in text
    assert 'The untrained encoder, which shows what training has added.' in text
    assert '50.0' in text


FILES = ('config.json', 'data.json', 'metrics.jsonl', 'results.json', 'analysis.json')


@pytest.mark.parametrize('name', [*FILES, 'figures/map_h.png'])
def test_a_damaged_file_is_named_and_the_rest_is_shown(workdir, name):
    content = (workdir / name).read_bytes()
    put(workdir, name, b'\xff' + content[: len(content) // 2].replace(b'\n', b'\n,'))
    tree, text = report(workdir)
    problems = ' '.join(tree.find(".//section[@id='problems']").itertext())
    assert name in problems
    assert ('Near is alike.' in text) == (name not in ('analysis.json', 'figures/map_h.png'))
    assert ('88.0\N{EN DASH}92.0' in text) == (name != 'results.json')


@pytest.mark.parametrize('name', FILES)
def test_a_missing_file_is_no_end(workdir, name):
    (workdir / name).unlink()
    _, text = report(workdir)
    assert 'Not measured' in text
    assert ('config.json is missing' in text) == (name == 'config.json')


def test_whatever_json_the_files_hold_there_is_a_page(workdir):
    rng = random.Random(0)
    values = [
        None,
        True,
        -1,
        0,
        1e308,
        10**400,
        'x',
        EVIL,
        [],
        [None],
        {},
        {'name': []},
        [[1, 'a']],
    ]

    def broken(tree, depth=0):
        """The tree with some of its nodes replaced, the more likely the deeper they are."""
        if rng.random() < 0.02 * depth:
            return rng.choice(values)
        if isinstance(tree, dict):
            return {key: broken(value, depth + 1) for key, value in tree.items()}
        if isinstance(tree, list):
            return [broken(value, depth + 1) for value in tree]
        return tree

    whole = {name: (workdir / name).read_text() for name in FILES}
    for _ in range(15):
        for name, text in whole.items():
            lines = text.splitlines() if name == 'metrics.jsonl' else [text]
            content = '\n'.join(json.dumps(broken(json.loads(line))) for line in lines)
            put(workdir, name, content)
        report(workdir)


def test_whatever_a_measured_value_is_there_is_a_page(workdir):
    whole = json.loads((workdir / 'results.json').read_text())
    for place in ('rows', 'robustness', 'differences'):
        for key in sorted({key for row in whole[place] for key in row}):
            for value in ([], 'x'):
                rows = [{**row, key: value} for row in whole[place]]
                put(workdir, 'results.json', {**whole, place: rows})
                write_report(Run.at(workdir))


def test_two_runs_side_by_side(workdir, tmp_path):
    other = tmp_path / 'other'
    other.mkdir()
    config = json.loads((workdir / 'config.json').read_text())
    config['objective']['name'], config['data']['batch_size'] = 'vicreg', 64
    put(other, 'config.json', config)
    put(other, 'metrics.jsonl', '{"step": 5, "loss": 3.0}\n')
    better = {'dataset': 'photos', 'step': 5, 'rows': list(rows('trained', 0.1))}
    put(other, 'results.json', better)
    tree, text = report(workdir, other)
    assert tree.find('.//h1').text == 'A \N{MIDDLE DOT} a <b>run and B \N{MIDDLE DOT} other'
    table = tree.find(".//section[@id='settings']//table")
    differing = {row.find('th/code').text for row in table.iter('tr') if row.get('class')}
    assert {'objective.name', 'data.batch_size'} <= differing
    assert 'encoder.name' not in differing
    assert all(len(row.findall('td/mark')) == 2 for row in table.iter('tr') if row.get('class'))
    # Ten points less, beyond intervals of four.
    marks = [mark.text for mark in tree.findall(".//section[@id='accuracy']//mark")]
    assert set(marks) == {'\N{MINUS SIGN}10.0'}
    assert 'Not made of this run.' in text
    assert text.count('Looks that were not made') == 2
    charts = [svg.get('aria-label') for svg in tree.iter('svg')]
    assert any(re.match('Loss: A .* at step 600.*; B .* at step 5', label) for label in charts)


def test_a_run_in_a_store(workdir, bucket):
    for path in workdir.rglob('*'):
        if path.is_file():
            bucket.pipe_file(f'/bucket/run/{path.relative_to(workdir)}', path.read_bytes())
    logged = (workdir / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
    bucket.pipe_file('/bucket/run/metrics.jsonl', b''.join(logged[:10]))
    bucket.pipe_file('/bucket/run/metrics.jsonl.000001', b''.join(logged[10:]))
    write_report(Run.at('s3://bucket/run'))
    content = bucket.cat_file('/bucket/run/report.html').decode()
    assert 'Finished: 600 steps.' in content
    assert content.count('<img') == 2


def test_many_pictures_and_steps_fit_into_three_megabytes(workdir):
    noise = np.random.default_rng(0).integers(0, 256, (750, 1000, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format='PNG', compress_level=1)
    for number in range(5):
        put(workdir, f'figures/noise_{number}.png', buffer.getvalue())
    lines = [json.dumps({'step': step, 'loss': random.random()}) for step in range(10_000)]
    put(workdir, 'metrics.jsonl', '\n'.join(lines))
    report(workdir)
    assert (workdir / 'report.html').stat().st_size < 3_000_000


@pytest.fixture(scope='module')
def page():
    if not find_chromium():
        pytest.skip('Chromium is not installed')
    with browser() as page:
        yield page


@pytest.mark.parametrize('width', [360, 1600])
@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_in_a_browser(workdir, page, width, theme):
    report(workdir, workdir)
    page.open(workdir / 'report.html', width=width, theme=theme)
    page.evaluate('document.querySelectorAll("details").forEach(part => part.open = true)')
    assert {url.partition(':')[0] for url in page.requested()} == {'file', 'data'}
    wide = 'document.documentElement.scrollWidth'
    assert page.evaluate(f'[innerWidth, {wide}]') == [width, width]
    images = '[...document.images].every(image => image.complete && image.naturalWidth > 0)'
    assert page.evaluate(f'document.images.length > 0 && {images}')
    colour = page.evaluate('getComputedStyle(document.documentElement).backgroundColor')
    lightness = sum(map(int, re.findall(r'\d+', colour)[:3])) / 3
    assert (lightness > 128) == (theme == 'light')
    complaints = [e for e in page.events if e.get('method') == 'Log.entryAdded']
    assert complaints == []


def test_by_keyboard(workdir, page):
    report(workdir)
    page.open(workdir / 'report.html', width=360, theme='light')
    focused = 'document.activeElement.textContent + document.activeElement.tagName'
    page.press('Tab', 9)
    assert page.evaluate(focused) == 'To the contentA'
    assert page.evaluate('document.activeElement.getBoundingClientRect().top >= 0')
    stops = []
    while (stop := page.evaluate('document.activeElement.tagName')) != 'BODY' and len(stops) < 99:
        stops.append(stop)
        page.press('Tab', 9)
    # Every way through the page, box that scrolls, and thing that opens.
    wanted = 'document.querySelectorAll("a, summary, input, main [tabindex]").length'
    closed = 'document.querySelectorAll("details:not([open]) [tabindex]").length'
    assert len(stops) == page.evaluate(wanted) - page.evaluate(closed)
    assert {'A', 'SUMMARY', 'INPUT', 'DIV'} <= set(stops)
