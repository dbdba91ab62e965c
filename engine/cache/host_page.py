"""One page's keys and values in host memory: what moves between the floors of the prefix cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class HostPage:
    """Bytes of one page, all models that a page always holds one after the other.

    A copy from an accelerator may still be under way: `copied` tells when it is there. Whoever
    writes the page back to the device it came from need not wait, because copies keep their order.
    """

    data: Tensor  # [bytes] uint8
    copied: torch.cuda.Event | None = None

    @property
    def nbytes(self) -> int:
        return self.data.numel()

    def view(self) -> memoryview:
        """The bytes, once they are there; may be called from any thread."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.data.numpy().data

    @classmethod
    def of(cls, content: bytes | memoryview) -> HostPage:
        """A page of its own with this content."""
        data = torch.empty(len(content), dtype=torch.uint8)
        data.numpy()[:] = np.frombuffer(content, np.uint8)
        return cls(data)
