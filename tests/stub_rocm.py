"""torch's build for ROCm, on GPUs that are not there: no libeqk_cuda, and Triton's interpreter for its kernels.

Imported before torch, with TRITON_INTERPRET=1.
"""

import contextlib

from stub_torch import load_stub_torch_cuda

load_stub_torch_cuda()

import torch  # noqa: E402

torch.version.hip, torch.version.cuda, torch.cuda._initialized = "6.4.43484", None, True
torch.cuda.device = lambda device: contextlib.nullcontext()
torch.cuda.current_device = lambda: torch.ops.stub_cuda.device()
