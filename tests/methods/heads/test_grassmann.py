"""Class subspaces: what the logits depend on, the geodesic step against its definition and geoopt, and training."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.nn import functional as F

from workingpapers.methods.heads import grassmann
from workingpapers.methods.heads.grassmann import (
    GrassmannClassifier,
    GrassmannLinear,
    RiemannianSGD,
    geodesic_step,
    naive_geodesic_step,
    orthonormalise,
    split_param_groups,
    within_class_variance,
)


@parametrize_with_checks([GrassmannClassifier(subspace_dim=1, max_epochs=5)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def head(n=12, classes=5, k=3, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layer = GrassmannLinear(n, classes, k).to(dtype)
    layer.retract_()  # the random bases were made in float32
    return layer


def basis_and_direction(seed, classes, k, n, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(classes, k, n, generator=generator, dtype=torch.float64)
    direction = torch.randn(classes, k, n, generator=generator, dtype=torch.float64)
    return orthonormalise(basis).to(dtype), direction.to(dtype)


def tangent(basis, direction):
    return direction - direction @ basis.mT @ basis


# The head


@given(n=st.integers(1, 12), k=st.integers(1, 12), scale=st.floats(0.5, 50), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_logits_lie_between_zero_and_the_scale(n, k, scale, seed):
    torch.manual_seed(seed)
    layer = GrassmannLinear(n, 4, min(k, n), scale).double()
    layer.retract_()  # the random bases were made in float32
    features = torch.randn(6, n, dtype=torch.float64)
    logits = layer(features)
    expected = scale * torch.stack([(F.normalize(features) @ S).norm(dim=1) for S in layer.bases], dim=1)
    torch.testing.assert_close(logits, expected)
    assert logits.min() >= 0
    assert logits.max() <= scale * (1 + 1e-12)
    inside = layer(torch.randn(6, layer.subspace_dim, dtype=torch.float64) @ layer.weight[0])[:, 0]
    torch.testing.assert_close(inside, torch.full_like(inside, scale))  # exactly the scale inside the span ...
    if k < n:
        assert logits.max() < scale  # ... and less outside


def test_logits_ignore_the_choice_of_basis_and_the_length_of_features():
    layer = head()
    features = torch.randn(7, 12, dtype=torch.float64)
    logits = layer(features)
    torch.testing.assert_close(layer(features * torch.linspace(0.1, 1e3, 7)[:, None]), logits)
    rotations = orthonormalise(torch.randn(5, 3, 3, dtype=torch.float64))
    layer.weight.data = rotations @ layer.weight.data
    torch.testing.assert_close(layer(features), logits)


def test_the_whole_space_and_a_single_direction():
    features = torch.randn(7, 12)
    torch.testing.assert_close(head(k=12, dtype=torch.float32)(features), torch.full((7, 5), 25.0))
    line = head(k=1, dtype=torch.float32)
    torch.testing.assert_close(line(features), 25 * (F.normalize(features) @ line.weight[:, 0].T).abs())


def test_tokens_keep_their_axes_and_half_precision_is_computed_in_the_precision_of_the_weight():
    layer = head(dtype=torch.float32)
    tokens = torch.randn(2, 3, 12)
    torch.testing.assert_close(layer(tokens)[1, 2], layer(tokens[1, 2]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(tokens), layer(tokens.float()))
    assert layer(tokens.half()).dtype == torch.float32
    assert (layer.half()(torch.zeros(1, 12, dtype=torch.half)) == 0).all()


def test_gradients():
    layer = head(n=6, classes=3, k=2)
    features = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    weight = layer.weight

    def logits(x, w):
        return torch.func.functional_call(layer, {"weight": w}, (x,))

    assert torch.autograd.gradcheck(logits, (features, weight))
    # A feature orthogonal to every subspace, and the zero feature, have finite (zero) gradients.
    flat = GrassmannLinear(3, 1, 1)
    flat.weight.data = torch.tensor([[[1.0, 0.0, 0.0]]])
    for feature in ([0.0, 1.0, 0.0], [0.0, 0.0, 0.0]):
        flat.zero_grad()
        flat(torch.tensor([feature])).sum().backward()
        assert (flat.weight.grad == 0).all()


def test_retraction_keeps_the_subspaces_and_restores_the_bases():
    layer = head()
    before = layer.weight.mT @ layer.weight
    layer.weight.data = torch.randn(5, 3, 3, dtype=torch.float64) @ layer.weight.data
    assert layer.orthonormality_error() > 0.1
    layer.retract_()
    assert layer.orthonormality_error() < 1e-12
    # The random 3 x 3 mixing costs its condition number.
    torch.testing.assert_close(layer.weight.mT @ layer.weight, before, atol=1e-10, rtol=0)


def test_orthonormalise_barely_moves_what_is_nearly_orthonormal():
    basis, noise = basis_and_direction(0, 4, 3, 8)
    assert (orthonormalise(basis + 1e-6 * noise) - basis).abs().max() < 1e-5  # no flipped signs
    torch.testing.assert_close(orthonormalise(basis), basis)


# The step


@given(
    seed=st.integers(0, 999),
    classes=st.integers(1, 4),
    k=st.integers(1, 5),
    spare=st.integers(0, 8),
    size=st.floats(-8, 1.5),
)
@settings(max_examples=60, deadline=None)
def test_the_step_equals_its_definition(seed, classes, k, spare, size):
    basis, direction = basis_and_direction(seed, classes, k, k + spare)
    direction *= 10**size  # angles from 1e-8 to about 100 radians
    fast, naive = geodesic_step(basis, direction, 0.7), naive_geodesic_step(basis, direction, 0.7)
    # The squares of the angles, up to 1e4, carry a relative error of 1e-16: 1e-11 leaves a factor of ten.
    torch.testing.assert_close(fast, naive, atol=1e-11, rtol=0)


@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 30.0])
def test_the_step_in_float32_is_accurate_when_singular_values_differ_widely(size):
    basis, direction = basis_and_direction(1, 6, 4, 40)
    direction = size * torch.diag(torch.tensor([1.0, 1e-2, 1e-5, 0.0], dtype=torch.float64)) @ direction
    exact = naive_geodesic_step(basis, direction, 1.0)
    fast = geodesic_step(basis.float(), direction.float(), 1.0)
    # float32 input alone shifts the largest angle, size * |row of 40| ~ 200, by 200 * 6e-8.
    assert (fast - exact).abs().max() < 1e-6 * max(1, 10 * size)


def test_the_step_moves_along_minus_the_tangent_by_the_length_of_the_geodesic():
    basis, direction = basis_and_direction(2, 3, 3, 10)
    G = tangent(basis, direction)
    assert (basis @ G.mT).abs().max() < 1e-14  # tangency
    h = 1e-6
    derivative = (geodesic_step(basis, direction, h) - geodesic_step(basis, direction, -h)) / (2 * h)
    torch.testing.assert_close(derivative, -G, atol=1e-8, rtol=0)  # rounding of 1e-16 / h, truncation of h^2
    lr = 0.9 * (torch.pi / 2) / torch.linalg.svdvals(G).max()
    moved = geodesic_step(basis, direction, float(lr))
    for c in range(3):
        angles = subspace_angles(basis[c].T.numpy(), moved[c].T.numpy())
        np.testing.assert_allclose(np.sort(angles), np.sort(lr * torch.linalg.svdvals(G[c])), atol=1e-7)


def test_the_step_equals_geoopt():
    geoopt = pytest.importorskip("geoopt")
    basis, direction = basis_and_direction(3, 4, 3, 9)
    stiefel = geoopt.EuclideanStiefelExact()
    expected = stiefel.expmap(basis.mT, -0.3 * tangent(basis, direction).mT).mT
    torch.testing.assert_close(geodesic_step(basis, direction, 0.3), expected, atol=1e-12, rtol=0)
    # One update of its optimiser: for a loss of the subspace alone, the Stiefel gradient is the Grassmann gradient.
    layer, features, targets = head(), torch.randn(20, 12, dtype=torch.float64), torch.arange(20) % 5
    twin = geoopt.ManifoldParameter(layer.bases.detach().clone(), manifold=stiefel)
    projections = torch.einsum("bn,cnk->bck", F.normalize(features), twin)
    F.cross_entropy(25 * projections.norm(dim=-1), targets).backward()
    geoopt.optim.RiemannianSGD([twin], lr=0.1).step()
    F.cross_entropy(layer(features), targets).backward()
    RiemannianSGD(layer.parameters(), lr=0.1, momentum=0).step()
    torch.testing.assert_close(layer.bases, twin.data, atol=1e-12, rtol=0)


# The optimiser


def train(layer, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        features = torch.randn(16, layer.in_features, generator=generator).to(layer.weight.dtype)
        optimizer.zero_grad()
        F.cross_entropy(layer(features), torch.arange(16) % layer.num_classes).backward()
        optimizer.step()


def reference_update(S, D, V, lr, momentum):
    """One class by the published formulas, S (n, k)."""
    V = momentum * V + D
    G = V - S @ (S.T @ V)
    U, s, Rt = torch.linalg.svd(G, full_matrices=False)
    return (S @ Rt.T @ torch.diag(torch.cos(lr * s)) - U @ torch.diag(torch.sin(lr * s))) @ Rt, V


def test_updates_follow_the_published_formulas():
    layer = head()
    optimizer = RiemannianSGD(layer.parameters(), lr=0.05, reorth_every=3)
    bases = list(layer.bases.detach().clone())
    buffers = [torch.zeros(12, 3, dtype=torch.float64)] * 5
    for step in range(1, 8):
        train(layer, optimizer, 1, seed=step)
        for c, gradient in enumerate(layer.weight.grad):
            bases[c], buffers[c] = reference_update(bases[c], gradient.T, buffers[c], 0.05, 0.9)
            if step % 3 == 0:
                Q, R = torch.linalg.qr(bases[c])
                bases[c] = Q * R.diagonal().sign()
        torch.testing.assert_close(layer.bases, torch.stack(bases), atol=1e-10, rtol=0)


def test_chunks_of_classes_change_nothing(monkeypatch):
    whole, parts = head(), head()
    train(whole, RiemannianSGD(whole.parameters()), 6)
    monkeypatch.setattr(grassmann, "CHUNK", 2 * 3 * 12)  # two classes at a time: 2, 2, 1
    train(parts, RiemannianSGD(parts.parameters()), 6)
    torch.testing.assert_close(parts.weight, whole.weight)


@pytest.mark.parametrize(("n", "k"), [(40, 8), (8, 8), (3, 1)])
def test_bases_stay_orthonormal_over_a_hundred_steps(n, k):
    layer = head(n, 5, k, dtype=torch.float32)
    assert layer.orthonormality_error() < 1e-6
    before = layer.weight.detach().clone()
    train(layer, RiemannianSGD(layer.parameters(), lr=0.1), 100)
    assert layer.orthonormality_error() < 1e-4
    moved = (layer.weight.mT @ layer.weight - before.mT @ before).abs().max()
    assert (moved > 0.1) == (k < n)  # it trained, unless there is only one subspace


def test_each_parameter_counts_its_own_updates_and_resumes_from_its_state():
    late = head()
    early, resumed = head(seed=1), head(seed=1)
    optimizer = RiemannianSGD([early.weight, late.weight])
    train(early, optimizer, 3)  # `late` has no gradient yet
    assert late.weight not in optimizer.state
    second = RiemannianSGD(resumed.parameters())
    train(resumed, second, 3)
    state, weights = copy.deepcopy(second.state_dict()), copy.deepcopy(resumed.state_dict())
    train(resumed, second, 4, seed=1)
    again = head(seed=2)
    again.load_state_dict(weights)
    third = RiemannianSGD(again.parameters(), lr=1.0)
    third.load_state_dict(state)
    train(again, third, 4, seed=1)
    assert torch.equal(again.weight, resumed.weight)


def test_a_closure_recomputes_the_loss():
    layer, features = head(), torch.randn(10, 12, dtype=torch.float64)
    optimizer = RiemannianSGD(layer.parameters(), lr=0.01, momentum=0)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(features), torch.arange(10) % 5)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(10)]
    assert all(after < before for before, after in itertools.pairwise(losses))


def test_one_subspace_converges_to_the_principal_components():
    digits = load_digits().data
    X = torch.from_numpy(digits - digits.mean(axis=0))
    X /= torch.linalg.matrix_norm(X, 2)  # the largest variance is 1, so that the rate below is stable
    layer = head(64, 1, 4)
    optimizer = RiemannianSGD(layer.parameters(), lr=0.05)
    for _ in range(1000):
        optimizer.zero_grad()
        (-(X @ layer.weight[0].T).square().sum()).backward()
        optimizer.step()
    components = torch.linalg.svd(X, full_matrices=False).Vh[:4]
    assert subspace_angles(layer.weight[0].detach().T.numpy(), components.T.numpy()).max() < 1e-6


def test_parameters_are_split_between_the_optimisers():
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 5), GrassmannLinear(5, 3, 2))
    model[1].requires_grad_(False)
    for candidate in (model, copy.deepcopy(model)):
        manifold, euclidean = split_param_groups(candidate)
        assert [id(p) for p in manifold] == [id(candidate[2].weight)]
        assert [id(p) for p in euclidean] == [id(p) for p in candidate[0].parameters()]


# The classifier


def test_classifier_learns_digits():
    X, y = load_digits(return_X_y=True)
    classifier = GrassmannClassifier(subspace_dim=4, max_epochs=10, random_state=0).fit(X[:1200], y[:1200])
    assert classifier.score(X[1200:], y[1200:]) > 0.9  # cosine prototypes reach 0.88
    assert classifier.module_.orthonormality_error() < 1e-4
    assert classifier.module_.weight.shape == (10, 4, 64)


def test_features_vary_more_within_classes_of_more_dimensions():
    digits = load_digits()
    X, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    variance = {1: 0.0, 8: 0.0}
    for seed, k in [(seed, k) for seed in range(3) for k in variance]:
        torch.manual_seed(seed)
        backbone = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
        model = torch.nn.Sequential(backbone, GrassmannLinear(32, 10, k))
        manifold, euclidean = split_param_groups(model)
        optimizers = [RiemannianSGD(manifold), torch.optim.AdamW(euclidean, lr=2e-3)]
        for rows in (rows for _ in range(15) for rows in torch.randperm(len(X)).split(128)):
            model.zero_grad()
            F.cross_entropy(model(X[rows]), y[rows]).backward()
            for optimizer in optimizers:
                optimizer.step()
        variance[k] += within_class_variance(backbone(X).detach(), y) / 3
    assert variance[8] > variance[1] + 0.01  # 0.31 against 0.28


def test_within_class_variance_is_one_minus_the_mean_cosine():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 4)), np.arange(30) % 3
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    cosines = [(unit[y == c] @ unit[y == c].T).mean() for c in range(3)]
    assert within_class_variance(X, y) == pytest.approx(1 - np.mean(cosines))
    assert within_class_variance([[1, 0], [5, 0], [0, 2]], [0, 0, 1]) == 0
    assert within_class_variance([[1, 0], [-5, 0]], [0, 0]) == 1


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 3, 5), "subspace_dim is 5; at most in_features=4"),
        ((4, 0, 2), "sizes must be 1 or more; got in_features=4, num_classes=0, subspace_dim=2"),
        ((4, 3, 2, 0.0), "scale is 0.0"),
        ((4, 3, 2, float("inf")), "scale is inf"),
    ],
)
def test_bad_sizes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GrassmannLinear(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"reorth_every": 0}, "reorth_every is 0"),
    ],
)
def test_bad_optimiser_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RiemannianSGD(head().parameters(), **options)


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (torch.eye(3), r"shape \(3, 3\); it must be \(K, k, n\)"),
        (torch.ones(2, 4, 3), "k <= n"),
        (torch.eye(3).expand(2, 3, 3).bfloat16(), "torch.bfloat16"),
        (2 * torch.eye(3).expand(2, 3, 3), "rows are not orthonormal: off by 3"),
        (torch.full((1, 2, 3), float("nan")), "rows are not orthonormal: off by nan"),
    ],
)
def test_parameters_off_the_manifold_are_refused(parameter, message):
    optimizer, refused = RiemannianSGD(head().parameters()), torch.nn.Parameter(parameter.clone())
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": refused})
    assert len(optimizer.param_groups) == 1


def test_bad_features_are_named():
    with pytest.raises(ValueError, match=r"shape \(2, 5\); the last axis must be 12"):
        head()(torch.ones(2, 5))
    with pytest.raises(ValueError, match="X has 3 axes; GrassmannClassifier takes vectors"):
        GrassmannClassifier(subspace_dim=2).fit(np.ones((4, 3, 5)), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="subspace_dim is 8"):
        GrassmannClassifier().fit(np.random.default_rng(0).normal(size=(4, 3)), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="NaN"):
        within_class_variance([[np.nan, 1.0]], [0])
