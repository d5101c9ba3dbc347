"""Probes of frozen features: logistic regression, nearest neighbours and ridge regression, in float64.

    features (N, D), labels (N,) --standardised by the training features--> accuracy on other features

Notable:
- nothing is tuned: the strength of regularisation is a constant;
- each is deterministic. Logistic regression is convex and is run to its minimum: no seed and no learning rate enters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


@dataclass(frozen=True)
class Standardiser:
    """(x - mean) / std of each feature; a feature that is constant, up to float32's rounding, becomes 0.

    Attributes:
        mean: (D,), float64.
        scale: (D,), float64; 1 / std, and 0 where std is 0.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Standardiser:
        """Of training features (N, D)."""
        x = features.double()
        mean, std = x.mean(0), x.std(0, correction=0)
        floor = 1e-6 * mean.abs() + 1e-12 * std.max().clamp_min(
            1e-300
        )  # what rounding to float32 leaves is no variation
        return cls(mean, torch.where(std > floor, 1 / std.clamp_min(1e-300), 0.0))

    def __call__(self, features: Tensor) -> Tensor:
        """Standardised features (M, D), float64."""
        return (features.double() - self.mean) * self.scale


def logistic_regression(features: Tensor, labels: Tensor, classes: int, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression at its minimum, as scikit-learn's LogisticRegression with C = 1 / strength.

        sum_i -log softmax(W x_i + b)[y_i] + strength / 2 |W|^2

    Args:
        features: (N, D), used as they are.
        labels: (N,), int64, below `classes`.
        classes: number of classes, at least 2.
        strength: of the penalty, above 0.

    Returns:
        W (classes, D) and b (classes,), float64.

    Raises:
        ValueError: shapes, labels or the strength are out of range, or a feature is not finite.
    """
    x = _checked(features, labels, classes)
    if not strength > 0:
        raise ValueError(f"strength is {strength}; it must be above 0")
    both = torch.zeros(classes, x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    rows = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    solver = torch.optim.LBFGS(
        [both],
        max_iter=2000,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        penalty = both[:, :-1].square().sum() * strength / 2
        loss = (cross_entropy(rows @ both.T, labels, reduction="sum") + penalty) / len(x)
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    found = both.detach()
    return found[:, :-1], found[:, -1]


def linear_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, classes: int) -> float:
    """Accuracy, from 0 to 1, of logistic regression on standardised features.

    Args:
        train, test: features (N, D) and (M, D).
        train_labels, test_labels: (N,) and (M,), int64.
        classes: number of classes.

    Raises:
        ValueError: see `logistic_regression`.
    """
    standard = Standardiser.of(train)
    weight, bias = logistic_regression(standard(train), train_labels, classes)
    guessed = (standard(_checked(test, test_labels, classes)) @ weight.T + bias).argmax(1)
    return (guessed == test_labels).double().mean().item()


def knn_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, classes: int, k: int = 20
) -> float:
    """Accuracy, from 0 to 1, of a vote of the k nearest training features by cosine, of standardised features.

    Votes count equally. Among classes with as many votes, the one with the smaller number wins.

    Args:
        train, test, train_labels, test_labels, classes: as in `linear_accuracy`.
        k: number of neighbours.

    Raises:
        ValueError: see `logistic_regression`; or k is not from 1 to N.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k is {k}; there are {len(train)} training features")
    standard = Standardiser.of(_checked(train, train_labels, classes))
    keys = normalize(standard(train), dim=1)
    right = 0
    for chunk, truth in zip(
        _checked(test, test_labels, classes).split(512), test_labels.split(512), strict=True
    ):  # memory
        near = (normalize(standard(chunk), dim=1) @ keys.T).topk(k, dim=1).indices
        votes = torch.zeros(len(chunk), classes).scatter_add_(1, train_labels[near], torch.ones(len(chunk), k))
        right += int((votes.argmax(1) == truth).sum())
    return right / len(test)


def ridge_regression(features: Tensor, targets: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Ridge regression by its closed form, with an intercept that is not penalised.

        W = (X^T X + strength I)^-1 X^T Y of centred X and Y,  b = mean(Y) - mean(X) W

    Args:
        features: (N, D).
        targets: (N, K).
        strength: of the penalty |W|^2, above 0.

    Returns:
        W (D, K) and b (K,), float64.

    Raises:
        ValueError: shapes do not fit, or the strength is not above 0.
    """
    x, y = features.double(), targets.double()
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or not strength > 0:
        raise ValueError(
            f"features {tuple(x.shape)}, targets {tuple(y.shape)}, strength {strength}; expected (N, D), (N, K) and a "
            "number above 0"
        )
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred = x - mean_x
    gram = centred.T @ centred + strength * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, centred.T @ (y - mean_y))
    return weight, mean_y - mean_x @ weight


def recoverability_gap(train: Tensor, train_targets: Tensor, test: Tensor, test_targets: Tensor) -> float:
    """1 - R^2 of ridge regression from features to another encoder's features of the same images.

    0: the other encoder's features are linear in these. 1: no better than their mean. R^2 is that of all targets
    together, on test images. Both sides are standardised by the training images, and the penalty is N / 100, a
    hundredth of the weight of a standardised feature. With few images, under about ten times D, it comes out too high,
    and may be above 1.

    Args:
        train, test: features (N, D) and (M, D).
        train_targets, test_targets: (N, K) and (M, K).

    Raises:
        ValueError: shapes do not fit, or the targets are all alike or not finite.
    """
    of_x, of_y = Standardiser.of(train), Standardiser.of(train_targets)
    weight, bias = ridge_regression(of_x(train), of_y(train_targets), len(train) / 100)
    wanted = of_y(test_targets)
    left, whole = (of_x(test) @ weight + bias - wanted).square().sum(), (wanted - wanted.mean(0)).square().sum()
    if not bool(whole > 0) or not bool(left.isfinite()):
        raise ValueError("the other encoder gives all test images the same features, or features that are not finite")
    return (left / whole).item()


def _checked(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The features as float64."""
    if features.dim() != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(f"features {tuple(features.shape)}, labels {tuple(labels.shape)}; expected (N, D) and (N,)")
    if classes < 2 or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels go from {int(labels.min())} to {int(labels.max())}; there are {classes} classes")
    if not bool(features.isfinite().all()):
        raise ValueError("a feature is not finite")
    return features.double()
