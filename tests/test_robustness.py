"""Linear probes on attacked and corrupted test images, from outside."""

import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import save_run
from tiny import TINY

import bagssl_jax
from bagssl_jax.data.photos import load_photos
from bagssl_jax.data.views import Whole
from bagssl_jax.embedding.differentiable import find_places, make_cutter, represent_pixels
from bagssl_jax.evaluation import perturbed_results, results
from bagssl_jax.evaluation.heads import Outcome
from bagssl_jax.evaluation.paired import differences
from bagssl_jax.probes.attacks import noisy, pgd
from bagssl_jax.probes.linear import fit_linear
from bagssl_jax.probes.scores import paired
from bagssl_jax.runs import Run

PROBE = ('--config.probe.probes=linear', '--config.probe.patches=4')
FAST = (
    '--config.probe.pgd.steps=8',
    '--config.probe.pgd.restarts=1',
    '--config.probe.pgd.batch_size=16',
)


def rows_of(workdir):
    return json.loads((workdir / 'results.json').read_text())


@pytest.fixture(scope='module')
def tried(tmp_path_factory):
    """The workdir of a run whose probe was tried on all of its 40 test images."""
    workdir = tmp_path_factory.mktemp('robust')
    save_run(workdir, *TINY[1:])
    return workdir


def same(row, difference):
    """Whether a difference is of the condition of a row, or of a mean over such."""
    if 'attack' in difference:
        return all(row.get(key) == difference[key] for key in ('attack', 'norm', 'radius'))
    if difference['corruption'] == 'none':
        return row.get('corruption') == 'none'
    return row.get('severity') and difference['severity'] in (None, row['severity'])


@pytest.mark.slow
def test_a_probe_is_tried_on_attacked_and_corrupted_images(tried, program):
    flags = (
        '--config.probe.robustness=pgd,corruptions',
        '--config.probe.pgd.linf=1,64',
        '--config.probe.pgd.l2=()',
        '--config.probe.corruptions.names=gaussian_noise,contrast',
        '--config.probe.corruptions.severities=1,5',
        '--config.probe.encoders=trained,untrained',
    )
    status, out, err = program('probe', f'--workdir={tried}', *PROBE, *FAST, *flags)
    assert status == 0, err
    found = rows_of(tried)
    plain = {(row['encoder'], row['view']): row for row in found['rows']}
    assert len(plain) == 4
    for (encoder, view), row in plain.items():
        own = [r for r in found['robustness'] if (r['encoder'], r['view']) == (encoder, view)]
        assert all(r['n_test'] == 40 and r['n_train'] == 96 for r in own)
        assert all(r['interval'][0] <= r['top1'] <= r['interval'][1] for r in own)
        attacked = {
            (r['attack'], r['norm'], round(255 * r['radius'])): r['top1']
            for r in own
            if 'attack' in r
        }
        corrupted = {(r['corruption'], r['severity']): r['top1'] for r in own if 'severity' in r}
        # The path that has a gradient, and the probe's own, tell the same images right.
        assert attacked['none', None, 0] == row['top1'] == corrupted['none', 0]
        assert row['top1'] > attacked['pgd', 'linf', 1] > attacked['pgd', 'linf', 64] - 0.01
        assert attacked['pgd', 'linf', 64] < 0.06
        assert attacked['noise', 'linf', 1] > attacked['pgd', 'linf', 1]
        assert len(corrupted) == 5
        assert corrupted['contrast', 5] < corrupted['contrast', 1]
    for row in found['differences']:
        assert (row['view'], row['less'], row['n_test']) == ('bag', 'whole', 40)
        means = []
        for view in ('bag', 'whole'):
            of_view = [
                r['top1']
                for r in found['robustness']
                if (r['encoder'], r['view']) == (row['encoder'], view) and same(r, row)
            ]
            means.append(np.mean(of_view))
        assert row['difference'] == pytest.approx(means[0] - means[1])
        assert row['interval'][0] < row['difference'] < row['interval'][1]
    assert len(found['differences']) == 2 * (5 + 1 + 3)
    assert sum('less whole  ' in line for line in out.splitlines()) == 2 * (3 + 3)
    for name in ('pgd', 'severity', 'corruptions'):
        figure = (tried / 'figures' / f'robustness_{name}.png').read_bytes()
        assert figure[:4] == b'\x89PNG'
    lines = out.splitlines()
    title = 'projected gradient descent (linf in grey levels of 255): top-1 of linear probes on 40'
    assert sum(line.startswith(title) for line in lines) == 1
    assert any(line.startswith('mean over 2 corruptions: top-1 of') for line in lines)

    # A later probe without them leaves them where they are, and the same again replaces them.
    status, _, err = program('probe', f'--workdir={tried}', *PROBE, '--config.probe.views=center')
    assert status == 0, err
    assert rows_of(tried)['robustness'] == found['robustness']
    again = '--config.probe.robustness=corruptions', '--config.probe.views=whole', *flags[3:]
    status, _, err = program('probe', f'--workdir={tried}', *PROBE, *again)
    assert status == 0, err

    def order(row):
        return json.dumps(row, sort_keys=True)

    assert sorted(map(order, rows_of(tried)['robustness'])) == sorted(
        map(order, found['robustness'])
    )


@pytest.mark.slow
def test_images_of_several_sizes_are_attacked_where_they_lie(tmp_path, program):
    """Each in its own ball, on random places, mirrored, and in several representations."""
    source = load_photos('train')
    sizes = np.random.default_rng(0).integers(24, 49, (48, 2))
    for i, (height, width) in enumerate(sizes.tolist()):
        image, label = source.images[67 * i], source.labels[67 * i]
        name = source.class_names[label % 2]
        folder = tmp_path / 'data' / ('train' if i < 32 else 'test') / name
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f'{i}.png'), image[:height, :width, ::-1])
    (tmp_path / 'data' / 'test' / source.class_names[0] / 'broken.png').write_bytes(b'none')
    workdir = tmp_path / 'run'
    save_run(workdir, *TINY[1:])
    flags = (
        f'--config.data.dir={tmp_path}/data',
        '--config.data.name=folder',
        '--config.data.train_split=train',
        '--config.data.test_split=test',
        '--config.data.on_error=skip',
        '--config.probe.positions=random',
        '--config.probe.aggregations=mean_unit',
        '--config.probe.flip=True',
        '--config.probe.whole_size=16',
        '--config.probe.robustness=pgd',
        '--config.probe.pgd.linf=2',
        '--config.probe.pgd.l2=()',
    )
    status, _, err = program('probe', f'--workdir={workdir}', *PROBE, *FAST, *flags)
    assert status == 0, err
    assert '1 unreadable images were left out' in err
    found = rows_of(workdir)
    for row in found['rows']:
        same = ('encoder', 'view', 'aggregation')
        own = {
            r['attack']: r for r in found['robustness'] if all(r[key] == row[key] for key in same)
        }
        assert {r['n_test'] for r in own.values()} == {row['n_test']} == {16}
        # `whole` is resized, and so the probe's pixels rounded.
        assert abs(own['none']['top1'] - row['top1']) <= (row['view'] == 'whole') / 16
        assert own['pgd']['top1'] < own['none']['top1']


@pytest.mark.slow
def test_examples_made_against_another_encoder_fool_less(tried):
    """And noise of the same size still less."""
    encoder = bagssl_jax.load(tried, chunk=64)
    encoders = [encoder.untrained(seed) for seed in (1, 2)]
    train, test = (load_photos(split) for split in ('train', 'test'))
    train_x, train_y = train.images[::10, :24, :24], train.labels[::10]
    test_x, test_y = test.images[::10, :24, :24], test.labels[::10]
    count = len(test_y)
    places, shape = find_places(Whole(24, 24), [(24, 24)] * count, np.arange(count))
    valid = jnp.ones((count, 24, 24, 1), bool)
    keys = jax.random.split(jax.random.key(0), count)

    def logits_of(variables, classifier, x):
        features = represent_pixels(
            encoder.networks,
            variables,
            x,
            make_cutter(places, (24, 24), shape),
            np.ones((1, 1), np.float32),
            space='h',
            unit=False,
            flip=False,
        )
        return features @ classifier.weights + classifier.bias[None]

    @jax.jit
    def right(variables, classifier, x):
        return (logits_of(variables, classifier, x).argmax(axis=1) == test_y).mean()

    @jax.jit
    def attacked(variables, classifier, x):
        def own(x):
            return logits_of(variables, classifier, x)

        return pgd(own, x, test_y, keys, valid, 4 / 255, norm='linf', steps=10).images

    victims = []
    for other in encoders:
        features = [np.asarray(other.embed_bags(x[:, None])['h'])[:, 0] for x in (train_x, test_x)]
        found = fit_linear(features[0], train_y, features[1], test_y, num_classes=8)
        victims.append((other.variables, found.classifier))
    x = test_x / np.float32(255)
    noise = noisy(x, keys, valid, 4 / 255, norm='linf')
    for victim, source in (victims, victims[::-1]):
        clean, random = (float(right(*victim, images)) for images in (x, noise))
        white_box, transferred = (
            float(right(*victim, attacked(*who, x))) for who in (victim, source)
        )
        assert white_box < transferred - 0.1
        assert white_box < random - 0.1
        assert abs(random - clean) < 0.1


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['robustness=fgsm'], "unknown probe.robustness 'fgsm': choose from pgd, corruptions"),
        (['robustness=pgd', 'probes=knn'], 'probe.robustness needs probe.probes=linear'),
        (['robustness=pgd', 'labels=1%'], 'probe.robustness needs probe.probes=linear'),
        (
            ['robustness=pgd', 'pgd.linf=()', 'pgd.l2='],
            'probe.pgd.linf and probe.pgd.l2 are both',
        ),
        (['robustness=pgd', 'pgd.batch_size=3'], 'probe.pgd.batch_size=3 cannot be shared'),
        (['pgd.linf=4,2'], 'probe.pgd.linf=(4.0, 2.0) must be 0 to 64 numbers, each above 0'),
        (['robustness=corruptions', 'corruptions.names=rain'], "probe.corruptions.names 'rain'"),
        (['corruptions.severities=6'], 'probe.corruptions.severities=(6,) must be'),
    ],
)
def test_settings_that_cannot_be_are_refused(tried, refusal, flags, message):
    line = refusal('probe', f'--workdir={tried}', *(f'--config.probe.{flag}' for flag in flags))
    assert message in line


def made_up(encoder, view, patches, **about):
    row = {
        'encoder': encoder,
        'view': view,
        'patches': patches,
        'space': 'h',
        'aggregation': 'mean',
        'probe': 'linear',
        'labels': 'all',
        'top5': None,
        'n_test': 500,
        'n_train': 1000,
        **about,
    }
    return {**row, 'interval': (row['top1'] - 0.04, row['top1'] + 0.04)}


@pytest.fixture
def rows():
    found = []
    for encoder, view, patches, base in (
        ('untrained', 'bag', 16, 0.3),
        ('trained', 'whole', 1, 0.5),
        ('trained', 'bag', 4, 0.6),
        ('trained', 'bag', 16, 0.7),
    ):
        who = encoder, view, patches
        found.append(made_up(*who, attack='none', norm=None, radius=0.0, top1=base))
        for norm, radius in (('linf', 1 / 255), ('linf', 4 / 255), ('l2', 0.5)):
            for attack, lost in (('pgd', 0.2), ('noise', 0.1)):
                ball = {'attack': attack, 'norm': norm, 'radius': radius}
                found.append(made_up(*who, **ball, top1=base - lost * (1 + 50 * radius) / 2))
        found.append(made_up(*who, corruption='none', severity=0, top1=base))
        for name, severity in (('fog', 1), ('fog', 5), ('snow', 1), ('snow', 5)):
            top1 = base - 0.02 * severity - 0.05 * (name == 'snow')
            found.append(made_up(*who, corruption=name, severity=severity, top1=top1))
    return found


def test_bags_and_wholes_are_compared_on_the_images_that_both_saw():
    who = {'encoder': 'trained', 'space': 'h', 'aggregation': 'mean'}

    def outcome(view, patches, right, numbers=(5, 3, 8), **about):
        row = {**who, 'view': view, 'patches': patches, **about}
        return Outcome(row, np.array(numbers), np.array(right, bool))

    clean = {'attack': 'none', 'norm': None, 'radius': 0.0}
    snow, fog = ({'corruption': name, 'severity': 2} for name in ('snow', 'fog'))
    found = differences(
        [
            outcome('bag', 4, (1, 1, 0), **clean),
            outcome('bag', 4, (1, 0, 0), **snow),
            outcome('bag', 4, (1, 1, 0), **fog),
            # In another order, and with one image that the bags do not have.
            outcome('whole', 1, (1, 1, 0, 0), (3, 1, 8, 5), **clean),
            outcome('whole', 1, (0, 0, 0), **snow),
            outcome('whole', 1, (0, 1, 0), **fog),
        ]
    )
    about = {**who, 'view': 'bag', 'patches': 4, 'less': 'whole', 'n_test': 3}
    rows = [{k: v for k, v in row.items() if k not in ('difference', 'interval')} for row in found]
    mean = {'corruption': 'mean'}
    assert rows == [
        {**about, **c} for c in (clean, {**mean, 'severity': 2}, mean | {'severity': None})
    ]
    assert [row['difference'] for row in found] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert [row['interval'] for row in found][1] == paired([1, 0.5, 0], [0, 0.5, 0])[1]
    lines = perturbed_results.table_of_differences(found).splitlines()
    assert [line.split()[-4:-2] for line in lines[1:]] == [
        ['clean', '+33.3'],
        ['2', '+33.3'],
        ['corrupted', '+33.3'],
    ]


def test_the_table_has_columns_of_radii_and_of_severities(rows):
    lines = perturbed_results.table(rows).splitlines()
    title, head, *body = lines[:6]
    assert title.endswith('top-1 of linear probes on 500 test images')
    assert head.split('of')[1].split() == ['clean', 'linf', '1', 'linf', '4', 'l2', '0.5']
    assert [line.split()[:4] for line in body] == [
        ['trained', 'h', 'bag', '4'],
        ['trained', 'h', 'bag', '16'],
        ['trained', 'h', 'whole', '1'],
        ['untrained', 'h', 'bag', '16'],
    ]
    assert body[0].split()[5:7] == ['0.600', '0.480']
    title, head, *body = lines[6:]
    assert title.startswith('mean over 2 corruptions')
    assert body[2].split()[5:] == ['0.500', '0.455', '0.375', '0.415']


def test_the_figures_draw_every_accuracy(rows):
    found = perturbed_results.figures(rows)
    assert found.keys() == {'robustness_pgd', 'robustness_severity', 'robustness_corruptions'}
    linf, l2 = found['robustness_pgd'].axes
    curves = {line.get_label(): line for line in linf.get_lines()}
    assert curves['trained, bag of 4'].get_xdata() == pytest.approx([0, 1, 4])
    assert curves['trained, bag of 4'].get_ydata()[:2] == pytest.approx(
        [60, 100 * (0.6 - 0.11961)], 1e-4
    )
    assert [line.get_xdata()[-1] for line in l2.get_lines() if len(line.get_xdata())] == [0.5] * 7
    [severity] = found['robustness_severity'].axes
    curves = {line.get_label(): line for line in severity.get_lines()}
    assert curves['trained, whole'].get_xydata().ravel() == pytest.approx([0, 50, 1, 45.5, 5, 37.5])
    [bars] = found['robustness_corruptions'].axes
    heights = {group.get_label(): [bar.get_height() for bar in group] for group in bars.containers}
    assert heights['trained, bag of 16'] == pytest.approx([64, 59])
    assert 'untrained, bag of 16' not in heights
    clean = [row for row in rows if not (row.get('norm') or row.get('severity'))]
    assert perturbed_results.figures(clean) == perturbed_results.figures([]) == {}
    assert perturbed_results.figures(rows[:7]).keys() == {'robustness_pgd'}


def test_rows_of_perturbed_images_are_kept_beside_the_plain_ones(rows, tmp_path):
    run, plain = Run.at(tmp_path), made_up('trained', 'whole', 1, top1=0.5)
    found = {'dataset': 'photos', 'step': 3, 'rows': [plain]}
    results.write(run, {**found, 'robustness': rows[:9]})
    results.write(run, found)
    again = {**rows[0], 'top1': 0.123, 'interval': (0.1, 0.2)}
    results.write(run, {**found, 'robustness': [again, *rows[9:12]]})
    expected = json.loads(json.dumps([*rows[1:9], again, *rows[9:12]]))
    assert results.read(run) == {
        **found,
        'rows': [json.loads(json.dumps(plain))],
        'robustness': expected,
    }
    results.write(run, {**found, 'step': 4})
    assert 'robustness' not in results.read(run)
    assert results.read(run, 'results-photos-3.json')['robustness'] == expected
