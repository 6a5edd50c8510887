"""The prompts of a run, as `msrec encode` gives them to the LLM."""

from msrec.data.llm.templates import load_template, template_of
from msrec.data.llm.tokens import PromptTokenizer
from msrec.data.llm.weights import load_tokenizer, model_folder
from msrec.data.schema import load_schema
from msrec.launch.config import RunConfig
from msrec.launch.encode import level_prompts


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
