import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from objective_references import REFERENCES

from bagssl_jax.errors import InputError
from bagssl_jax.objectives import OBJECTIVES, make_objective
from bagssl_jax.objectives.barlow import barlow, cheaper_form
from bagssl_jax.objectives.byol import byol
from bagssl_jax.objectives.products import scatter_symmetric, smaller_form, sum_symmetric
from bagssl_jax.objectives.sigreg import sigreg
from bagssl_jax.objectives.simclr import simclr
from bagssl_jax.objectives.spectral import (
    cooccurrence,
    cooccurrence_constant,
    spectral,
    spectral_discrete,
)
from bagssl_jax.objectives.tcr import sends_projections, tcr
from bagssl_jax.objectives.vicreg import vicreg
from bagssl_jax.parallel import DATA_AXIS, make_mesh
from bagssl_jax.training.collapse import spread

NAMES = sorted(OBJECTIVES)
# BYOL has no term against collapse.
SPREADING = [name for name in NAMES if not OBJECTIVES[name].target]


@functools.cache
def evaluate(name):
    """((loss, terms), gradient by the first argument) of an objective, jitted."""
    return jax.jit(jax.value_and_grad(make_objective(name, {}).loss, has_aux=True))


def random_bags(patches, images=16, width=6, seed=0):
    """Bags whose patches resemble one another, float32 [b p k]."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(images, 1, width))
    return (image + 0.5 * rng.normal(size=(images, patches, width))).astype(np.float32)


def arguments(name, z):
    """What the objective takes: z, or a half of each bag as prediction and one as target."""
    return np.split(z, 2, axis=1) if OBJECTIVES[name].target else [z]


def random_arguments(name, patches, **sizes):
    return arguments(name, random_bags(patches * (1 + OBJECTIVES[name].target), **sizes))


@pytest.mark.parametrize('patches', [2, 3, 8])
@pytest.mark.parametrize('name', NAMES)
def test_equals_the_reference(name, patches):
    inputs = random_arguments(name, patches)
    (loss, terms), _ = evaluate(name)(*inputs)
    expected, expected_terms = REFERENCES[name](*(x.astype(np.float64) for x in inputs))
    assert loss.shape == ()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert terms.keys() == expected_terms.keys()
    for term, value in expected_terms.items():
        np.testing.assert_allclose(terms[term], value, rtol=1e-5)


def test_simclr_of_two_patches_is_nt_xent():
    z = random_bags(2).astype(np.float64)
    # The paper's algorithm 1: the 2b projections in one list, each but itself in the denominator.
    rows = z.reshape(32, 6) / np.linalg.norm(z.reshape(32, 6), axis=1, keepdims=True)
    similar = np.exp(rows @ rows.T / 0.5)
    partner = np.arange(32) ^ 1
    denominators = similar.sum(axis=1) - np.diagonal(similar)
    expected = np.mean(-np.log(similar[np.arange(32), partner] / denominators))
    (loss, _), _ = evaluate('simclr')(z.astype(np.float32))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_vicreg_by_hand():
    # Two images, two patches, two dimensions. Branch 1: (0, 0), (2, 2); branch 2: (0, 0), (2, 0).
    z = jnp.array([[[0.0, 0.0], [0.0, 0.0]], [[2.0, 2.0], [2.0, 0.0]]])
    _, terms = vicreg(z)
    # One pair of four coordinates differs, by 2: 4 / 4.
    np.testing.assert_allclose(terms['invariance'], 1.0)
    # Variances (b - 1 = 1): 2, 2 and 2, 0; one hinge of four is open, 1 - sqrt(1e-4) = 0.99.
    np.testing.assert_allclose(terms['variance'], 0.99 / 4, rtol=1e-6)
    # Branch 1 has covariance 2 twice, branch 2 none: (4 + 4) / k = 4.
    np.testing.assert_allclose(terms['covariance'], 4.0)


# Both patches of image 1 along one axis, both of image 2 along the other.
ORTHOGONAL = np.array([[[3.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 5.0]]], np.float32)


def test_tcr_by_hand():
    loss, terms = tcr(jnp.asarray(ORTHOGONAL), eps=0.5)
    np.testing.assert_allclose(terms['similarity'], 1.0, rtol=1e-6)
    # I + 2 / (2 * 0.5) * I = 3 I, and half its logdet is log 3.
    np.testing.assert_allclose(terms['coding_rate'], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(loss, -200 - np.log(3), rtol=1e-6)


def test_simclr_by_hand():
    loss, terms = simclr(jnp.asarray(ORTHOGONAL), temperature=0.25)
    np.testing.assert_allclose(terms['similarity'], 1.0, rtol=1e-6)
    # A positive of cosine 1 and two negatives of cosine 0, for every anchor.
    np.testing.assert_allclose(loss, -np.log(np.e**4 / (np.e**4 + 2)), rtol=1e-5)


def test_simclrs_code_weighs_the_papers_loss_twice():
    z = random_bags(2)
    np.testing.assert_allclose(simclr(z, weight=2.0)[0], 2 * simclr(z)[0], rtol=1e-6)


def test_byol_by_hand():
    prediction = jnp.array([[[3.0, 0.0], [0.0, 2.0]]])
    target = jnp.array([[[1.0, 0.0], [5.0, 0.0]]])
    loss, terms = byol(prediction, target)
    # cos(q_1, z'_2) = 1 and cos(q_2, z'_1) = 0: the sum of 2 - 2 and 2 - 0.
    np.testing.assert_allclose(loss, 2.0, rtol=1e-6)
    np.testing.assert_allclose(terms['similarity'], 0.5, rtol=1e-6)


def test_barlow_by_hand():
    # Standardised, branch 1 is (1, 1), (-1, -1) and branch 2 is (1, -1), (-1, 1).
    z = jnp.array([[[100.0, 50.0], [60.0, 20.0]], [[-100.0, -50.0], [40.0, 30.0]]])
    loss, terms = barlow(z, off_diagonal_weight=0.5)
    # C = (1, -1), (1, -1): the diagonal is off by 0 and 2, the rest is 1 and 1.
    np.testing.assert_allclose(terms['on_diagonal'], 4.0, rtol=1e-5)
    np.testing.assert_allclose(terms['off_diagonal'], 2.0, rtol=1e-5)
    np.testing.assert_allclose(loss, 5.0, rtol=1e-5)


@pytest.mark.parametrize('images', [64, 1000])
def test_sigreg_of_normal_and_of_equal_projections(images):
    z = np.random.default_rng(0).normal(size=(images, 64, 16)).astype(np.float32)
    np.testing.assert_allclose(sigreg(z, directions=64)[1]['normality'], 1.05, rtol=0.1)
    loss, terms = sigreg(jnp.zeros_like(z), weight=0.5, directions=64)
    np.testing.assert_allclose(terms['normality'], 0.402 * images, rtol=0.002)
    np.testing.assert_allclose(loss, 0.5 * terms['normality'], rtol=1e-6)


def test_sigreg_sees_a_dead_dimension_of_many_images():
    z = np.random.default_rng(0).normal(size=(1000, 8, 4)).astype(np.float32)
    dead = z * (np.arange(4) > 0).astype(np.float32)
    of_dead, of_all = (sigreg(x, directions=256)[1]['normality'] for x in (dead, z))
    assert of_dead > 2 * of_all


def test_sigregs_directions_are_of_the_key():
    z = random_bags(2)
    of_keys = [sigreg(z, key=jax.random.key(i))[0] for i in (0, 0, 1)]
    assert sigreg(z)[0] == of_keys[0] == of_keys[1] != of_keys[2]


def test_spectral_by_hand():
    z = jnp.array([[[2.0, 0.0], [1.0, 0.0]], [[0.0, 3.0], [1.0, 1.0]]])
    loss, terms = spectral(z, weight=4.0)
    # Within the images 2 and 3; between them 0, 2, 0 and 1.
    np.testing.assert_allclose(terms['joint'], 2.5, rtol=1e-6)
    np.testing.assert_allclose(terms['independent'], 5 / 4, rtol=1e-6)
    np.testing.assert_allclose(loss, -2.5 + 4 / 2 * 5 / 4, rtol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_gradient_equals_central_differences(name):
    first, *rest = random_arguments(name, 3, images=4, width=3)
    _, gradient = evaluate(name)(first, *rest)
    numeric = np.zeros_like(first, np.float64)
    for place in np.ndindex(*first.shape):
        losses = []
        for move in (1e-6, -1e-6):
            moved = first.astype(np.float64)
            moved[place] += move
            losses.append(REFERENCES[name](moved, *(x.astype(np.float64) for x in rest))[0])
        numeric[place] = (losses[0] - losses[1]) / 2e-6
    np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=1e-4 * abs(numeric).max())


def agreeing_bags(kind='spread'):
    """32 bags of two equal patches, so that what is left of a loss keeps images apart."""
    z = random_bags(1, images=32, width=8)
    z = {
        'spread': z,
        'half copied': np.concatenate([z[..., :4], z[..., :4] + 0.1 * z[..., 4:]], axis=-1),
        'all equal': np.ones_like(z),
        'rank one': z[..., :1] * np.ones(8, np.float32),
        'dead dimension': z * (np.arange(8) > 0).astype(np.float32),
        'zero': np.zeros_like(z),
    }[kind]
    return np.repeat(z, 2, axis=1)


@pytest.mark.parametrize('name', SPREADING)
def test_a_step_from_half_collapsed_input_raises_the_effective_rank(name):
    # Half of the dimensions almost repeat the other half.
    z = agreeing_bags('half copied')
    _, gradient = evaluate(name)(z)
    after = z - 0.1 * np.linalg.norm(z) / np.linalg.norm(gradient) * gradient
    ranks = [spread(jnp.asarray(x).reshape(-1, 8))['effective_rank'] for x in (z, after)]
    assert ranks[1] > ranks[0] + 0.1


COLLAPSED = ['all equal', 'rank one', 'dead dimension', 'zero']


@pytest.mark.parametrize('kind', COLLAPSED)
@pytest.mark.parametrize('name', NAMES)
def test_collapsed_input_is_finite(name, kind):
    z = agreeing_bags(kind)
    (loss, terms), gradient = evaluate(name)(*([z, z] if OBJECTIVES[name].target else [z]))
    assert np.isfinite([loss, *terms.values()]).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize('kind', COLLAPSED)
@pytest.mark.parametrize('name', SPREADING)
def test_collapsed_input_scores_worse(name, kind):
    if (name, kind) == ('sigreg', 'dead dimension'):
        pytest.skip('32 images are too few for a test of normality to tell')
    (spread_loss, _), _ = evaluate(name)(agreeing_bags())
    (loss, _), _ = evaluate(name)(agreeing_bags(kind))
    assert loss > spread_loss


def test_byol_moves_the_prediction_to_the_target_and_not_the_target():
    prediction, target = random_arguments('byol', 3)
    gradient = jax.grad(lambda x: byol(*x)[0])([jnp.asarray(prediction), jnp.asarray(target)])
    assert abs(gradient[0]).max() > 0
    np.testing.assert_array_equal(gradient[1], 0)
    (_, before), _ = evaluate('byol')(prediction, target)
    step = len(prediction) * np.asarray(gradient[0])
    (_, after), _ = evaluate('byol')(prediction - step, target)
    assert after['similarity'] > before['similarity'] + 0.03


def test_byol_alone_does_not_keep_images_apart():
    equal = agreeing_bags('all equal')
    (loss, _), gradient = evaluate('byol')(equal, equal)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


# The term of each objective that pulls an image's patches together, and its sign in the loss.
PULLS = {
    'barlow': ('on_diagonal', 1),
    'byol': ('similarity', -1),
    'sigreg': ('invariance', 1),
    'simclr': ('similarity', -1),
    'spectral': ('joint', -1),
    'tcr': ('similarity', -1),
    'vicreg': ('invariance', 1),
}


@pytest.mark.parametrize('name', NAMES)
def test_pulling_patches_apart_costs(name):
    term, sign = PULLS[name]
    far = random_bags(3 * (1 + OBJECTIVES[name].target))
    near = far + 3 * (far.mean(axis=1, keepdims=True) - far) / 4
    values = [sign * evaluate(name)(*arguments(name, z))[0][1][term] for z in (near, far)]
    assert values[0] < values[1]


def over_eight_devices(loss, inputs=1):
    """(matrix [k k], z of all devices, ...) -> loss of z times the matrix, gradients by both."""
    mesh = make_mesh()
    assert mesh.size == 8

    # As a training step does it: differentiated inside, by parameters that all devices share.
    def shares(matrix, first, *rest):
        def loss_fn(matrix, first):
            return loss(jnp.einsum('bpk,kl->bpl', first, matrix), *rest, axis_name=DATA_AXIS)[0]

        return jax.value_and_grad(loss_fn, argnums=(0, 1))(matrix, first)

    return jax.jit(
        jax.shard_map(
            shares,
            mesh=mesh,
            in_specs=(P(), *(P(DATA_AXIS) for _ in range(inputs))),
            out_specs=(P(), (P(), P(DATA_AXIS))),
        )
    )


@pytest.mark.parametrize('name', NAMES)
def test_sharded_loss_and_gradients_equal_the_unsharded(name):
    inputs = random_arguments(name, 3)
    (loss, _), gradient = evaluate(name)(*inputs)

    sharded = over_eight_devices(make_objective(name, {}).loss, len(inputs))
    loss_8, (matrix_gradient_8, gradient_8) = sharded(jnp.eye(6), *inputs)
    matrix_gradient = np.einsum('bpk,bpl->kl', inputs[0], gradient)
    np.testing.assert_allclose(loss_8, loss, rtol=1e-5)
    for ours, theirs in ((gradient_8, gradient), (matrix_gradient_8, matrix_gradient)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * abs(theirs).max())


# Objectives with two forms, by the shapes that choose one.
FORMED = ['barlow', 'tcr', 'vicreg']
FEW, MANY = {'images': 8, 'width': 21}, {'images': 32, 'width': 6}


@pytest.mark.parametrize('sizes', [FEW, MANY], ids=['few images', 'many images'])
@pytest.mark.parametrize('patches', [2, 8])
@pytest.mark.parametrize('form', ['gram', 'covariance'])
@pytest.mark.parametrize('name', FORMED)
def test_both_forms_equal_the_reference_on_one_and_eight_devices(name, form, patches, sizes):
    z = random_bags(patches, **sizes)
    loss = make_objective(name, {'form': form}).loss
    (value, terms), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(z)
    expected, expected_terms = REFERENCES[name](z.astype(np.float64))
    np.testing.assert_allclose(value, expected, rtol=2.9e-6)
    for term, expected_term in expected_terms.items():
        # Hinges near zero have the rounding of the deviations in them.
        np.testing.assert_allclose(terms[term], expected_term, rtol=1e-5, atol=3e-7)
    # Central differences in float64, along random directions.
    for direction in np.random.default_rng(1).normal(size=(3, *z.shape)):
        there, back = (REFERENCES[name](z + move * direction)[0] for move in (1e-6, -1e-6))
        along, size = np.sum(gradient * direction), np.linalg.norm(gradient)
        np.testing.assert_allclose(along, (there - back) / 2e-6, rtol=0, atol=3e-5 * size)

    matrix = np.eye(sizes['width'], dtype=np.float32)
    value_8, (matrix_gradient_8, gradient_8) = over_eight_devices(loss)(matrix, z)
    np.testing.assert_allclose(value_8, expected, rtol=2.9e-6)
    matrix_gradient = np.einsum('bpk,bpl->kl', z, gradient)
    for ours, theirs in ((gradient_8, gradient), (matrix_gradient_8, matrix_gradient)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * abs(theirs).max())


@pytest.mark.parametrize('kind', COLLAPSED)
@pytest.mark.parametrize('name', FORMED)
def test_collapsed_input_has_the_same_loss_in_both_forms(name, kind):
    z = agreeing_bags(kind)
    losses = []
    for form in ('gram', 'covariance'):
        loss = jax.value_and_grad(lambda z, f=form: make_objective(name, {'form': f}).loss(z)[0])
        value, gradient = jax.jit(loss)(z)
        assert np.isfinite(gradient).all()
        losses.append(value)
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_the_form_follows_from_the_shapes():
    # EMP-SSL's batch on one machine; many images and a narrow projection.
    assert smaller_form(100, 1024) == 'gram'
    assert smaller_form(4096, 64) == 'covariance'
    # The authors' Barlow Twins and VICReg; two patches, whose one matrix is cheaper than two;
    # many patches of more images than dimensions.
    assert smaller_form(2048, 8192) == cheaper_form(2048, 2, 8192) == 'gram'
    assert cheaper_form(2048, 2, 4096) == 'covariance'
    assert cheaper_form(2048, 20, 4096) == 'gram'
    assert cheaper_form(2048, 20, 1024) == 'covariance'


@pytest.mark.parametrize('name', FORMED)
@pytest.mark.parametrize('sizes', [FEW, MANY], ids=['few images', 'many images'])
def test_the_form_by_shape_is_taken_unless_one_is_given(name, sizes):
    z = random_bags(3, **sizes)
    chosen = 'gram' if sizes is FEW else 'covariance'
    other = 'covariance' if sizes is FEW else 'gram'
    loss, gram, covariance = (
        jax.make_jaxpr(make_objective(name, settings).loss)(z)
        for settings in ({}, {'form': chosen}, {'form': other})
    )
    assert str(loss) == str(gram) != str(covariance)


def test_projections_are_sent_where_they_are_less_than_products():
    assert sends_projections(800, 20, 1024, 8)  # 24 * 100 * 1024 against 24 * 1024^2 / 2 floats
    assert not sends_projections(8 * 513, 20, 1024, 8)
    # More devices than patches: 256 * 100 * 1024 against 20 * 1024^2 / 2.
    assert not sends_projections(256 * 100, 20, 1024, 256)
    assert sends_projections(256 * 40, 20, 1024, 256)


@pytest.mark.parametrize('size', [5, 6])
def test_symmetric_matrices_are_summed_over_devices(size):
    x = np.random.default_rng(0).normal(size=(8, 10, size, size)).astype(np.float32)
    x = x + np.swapaxes(x, 2, 3)
    summed, scattered = jax.jit(
        jax.shard_map(
            lambda x: (sum_symmetric(x[0], DATA_AXIS), scatter_symmetric(x[0], DATA_AXIS)),
            mesh=make_mesh(),
            in_specs=P(DATA_AXIS),
            out_specs=(P(), P(DATA_AXIS)),
        )
    )(x)
    np.testing.assert_allclose(summed, x.sum(axis=0), rtol=1e-5, atol=1e-5)
    assert scattered.shape == (16, size, size)
    np.testing.assert_allclose(scattered[:10], summed, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(scattered[10:], 0)


def largest_array(function, *inputs):
    """Elements of the largest array that a device's compiled program names."""
    text = jax.jit(function).lower(*inputs).compile().as_text()
    shapes = re.findall(r'\b(?:f|s|u|bf|pred)\d*\[([\d,]+)\]', text)
    return max(math.prod(int(n) for n in shape.split(',')) for shape in shapes)


@pytest.mark.parametrize('name', ['simclr', 'tcr'])
def test_no_device_holds_the_similarities_of_all_patches(name):
    images, patches, width, devices = 64, 8, 16, 8
    z = jnp.zeros((images, patches, width))
    loss = make_objective(name, {}).loss
    sharded = jax.shard_map(
        jax.value_and_grad(lambda z: loss(z, axis_name=DATA_AXIS)[0]),
        mesh=make_mesh(),
        in_specs=P(DATA_AXIS),
        out_specs=(P(), P(DATA_AXIS)),
    )
    all_pairs = (images * patches) ** 2
    if name == 'simclr':
        # A device's own anchors against everything; and the measure sees what it is to see.
        assert largest_array(sharded, z) == all_pairs / devices
        assert largest_array(jax.value_and_grad(lambda z: loss(z)[0]), z) == all_pairs
    else:
        # The projections that a device has: its images' before the exchange, its patches' after.
        assert largest_array(sharded, z) == z.size // devices


def test_barlow_holds_one_correlation_matrix_at_a_time():
    z = jnp.zeros((8, 8, 64))
    largest = largest_array(jax.value_and_grad(lambda z: barlow(z)[0]), z)
    assert largest == 64 * 64 == z.size  # and not one for each of the 28 pairs


@pytest.mark.parametrize('name', NAMES)
def test_bfloat16_input_is_computed_in_float32(name):
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in random_arguments(name, 3)]
    loss, terms = jax.jit(make_objective(name, {}).loss)(*inputs)
    assert {x.dtype for x in (loss, *terms.values())} == {jnp.dtype('float32')}
    (expected, _), _ = evaluate(name)(*(np.asarray(x, np.float32) for x in inputs))
    np.testing.assert_allclose(loss, expected, rtol=2e-6)


@pytest.mark.parametrize('name', NAMES)
def test_a_batch_of_more_pairs_than_an_int32_counts(name):
    z = jax.ShapeDtypeStruct((4096, 20, 8), jnp.float32)  # of which it is only traced
    inputs = [z] * (1 + OBJECTIVES[name].target)
    loss, _ = jax.eval_shape(make_objective(name, {}).loss, *inputs)
    assert loss.shape == ()


def random_joint(n, seed=0):
    """A symmetric table of how often n things occur together; the last never occurs."""
    counts = np.random.default_rng(seed).gamma(0.5, size=(n, n))
    counts[-1], counts[:, -1] = 0, 0
    return (counts + counts.T).astype(np.float32)


@pytest.mark.parametrize('weight', [0.5, 1.0, 3.0])
def test_cooccurrence_loss_is_the_spectral_loss_and_a_constant(weight):
    joint = random_joint(9)
    z = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
    loss = cooccurrence(jnp.asarray(z), jnp.asarray(joint), weight=weight)
    # Its definition, pair by pair.
    p = joint.astype(np.float64) / joint.astype(np.float64).sum()
    marginal = p.sum(axis=1)
    expected = sum(
        marginal[i]
        * marginal[j]
        * (weight * z[i].astype(np.float64) @ z[j] - p[i, j] / (marginal[i] * marginal[j])) ** 2
        for i in range(8)
        for j in range(8)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    spectral_loss = spectral_discrete(jnp.asarray(z), jnp.asarray(joint), weight=weight)
    constant = cooccurrence_constant(jnp.asarray(joint))
    np.testing.assert_allclose(loss, 2 * weight * spectral_loss + constant, rtol=1e-5)


def test_spectral_loss_of_random_batches_is_that_of_the_distribution():
    # Three images of two patches, drawn in pairs with replacement: all nine batches.
    images = random_bags(2, images=3, width=4)
    batches = np.stack([images[[i, j]] for i in range(3) for j in range(3)])
    mean = jnp.mean(jax.vmap(lambda z: spectral(z, weight=0.7)[0])(batches))
    joint = np.kron(np.eye(3), 1 - np.eye(2)).astype(np.float32)
    expected = spectral_discrete(images.reshape(6, 4), jnp.asarray(joint), weight=0.7)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)


def test_unknown_objective_lists_the_known():
    known = 'barlow, byol, sigreg, simclr, spectral, tcr, vicreg'
    with pytest.raises(InputError, match=rf"'tcrr'.*{known}"):
        make_objective('tcrr', {})


def test_settings_reach_the_loss():
    objective = make_objective('tcr', {'eps': 0.5})
    np.testing.assert_array_equal(
        objective.loss(jnp.asarray(ORTHOGONAL))[0], tcr(jnp.asarray(ORTHOGONAL), eps=0.5)[0]
    )
