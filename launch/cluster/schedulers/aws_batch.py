"""AWS Batch with volumes; its refusals as sentences."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torchx.schedulers.api import DescribeAppResponse
from torchx.schedulers.aws_batch_scheduler import AWSBatchOpts, AWSBatchScheduler, BatchJob
from torchx.specs import AppDef, AppDryRunInfo, BindMount, VolumeMount, runopts

from msrec.launch.cluster.schedulers.image import require_image
from msrec.launch.cluster.schedulers.options import add_options, parts

OPTIONS = {
    "volumes": (
        "EFS:/PATH or /HOST:/PATH",
        "(fs-[0-9a-f]+|/[^:]+):(/.+)",
        "EFS file systems, or folders of the machine, to mount",
    )
}
"""See `Forms`."""


class MsrecAWSBatchScheduler(AWSBatchScheduler):  # type: ignore[misc]  # torchx is untyped
    """Stock torchx mounts what a component says, and ours know no scheduler.

    There a queue or credentials that are missing are a stack of boto3.
    """

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """The state of a job; None where AWS does not know it."""
        with _sentences():
            return super().describe(app_id)

    def schedule(self, dryrun_info: AppDryRunInfo[BatchJob]) -> str:
        """Submit a job.

        Raises:
            ValueError: AWS refuses it, in its own words.
        """
        with _sentences():
            return str(super().schedule(dryrun_info))

    def _run_opts(self) -> runopts:
        options = super()._run_opts()
        add_options(options, OPTIONS)
        return options

    def _submit_dryrun(self, app: AppDef, cfg: AWSBatchOpts) -> AppDryRunInfo[BatchJob]:
        require_image(app, "AWS Batch")
        app = copy.deepcopy(app)
        for source, path in parts(OPTIONS, dict(cfg))["volumes"]:
            mount = BindMount if source.startswith("/") else VolumeMount
            app.roles[0].mounts.append(mount(source, path))
        return super()._submit_dryrun(app, cfg)


def create_scheduler(session_name: str, **kwargs: Any) -> MsrecAWSBatchScheduler:
    """For torchx."""
    return MsrecAWSBatchScheduler(session_name)


@contextmanager
def _sentences() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise ValueError(f"AWS Batch refuses it: {str(error).rstrip('.')}.") from None
