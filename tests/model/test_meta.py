"""Meta networks: both forms against slow formulas, step 0, gradients."""

import math

import pytest
import torch
from reference_loss import weighted_bce

from msrec.model.layers import generated_linear
from msrec.model.layers.generated_linear import FactoredLinear, GeneratedLinear, make_codes
from msrec.model.layers.knowledge_reducer import KnowledgeReducer
from msrec.model.meta import MetaOptions, ScenarioMeta, UserMeta, fuse

IN, H, S, R = 6, 9, 3, 4
FORMS = ["contracted", "distinct"]
ALL_FORMS = [*FORMS, "auto", "factored"]


def user_meta(residual=True, **options):
    torch.manual_seed(0)
    mean, std = torch.randn(H), torch.rand(H) + 0.5
    return UserMeta(IN, mean, std, MetaOptions(**{"rank": R, "width": 5, **options}), residual)


def scenario_meta(num_tasks=1, **options):
    torch.manual_seed(0)
    options = MetaOptions(**{"rank": R, "width": 5, **options})
    return ScenarioMeta(IN, torch.randn(S, H), num_tasks, options)


def stir(module):
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


def user_rows(rows=30, users=7):
    torch.manual_seed(1)
    has = (torch.arange(users) % 3 != 1).float()
    return torch.randn(rows, IN), torch.randn(users, H), torch.randint(0, users, (rows,)), has


def slow_linear(layer, x, z):
    if isinstance(layer, FactoredLinear):
        weight = layer.first @ torch.diag(z @ layer.gains) @ layer.last
    else:
        weight = sum(z[r] * layer.weight[r] for r in range(len(z)))
    bias = sum(z[r] * layer.bias[r] for r in range(len(z)))
    return x @ weight + bias


def slow_code(reducer, h, has=1.0):
    inside = reducer.linear.bias
    if has:
        inside = inside + reducer.linear.weight @ ((h - reducer.mean) * reducer.scale)
    else:
        inside = inside + reducer.flag
    return torch.cat([torch.ones(1), inside.tanh()])


def slow_user_meta(meta, x, h, has):
    z, act = slow_code(meta.reducer, h, has), meta.activation
    if not meta.residual:
        x = meta.down(x)
        for layer in meta.layers:
            x = act(slow_linear(layer, x, z))
        return meta.up(x)
    if meta.scales is not None:
        for layer, scale in zip(meta.layers, meta.scales, strict=True):
            x = x + scale * act(slow_linear(layer, x, z))
        return x
    narrow = meta.down(x)
    for layer in meta.layers:
        narrow = narrow + act(slow_linear(layer, narrow, z))
    return x + meta.up(narrow)


def slow_scenario_meta(meta, x, s):
    z = slow_code(meta.reducer, meta.knowledge[s])
    for layer in meta.layers:
        x = meta.activation(slow_linear(layer, x, z))
    return slow_linear(meta.head, x, z)


@pytest.mark.parametrize("loop_keys", [0, 256], ids=["padded", "loop"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("a", "b"), [(5, 5), (6, 1), (3, 8)])
def test_a_generated_layer_and_its_gradients_equal_the_formula(monkeypatch, form, loop_keys, a, b):
    monkeypatch.setattr(generated_linear, "LOOP_KEYS", loop_keys)
    monkeypatch.setattr(generated_linear, "CHUNK_ELEMENTS", 4 * (R + 1) * a)
    torch.manual_seed(2)
    layer, key = GeneratedLinear(a, b, R), torch.tensor([4, 0, 0, 5, 2, 0, 4, 0, 2, 5, 0])
    x, z = torch.randn(11, a, requires_grad=True), torch.randn(7, R + 1, requires_grad=True)
    wrt = [x, z, layer.weight, layer.bias]
    codes = make_codes(z, key, form)
    fast = codes.unsort(layer(codes.sort(x), codes))
    slow = torch.stack([slow_linear(layer, r, z[k]) for r, k in zip(x, key, strict=True)])
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    gradients = zip(
        torch.autograd.grad(fast.sin().sum(), wrt),
        torch.autograd.grad(slow.sin().sum(), wrt),
        strict=True,
    )
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("a", "b", "inner"), [(5, 5, 5), (9, 1, 5), (9, 7, 7), (3, 8, 3)])
def test_a_factored_layer_equals_the_weights_that_it_generates(a, b, inner):
    torch.manual_seed(3)
    layer, key, z = FactoredLinear(a, b, R), torch.tensor([4, 0, 0, 5, 2]), torch.randn(7, R + 1)
    assert layer.gains.shape == (R + 1, inner)
    x = torch.randn(5, a)
    made = layer(x, make_codes(z, key, "factored"))
    weight, bias = layer.generate(z)
    torch.testing.assert_close(made, torch.einsum("bi,bio->bo", x, weight[key]) + bias[key])
    of_parts = torch.einsum("ur,rio->uio", z, layer.weight)  # as explain reads it
    torch.testing.assert_close(weight, of_parts, atol=1e-5, rtol=1e-5)


def test_a_factored_layer_starts_with_the_variance_of_a_linear_layer():
    torch.manual_seed(0)
    x, z = torch.randn(4096, 64), torch.zeros(1, 17)
    z[:, 0] = 1
    codes = make_codes(z, torch.zeros(4096).long(), "factored")
    ours, plain = FactoredLinear(64, 64, 16)(x, codes), torch.nn.Linear(64, 64)(x)
    assert ours.var().item() == pytest.approx(plain.var().item(), rel=0.15)
    assert not FactoredLinear(64, 64, 16, zero=True)(x, codes).any()


@pytest.mark.parametrize(
    ("users", "rows", "distinct"),
    [(3, 4096, True), (3000, 4096, False), (300, 12000, True), (4096, 4096, False)],
)
def test_auto_generates_per_key_only_where_rows_repeat_their_key(users, rows, distinct):
    key = torch.arange(rows) % users
    codes = make_codes(torch.randn(users, 301 if users == 300 else 17), key)
    assert (codes.groups is not None) == distinct


def test_auto_counts_the_padding_when_one_key_has_most_rows():
    key = torch.arange(12000) % 300
    key[:8000] = 0
    assert make_codes(torch.randn(300, 17), key).groups is None


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2},
        {"width": None},
        {"residual": False, "num_layers": 2},
        {"residual": False, "width": None},
        {"standardize": False},
    ],
)
def test_user_meta_equals_its_formula_row_by_row(form, options):
    meta = stir(user_meta(form=form, **options))
    x, knowledge, index, has = user_rows()
    expected = [
        slow_user_meta(meta, r, knowledge[u], has[u]) for r, u in zip(x, index, strict=True)
    ]
    out = meta(x, knowledge, index, has)
    torch.testing.assert_close(out, torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "num_tasks": 2}, {"width": None}, {"standardize": False}],
)
def test_scenario_meta_equals_its_formula_row_by_row(form, options):
    meta = stir(scenario_meta(form=form, **options))
    x, scenario = torch.randn(30, IN), torch.randint(0, S, (30,))
    expected = [slow_scenario_meta(meta, r, s) for r, s in zip(x, scenario, strict=True)]
    torch.testing.assert_close(meta(x, scenario), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_a_row_does_not_depend_on_the_other_rows_and_users():
    meta, (x, knowledge, index, has) = stir(user_meta()).train(), user_rows()
    whole = meta(x, knowledge, index, has)
    u = index[4:5]
    alone = meta(x[4:5], knowledge[u], torch.tensor([0]), has[u])
    torch.testing.assert_close(alone, whole[4:5], atol=1e-6, rtol=1e-5)


def test_the_vector_of_a_user_without_knowledge_does_not_matter_but_the_flag_does():
    meta, (x, knowledge, index, _) = stir(user_meta()), user_rows()
    none = torch.zeros(len(knowledge))
    first = meta(x, knowledge, index, none)
    torch.testing.assert_close(meta(x, knowledge + 5, index, none), first)
    meta.reducer.flag.data += 1
    assert not torch.allclose(meta(x, knowledge, index, none), first)


def test_a_dimension_that_never_varies_is_left_out():
    mean, std = torch.zeros(H), torch.ones(H)
    std[2] = 0
    reducer, h = KnowledgeReducer(mean, std, R), torch.randn(5, H)
    other = h.clone()
    other[:, 2] = 100
    assert torch.equal(reducer(h), reducer(other))


def test_a_single_scenario_gives_finite_logits():
    meta = stir(ScenarioMeta(IN, torch.randn(1, H), 1, MetaOptions(rank=R, width=5)))
    assert meta(torch.randn(4, IN), torch.zeros(4).long()).isfinite().all()


def test_vectors_are_unchanged_when_not_standardized():
    for meta in (user_meta(standardize=False), scenario_meta(standardize=False)):
        assert not meta.reducer.mean.any()
        assert (meta.reducer.scale == 1).all()


def test_scenario_logits_are_added_or_gate():
    logits, change = torch.tensor([[3.0], [-2.0]]), torch.tensor([[0.0], [math.log(3)]])
    assert fuse(logits, change, "add").tolist() == [[3.0], [-2.0 + change[1].item()]]
    torch.testing.assert_close(fuse(logits, change, "gate"), torch.tensor([[3.0], [-3.0]]))


@pytest.mark.parametrize("form", ["auto", "factored"])
@pytest.mark.parametrize("width", [5, None])
def test_step_0_is_exactly_the_bare_backbone(width, form):
    x, knowledge, index, has = user_rows()
    assert torch.equal(user_meta(width=width, form=form)(x, knowledge, index, has), x)
    assert not scenario_meta(width=width, form=form)(x, torch.zeros(len(x)).long()).any()


@pytest.mark.parametrize("form", ["auto", "factored"])
@pytest.mark.parametrize("width", [5, None])
def test_the_generator_gets_gradients_after_the_first_step(width, form):
    user, scenario = user_meta(width=width, form=form), scenario_meta(width=width, form=form)
    x, knowledge, index, has = user_rows()
    parameters = [*user.parameters(), *scenario.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    head = torch.randn(IN, 1)
    for _ in range(2):
        optimizer.zero_grad()
        logits = user(x, knowledge, index, has) @ head + scenario(x, index % S)
        weighted_bce(logits, (index % 2).float().unsqueeze(1), torch.ones(len(x))).backward()
        optimizer.step()
    for module in (user, scenario):
        for name, parameter in module.named_parameters():
            assert parameter.grad.any(), name
            if name.startswith("layers."):
                assert all(part.any() for part in parameter.grad), name  # every M_r, c_r


def test_invalid_inputs_are_refused():
    x, knowledge, index, has = user_rows()
    with pytest.raises(ValueError, match=r"knowledge must be \(U, 9\).*got \(7, 8\)"):
        user_meta()(x, knowledge[:, :8], index, has)
    with pytest.raises(ValueError, match=r"finite.*nan.*in dimension 2"):
        ScenarioMeta(IN, torch.tensor([[0.0, 1, float("nan")], [1, 2, 3]]), 1, MetaOptions())
    with pytest.raises(ValueError, match=r"must both be \(knowledge_dim,\); got \(5,\) and \(4,\)"):
        UserMeta(IN, torch.zeros(5), torch.ones(4), MetaOptions())
    with pytest.raises(ValueError, match="contracted, distinct, factored; got 'fast'"):
        user_meta(form="fast")
    with pytest.raises(ValueError, match=r"user_index must be in \[0, 7\); got 7"):
        user_meta(form="distinct")(x, knowledge, index.clamp_min(7), has)
