"""The most bytes that tensors take at one time, by watching what is made and let go."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operators made and nobody has let go of yet.

    Buffers inside of an operator are not seen, nor are tensors that were there before: give these
    as `known`, since an operator that works in place returns them too.

    Attributes:
        live: bytes now.
        peak: the most there were.

    Example:
        >>> with LiveBytes() as memory:
        ...     total = sum(torch.ones(256).exp().sum() for _ in range(9))
        >>> 2 * 1024 <= memory.peak < 3 * 1024
        True
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._counted: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator and count what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if not size or address in self._known or address in self._counted:
            return
        self._counted.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._let_go, address, size)

    def _let_go(self, address: int, size: int) -> None:
        self._counted.discard(address)
        self.live -= size
