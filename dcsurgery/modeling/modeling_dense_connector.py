"""Dense Connector (arXiv 2405.13800) inside a stock transformers model, told by its config.

The projector's first matrix W gains a second one, D: y = W x + D g, with g the means of groups of
the vision tower's hidden states (state 0: what block 0 reads; state i: what block i - 1 gives).
The files hold [W | D] under W's own name, so code that does not know the connector stops at the
shape instead of computing without it. `Dense<Stock class>` is made on demand: everything else is
the stock class. This file is constant; what differs between models is in their config.json.
"""

import math
import re
from contextlib import contextmanager
from functools import partial

import torch
import transformers
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from transformers.models.auto import modeling_auto

try:  # transformers >= 5 renames published tensors for its own classes only, unless registered
    from transformers import conversion_mapping
except ImportError:
    conversion_mapping = None

VERSION = 1
NORM_EPS = 1e-5


class DenseState:
    """One run of the vision tower: how it was called, and sums of its hidden states."""

    def __init__(self, spec):
        self.spec, self.sites, self.open = spec, [], False
        self.sums, self.rows, self.tower, self.calls = None, None, "", {}
        self.with_grad, self.shares = False, None

    def start(self, tower, module, args, kwargs):
        self.sums, self.rows = [None] * len(self.spec["groups"]), None
        self.tower, self.calls = tower, {"tower": (args, kwargs)}
        self.open, self.with_grad, self.shares = True, torch.is_grad_enabled(), None
        mix = self.sites[0].dense_mix
        if mix is not None:
            if mix.is_meta:  # accelerate keeps it elsewhere until the site itself is called
                mix = self.sites[0]._hf_hook.weights_map["dense_mix"]
            sizes = [len(group) for group in self.spec["groups"]]
            self.shares = [part.softmax(dim=0) for part in mix.float().split(sizes)]

    def stop(self, *_):
        self.open = False

    def enter(self, module, args, kwargs):
        self.calls["projector"] = (args, kwargs)

    def argument(self, call, name, position):
        args, kwargs = self.calls.get(call, ((), {}))
        if name in kwargs:
            return kwargs[name]
        return args[position] if position < len(args) else None

    def collect_input(self, block, args, kwargs):
        self.collect(0, block, args[0] if args else next(iter(kwargs.values())))

    def collect_output(self, state, block, args, output):
        self.collect(state, block, output[0] if isinstance(output, tuple) else output)

    def collect(self, state, block, hidden):
        if not self.open:  # gradient checkpointing runs a block again
            return
        if self.with_grad and not torch.is_grad_enabled():
            if any(parameter.requires_grad for parameter in block.parameters()):
                raise RuntimeError(
                    "dense connector: reentrant gradient checkpointing hides a trained vision "
                    'tower; use gradient_checkpointing_kwargs={"use_reentrant": False}'
                )
        with outside_checkpoints(self.with_grad):
            for index, group in enumerate(self.spec["groups"]):
                if state in group:
                    self.add(index, hidden, group.index(state))

    def add(self, index, term, place):
        if self.shares is not None:
            term = term * self.shares[index][place].to(term.device)
        total = self.sums[index]
        if total is None:  # a copy, in fp32: engines add residuals in place, fp16 would overflow
            total = term.to(torch.promote_types(term.dtype, torch.float32), copy=True)
        else:
            total = total.to(term.device) + term
        self.sums[index] = total

    def take(self, site, read):
        """Return g as the site reads it in this call; `read` is the number of rows it has read."""
        if self.sums is None or any(total is None for total in self.sums):
            raise RuntimeError("dense connector: the projector ran without its vision tower")
        if self.rows is None:
            self.rows = [list(calls) for calls in self.join(read)]
        rows = self.rows[site].pop(0)
        if not any(self.rows):
            self.sums = None
        return rows

    def join(self, read):
        means = self.sums
        if self.shares is None:
            means = [t / len(g) for t, g in zip(means, self.spec["groups"])]
        first = self.sites[0]
        if first.dense_norm_weight is not None:
            pairs = zip(first.dense_norm_weight.float(), first.dense_norm_bias.float())
            means = [
                F.layer_norm(m, m.shape[-1:], w.to(m.device), b.to(m.device), NORM_EPS)
                for m, (w, b) in zip(means, pairs)
            ]
        found = [arrange(self, mean, read) for mean in means]  # block -> site -> call
        if len(found[0]) == 1:
            found = [calls * len(self.sites) for calls in found]
        home = found[0][0][0].device
        return [
            [torch.cat([item.to(home) for item in call], dim=-1) for call in zip(*calls)]
            for calls in zip(*found)
        ]


@contextmanager
def outside_checkpoints(with_grad):
    """Record gradients as the whole pass does: hooks may run inside a block's checkpoint."""
    if not with_grad:
        yield
        return
    with torch.enable_grad(), saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        yield


class DenseSite(nn.Module):
    """The projector's first matrix and the second one, joined under the first one's own name.

    Not an nn.Linear on purpose: engines and quantisers replace those, and the branch would be lost.
    """

    def __init__(self, site, spec, state):
        super().__init__()
        self.spec, self.state, self.index = spec, state, len(state.sites)
        self.name, self.kept = spec["parameter"], spec["kept"]
        own = getattr(site, self.name)
        shape = list(spec["shape"])
        joined = nn.Parameter(torch.zeros(shape, dtype=own.dtype, device=own.device))
        self.stock, self.kernel = None, ()
        if isinstance(site, (nn.Linear, nn.Conv2d)):
            self.bias = site.bias
        else:  # a module around a bare matrix: it computes as it does, with its part of ours
            self.stock = [site]
            for name, child in site.named_children():
                self.add_module(name, child)
            for name, parameter in site.named_parameters(recurse=False):
                self.register_parameter(name, parameter)
        self.register_parameter(self.name, joined)
        if isinstance(site, nn.Conv2d):
            self.kernel, self.stride = tuple(own.shape[1:]), site.stride
        for name in ("dense_mix", "dense_norm_weight", "dense_norm_bias"):
            wanted = None if state.sites else state.spec["extra"].get(name)
            value = None
            if wanted:
                value = nn.Parameter(torch.zeros(wanted, dtype=torch.float32, device=own.device))
            self.register_parameter(name, value)
        state.sites.append(self)

    def forward(self, x, *args, **kwargs):
        joined = getattr(self, self.name)
        own, added = joined.tensor_split([self.kept], 0 if self.spec["transposed"] else 1)
        if self.stock is not None:
            given = {**dict(self.named_parameters(recurse=False)), self.name: own}
            given = {n: v for n, v in given.items() if not n.startswith("dense_")}
            output = torch.func.functional_call(self.stock[0], given, (x, *args), kwargs)
        elif self.kernel:
            output = F.conv2d(x, own.reshape(-1, *self.kernel), self.bias, self.stride)
        else:
            output = F.linear(x, own, self.bias)
        rows = self.state.take(self.index, x.numel() // x.shape[-1])
        matrix = added.T.contiguous() if self.spec["transposed"] else added
        product = F.linear(rows.to(matrix.device, matrix.dtype), matrix)
        if product.numel() != output.numel():
            raise RuntimeError(
                f"dense connector: {tuple(product.shape)} cannot extend {tuple(output.shape)}"
            )
        return output + product.reshape(output.shape).to(output)


def arrange(run, state, read):
    """Turn one hidden state into what each site reads in each call: the family's way, as data."""
    calls = [state]
    for name, *sizes in run.spec["arrange"]:
        step = STEPS.get(name)
        if step is None:
            raise RuntimeError(f"dense connector: this file does not know the step {name!r}")
        if name in SITE_STEPS:
            return [[rows] for rows in step(run, calls[0], *sizes)]
        calls = [rows for call in calls for rows in step(run, call, read, *sizes)]
    return [calls]


def crop(run, state, read, count, spared=None):
    """Cut leading tokens (CLS); the tower `spared` keeps them."""
    yield state if run.tower == spared else state[:, count:]


def cut_last(run, state, read, count):
    """Cut tokens behind the patches (CLS)."""
    yield state[:, :-count]


def merge(run, state, read, side):
    """Join neighbours that lie next to each other already."""
    yield state.reshape(-1, side**2 * state.shape[-1])


def convolve(run, state, read, side):
    """Join neighbours channels first, as the weight of a convolution has them."""
    windows = state.reshape(-1, side, side, state.shape[-1])
    yield windows.permute(0, 3, 1, 2).flatten(1)


def shuffled(grid, side):
    batch, height, width, channels = grid.shape
    windows = grid.reshape(batch, height // side, side, width // side, side, channels)
    return windows.transpose(2, 3).reshape(batch, height // side, width // side, -1)


def squared(state):
    batch, count, channels = state.shape
    side = math.isqrt(count)
    return state.reshape(batch, side, side, channels)


def shuffle(run, state, read, side):
    """Join windows of a square grid of patches."""
    yield shuffled(squared(state), side).flatten(1, 2)


def average(run, state, read, side):
    """Average windows of a square grid of patches."""
    maps = squared(state).permute(0, 3, 1, 2)
    yield F.avg_pool2d(maps, side).flatten(2).transpose(1, 2)


def average_frames(run, state, read, side):
    """Average windows where the projector has read fewer rows than the tower gave: of a video."""
    if read == state.shape[0] * state.shape[1]:
        yield state
    else:
        yield from average(run, state, read, side)


def shuffle_each(run, state, read, side, name, position):
    """Join windows of each padded picture, one call of the projector per picture."""
    shapes = run.argument("tower", name, position).tolist()
    for picture, (height, width) in zip(state, shapes):
        yield shuffled(picture[: height * width].reshape(1, height, width, -1), side)


def grids(run, state, name, position):
    """Split packed patches [N, C] into (t, h, w, patches) of every picture."""
    found = run.argument("tower", name, position)
    parts = state.split(found.prod(dim=1).tolist())
    return [(*sizes, part) for sizes, part in zip(found.tolist(), parts)]


def merge_each(run, state, read, side, name, position):
    """Join windows of packed pictures in raster order, one call of the projector per picture."""
    for t, h, w, part in grids(run, state, name, position):
        windows = part.reshape(t, h // side, side, w // side, side, -1).transpose(2, 3)
        yield windows.reshape(t * h * w // side**2, -1)


def halve(run, state, read, name, position, merges, merges_position):
    """Shrink packed pictures, whose windows lie together, by bilinear interpolation."""
    sides = run.argument("tower", merges, merges_position).tolist()
    rows = []
    for (t, h, w, part), m in zip(grids(run, state, name, position), sides):
        windows = part.reshape(t, h // m, w // m, m, m, -1).permute(0, 5, 1, 3, 2, 4)
        maps = windows.reshape(t, -1, h, w)
        small = F.interpolate(maps, size=(h // m, w // m), mode="bilinear")
        rows.append(small.permute(0, 2, 3, 1).reshape(-1, state.shape[-1]))
    yield torch.cat(rows)


def windows(run, state, read, side, patch, name, position):
    """Join windows of packed pictures, channels first; what fills no window is dropped."""
    sizes = torch.as_tensor(run.argument("tower", name, position)).tolist()
    shapes = [(height // patch, width // patch) for height, width in sizes]
    pictures = state.flatten(0, 1).split([height * width for height, width in shapes])
    rows = []
    for (height, width), picture in zip(shapes, pictures):
        high, wide = height // side, width // side
        grid = picture.reshape(height, width, -1)[: high * side, : wide * side]
        cut = grid.reshape(high, side, wide, side, -1).permute(0, 2, 4, 1, 3)
        rows.append(cut.flatten(2).flatten(0, 1))
    yield torch.cat(rows)


def tiles(run, state, read, patch, prefix, name, position):
    """Cut what pads a tile to a multiple of eight tokens: [B, images, tiles, N, C]."""
    pixels = run.argument("tower", name, position)
    tokens = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch) + prefix
    yield state.reshape(*pixels.shape[:3], -1, state.shape[-1])[..., :tokens, :]


def gather(run, state, name, position):
    """Pool windows by index: their means for the first site, the windows for the others."""
    index = run.argument("projector", name, position).to(state.device)
    valid = (index >= 0)[..., None].to(state.dtype)
    found = state.flatten(0, 1)[index.clamp(min=0)] * valid
    means = found.sum(-2, keepdim=True) / valid.sum(-2, keepdim=True).clamp(min=1)
    return [means, *[found] * (len(run.sites) - 1)]


STEPS = {
    step.__name__: step
    for step in (
        crop, cut_last, merge, convolve, shuffle, average, average_frames, shuffle_each, merge_each,
        halve, windows, tiles, gather,
    )
}  # fmt: skip
SITE_STEPS = {"gather"}


def find(model, suffix):
    """Return (name, module) of the outermost module whose dotted name ends with `suffix`."""
    first, _, rest = suffix.partition(".")
    inner = rf"\.(?:(?:vision_)?model\.)?{re.escape(rest)}" if rest else ""
    pattern = re.compile(rf"(?:^|\.){re.escape(first)}{inner}$")
    found = [name for name, _ in model.named_modules() if pattern.search(name)]
    outer = [name for name in found if not any(name.startswith(f"{o}.") for o in found)]
    if len(outer) != 1:
        have = ", ".join(outer) or "none"
        raise RuntimeError(
            f"dense connector: {type(model).__name__} has {have} for {suffix}; "
            f"transformers {transformers.__version__} may name it otherwise"
        )
    return outer[0], model.get_submodule(outer[0])


def install(model, spec):
    """Put the connector into a model of a stock class, before its weights are loaded."""
    if spec.get("version") != VERSION:
        raise RuntimeError(f"dense connector: this file reads version {VERSION} of its config")
    state = DenseState(spec)
    for site in spec["sites"]:
        name, old = find(model, site["module"])
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, DenseSite(old, site, state))
    if spec["projector"]:
        projector = find(model, spec["projector"])[1]
        projector.register_forward_pre_hook(state.enter, with_kwargs=True)
    for module, blocks in spec["towers"]:
        tower, listed = find(model, module)[1], find(model, blocks)[1]
        if len(listed) != spec["depth"]:
            raise RuntimeError(
                f"dense connector: {blocks} has {len(listed)} blocks, not {spec['depth']}"
            )
        tower.register_forward_pre_hook(partial(state.start, module), with_kwargs=True)
        tower.register_forward_hook(state.stop)
        for number in sorted({number for group in spec["groups"] for number in group}):
            if number == 0:
                listed[0].register_forward_pre_hook(state.collect_input, with_kwargs=True)
            else:
                listed[number - 1].register_forward_hook(partial(state.collect_output, number))


def __getattr__(name):
    """Return Dense<Stock class>, made when it is asked for."""
    stock = getattr(transformers, name[5:], None) if name.startswith("Dense") else None
    if stock is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __init__(self, config, *args, **kwargs):
        stock.__init__(self, config, *args, **kwargs)
        install(self, config.dense_connector)

    made = type(name, (stock,), {"__init__": __init__, "__module__": __name__})
    made.__doc__ = f"{stock.__name__} with a dense connector."
    # transformers 4 does not set it where model_type is its own, and would not save this file
    made._auto_class = "AutoModel" if name.endswith("Model") else "AutoModelForImageTextToText"
    if conversion_mapping is not None:
        # Found by model_type, it must stay there: by class name the inner model would get it again.
        kind = stock.config_class.model_type
        for key, own in ((stock.__name__, name), (kind, kind)):
            known = conversion_mapping.get_checkpoint_conversion_mapping(key)
            if known:
                register = conversion_mapping.register_checkpoint_conversion_mapping
                register(own, known, overwrite=True)
                break
    # By class names in these tables, pipelines and `transformers serve` know what a model takes.
    for task in ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM"):
        names = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {})
        if stock.__name__ in names.values():
            names[f"dense_connector_{stock.config_class.model_type}"] = name
    globals()[name] = made
    return made
