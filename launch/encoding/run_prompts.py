"""The prompts of a run, as `msrec encode` gives them to the LLM."""

from functools import partial

from msrec.data.io.paths import AnyPath
from msrec.data.llm.model_weights import load_tokenizer, model_folder
from msrec.data.llm.prompts import Budget, Prompts, item_prompts, scenario_prompts, user_prompts
from msrec.data.llm.templates import Template, load_template, template_of
from msrec.data.llm.tokenization import PromptTokenizer
from msrec.data.schema import load_schema
from msrec.launch.config import RunConfig


def prompts_by_key(config: RunConfig, level: str) -> dict[str, str]:
    """Raw key (or scenario name) -> prompt, in the order of the data set.

    Args:
        config: of a run or of an encoding.
        level: user, scenario or item.
    """
    llm, schema = config.llm, load_schema(config.dataset)
    template = load_template(template_of(schema.name, llm.template))
    tokens = None
    if level == "user":  # the only prompts that are cut to a number of tokens
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
    """The prompts of a level; without a tokenizer a history is as long as the template allows."""
    shares = {"rank": rank, "world_size": world_size}
    if level == "scenario":
        return scenario_prompts(dataset, template, **shares)
    if level == "item":
        return item_prompts(dataset, template, **shares)
    budget = None
    if tokens is not None:
        whole = partial(_lengths, PromptTokenizer(tokens.tokenizer, 1 << 20), template.system)
        budget = Budget(tokens.max_tokens, whole, tokens.count)
    return user_prompts(dataset, template, budget=budget, **shares)


def _lengths(tokens: PromptTokenizer, system: str, texts: list[str]) -> list[int]:
    return [len(row) for row in tokens.tokenize(texts, system=system)[0]]
