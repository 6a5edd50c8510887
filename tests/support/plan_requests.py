"""Requests for plans from a command line."""

from msrec.tools.planner.command.build_request import request_from_options
from msrec.tools.planner.command.plan_options import PlanOptions


def asked_of(config_file, *overrides, **changes):
    options = {"gpu": "cpu", "gpus_per_node": 2} | changes
    return request_from_options(PlanOptions(config_file, list(overrides), **options))
