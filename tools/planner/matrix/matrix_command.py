"""`msrec plan --vary`: plans for every combination of values, printed and written as a page."""

from rich.console import Console

from msrec.data.io.outputs import PAGE, check_output
from msrec.launch.console import wide_console
from msrec.tools.planner.command.build_request import (
    catalogue_of,
    request_from_options,
    with_changes,
)
from msrec.tools.planner.command.plan_options import PlanOptions
from msrec.tools.planner.command.plan_text import print_sentence
from msrec.tools.planner.matrix.matrix_text import matrix_notes, matrix_table
from msrec.tools.planner.matrix.plan_matrix import (
    PlanMatrix,
    parse_axes,
    plan_matrix,
)


def matrix_command(options: PlanOptions, console: Console | None = None) -> PlanMatrix:
    """Runs `msrec plan --vary`.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file or an option is invalid, or contradicts --vary.
    """
    console = console or wide_console()
    _refuse_other_tasks(options)
    if options.page is not None:
        check_output(options.page, PAGE, [options.source, options.hardware, options.tables])
    axes, catalogue = parse_axes(options.vary or []), catalogue_of(options)
    request = request_from_options(options)
    for change in options.set_ or []:
        request = with_changes(request, change, catalogue)
    matrix = plan_matrix(request, axes, catalogue, console, options.min_gpus)
    for note in request.notes:
        print_sentence(note, console)
    console.print(matrix_table(matrix))
    for sentence in matrix_notes(matrix):
        print_sentence(sentence, console)
    print_sentence("No plan is written; make one with --set and its values.", console)
    if options.page is not None:
        from msrec.tools.planner.matrix.matrix_page import write_matrix_page  # imports Plotly

        write_matrix_page(options.page, matrix, console)
    return matrix


def _refuse_other_tasks(options: PlanOptions) -> None:
    others = {
        "--compare": options.compare,
        "--verify": options.verify,
        "--from": options.from_,
        "--measured": options.measured,
        "--recalibrate": options.recalibrate,
        "--constraints": options.constraints,
        "--out": options.out,
    }
    for name, value in others.items():
        if value:
            raise ValueError(
                f"--vary makes many plans and compares them; {name} is for one plan. Leave out one "
                "of both."
            )
