"""Prompts of a run, as `msrec encode` gives them to the LLM."""

from functools import partial

from msrec.data.io.paths import AnyPath
from msrec.data.llm.model_weights import load_tokenizer, model_folder
from msrec.data.llm.prompts import (
    Prompts,
    TokenBudget,
    item_prompts,
    scenario_prompts,
    user_prompts,
)
from msrec.data.llm.templates import Template, load_template, template_of
from msrec.data.llm.tokenization import PromptTokenizer
from msrec.data.schema import load_schema
from msrec.launch.config import RunConfig


def prompts_by_key(config: RunConfig, level: str) -> dict[str, str]:
    """Returns raw key (or scenario name) -> prompt, in the order of the dataset.

    Args:
        config: of a run or of an encoding.
        level: user, scenario or item.
    """
    llm, schema = config.llm, load_schema(config.dataset)
    template = load_template(template_of(schema.name, llm.template))
    tokens = None
    if level == "user":  # only histories depend on the number of tokens
        tokenizer = load_tokenizer(model_folder(llm.model), llm.trust_remote_code)
        tokens = PromptTokenizer(tokenizer, llm.max_tokens)
    prompts = level_prompts(level, config.dataset, template, tokens)
    return {str(key): text for key, text in prompts.pairs()}


def level_prompts(
    level: str,
    dataset: AnyPath | str,
    template: Template,
    tokens: PromptTokenizer | None,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Prompts:
    """Returns the prompts of a level; without a tokenizer, histories have the template's length."""
    share = {"rank": rank, "world_size": world_size}
    if level == "scenario":
        return scenario_prompts(dataset, template, **share)
    if level == "item":
        return item_prompts(dataset, template, **share)
    budget = None
    if tokens is not None:
        prompt_lengths = partial(tokens.prompt_lengths, system=template.system)
        budget = TokenBudget(tokens.max_tokens, prompt_lengths, tokens.count)
    return user_prompts(dataset, template, budget=budget, **share)
