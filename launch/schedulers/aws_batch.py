"""AWS Batch, whose refusals are sentences."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torchx.schedulers.api import DescribeAppResponse
from torchx.schedulers.aws_batch_scheduler import AWSBatchOpts, AWSBatchScheduler, BatchJob
from torchx.specs import AppDef, AppDryRunInfo

from msrec.launch.schedulers.image import require_image


class MsrecAWSBatchScheduler(AWSBatchScheduler):  # type: ignore[misc]  # torchx is untyped
    """Stock torchx shows a stack of boto3 where a queue or the credentials are missing."""

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

    def _submit_dryrun(self, app: AppDef, cfg: AWSBatchOpts) -> AppDryRunInfo[BatchJob]:
        require_image(app, "AWS Batch")
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
