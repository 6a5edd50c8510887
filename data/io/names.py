"""Names that come from data, as names of files and of modules: any text works, none is a path.

A table of a feature is a file of an export, a module of the model and a part of a checkpoint's
names. `safe_name` encodes what these cannot have, as URLs do: `a.b` becomes `a%2Eb`.
"""

import re
from hashlib import blake2b

MAX_BYTES = 230
"""Longest encoded name; file systems take 255 with a suffix."""
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029/\\.%]")
_SAFE = re.compile(r"([^\x00-\x1f\x7f-\x9f\u2028\u2029/\\.%]|%[0-9A-F]{2}|%(?![0-9A-F]{2}))+")
_FORGING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that end a line, steer a terminal or change the direction of text, and surrogates."""
MODULE_WORDS = frozenset(
    "T_destination add_module apply bfloat16 buffers call_super_init children clear compile copy "
    "cpu cuda double dump_patches eval extra_repr float forward fromkeys get get_buffer "
    "get_extra_state get_parameter get_submodule half ipu items keys load_state_dict modules mtia "
    "named_buffers named_children named_modules named_parameters parameters pop popitem "
    "register_backward_hook register_buffer register_forward_hook register_forward_pre_hook "
    "register_full_backward_hook register_full_backward_pre_hook "
    "register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module "
    "register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ "
    "set_extra_state set_submodule setdefault share_memory state_dict to to_empty train training "
    "type update values xpu zero_grad _apply _backward_hooks _backward_pre_hooks _buffers "
    "_call_impl _compiled_call_impl _forward_hooks _forward_hooks_always_called "
    "_forward_hooks_with_kwargs _forward_pre_hooks _forward_pre_hooks_with_kwargs "
    "_get_backward_hooks _get_backward_pre_hooks _get_name _is_full_backward_hook _key_to_attr "
    "_keys _load_from_state_dict _load_state_dict_post_hooks _load_state_dict_pre_hooks "
    "_maybe_warn_non_full_backward_hook _modules _named_members _non_persistent_buffers_set "
    "_parameters _register_load_state_dict_pre_hook _register_state_dict_hook "
    "_replicate_for_data_parallel _save_to_state_dict _slow_forward _state_dict_hooks "
    "_state_dict_pre_hooks _version _wrapped_call_impl".split()
)
"""Attributes of torch's containers of modules, which refuse them as names."""


def safe_name(name: str) -> str:
    """Returns a name for a file or a module; two names never get the same one.

    Most names stay as they are. A very long one is cut and ends with a hash.

    Example:
        >>> safe_name("age"), safe_name("../a.b"), safe_name("type"), safe_name("Größe 50%")
        ('age', '%2E%2E%2Fa%2Eb', '%74ype', 'Größe 50%25')
    """
    if not name:
        return "%-"
    if _is_taken(name):
        return f"%{ord(name[0]):02X}{safe_name(name[1:])}"
    safe = _UNSAFE.sub(lambda match: _quoted(match[0]), name)
    if len(safe.encode(errors="surrogatepass")) <= MAX_BYTES:
        return safe
    data = name.encode(errors="surrogatepass")
    return f"{safe[: MAX_BYTES // 8]}%-{blake2b(data, digest_size=16).hexdigest()}"


def module_name(name: str) -> str:
    """Returns a name as it is if a file and a module can have it, else its `safe_name`.

    Unlike `safe_name` it leaves what is encoded already, for names that are read from files.

    Example:
        >>> module_name("a.b"), module_name("a%2Eb"), module_name("50%")
        ('a%2Eb', 'a%2Eb', '50%')
    """
    is_short = len(name.encode(errors="surrogatepass")) <= MAX_BYTES
    return name if is_short and _SAFE.fullmatch(name) and not _is_taken(name) else safe_name(name)


def check_name(what: str, name: str) -> str:
    """Refuses a name that is empty or that could forge a line of a log or steer a terminal.

    Raises:
        ValueError: names the character.
    """
    found = _FORGING.search(name)
    if found is not None or not name.strip():
        fault = f"{found[0]!r}" if found is not None else "nothing but blanks"
        raise ValueError(
            f"{what} must have a visible character, and none that ends a line or steers a "
            f"terminal; found {fault} in {name!r}. Rename it."
        )
    return name


def visible(text: str, *, lines: bool = False) -> str:
    r"""Returns text for a log or a terminal, with escapes for characters that forge or steer.

    Args:
        text: any text, such as a message with a name from data.
        lines: keep line ends and tabs, for a text of several lines.

    Example:
        >>> visible("feed\nerror: \x1b[31mred")
        'feed\\nerror: \\x1b[31mred'
    """

    def escaped(match: re.Match[str]) -> str:
        keep = lines and match[0] in "\n\t"
        return match[0] if keep else match[0].encode("unicode_escape").decode()

    return _FORGING.sub(escaped, text)


def _is_taken(name: str) -> bool:
    return name in MODULE_WORDS or name.startswith("__")


def _quoted(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogatepass"))
