"""Launches of Triton kernels that do not happen: what they would have been given; and programs in another order."""

import contextlib

import torch
from triton.runtime import interpreter


@contextlib.contextmanager
def last_program_first():
    """Triton's interpreter runs the programs of a launch in turn, so that only another order shows what depends on it.

    Gives the set of how many programs launches had.
    """
    builder, sizes = interpreter.interpreter_builder, set()
    start = builder.set_grid_idx

    def set_grid_idx(x, y, z):
        sizes.add(builder.grid_dim[0])
        start(builder.grid_dim[0] - 1 - x, y, z)

    builder.set_grid_idx = set_grid_idx
    try:
        yield sizes
    finally:
        del builder.set_grid_idx


class Launches:
    """Instead of the kernels of a module of eqk.triton_kernels, and of the device that it makes the current one.

    ``launching``: the module that does so, if it is another one.
    """

    def __init__(self, kernels, monkeypatch, names=("kernel",), launching=None):
        self._grids, self._arguments, self._devices = [], [], []
        for name in names:
            monkeypatch.setattr(kernels, name, self)
        monkeypatch.setattr(launching or kernels, "on", self._on)

    def __getitem__(self, grid):
        self._grids.append(grid)
        return lambda *args, **kwargs: self._arguments.append((args, kwargs))

    def _on(self, device):
        recorded = self._devices

        class On:
            def __enter__(self):
                recorded.append(device)

            def __exit__(self, *_):
                recorded.append(None)

        return On()

    def checked(self, device):
        """(programs, arguments) of each, on the device, and of no more threads than HIP can count."""
        assert self._devices == [torch.device(device), None] * len(self._grids)
        assert len(self._grids) > 1
        for (programs,), (args, kwargs) in zip(self._grids, self._arguments, strict=True):
            assert programs * kwargs["num_warps"] * 64 < 2**32
            assert kwargs["enable_fp_fusion"]
            yield programs, args
