"""eqk's CUDA library for a torch of one CUDA; eqk loads it."""
