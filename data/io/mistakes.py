"""Tells mistakes of a user, for which a sentence is enough, from faults, which need a stack."""

import traceback


def is_mistake(error: Exception) -> bool:
    """Returns whether the sentence of an error is enough: it is ours, or the system's.

    A plain ValueError from inside a library is more likely a fault of ours. So is an error with
    notes, which has the stack of another process.
    """
    if not isinstance(error, ValueError | OSError) or hasattr(error, "__notes__"):
        return False
    if type(error) is not ValueError:
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return not frames or str(frames[-1].f_globals.get("__name__")).startswith("msrec.")


def note_stack(error: Exception) -> None:
    """Adds the stack of a fault to it as a note, which goes along to another process."""
    if not is_mistake(error):
        error.add_note(f"In a worker:\n{''.join(traceback.format_exception(error))}")
