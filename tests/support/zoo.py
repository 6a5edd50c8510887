"""Small backbones away from their initial values, and rows for them."""

import importlib
import pkgutil

import slow
import torch

from msrec.model.backbone import BackboneShape, FeatureLayout
from msrec.model.backbones import make_backbone
from msrec.model.meta import MetaOptions, ScenarioMeta, UserMeta

S, B, T, H = 4, 40, 3, 9
PARENTS = (None, 0, None)
"""Of the tasks: the second exists only where the first is 1."""
LAYOUT = FeatureLayout(("user_id", "item_id", "genre"), dim=2, start=2)
IN = 9
"""A bottom output of two, three vectors of two, and one more column, as an LLM feature would be."""


def shape(num_scenarios=S, num_tasks=T):
    """Sizes of the backbones under test."""
    parents = PARENTS[:num_tasks] if num_tasks > 1 else ()
    return BackboneShape(IN, num_scenarios, num_tasks, LAYOUT, parents)


def formula(name):
    """The slow version of a backbone."""
    for module in pkgutil.iter_modules(slow.__path__):
        importlib.import_module(f"slow.{module.name}")
    return slow.FORMULAS[name]


def make(name, seed=0, num_tasks=T, **options):
    """A backbone whose parameters and buffers are not at their initial values."""
    torch.manual_seed(seed)
    options = {**formula(name).options, **options}
    return stir(make_backbone(name, shape(num_tasks=num_tasks), **options))


def stir(model):
    """Move parameters and float buffers away from ones and zeros."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if name.rpartition(".")[2].startswith("moving_"):
                buffer += 0.3 * torch.rand_like(buffer)
    return model


def rows(seed=1, scenarios=(0, 1, 3)):
    """Rows of some scenarios; scenario 2 has none unless asked for."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, IN, generator=generator)
    return x, torch.tensor(scenarios)[torch.randint(0, len(scenarios), (B,), generator=generator)]


class Whole(torch.nn.Module):
    """A backbone with meta networks around it, joined as `DenseArch` joins them."""

    def __init__(self, name, meta):
        super().__init__()
        self.backbone = make(name)
        self.user = self.scenario = None
        options = MetaOptions(rank=4, width=5)
        if meta in ("user", "both"):
            mean, std = torch.randn(H), torch.rand(H) + 0.5
            self.user = stir(UserMeta(IN, mean, std, options))
        if meta in ("scenario", "both"):
            vectors = torch.randn(S, H)
            self.scenario = stir(ScenarioMeta(IN, vectors, T, options))

    def forward(self, x, scenario, weight, knowledge, index, has):
        h = x if self.user is None else self.user(x, knowledge, index, has)
        logits = self.backbone(h, scenario, weight)
        return logits if self.scenario is None else logits + self.scenario(h, scenario)


def whole_rows():
    """Arguments of `Whole`: rows of all scenarios and 7 users, of whom some have no vector."""
    x, scenario = rows(scenarios=range(S))
    knowledge, index = torch.randn(7, H), torch.arange(B) * 5 % 7
    return x, scenario, torch.ones(B), knowledge, index, (torch.arange(7) % 3 != 1).float()
