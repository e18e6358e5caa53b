from e3nn.nn.models.v2106 import points_convolution


class Convolution(points_convolution.Convolution):
    """e3nn's own, with its inputs in the order of the gallery's."""

    def forward(self, x, attributes, sh, scalars, graph):
        return super().forward(x, attributes, graph.src, graph.dst, sh, scalars)
