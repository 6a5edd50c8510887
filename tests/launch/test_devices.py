"""Choice of a rank's device, on machines that torch and FBGEMM are made to see."""

import logging
import subprocess
import sys

import pytest
import torch

from msrec.launch import devices, versions
from msrec.launch.config.run_config import load_config
from msrec.launch.distributed import Process, process_group
from msrec.launch.encoding.job import encode_config
from msrec.launch.encoding.options import EncodeOptions
from msrec.launch.training.trainer import _warn_of_few_rows


@pytest.fixture
def machine(monkeypatch):
    """Pretend that torch sees some GPUs, and that FBGEMM is its CUDA build or not."""

    def pretend(gpus, cuda_build=True, **environment):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(devices, "fbgemm_has_cuda", lambda: cuda_build)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))

    return pretend


def test_auto_takes_a_gpu_per_rank_if_torch_and_fbgemm_can_use_it(machine):
    machine(gpus=8, LOCAL_RANK=5, LOCAL_WORLD_SIZE=8)
    assert devices.rank_device() == devices.rank_device("cuda") == torch.device("cuda", 5)
    assert devices.rank_device("cpu") == torch.device("cpu")
    machine(gpus=0)
    assert devices.rank_device() == torch.device("cpu")


def test_auto_with_the_cpu_build_of_fbgemm_warns_once_and_takes_the_cpu(machine, caplog):
    machine(gpus=2, cuda_build=False, LOCAL_WORLD_SIZE=2)
    with caplog.at_level(logging.WARNING):
        for rank in range(2):
            machine(gpus=2, cuda_build=False, RANK=rank, LOCAL_RANK=rank)
            assert devices.rank_device() == torch.device("cpu")
    [warning] = caplog.messages
    assert "needs the CUDA build of fbgemm" in warning
    assert "pip install -r requirements/gpu.txt" in warning


def test_a_model_without_tables_needs_no_fbgemm(machine):
    machine(gpus=1, cuda_build=False)
    assert devices.rank_device(has_tables=False) == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("gpus", "reason"),
    [(1, "needs the CUDA build of fbgemm"), (0, "needs a GPU that torch can use")],
)
def test_cuda_is_refused_with_the_requirements_to_install(machine, gpus, reason):
    machine(gpus, cuda_build=False)
    with pytest.raises(ValueError, match=rf"{reason}.*requirements/gpu\.txt"):
        devices.rank_device("cuda")


@pytest.mark.parametrize("rank", [0, 1])
def test_more_ranks_than_gpus_are_refused_on_every_rank_before_a_process_group(machine, rank):
    machine(gpus=1, RANK=rank, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=2, WORLD_SIZE=2)
    expected = r"this host has 2 ranks and 1 GPU\. Start 1 per host .*device=cpu"
    with pytest.raises(ValueError, match=expected), process_group():
        pass
    assert not torch.distributed.is_initialized()


def test_commands_that_start_ranks_take_one_per_gpu(machine):
    machine(gpus=1)
    assert devices.num_local_ranks() == 1
    assert devices.num_local_ranks("cpu") == 2
    machine(gpus=8)
    assert devices.num_local_ranks() == 8
    machine(gpus=8, cuda_build=False)
    assert devices.num_local_ranks() == 2


def test_the_build_of_fbgemm_is_told_by_its_kernels():
    assert devices.fbgemm_has_cuda() == (not versions.is_cpu_build())


def test_few_rows_per_gpu_are_a_warning_on_rank_0(caplog):
    def warnings(rank, kind, batch):
        caplog.clear()
        _warn_of_few_rows(batch, Process(rank, 8, 8, torch.device(kind)))
        return caplog.messages

    assert (
        "512 rows per GPU (trainer.global_batch=4,096 on 8 ranks)" in warnings(0, "cuda", 4096)[0]
    )
    assert warnings(1, "cuda", 4096) == warnings(0, "cpu", 4096) == warnings(0, "cuda", 32768) == []


def test_encoding_takes_more_tokens_at_once_on_a_gpu_and_for_vllm():
    plain = EncodeOptions()
    assert [plain.tokens_of_batch(device) for device in ("cpu", "cuda")] == [2048, 32768]
    assert EncodeOptions(batch_tokens=500).tokens_of_batch("cuda") == 500
    assert EncodeOptions(backend="vllm").tokens_of_batch("cuda") == 1 << 20


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_encoding_on_a_gpu_that_is_not_there_is_refused_first(tmp_path):
    config = load_config(None, ["dataset=data", f"llm.store={tmp_path / 'store'}", "device=cuda"])
    with pytest.raises(ValueError, match="device=cuda needs a GPU that torch can use"):
        encode_config(config)
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_command_refuses_cuda_in_one_sentence(tmp_path):
    (tmp_path / "conf.yaml").write_text("dataset: nowhere\ndevice: cuda\n")
    words = [sys.executable, "-m", "msrec", "train", str(tmp_path / "conf.yaml")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: device=cuda needs a GPU that torch can use")
    assert done.stderr.count("\n") == 1
