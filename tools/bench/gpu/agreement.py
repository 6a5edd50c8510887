"""Lines of `msrec bench gpu` on single parts, and on the first steps against the CPU."""

import torch

from msrec.launch.devices import fbgemm_has_cuda
from msrec.launch.encoding.job import encode_config
from msrec.launch.versions import check_versions, installed_versions
from msrec.model.backbones import BACKBONES, backbone_options
from msrec.tools.bench.gpu.setting import Found, Setting
from msrec.tools.bench.gpu.training import LIMIT, agreement, difference_from_cpu, each_case
from msrec.tools.device_probe import device_name, lookup_and_update, sum_over_one_rank

SMALL = ("embeddings.dim=16", "trainer.global_batch=512")
SOME_BACKBONES = ("mmoe", "pepnet", "star")
"""Backbones that are run on the CPU, where the tests run all of them."""


def versions(setting: Setting) -> Found:
    """Versions, builds, driver and device."""
    problems = [f"{each.package} {each.found}, must be {each.must}" for each in check_versions()]
    if problems:
        raise ValueError("; ".join(problems))
    found: dict[str, object] = {**installed_versions(), "cuda": torch.version.cuda}
    if setting.is_gpu:
        if not fbgemm_has_cuda():
            raise ValueError("fbgemm must be its CUDA build; its operators have no CUDA kernels.")
        nccl = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        found["nccl"] = ".".join(map(str, nccl))
        found["gpus"] = torch.cuda.device_count()
    name = device_name(torch.device(setting.kind, 0) if setting.is_gpu else torch.device("cpu"))
    found["device"] = name
    text = f"{name}; torch {found['torch']}, CUDA {found['cuda']}, NCCL {found.get('nccl')}"
    return Found(text, found)


def lookup(setting: Setting) -> Found:
    """FBGEMM's fused lookup and update, against their formulas."""
    difference = lookup_and_update(torch.device(setting.kind))
    return Found(f"largest difference {difference:.1e}", {"difference": difference})


def group(setting: Setting) -> Found:
    """A process group of one rank: a sum on the device and one on the CPU."""
    with setting.one_rank() as process:
        backends = sum_over_one_rank(process.device)
    return Found(f"all_reduce by {backends}")


def backbones(setting: Setting) -> Found:
    """Three steps of each backbone with 1 and with 200 scenarios, against the CPU."""
    names = list(BACKBONES) if setting.is_gpu else SOME_BACKBONES
    cases = [f"{name} {scenarios}" for name in names for scenarios in (1, 200)]
    with setting.one_rank() as process:

        def differ(case: str) -> float:
            name, _, scenarios = case.partition(" ")
            data = setting.random_data(4_000, int(scenarios))
            options = [f"backbone.name={name}"]
            if "dropout" in backbone_options(name):  # masks of a GPU are others
                options.append("backbone.dropout=0")
            config = setting.config("backbone", data, *SMALL, *options)
            return difference_from_cpu(setting, process, config)

        results = each_case(cases, differ)
    return Found(agreement(results, LIMIT), {"differences": results})


def meta(setting: Setting) -> Found:
    """Three steps with user and scenario networks in both forms, against the CPU.

    In a third case the device looks up the LLM vectors.
    """
    data = setting.random_data(4_000)
    both = ("meta.user=true", "meta.scenario=true", f"llm.store={setting.store_of(data)}")
    cases = {form: [f"meta.form={form}"] for form in ("contracted", "distinct")}
    cases["vectors_on_device"] = ["llm.vectors_on=device"]
    with setting.one_rank() as process:

        def differ(case: str) -> float:
            options = (*SMALL, *both, *cases[case], "backbone.name=mmoe")
            config = setting.config("meta", data, *options, "backbone.dropout=0")
            return difference_from_cpu(setting, process, config)

        results = each_case(cases, differ)
    return Found(agreement(results, LIMIT), {"differences": results})


def interest(setting: Setting) -> Found:
    """Three steps with item vectors over ordered histories and a DIN encoder, against the CPU."""
    data, store = setting.app_data(), setting.folder / "app-store"
    options = [
        *(*SMALL, "interest.enabled=true", "interest.scenario=false", "llm.sources=[lsa]"),
        *("llm.item_dim=16", "sequence.protocol=stream", "sequence.max_len=20"),
        *(f"llm.store={store}", "backbone.name=mmoe", "backbone.dropout=0"),
    ]
    encode_config(setting.config("interest-encode", data, *options))
    cases = {"interest": [], "din": ["interest.enabled=false", "sequence.encoder=din"]}
    with setting.one_rank() as process:

        def differ(case: str) -> float:
            config = setting.config("interest", data, *options, *cases[case])
            return difference_from_cpu(setting, process, config)

        results = each_case(cases, differ)
    return Found(agreement(results, LIMIT), {"differences": results})
