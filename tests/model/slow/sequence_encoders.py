"""Slow references of the sequence encoders: one row, one head and one event at a time."""

import math

import torch


def slow_columns(encoder, items, histories, scenario):
    """Columns of an encoder of any of the four kinds."""
    slow_row = {"DIN": slow_din, "SIM": slow_sim, "BST": slow_bst, "HSTU": slow_hstu}
    rows = []
    for b, of_row in enumerate(scenario):
        q = items[histories.candidate[b]] + encoder.scenario_vectors[of_row]
        events = events_of(encoder, items, histories, int(histories.bag[b]))
        rows.append(slow_row[type(encoder).__name__](encoder, q, events, int(of_row)))
    return torch.stack(rows)


def events_of(encoder, items, histories, bag):
    """(places back from the candidate, vector, scenario) of each event, oldest first."""
    num_places = histories.events.shape[1]
    events = []
    for h in range(num_places):
        scenario, label = int(histories.scenario[bag, h]), int(histories.label[bag, h])
        if scenario >= 0:
            vector = items[histories.events[bag, h]]
            vector = vector + encoder.scenario_vectors[scenario] + encoder.label_vectors[label]
            events.append((num_places - h, vector, scenario))
    return events


def slow_din(encoder, q, events, _):
    r = torch.zeros_like(q)
    for _, k, _ in events:
        r = r + encoder.unit(torch.cat([k, q, k - q, k * q])) * k
    return torch.cat([r, q])


def slow_sim(encoder, q, events, scenario):
    keys = [k for _, k, of_event in events if of_event == scenario]
    r = attention(encoder.attention, q, keys) if keys else torch.zeros_like(q)
    return torch.cat([r, q])


def slow_bst(encoder, q, events, _):
    last = encoder.max_len
    x = [k + encoder.places[last - back] for back, k, _ in events] + [q + encoder.places[last]]
    for block in encoder.blocks:
        s = [block.norms[0](each + attention(block.attention, each, x)) for each in x]
        x = [block.norms[1](each + block.feed_forward(each)) for each in s]
    return x[-1]


def attention(module, query, keys):
    size = len(query) // module.num_heads
    q, k, v = module.query(query), [module.key(x) for x in keys], [module.value(x) for x in keys]
    heads = []
    for head in range(module.num_heads):
        part = slice(head * size, (head + 1) * size)
        exps = [torch.exp(torch.dot(q[part], each[part]) / math.sqrt(size)) for each in k]
        heads.append(sum(e * each[part] for e, each in zip(exps, v, strict=True)) / sum(exps))
    return module.out(torch.cat(heads))


def slow_hstu(encoder, q, events, _):
    x = [(back, k) for back, k, _ in events] + [(0, q)]
    for block in encoder.blocks:
        x = [(back, hstu_place(block, back, vector, x)) for back, vector in x]
    return encoder.norm(x[-1][1])


def hstu_place(block, back, vector, sequence):
    """Output of a block at the place `back` places before the candidate."""
    dim = len(vector)
    size = dim // block.num_heads
    maps = [silu(block.maps(norm(each))) for _, each in sequence]
    u, _, q, _ = silu(block.maps(norm(vector))).split(dim)
    mixed = []
    for head in range(block.num_heads):
        part = slice(head * size, (head + 1) * size)
        total = torch.zeros(size)
        for (other, _), mapped in zip(sequence, maps, strict=True):
            if other >= back:
                _, v, _, k = mapped.split(dim)
                logit = torch.dot(q[part], k[part]) + block.bias[other - back]
                total = total + silu(logit) / block.num_places * v[part]
        mixed.append(total)
    return vector + block.out(norm(torch.cat(mixed)) * u)


def silu(x):
    return x / (1 + torch.exp(-x))


def norm(x):
    return (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-6)
