"""Slow reference of the interest block: one row and one event at a time, by its formulas."""

import math

import torch


def slow_columns(block, items, histories, scenario):
    """Columns of `InterestBlock` before their normalisation."""
    rows = [
        slow_row(
            block,
            items[histories.candidate[b]],
            events_of(items, histories, int(histories.bag[b])),
            int(s),
        )
        for b, s in enumerate(scenario)
    ]
    return torch.stack(rows)


def events_of(items, histories, bag):
    """(place, vector, scenario, label) of the events of a history, oldest first; its places."""
    num_places = histories.events.shape[1]
    found = [
        (h, items[item], int(histories.scenario[bag, h]), int(histories.label[bag, h]))
        for h, item in enumerate(histories.events[bag])
        if item < len(items) - 1
    ]
    return found, num_places


def slow_row(block, candidate, events_and_places, scenario):
    found, num_places = events_and_places
    if not block.options.cross_scenario:
        found = [event for event in found if event[2] == scenario]
    project = torch.eye(len(candidate)) if block.projection is None else block.projection
    q = candidate @ project
    keys = [vector @ project for _, vector, _, _ in found]
    s = [torch.dot(q, k) for k in keys]
    value = [block.label_value[label] for _, _, _, label in found]
    logits = [
        torch.exp(block.sharpness) * s_h
        + block.position[block.max_len - num_places + place]
        - (block.other_scenario[scenario] if of != scenario else 0)
        for s_h, (place, _, of, _) in zip(s, found, strict=True)
    ]
    total = 1 + sum(torch.exp(logit) for logit in logits)
    a = [torch.exp(logit) / total for logit in logits]
    age = [num_places - 1 - place for place, *_ in found]
    decays = [torch.exp(-torch.exp(block.decay) * years) for years in age]
    decays = [d / sum(decays) for d in decays]
    zero = torch.zeros_like(q)
    r = sum((a_h * v * k for a_h, v, k in zip(a, value, keys, strict=True)), zero)
    mean = sum((v.detach() * k / len(found) for v, k in zip(value, keys, strict=True)), zero)
    recent = sum(((d * v).detach() * k for d, v, k in zip(decays, value, keys, strict=True)), zero)
    largest, means, counts = [], [], []
    for same in (True, False):
        for positive in (1, 0):
            group = [
                s_h
                for s_h, (_, _, of, label) in zip(s, found, strict=True)
                if (of == scenario) == same and label == positive
            ]
            largest.append(max(group) if group else torch.tensor(0.0))
            means.append(sum(group) / len(group) if group else torch.tensor(0.0))
            counts.append(torch.tensor(math.log1p(len(group))))
    columns = [*largest, *means, *counts]
    newest = [s_h for s_h, years in zip(s, age, strict=True) if years == 0]
    columns += [
        sum(d * v * s_h for d, v, s_h in zip(decays, value, s, strict=True)),
        newest[0] if newest else torch.tensor(0.0),
        torch.log(torch.as_tensor(total, dtype=torch.float32)),
        torch.dot(r, q),
        torch.as_tensor(total - 1, dtype=torch.float32) / total,
        torch.dot(candidate, candidate).clamp(max=1),
    ]
    columns = [torch.as_tensor(column, dtype=torch.float32) for column in columns]
    parts = [torch.stack(columns)]
    if block.user_factors is not None:
        parts.append(block.user_factors(torch.cat([mean, recent])) * block.item_factors(q))
    if block.scenario_layer is not None:
        parts.append(slow_scenario_layer(block.scenario_layer, scenario, q, r))
    return torch.cat(parts)


def slow_scenario_layer(layer, scenario, q, r):
    """(C t) * (W q + U r), with t from the standardised vector of the scenario."""
    deviation = layer.knowledge.std(0, correction=0)
    standard = (layer.knowledge[scenario] - layer.knowledge.mean(0)) / deviation
    t = torch.cat([torch.ones(1), torch.tanh(layer.reducer.linear(standard))])
    read = layer.item_factors.weight @ q + layer.item_factors.bias
    return (layer.factors.weight @ t) * (read + layer.history_factors.weight @ r)
