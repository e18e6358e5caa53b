"""Triton kernels of eqk's ops: the portable GPU path. ``eqk.dispatch`` imports them where Triton is installed."""
