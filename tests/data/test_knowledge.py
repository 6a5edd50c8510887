"""Vectors of a store for the entities of a dataset, and the controls without meaning."""

import numpy as np
import pytest
import torch
from tiny import tiny_dataset, tiny_store

from msrec.data.llm.knowledge import EntityKnowledge
from msrec.data.llm.store import KnowledgeStore
from msrec.data.loading.collator import entity_vectors

pytestmark = pytest.mark.slow

EVERYONE = torch.arange(40)


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("knowledge")
    dataset = tiny_dataset(folder / "tiny", rows=90, valid_rows=30)
    tiny_store(dataset, folder / "store")

    def make(level="user", **options):
        return EntityKnowledge(
            dataset, level, KnowledgeStore.open(folder / "store" / level), **options
        )

    return make


def test_each_user_has_the_vector_of_its_key_and_the_last_one_the_mean(knowledge):
    users = knowledge()
    vectors, has_vector = users.gather(EVERYONE)
    np.testing.assert_array_equal(vectors[:39], users._vectors.numpy())
    np.testing.assert_array_equal(vectors[39], users.mean.astype(np.float16))
    assert has_vector.tolist() == [1.0] * 39 + [0.0]
    assert users.num_missing == 1


def test_a_device_fills_in_what_is_missing_without_waiting_for_its_number(knowledge):
    """On the meta device, whatever reads a value fails."""
    vectors, has_vector = knowledge().to(torch.device("meta")).gather(EVERYONE.to("meta"))
    assert vectors.shape == (40, knowledge().dim)
    assert has_vector.shape == (40,)


def test_a_user_without_a_vector_is_refused_on_request(knowledge):
    with pytest.raises(ValueError, match="1 of 40 have none, the first is u39"):
        knowledge(missing="error")


def test_the_shuffled_control_gives_users_the_vectors_of_others(knowledge):
    vectors, has_vector = knowledge().gather(EVERYONE)
    other, other_has_vector = knowledge(control="shuffled", seed=3).gather(EVERYONE)
    assert torch.equal(has_vector, other_has_vector)
    moved = (vectors[:39] != other[:39]).any(dim=1)
    assert moved.sum() > 30
    assert sorted(map(tuple, vectors.tolist())) == sorted(map(tuple, other.tolist()))


@pytest.mark.parametrize("control", ["shuffled", "random"])
def test_a_control_depends_on_the_seed_only(knowledge, control):
    one, same, other = (
        knowledge(control=control, seed=seed).gather(EVERYONE)[0] for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_random_control_is_standard_normal_and_differs_by_level(knowledge):
    users = knowledge(control="random")
    vectors, has_vector = users.gather(EVERYONE)
    mean, std = users.moments
    assert (mean == 0).all()
    assert (std == 1).all()
    assert has_vector[39] == 0
    assert abs(float(vectors[:39].mean())) < 0.15  # 468 numbers: a standard error of 0.046
    assert 0.85 < float(vectors[:39].std()) < 1.15
    assert not torch.equal(vectors, knowledge(level="item", control="random").gather(EVERYONE)[0])


def test_the_distinct_users_of_a_batch_are_gathered_once_each(knowledge):
    users = np.array([7, 2, 7, 39, 2])
    of = entity_vectors(users, knowledge())
    assert of.ids.tolist() == [2, 7, 39]
    assert of.ids[of.inverse].tolist() == users.tolist()
    torch.testing.assert_close(of.vectors, knowledge().gather(torch.tensor([2, 7, 39]))[0])
    nothing = entity_vectors(users, None)
    assert nothing.vectors.shape == (0, 0)
    assert nothing.inverse.shape == (5,)
