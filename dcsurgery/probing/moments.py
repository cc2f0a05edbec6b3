"""Sums over rows, and the damped step they mean for the block of every state.

For one site, with x what its matrix reads today, h a state and e the error (docs/probe.md):

    r = h - mean h - beta' (x - mean x),  beta = (S_xx + rho I)^-1 S_xh      what is new in h
    A = mean of r r' over tokens,  B = mean over rows of the sum of e e'     curvature, Kronecker
    G = mean over rows of the sum of e r'                                    gradient of the block
    D = -(B + b I)^-1 G (A + a I)^-1                                         the step

Damping a is relative to the variance of h, not of r: else the directions in which a deep state
hardly differs from today's feature are blown up. Memory does not grow with rows or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dcsurgery.probing.listen import SiteReading

# Ridge of the regression on x; damping of A and of B. In parts of a mean variance each.
RIDGE, DAMP_STATE, DAMP_ERROR = 1e-3, 1.0, 1.0


class SiteSums:
    """Sums over the tokens of one site: of products, and of the gradient fold by fold.

    x and h are counted from the means of the first row, so that fp32 sums keep their digits.
    """

    def __init__(self, folds: int) -> None:
        self.folds = folds
        self.tokens = 0
        self.rows = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, fold: int, read: Tensor, states: Tensor, error: Tensor) -> None:
        """Count a row of a fold: x [T, X], states [K, T, C], errors [T, out]."""
        if not self.sums:
            self._start(read, states, error)
        x, h = read - self.sums["x0"], states - self.sums["h0"]
        self.tokens += len(x)
        self.rows += 1
        each = self.sums
        each["x"] += x.sum(0)
        each["xx"] += x.T @ x
        each["h"] += h.sum(1)
        each["hh"] += h.mT @ h
        each["xh"] += x.T @ h
        each["ee"] += error.T @ error
        each["e"][fold] += error.sum(0)
        each["ex"][fold] += error.T @ x
        each["eh"][fold] += error.T @ h

    def _start(self, read: Tensor, states: Tensor, error: Tensor) -> None:
        (kinds, _, c), x, out, folds = states.shape, read.shape[1], error.shape[1], self.folds
        zeros = read.new_zeros
        self.sums = {
            "x0": read.mean(0),
            "h0": states.mean(1, keepdim=True),
            "x": zeros(x),
            "xx": zeros(x, x),
            "h": zeros(kinds, c),
            "hh": zeros(kinds, c, c),
            "xh": zeros(kinds, x, c),
            "ee": zeros(out, out),
            "e": zeros(folds, out),
            "ex": zeros(folds, out, x),
            "eh": zeros(folds, kinds, out, c),
        }


def bytes_for(channels: int, read: int, out: int, folds: int) -> int:
    """Return the bytes one more state costs: its sums, what they mean, and the step."""
    return 4 * (2 * channels**2 + 2 * read * channels + (folds + 2) * out * channels)


@dataclass(frozen=True)
class SiteStep:
    """A step for every state of a site: `matrix` [K, out, C] acts on what is new in it."""

    x_mean: Tensor
    h_mean: Tensor
    beta: Tensor
    matrix: Tensor

    def slopes(self, reading: SiteReading, states: Tensor) -> Tensor:
        """Return the derivative of a row's loss along each step [K]; states [K, T, C]."""
        new = (states - self.h_mean) - (reading.read - self.x_mean) @ self.beta
        return ((reading.error @ self.matrix) * new).sum((1, 2))


class SiteModel:
    """What a site's sums mean: regression and curvature, from which a step for any fold follows."""

    def __init__(self, sums: SiteSums) -> None:
        self.sums = sums
        each, count = sums.sums, sums.tokens
        self.x = each["x"].double() / count
        xx = each["xx"].double() / count - torch.outer(self.x, self.x)
        today = _factor(xx, RIDGE * _variance(xx))
        errors = each["ee"].double() / sums.rows
        self.error = _factor(errors, DAMP_ERROR * _variance(errors))
        self.h, self.beta, self.state = [], [], []
        for h, hh, xh in zip(each["h"], each["hh"], each["xh"], strict=True):
            mean = h.double() / count
            own = hh.double() / count - torch.outer(mean, mean)
            both = xh.double() / count - torch.outer(self.x, mean)
            beta = torch.cholesky_solve(both, today)
            new = own - both.T @ beta - beta.T @ both + beta.T @ xx @ beta
            self.h.append(mean)
            self.beta.append(beta.float())
            self.state.append(_factor(new, DAMP_STATE * _variance(own)).float())

    def step(self, fold: int) -> SiteStep:
        """Return the steps that the rows outside a fold ask for."""
        each = self.sums.sums
        rest = [index for index in range(self.sums.folds) if index != fold]
        e, ex = (each[name][rest].sum(0).double() for name in ("e", "ex"))
        ex = ex - torch.outer(e, self.x)
        matrices = []
        for kind, (h, beta, state) in enumerate(zip(self.h, self.beta, self.state, strict=True)):
            eh = each["eh"][rest, kind].sum(0).double()
            slope = (eh - torch.outer(e, h) - ex @ beta.double()) / self.sums.rows
            left = torch.cholesky_solve(slope, self.error)
            matrices.append(-torch.cholesky_solve(left.float().T, state).T)
        return SiteStep(
            (each["x0"] + self.x.float()),
            each["h0"] + torch.stack(self.h).float()[:, None],
            torch.stack(self.beta),
            torch.stack(matrices),
        )


def _variance(matrix: Tensor) -> Tensor:
    mean: Tensor = matrix.diagonal().mean()
    return mean


def _factor(matrix: Tensor, damping: Tensor) -> Tensor:
    """Return the Cholesky factor of a damped covariance; of the unit matrix where all is zero."""
    least = torch.where(damping > 0, damping, torch.ones_like(damping))
    damped: Tensor = matrix + least * torch.eye(len(matrix)).to(matrix)
    factor: Tensor = torch.linalg.cholesky(damped)
    return factor
