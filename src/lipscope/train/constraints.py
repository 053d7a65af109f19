"""Layers whose norm is certified to stay below a bound while they are trained.

A parametrization divides a weight by what its layer's norm exceeds the bound. In training the norm is
followed by the power method and differentiated (`following.py`), times the ratio at which it stood to the
certified norm when that was last computed; so it holds the bound up to the vectors' lag. In evaluation
mode the certified norm of the very numbers that the layer computes with is at most the bound: it is
computed when the module goes into evaluation mode, or is used there, with other weights than before.

Certified norms are those of the layer at its real size, as `lipscope.analytical` takes them: with stride,
padding, dilation and groups, and with the batch norm behind it if there is one. A bounded batch norm is
bounded by its gain, since scaling the layer before it changes nothing while it normalises by the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..certificates import norm_bounds, product_rule
from ..errors import CertificateError, LipscopeError, UnsupportedLayerError
from ..graph import Graph, LiveGraph
from ..graph.simplify import fused
from ..layers import Layer, LinearLayer
from ..layers.convolution import Convolution, TransposedConvolution
from ..layers.dense import Dense
from ..layers.scaling import Scaling, batch_norm_scaling
from .following import Followed, layer_norm

_SLACK = 1e-3
"""A scale is kept while its certified norm lies no further below the bound than this, relatively."""
_ATTEMPTS = 8

_BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass
class _Place:
    """Where a parameter stands in the network: the layer whose norm it decides.

    Attributes:
        network: that layer alone, as `Graph.alone` of the import gives it, without a batch norm behind it.
        tensor: which of its tensors is the weight (the parameter, or of a batch norm's gain the weight before).
        weight_owner: of a gain behind a layer, the module of that layer; its tensor is called "weight".
        norm: of a gain, the batch norm.
        followed: the vectors of its norm.
    """

    network: Graph
    tensor: int
    weight_owner: nn.Module | None = None
    norm: _BatchNorm | None = None
    followed: Followed = field(default_factory=Followed)

    def at(self, value: Tensor) -> Graph:
        """The layer with a value of the parameter."""
        layer = self.network.nodes[-1].layer
        assert layer is not None
        weight = value if self.weight_owner is None else _held(self.weight_owner, "weight")
        if self.norm is None or self.weight_owner is not None:
            layer = _with_tensor(layer, self.tensor, weight.to(value))
        if self.norm is not None:
            scaling = _scaling(self.norm, value, len(self.network.output_shape) - 1)
            joined: Layer | None = scaling if self.weight_owner is None else fused(layer, scaling)
            assert joined is not None
            layer = joined
        dtype = value.dtype
        layer = layer.mapped(
            lambda t: t.to(value.device, dtype) if t.is_floating_point() else t.to(value.device)
        )
        return self.network.with_layer(1, layer)

    def certified(self, value: Tensor) -> float:
        """The certified norm of the layer, as an import of it with that value gives it."""
        network = self.at(value.detach().to("cpu", torch.float64))
        layer = network.nodes[-1].layer
        assert layer is not None
        return layer.alone([network.input_shape])

    def reads(self) -> Iterator[Tensor]:
        """The tensors beside the parameter on which the norm depends."""
        if self.weight_owner is not None:
            yield _held(self.weight_owner, "weight")
        if self.norm is not None:
            yield _held(self.norm, "running_var")


class SpectralBound(nn.Module):
    """The parametrization of one weight: times a scale ≤ 1 so that its layers' certified norms are ≤ `bound`.

    Attributes:
        bound: the largest norm allowed.
        scale: what the weight is multiplied by, without dimensions.
        unscaled: the certified norm of the weight as it was when the bound was set.
        norm: the certified norm when it was last computed.
    """

    scale: Tensor

    def __init__(
        self, owner: nn.Module, name: str, places: Sequence[_Place], bound: float, unscaled: float
    ) -> None:
        super().__init__()
        self.bound, self.unscaled, self.norm = bound, unscaled, unscaled
        self.register_buffer("scale", torch.ones_like(_held(owner, name).detach().flatten()[:1].squeeze(0)))
        # In lists, so that they are not registered as parts of this module.
        self._owner, self._places, self._name = [owner], list(places), name
        self._ratios = [1.0] * len(places)
        self._certified_at: tuple[object, ...] = ()

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as the layer uses it."""
        if torch.compiler.is_exporting():
            return weight * self.scale
        if not self.training:
            self._certify(weight)
            return weight * self.scale
        with torch.autocast(weight.device.type, enabled=False):
            norms = [
                ratio * layer_norm(place.at(weight), place.followed)
                for ratio, place in zip(self._ratios, self._places, strict=True)
            ]
        scale = (self.bound / torch.stack(norms).max().clamp_min(torch.finfo(weight.dtype).tiny)).clamp(max=1)
        self.scale.copy_(scale.detach())
        return weight * scale

    def train(self, mode: bool = True) -> SpectralBound:
        """On the way into evaluation mode the norm is certified."""
        super().train(mode)
        (owner,) = self._owner
        if not mode and parametrize.is_parametrized(owner, self._name):
            self._certify(_held(owner, self._name))
        return self

    def extra_repr(self) -> str:
        """The bound, as modules are printed."""
        return f"bound={self.bound:g}"

    @torch.no_grad()
    def _certify(self, weight: Tensor) -> None:
        """Set the scale so that the certified norms are at most the bound, unless nothing changed since."""
        read = [weight, *(tensor for place in self._places for tensor in place.reads())]
        state = tuple((id(t), t.data_ptr(), t._version) for t in (*read, self.scale))
        if state == self._certified_at:
            return
        rounding = torch.finfo(weight.dtype).eps
        for _ in range(_ATTEMPTS):
            norms = [place.certified(weight * self.scale) for place in self._places]
            self.norm, scale = max(norms), float(self.scale)
            if self.norm <= self.bound and (scale == 1 or self.norm >= self.bound * (1 - _SLACK)):
                break
            if self.norm > 0:
                # A little less than what is due, more so at every attempt: products are rounded.
                scale *= self.bound / self.norm * (1 - rounding)
                rounding *= 2
            self.scale.fill_(min(scale, 1.0) if self.norm > 0 else 1.0)
        else:
            raise CertificateError(
                f"{self._name}: no scale was found that certifies the bound {self.bound:g}"
            )
        for i, (place, norm) in enumerate(zip(self._places, norms, strict=True)):
            followed = float(layer_norm(place.at(weight * self.scale), place.followed, settle=1e-3))
            self._ratios[i] = max(1.0, norm / followed) if followed > 0 else 1.0
        self._certified_at = tuple((id(t), t.data_ptr(), t._version) for t in (*read, self.scale))


def spectral(
    module: nn.Module, name: str = "weight", *, bound: float = 1.0, input_shape: Sequence[int] | None = None
) -> nn.Module:
    """Keep the spectral norm of a dense or convolutional layer at most `bound`, certified.

    The bound is that of the layer as an operator on inputs of the shape: of a convolution at that size, with
    its stride, padding, dilation and groups.

    Args:
        module: an nn.Linear, nn.Conv1d, 2d, 3d or nn.ConvTranspose1d, 2d, 3d; it is parametrized in place.
        name: of its weight.
        bound: > 0.
        input_shape: per-sample shape of the layer's inputs; not needed for nn.Linear.

    Returns:
        The module.

    Raises:
        UnsupportedLayerError: it is another module, or its weight is parametrized already.
        LipscopeError: the input's shape is missing.
    """
    if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or name != "weight":
        raise UnsupportedLayerError(
            f"{name} of {type(module).__name__}: only weights of dense layers and convolutions are bounded alone; "
            "see lipscope.train.constrain for whole networks"
        )
    if input_shape is None:
        if not isinstance(module, nn.Linear):
            raise LipscopeError("the norm of a convolution depends on its input's size: give input_shape")
        input_shape = (module.in_features,)
    constrain(module, input_shape, bound)
    return module


def constrain(
    module: nn.Module,
    input_shape: Sequence[int],
    bound: float,
    *,
    split: Literal["even", "proportional"] = "even",
) -> dict[str, float]:
    """Keep the certified Lipschitz constant of a network at most `bound` while it is trained.

    Every layer with weights gets a bound of its own norm, such that the product rule (`lipscope.analytical`,
    with sums of branches, pooling and activations) stays at most `bound`; weights are parametrized in place.
    In evaluation mode the bound is certified, rounding included; in training it holds up to the lag of the
    power method.

    Args:
        module: takes one tensor (batch, *input_shape) and returns one tensor.
        input_shape: per-sample shape; the constraint is one for inputs of this shape.
        bound: of the network's constant, > 0; Euclidean norms.
        split: "even" gives all layers the same bound, which suits a network trained from here on;
            "proportional" gives each a share by its norm now, which changes a trained network least.

    Returns:
        The bound of every parameter, by its name.

    Raises:
        UnsupportedLayerError: a layer's norm depends on parameters in a way that cannot be bounded; it is named.
        LipscopeError: no weights of any size keep the bound, since some path to the output has none.
        ModelError: see `lipscope.from_torch`.
    """
    if not 0 < bound < math.inf:
        raise LipscopeError(f"bound {bound:g}: give a positive number")
    live = LiveGraph(module, tuple(input_shape))
    places = _places(live)
    graph = live.snapshot
    norms = norm_bounds(graph)
    if (reason := norms.no_bound(graph)) is not None:
        raise LipscopeError(f"no bound can be kept: {reason.layers[0].place}: {reason.layers[0].reason}")
    group = {index: name for name, found in places.items() for index in found}
    weights = dict.fromkeys(places, 1.0)
    if split == "proportional":
        weights |= {name: max(norms.constants[i] for i in found) or 1.0 for name, found in places.items()}

    def network_bound(share: float) -> float:
        constants = [
            weights[group[i]] * share if i in group else constant
            for i, constant in enumerate(norms.constants)
        ]
        return product_rule(graph, constants)[-1]

    share = _largest_share(network_bound, bound)
    if share == 0:
        raise LipscopeError(
            f"bound {bound:g}: some path from input to output passes no weight, and stretches up to "
            f"{network_bound(0.0):g} whatever the weights are"
        )
    budgets = {name: weights[name] * share for name in places}
    for name, found in places.items():
        owner, attribute = _owner(module, name)
        unscaled = max(norms.constants[index] for index in found)
        parametrization = SpectralBound(owner, attribute, list(found.values()), budgets[name], unscaled)
        parametrize.register_parametrization(owner, attribute, parametrization)
        parametrization._certify(_held(owner, attribute))
    return budgets


def bake(module: nn.Module) -> nn.Module:
    """Make the bounded weights of a module, certified as they are in evaluation mode, plain parameters again."""
    for part in list(module.modules()):
        if not parametrize.is_parametrized(part):
            continue
        parametrizations = part.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        for name, steps in list(parametrizations.items()):
            assert isinstance(steps, nn.ModuleList)
            if any(isinstance(step, SpectralBound) for step in steps):
                steps.eval()
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
    return module


def _places(live: LiveGraph) -> dict[str, dict[int, _Place]]:
    """For every parameter to be bounded, by name, the nodes whose norms it decides.

    Raises:
        UnsupportedLayerError: a norm depends on parameters in another way; the layer is named.
    """
    found: dict[str, dict[int, _Place]] = {}
    for index, node in enumerate(live.snapshot.nodes):
        layer = node.layer
        if layer is None or not live.follows(layer):
            continue
        name, place = _place(live, index)
        if name is not None:
            found.setdefault(name, {})[index] = place
    if live.frozen:
        raise UnsupportedLayerError(f"{live.frozen[0]}: its constant is proved from the weights at import")
    if not found:
        raise UnsupportedLayerError("the network has no weights that could be bounded")
    return found


def _place(live: LiveGraph, index: int) -> tuple[str | None, _Place]:
    """The parameter that decides a layer's norm, None if it is constant, and how."""
    node, network = live.snapshot.nodes[index], live.snapshot.alone(index)
    layer = node.layer

    def refused(why: str) -> UnsupportedLayerError:
        return UnsupportedLayerError(f"{node.place}: {why}")

    if not isinstance(layer, (Dense, Convolution, TransposedConvolution, Scaling)):
        kind = "" if layer is None else layer.kind
        raise refused(f"the norm of a {kind} with parameters cannot be bounded in training")
    weight = _weight(layer)
    # Offsets play no part in norms.
    bare = replace(layer, offset=None)
    network = network.with_layer(1, bare)
    tensor = next(i for i, t in enumerate(bare.parameters()) if t is weight)
    names = live.sources(weight)
    owners = {name: _owner(live.module, name)[0] for name in names}
    if any(isinstance(owner, nn.RNNBase) for owner in owners.values()):
        raise refused(
            "torch's recurrent layers hold their weights where no parametrization reaches; use its cells"
        )
    norms = {id(owner): owner for owner in owners.values() if isinstance(owner, _BatchNorm)}
    if not any(name.rpartition(".")[2] in owner._parameters for name, owner in owners.items()) and not norms:
        return None, _Place(network, tensor)
    if len(norms) > 1:
        raise refused("it is followed by several batch norms")
    if norms:
        (norm,) = norms.values()
        if norm.weight is None:
            raise refused("its batch norm has no gain to bound: make it with affine=True")
        gain = next(name for name, owner in owners.items() if owner is norm and name.endswith("weight"))
        others = [name for name, owner in owners.items() if owner is not norm]
        place = _Place(network, tensor, norm=norm)
        if others:
            if not isinstance(bare, (Dense, Convolution)):
                raise refused("a batch norm behind it cannot be bounded")
            network = network.with_layer(1, replace(bare, entry_error=0.0))
            place = _Place(network, tensor, owners[others[0]], norm)
        name = gain
    else:
        name, others = next(iter(names)), list(names)
        place = _Place(network, tensor)
    value = _held(*_owner(live.module, name)).detach().to("cpu", torch.float64)
    if len(others) > 1 or not _same(place.at(value).nodes[-1].layer, bare, weight):
        raise refused(
            f"its weights are computed from {', '.join(sorted(names))} in a way that cannot be bounded: use a "
            "plain layer, without another parametrization"
        )
    return name, place


def _weight(layer: LinearLayer) -> Tensor:
    """The tensor that decides the layer's norm."""
    if isinstance(layer, Scaling):
        return layer.factor
    if isinstance(layer, TransposedConvolution):
        return layer.adjoint.weight
    assert isinstance(layer, (Dense, Convolution))
    return layer.weight


def _same(made: Layer | None, layer: LinearLayer, weight: Tensor) -> bool:
    """Whether a layer was made as the import made it: the same weight, with the same uncertainty."""
    if not isinstance(made, LinearLayer) or type(made) is not type(layer):
        return False
    return torch.equal(_weight(made), weight) and made.entry_error == layer.entry_error


def _with_tensor(layer: Layer, tensor: int, value: Tensor) -> Layer:
    """The layer with another tensor at that place of `parameters`, in the shape of the one there."""
    numbers = iter(range(len(layer.parameters())))
    return layer.mapped(lambda t: value.reshape(t.shape) if next(numbers) == tensor else t)


def _scaling(norm: _BatchNorm, gain: Tensor, dims: int) -> Scaling:
    mean, variance = (_held(norm, name).to(gain.device) for name in ("running_mean", "running_var"))
    return batch_norm_scaling(gain, None, mean, variance, norm.eps, dims)


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute


def _held(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer itself, from behind a parametrization too."""
    if parametrize.is_parametrized(module, name):
        module, name = module.get_submodule(f"parametrizations.{name}"), "original"
    held = getattr(module, name)
    assert isinstance(held, Tensor)
    return held


def _largest_share(value: Callable[[float], float], bound: float) -> float:
    """The largest share s > 0 with value(s) ≤ bound, of a rising function, to rounding; 0 if there is none."""
    low = high = 1.0
    while value(low) > bound:
        low /= 2
        if low < 1e-150:
            return 0.0
    while value(high) <= bound and high < 1e150:
        high *= 2
    for _ in range(200):
        middle = math.sqrt(low) * math.sqrt(high)
        if not low < middle < high:
            break
        low, high = (middle, high) if value(middle) <= bound else (low, middle)
    return low
