"""Encodes the events of a history that a request carries in JSON."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from msrec.data.features.columns import Ids
from msrec.data.features.scenario_values import ScenarioValues
from msrec.data.features.value_index import ValueIndex
from msrec.data.features.value_types import AllowedTypes, types_like

EVENT_KEYS = ("item_id", "scenario", "label")
"""Keys of an event in JSON; `item_id` is the raw key of the item."""


class EncodedEvents(NamedTuple):
    """Events of a history, in the order in which they were given.

    Shape:
        item: (N,), int32, index into items.parquet; -1 for an item that is not there.
        scenario: (N,), int32.
        label: (N,), float32, 0 or 1.
    """

    item: Ids
    scenario: Ids
    label: npt.NDArray[np.float32]


def encode_events(
    events: Sequence[Any], items: ValueIndex, scenarios: ScenarioValues, where: str
) -> EncodedEvents:
    """Encodes events that were parsed from JSON.

    Args:
        events: each has the keys `EVENT_KEYS`; other keys are ignored.
        items: keys of items.parquet.
        scenarios: those of the data set.
        where: request, for error messages.

    Raises:
        ValueError: an event is no object, lacks a key or has an invalid value; names its position,
            from 0.
    """
    keys = AllowedTypes(types_like(items.type))
    numbers = []
    for position, event in enumerate(events):
        at = f"{where}: event {position} of the history"
        if not isinstance(event, Mapping):
            raise ValueError(f"{at} must be an object; found {event!r}.")
        if missing := [key for key in EVENT_KEYS if key not in event]:
            raise ValueError(f"{at} must have {', '.join(map(repr, missing))}; found {event}.")
        key, scenario, label = (event[name] for name in EVENT_KEYS)
        try:
            keys.from_json([key])
        except ValueError as error:
            raise ValueError(f"{at}: item_id {error}; found {key!r}.") from None
        if key is None:
            raise ValueError(f"{at}: item_id must be {keys}; found null.")
        numbers.append(scenarios.number(scenario))
        if numbers[-1] < 0:
            raise ValueError(f"{at}: scenario must be one of {scenarios}; found {scenario!r}.")
        if type(label) not in (int, float, bool) or label not in (0, 1):
            raise ValueError(f"{at}: label must be 0 or 1; found {label!r}.")
    return EncodedEvents(
        item=items.positions(keys.from_json([event["item_id"] for event in events])),
        scenario=np.array(numbers, dtype=np.int32),
        label=np.array([event["label"] for event in events], dtype=np.float32),
    )
