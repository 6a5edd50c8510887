"""Prompts: their texts and lengths, and that they show training rows only."""

import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from llm_data import ITEMS, rows_frame, write_dataset

from msrec.data.llm.text import user_inputs
from msrec.data.llm.text.prompts import item_prompts, scenario_prompts, user_prompts
from msrec.data.llm.text.templates import TEMPLATES_FILE, Template, load_template, template_of
from msrec.data.llm.text.tokenization import PromptTokenizer
from msrec.data.llm.text.user_inputs import PreparedInputs
from msrec.data.schema import load_schema

TRAIN = [
    (0, 0, 0, 1.0, 10),
    (0, 1, 1, 1.0, 20),
    (0, 2, 0, 1.0, 30),
    (0, 3, 1, 0.0, 40),
    (1, 4, 0, 0.0, 50),
]


def template(**changes) -> Template:
    return load_template("default").model_copy(update=changes)


def texts(prompts):
    return dict(prompts.pairs())


def test_history_is_listed_by_scenario_and_answer_newest_first(tmp_path):
    prompts = texts(user_prompts(write_dataset(tmp_path, TRAIN), template()))
    assert prompts["ann"].splitlines() == [
        "About an app: A shop for everyday things.",
        "Its scenarios:",
        "- search: the user types what they want",
        "- feed: the app proposes things",
        "Below is one of its users and what the user did in each scenario, newest first.",
        "search, clicked: Green Scarf; Red Shoes (shoes, red).",
        "feed, clicked: Blue Hat (hats).",
        "feed, skipped: Gold Ring (rings).",
        template().user_question,
    ]
    assert "search, skipped: Iron Pan (pans)." in prompts["bob"]


def test_a_history_that_no_time_orders_says_so(tmp_path):
    rows = [(user, item, scenario, label, 7) for user, item, scenario, label, _ in TRAIN]
    prompt = texts(user_prompts(write_dataset(tmp_path, rows), template()))["ann"]
    assert "what the user did in each scenario, in no particular order." in prompt
    assert "newest" not in prompt


def test_an_item_of_the_test_split_is_never_shown(tmp_path):
    future = ITEMS.index("Future Lamp")
    planted = [(user, future, scenario, 1.0, 999) for user in (0, 1, 2) for scenario in (0, 1)]
    folder = write_dataset(tmp_path, TRAIN, planted, ages=["20", "30", "40"])
    shown = texts(user_prompts(folder, template())) | texts(scenario_prompts(folder, template()))
    assert len(shown) == 5
    assert not any("Lamp" in text or "lamps" in text for text in shown.values())


def test_scenarios_take_turns_up_to_the_limit(tmp_path):
    rows = [(0, item, 0, 1.0, 10 + item) for item in range(4)] + [(0, 4, 1, 1.0, 1)]
    folder = write_dataset(tmp_path, rows)
    prompt = texts(user_prompts(folder, template(positives=3)))["ann"]
    assert "search, clicked: Gold Ring (rings); Green Scarf." in prompt
    assert "feed, clicked: Iron Pan (pans)." in prompt


def test_room_left_by_one_scenario_goes_to_the_other(tmp_path):
    rows = [(0, item, 0, 1.0, item) for item in range(5)]
    folder = write_dataset(tmp_path, rows)
    assert texts(user_prompts(folder, template(positives=4)))["ann"].count(";") == 3


def test_an_item_seen_twice_is_shown_once(tmp_path):
    rows = [(0, 1, 0, 1.0, time) for time in (1, 2, 3)]
    prompt = texts(user_prompts(write_dataset(tmp_path, rows), template()))["ann"]
    assert prompt.count("Blue Hat") == 1


def test_without_a_clock_the_last_row_is_the_newest(tmp_path):
    rows = [(0, item, 0, 1.0, 7) for item in (3, 1)]
    prompt = texts(user_prompts(write_dataset(tmp_path, rows), template()))["ann"]
    assert prompt.index("Blue Hat") < prompt.index("Gold Ring")


def test_a_user_without_history_but_with_attributes_has_a_prompt(tmp_path):
    folder = write_dataset(tmp_path, TRAIN, ages=["18-24", "25-34", "35+"])
    prompts = user_prompts(folder, template())
    prompt = texts(prompts)["cem"]
    assert "\nThe user: age 35+.\nThis user has no history yet.\n" in prompt
    assert prompts.counts["no_history"] == 1
    assert prompts.counts["left_out"] == 0
    assert prompts.frame["has_history"].to_list() == [True, True, False]


def test_a_user_without_history_and_attributes_is_left_out_and_counted(tmp_path):
    prompts = user_prompts(write_dataset(tmp_path, TRAIN, ages=["20", "", None]), template())
    assert prompts.frame["key"].to_list() == ["ann", "bob"]
    assert prompts.counts | {"no_history": 1, "left_out": 1, "keys": 2} == prompts.counts
    assert "The user:" not in texts(prompts)["bob"]


def test_items_without_text_are_left_out_and_counted(tmp_path):
    titles = ["", None, "  ", "Gold Ring", "Iron Pan"]
    folder = write_dataset(tmp_path, TRAIN, titles=titles, kinds=["a|b", "", None, "", "pans"])
    prompts = user_prompts(folder, template())
    assert prompts.counts["items_without_text"] == 2
    assert "\nsearch, clicked: a, b.\n" in texts(prompts)["ann"]
    assert "skipped: Gold Ring." in texts(prompts)["ann"]


def test_a_long_title_is_cut_at_a_word_and_counted(tmp_path):
    titles = ["One two three four five six", "b", "c", "d", "e"]
    prompts = user_prompts(write_dataset(tmp_path, TRAIN, titles=titles), template(title_chars=12))
    assert prompts.counts["titles_cut"] == 1
    assert "One two" in texts(prompts)["ann"]
    assert "three" not in texts(prompts)["ann"]


def test_braces_in_a_title_stay_as_they_are(tmp_path):
    titles = ["{items} {title}", "b", "c", "d", "e"]
    prompts = user_prompts(write_dataset(tmp_path, TRAIN, titles=titles), template())
    assert "{items} {title} (shoes, red)" in texts(prompts)["ann"]


def test_the_prompts_of_blocks_are_the_whole(tmp_path):
    folder = write_dataset(tmp_path, TRAIN, ages=["1", "2", "3"])
    whole = user_prompts(folder, template())
    blocks = [user_prompts(folder, template(), keys=keys) for keys in (range(2), range(2, 3))]
    assert pl.concat([block.frame for block in blocks]).equals(whole.frame)
    assert sum(block.counts["no_history"] for block in blocks) == 1


def test_prompts_of_prepared_inputs_are_those_of_one_process(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, size, 400).tolist() for size in (40, 6, 2, 2, 1000))
    rows = [(u, i, s, float(c), t) for u, i, s, c, t in zip(*draws, strict=True)]
    users = [f"u{number}" for number in range(41)]  # the last one has no row
    folder = write_dataset(tmp_path / "data", rows, users=users)
    whole = pl.read_parquet(folder / "train/part-0.parquet")
    (folder / "train/part-0.parquet").unlink()
    for number, start in enumerate(range(0, 400, 90)):  # users are in several files
        whole[start : start + 90].write_parquet(folder / f"train/part-{number}.parquet")
    monkeypatch.setattr(user_inputs, "ITEMS_PART", 4)
    tokens = PromptTokenizer(letters, 580)
    schema, words = load_schema(folder), template(system="")
    prepared = PreparedInputs(tmp_path / "inputs")
    parts = prepared.parts(folder, schema)
    assert len(parts) == 5 + 2
    for part in reversed(parts):
        prepared.write(part, folder, schema, words, tokens)
    assert prepared.parts(folder, schema) == []
    prepared.finish(folder, schema)
    expected = user_prompts(folder, words, tokens)
    assert 0 < expected.counts["history_cut"] < 40
    blocks = [
        user_prompts(folder, words, tokens, keys, prepared) for keys in (range(17), range(17, 41))
    ]
    assert pl.concat([block.frame for block in blocks]).equals(expected.frame)
    for name in ("keys", "no_history", "left_out", "history_cut"):
        assert sum(block.counts[name] for block in blocks) == expected.counts[name]
    assert blocks[0].counts["items_without_text"] == expected.counts["items_without_text"]


def test_a_scenario_prompt_names_its_scenario_first_and_then_all(tmp_path):
    prompts = scenario_prompts(write_dataset(tmp_path, TRAIN), template())
    prompt = texts(prompts)["feed"]
    assert prompts.frame["key"].to_list() == ["search", "feed"]
    assert prompt.startswith('The scenario "feed"')
    assert "A shop for everyday things." in prompt
    assert "- search: the user types what they want\n- feed: the app proposes things" in prompt
    assert prompt.endswith('what is different in "feed"?')


def test_integer_keys_stay_integers(tmp_path):
    prompts = user_prompts(write_dataset(tmp_path, TRAIN, users=(7, 9, 8)), template())
    assert prompts.frame["key"].to_list() == [7, 9]


@pytest.mark.parametrize("column", ["user", "item", "scenario"])
def test_an_index_out_of_range_is_named(tmp_path, column):
    row = {"user": 0, "item": 0, "scenario": 0} | {column: 77}
    folder = write_dataset(tmp_path, [*TRAIN, (*row.values(), 1.0, 5)])
    with pytest.raises(ValueError, match=f"column '{column}' must be in .*row 5 holds 77"):
        user_prompts(folder, template())


def test_a_missing_column_and_a_missing_file_are_named(tmp_path):
    folder = write_dataset(tmp_path, TRAIN)
    part = folder / "train" / "part-0.parquet"
    rows_frame(TRAIN).drop("click").write_parquet(part)
    with pytest.raises(ValueError, match=r"part-0.parquet must have the column 'click'"):
        user_prompts(folder, template())
    part.unlink()
    with pytest.raises(FileNotFoundError, match="train must hold Parquet files"):
        user_prompts(folder, template())


def test_a_repeated_user_key_is_named(tmp_path):
    with pytest.raises(ValueError, match="'ann' is there more than once"):
        user_prompts(write_dataset(tmp_path, TRAIN, users=("ann", "bob", "ann")), template())


def test_an_unknown_template_names_the_known_ones():
    with pytest.raises(ValueError, match="it holds default, movielens"):
        load_template("none")


def test_an_unknown_placeholder_in_a_template_is_refused(tmp_path):
    file = tmp_path / "templates.yaml"
    file.write_text(TEMPLATES_FILE.read_text().replace("{items}", "{itmes}"))
    with pytest.raises(ValueError, match=r"default.history: .*\{itmes\} is not one of"):
        load_template("default", file)


def test_any_change_of_a_template_changes_its_hash():
    assert template().sha256 == template().sha256
    assert template(positives=9).sha256 != template().sha256


def letters(texts, **_):
    """Tokenizer with one token for each letter."""
    return {"input_ids": [list(text) for text in texts]}


def prompts_within(max_tokens, folder):
    return user_prompts(folder, template(system=""), PromptTokenizer(letters, max_tokens))


def longest(prompts):
    return prompts.frame["text"].str.len_chars().max()


def test_every_prompt_keeps_to_max_tokens_and_uses_them(tmp_path):
    rows = [(u, (u + i) % 5, i % 2, float(i % 3 > 0), i) for u in (0, 1) for i in range(40)]
    folder = write_dataset(tmp_path, rows, ages=["20", "a very long age", "40"])
    free = user_prompts(folder, template())
    for most in range(longest(free) - 60, longest(free) + 5, 7):
        prompts = prompts_within(most, folder)
        assert longest(prompts) <= most
    wide = prompts_within(longest(free) + 80, folder)
    assert wide.frame.equals(free.frame)
    assert wide.counts["history_cut"] == 0


def test_max_tokens_keeps_the_newest_items_of_each_scenario_and_counts_cut_histories(tmp_path):
    rows = [(0, item, item % 2, 1.0, 10 + item) for item in range(5)] + [(1, 0, 0, 1.0, 1)]
    folder = write_dataset(tmp_path, rows)
    most = longest(user_prompts(folder, template(positives=2)))
    prompts = prompts_within(most + 12, folder)
    assert "search, clicked: Iron Pan (pans)." in texts(prompts)["ann"]
    assert "feed, clicked: Gold Ring (rings)." in texts(prompts)["ann"]
    assert "Red Shoes" not in texts(prompts)["ann"]
    assert prompts.counts["history_cut"] == 1


def test_max_tokens_without_room_for_an_item_is_refused(tmp_path):
    folder = write_dataset(tmp_path, TRAIN)
    with pytest.raises(ValueError, match="room for an item of history; got 10, .* has 2.. tokens"):
        prompts_within(10, folder)


def test_prompts_of_users_begin_alike(tmp_path):
    shown = list(texts(user_prompts(write_dataset(tmp_path, TRAIN), template())).values())
    intro = template().intro.partition("{")[0]
    assert all(text.startswith(intro) for text in shown)
    assert len({text[:150] for text in shown}) == 1


def test_an_item_prompt_has_title_and_all_attributes(tmp_path):
    titles = ["Red Shoes", "", "Green Scarf"]
    rows = [(0, 0, 0, 1.0, 1)]
    folder = write_dataset(tmp_path, rows, titles=titles, kinds=["shoes|red", None, None])
    prompts = item_prompts(folder, template(item_details=0))
    assert prompts.frame["key"].to_list() == [0, 2]
    assert "One of its items: Red Shoes (shoes, red)\n" in texts(prompts)[0]
    assert "One of its items: Green Scarf\n" in texts(prompts)[2]
    assert prompts.counts["left_out"] == 1
    blocks = [item_prompts(folder, template(), keys) for keys in (range(1), range(1, 3))]
    assert pl.concat([block.frame for block in blocks])["key"].to_list() == [0, 2]


def test_all_attributes_reach_the_prompts_of_items_and_users(tmp_path):
    more = {"maker": ["Acme", None, "Zeta"], "year": [1999, 2000, 2001]}
    people = {"city": ["Rome", None, "Oslo"], "level": [3, 4, 5]}
    ages, rows = ["20", "30", ""], [(0, 0, 0, 1.0, 1)]
    folder = write_dataset(
        tmp_path, rows, ages=ages, titles=ITEMS[:3], more_items=more, more_users=people
    )
    items = texts(item_prompts(folder, template()))
    assert "One of its items: Red Shoes (shoes, red, Acme, 1999)\n" in items[0]
    assert "One of its items: Blue Hat (hats, 2000)\n" in items[1]
    users = texts(user_prompts(folder, template()))
    assert "The user: age 20, city Rome, level 3." in users["ann"]
    assert "The user: age 30, level 4." in users["bob"]
    assert "The user: city Oslo, level 5." in users["cem"]


def test_a_plain_item_text_is_the_title_and_all_attributes_uncut(tmp_path):
    titles, kinds = ["Red  Shoes " + "x" * 200, "", None, "Hat"], ["a|b", "rings", None, ""]
    more = {"maker": ["Acme", None, None, "Zeta"]}
    folder = write_dataset(
        tmp_path, [(0, 0, 0, 1.0, 1)], titles=titles, kinds=kinds, more_items=more
    )
    prompts = item_prompts(folder, None)
    long_title = "Red Shoes " + "x" * 200
    assert texts(prompts) == {0: f"{long_title}. a, b, Acme", 1: "rings", 3: "Hat. Zeta"}
    assert prompts.counts["items_without_text"] == prompts.counts["left_out"] == 1


def test_the_automatic_template_is_the_one_made_for_the_data_set():
    assert template_of("movielens-1m-genre") == "movielens"
    assert template_of("amazon-2023") == "amazon"
    assert template_of("anything") == "default"
    assert template_of("kuaisar", "amazon") == "amazon"


def test_every_template_is_valid():
    import yaml

    for name in yaml.safe_load(TEMPLATES_FILE.read_text()):
        assert load_template(name).version >= 1


def test_importing_the_prompts_does_not_import_torch():
    imports = "import sys, msrec.data.llm.text.prompts, msrec.data.llm.store_writer"
    code = f"{imports}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
