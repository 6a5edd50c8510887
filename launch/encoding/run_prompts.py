"""Prompts of a run, as `msrec encode` gives them to the LLM."""

from msrec.data.llm.models.model_weights import load_tokenizer, model_folder
from msrec.data.llm.store import LEVELS
from msrec.data.llm.text.prompts import item_prompts, level_prompts
from msrec.data.llm.text.templates import load_template, template_of
from msrec.data.llm.text.tokenization import PromptTokenizer
from msrec.data.schema import load_schema
from msrec.launch.config.run_config import RunConfig


def named_prompt(config: RunConfig, name: str) -> str:
    """Returns the prompt of `user=KEY`, `scenario=NAME` or `item=KEY`.

    Raises:
        ValueError: the name has another form, or the dataset has no such key.
    """
    level, _, key = name.partition("=")
    if level not in LEVELS:
        raise ValueError(f"--show must be user=KEY, scenario=NAME or item=KEY; got {name!r}.")
    prompts = prompts_by_key(config, level)
    if key not in prompts:
        raise ValueError(
            f"{config.dataset} must hold the {level} {key!r}; it is not among {len(prompts)}."
        )
    return prompts[key]


def prompts_by_key(config: RunConfig, level: str) -> dict[str, str]:
    """Returns raw key (or scenario name) -> prompt, in the order of the dataset.

    Items have the plain text of `llm.sources` where these are all that `msrec encode` encodes.

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
    is_plain = bool(llm.sources) and not llm.items and "item" not in config.knowledge_levels
    if level == "item" and is_plain:
        prompts = item_prompts(config.dataset, None)
    else:
        prompts = level_prompts(level, config.dataset, template, tokens)
    return {str(key): text for key, text in prompts.pairs()}
