"""AWS Batch scheduler that mounts volumes and reports refusals in one sentence."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torchx.schedulers.api import DescribeAppResponse
from torchx.schedulers.aws_batch_scheduler import AWSBatchOpts, AWSBatchScheduler, BatchJob
from torchx.specs import AppDef, AppDryRunInfo, BindMount, VolumeMount, runopts

from msrec.launch.cluster.schedulers.options import ListOption, ListOptions, require_image

OPTIONS = ListOptions(
    volumes=ListOption(
        "EFS:/PATH or /HOST:/PATH",
        "(fs-[0-9a-f]+|/[^:]+):(/.+)",
        "EFS file systems, or folders of the machine, to mount",
    )
)


class MsrecAWSBatchScheduler(AWSBatchScheduler):  # type: ignore[misc]  # torchx is untyped
    """AWS Batch scheduler with the option `volumes`.

    torchx's own mounts only what a component asks for, and a missing queue or missing credentials
    end in a stack of boto3.
    """

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """Returns the state of a job; None if AWS does not know it."""
        with _refusals_as_sentences():
            return super().describe(app_id)

    def schedule(self, dryrun_info: AppDryRunInfo[BatchJob]) -> str:
        """Submits a job.

        Raises:
            ValueError: AWS refuses it. The message is that of AWS.
        """
        with _refusals_as_sentences():
            return str(super().schedule(dryrun_info))

    def _run_opts(self) -> runopts:
        return OPTIONS.add_to(super()._run_opts())

    def _submit_dryrun(self, app: AppDef, cfg: AWSBatchOpts) -> AppDryRunInfo[BatchJob]:
        require_image(app, "AWS Batch")
        app = copy.deepcopy(app)
        for source, path in OPTIONS.split(dict(cfg))["volumes"]:
            mount = BindMount if source.startswith("/") else VolumeMount
            app.roles[0].mounts.append(mount(source, path))
        return super()._submit_dryrun(app, cfg)


def create_scheduler(session_name: str, **kwargs: Any) -> MsrecAWSBatchScheduler:
    """Entry point for torchx."""
    return MsrecAWSBatchScheduler(session_name)


@contextmanager
def _refusals_as_sentences() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise ValueError(f"AWS Batch refuses it: {str(error).rstrip('.')}.") from None
