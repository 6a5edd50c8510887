"""AWS Batch through torchx: boto3 submits to moto, which keeps jobs and runs none."""

import json

import boto3
import pytest
import torchx
from moto import mock_aws
from torchx.runner import get_runner
from torchx.specs.finder import ComponentValidationException

from msrec.launch.cluster.schedulers.aws_batch import MsrecAWSBatchScheduler

pytestmark = pytest.mark.slow

ROLE = {"Version": "2012-10-17", "Statement": []}


@pytest.fixture
def batch(monkeypatch):
    """boto3 client of an account with the queue `ads`."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws(config={"batch": {"use_docker": False}}):
        role = boto3.client("iam").create_role(
            RoleName="batch", AssumeRolePolicyDocument=json.dumps(ROLE)
        )
        client = boto3.client("batch")
        environment = client.create_compute_environment(
            computeEnvironmentName="gpus",
            type="UNMANAGED",
            state="ENABLED",
            serviceRole=role["Role"]["Arn"],
        )
        order = {"order": 0, "computeEnvironment": environment["computeEnvironmentArn"]}
        client.create_job_queue(
            jobQueueName="ads", state="ENABLED", priority=1, computeEnvironmentOrder=[order]
        )
        yield client


def dry_run(runner, queue="ads", image="registry/msrec:1", volumes=()):
    """Dry run of an evaluation on two nodes."""
    options = ["-j", "2x8", "-h", "msrec_h100x8", "--image", image, "--max_retries", "3"]
    cfg = {"queue": queue, "volumes": list(volumes)}
    words = [*options, "--", "run=/data/runs/first"]
    return runner.dryrun_component("msrec.evaluate", words, "aws_batch", cfg)


def test_batch_accepts_the_job_and_describes_it(batch):
    with get_runner() as runner:
        handle = runner.schedule(dry_run(runner))
    name = handle.rpartition(":")[2]
    of_name = [{"name": "JOB_NAME", "values": [name]}]
    (summary,) = batch.list_jobs(jobQueue="ads", filters=of_name)["jobSummaryList"]
    (job,) = batch.describe_jobs(jobs=[summary["jobId"]])["jobs"]
    (definition,) = batch.describe_job_definitions(jobDefinitionName=name)["jobDefinitions"]
    assert job["jobDefinition"] == definition["jobDefinitionArn"]
    assert (definition["type"], definition["retryStrategy"]["attempts"]) == ("multinode", 3)
    assert definition["tags"]["torchx.pytorch.org/app-name"] == "evaluate"


def test_file_systems_and_folders_of_the_machine_are_mounted(batch):
    with get_runner() as runner:
        info = dry_run(runner, volumes=["fs-0123abcd:/data", "/mnt/fsx:/fsx"])
        runner.schedule(info)
        (group,) = info.request.job_def["nodeProperties"]["nodeRangeProperties"]
        container = group["container"]
        of_path = {point["containerPath"]: point for point in container["mountPoints"]}
        volumes = {volume["name"]: volume for volume in container["volumes"]}
        efs, host = (volumes[of_path[path]["sourceVolume"]] for path in ("/data", "/fsx"))
        assert efs["efsVolumeConfiguration"] == {"fileSystemId": "fs-0123abcd"}
        assert host["host"] == {"sourcePath": "/mnt/fsx"}
        assert not any(point["readOnly"] for point in of_path.values())
        with pytest.raises(ComponentValidationException, match="volumes must be .*; got 'data:/d'"):
            dry_run(runner, volumes=["data:/d"])


def mutants():
    """Wrong values that boto3 must refuse by its model of the API: (place, value)."""
    group = ("nodeProperties", "nodeRangeProperties", 0)
    return {
        "a number as text": (("nodeProperties", "numNodes"), "2"),
        "an unknown field": ((*group, "targetNode"), "0:1"),
        "an unknown field of the container": ((*group, "container", "memoryMB"), 9),
        "a need as a number": (
            (*group, "container", "resourceRequirements", 0),
            {"type": "GPU", "value": 8},
        ),
    }


@pytest.mark.parametrize(("place", "value"), mutants().values(), ids=mutants())
def test_boto3_compares_the_job_with_the_api(batch, place, value):
    with get_runner() as runner:
        info = dry_run(runner)
        *inner, last = place
        part = info.request.job_def
        for key in inner:
            part = part[key]
        part[last] = value
        with pytest.raises(ValueError, match="AWS Batch refuses it: Parameter validation failed"):
            runner.schedule(info)


def test_a_queue_that_is_not_there_is_refused_and_a_job_that_is_not_there_unknown(batch):
    with get_runner() as runner:
        with pytest.raises(ValueError, match="AWS Batch refuses it: .*Job queue b does not exist"):
            runner.schedule(dry_run(runner, "b"))
        assert runner.status("aws_batch://torchx/ads:train-none") is None


def test_a_job_without_an_image_is_refused():
    with get_runner() as runner:
        assert isinstance(runner._scheduler("aws_batch"), MsrecAWSBatchScheduler)
        with pytest.raises(ComponentValidationException, match="AWS Batch needs an image"):
            dry_run(runner, image=torchx.IMAGE)
