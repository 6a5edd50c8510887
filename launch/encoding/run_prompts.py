"""Prompts of a run, as `msrec encode` gives them to the LLM."""

from msrec.data.llm.model_weights import load_tokenizer, model_folder
from msrec.data.llm.prompts import level_prompts
from msrec.data.llm.templates import load_template, template_of
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
