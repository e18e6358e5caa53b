"""Launches of Triton kernels that do not happen: what they would have been given."""

import torch


class Launches:
    """Instead of the kernels of a module of eqk.triton_kernels, and of the device that it makes the current one."""

    def __init__(self, kernels, monkeypatch, names=("kernel",)):
        self._grids, self._arguments, self._devices = [], [], []
        for name in names:
            monkeypatch.setattr(kernels, name, self)
        monkeypatch.setattr(kernels, "on", self._on)

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
