"""The systems of the gallery as e3nn builds them: products of edges, then a sum over them."""

from torch import Tensor


def scatter(messages: Tensor, dst: Tensor, nodes: int) -> Tensor:
    return messages.new_zeros(nodes, messages.shape[1]).index_add(0, dst, messages)
