"""From a table of the vault to numbers a model takes, by public rules or by a site's own statistics.

Each feature column becomes one or more columns of X, in the plan's order:

    number, integer   scaling "bounds": from its bounds to [-1, 1]; "local": its value
    boolean           0 or 1
    category          one 0/1 column for each level but the first
    missing allowed   in addition one 0/1 column; the value itself becomes the middle (0 after scaling),
                      a level none

With scaling "local" every column of X is then z-scored with the site's own mean and standard deviation (ddof
1; a constant column becomes 0): `fit` finds them, and they stay with the site. The label of a regression is
scaled from its bounds to [-1, 1] in both, so that all sites mean the same model; labels of a classifier
become 0 .. classes - 1.

A map is frozen, plain data: it serialises as it is. Values are checked against the schema again here, because
rows to predict do not come from a vault; messages name columns, never values.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np
import pyarrow as pa

from cloister.errors import InputError, PlanError
from cloister.learning.columns import (
    check_schema,
    class_names,
    class_numbers,
    column_numbers,
    label_classes,
    plan_column,
    table_column,
    to_unit,
)
from cloister.learning.heads import Array
from cloister.learning.sections import DataSection, ModelSection
from cloister.vault import Column, Schema

__all__ = ["FeatureMap"]


class FeatureMap(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the columns of a table become X and y; see the module's docstring. Made by `build`.

    Attributes:
        scaling: "bounds" or "local".
        columns: the schema's declaration of each feature, in order.
        label_name: the label's column.
        label: the schema's declaration of the label.
        classes: 0 for a regression, else the number of classes.
        means: under "local", what `fit` found for each column of X; None before.
        deviations: likewise, standard deviations, none of them 0.
    """

    scaling: Literal["bounds", "local"]
    columns: dict[str, Column]
    label_name: str
    label: Column
    classes: int
    means: tuple[float, ...] | None = None
    deviations: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse a map that was read and does not hold together; `build` makes none."""
        scales = [each for each in (self.means, self.deviations) if each is not None]
        whole = len(scales) in (0, 2) and all(len(each) == self.width for each in scales)
        sane = all(math.isfinite(value) for each in scales for value in each)
        if not (whole and sane and min(self.deviations or (1.0,)) > 0.0):
            raise InputError("the feature map's means and deviations do not fit it", fix="Fit it again")
        if self.label.missing == "allow":
            raise InputError("the feature map's label may be missing", fix="Declare that it may not be")

    @classmethod
    def build(cls, schema: Schema, data: DataSection, model: ModelSection) -> FeatureMap:
        """Return the map that a plan and its schema define.

        Raises:
            PlanError: the schema is not the plan's, lacks a column or its role, or the label does not fit the
            model. SchemaError: bounds or categories of a column are still open.
        """
        check_schema(schema, data)
        columns = {name: plan_column(schema, name, "feature") for name in data.features}
        for name, column in columns.items():
            if column.type == "text":
                raise PlanError(
                    f"text column {name!r} cannot be a feature", where="[data] features", fix="Leave it out"
                )
        label = plan_column(schema, data.label, "label")
        return cls(
            scaling=data.scaling,
            columns=columns,
            label_name=data.label,
            label=label,
            classes=label_classes(label, model),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of X."""
        return tuple(name for column, spec in self.columns.items() for name in _names(column, spec))

    @property
    def width(self) -> int:
        """Columns of X, f."""
        return len(self.names)

    @property
    def label_unit(self) -> float:
        """How many of the label's own units one unit of y is; 1 for a classifier."""
        if self.classes or self.label.bounds is None:
            return 1.0
        return (self.label.bounds[1] - self.label.bounds[0]) / 2.0

    @property
    def class_names(self) -> tuple[str, ...]:
        """The label's values in the order of their numbers; empty for a regression."""
        return class_names(self.label, self.classes)

    def fit(self, table: pa.Table) -> FeatureMap:
        """Return the map with this table's means and deviations under "local", itself under "bounds"."""
        if self.scaling == "bounds":
            return self
        raw = self._raw(table)
        present = ~np.isnan(raw)
        rows = present.sum(axis=0)
        filled = np.where(present, raw, 0.0)
        means = filled.sum(axis=0) / np.maximum(rows, 1)
        squares = np.square(np.where(present, raw - means, 0.0)).sum(axis=0)
        deviations = np.sqrt(squares / np.maximum(rows - 1, 1))
        # below the rounding error of the mean a column is constant
        constant = deviations <= 1e-12 * np.abs(means)
        deviations[constant | (deviations == 0.0)] = 1.0
        return msgspec.structs.replace(
            self, means=tuple(means.tolist()), deviations=tuple(deviations.tolist())
        )

    def transform(self, table: pa.Table) -> tuple[Array, Array]:
        """Return (X float64[n, f], y float64[n]) of a table.

        Raises:
            SchemaError: a column is absent, or a value is missing, outside its bounds or categories.
            InputError: scaling is "local" and `fit` has not been called.
        """
        return self.transform_features(table), self.transform_label(table)

    def transform_features(self, table: pa.Table) -> Array:
        """Return X alone, for rows without a label; as `transform`."""
        if self.scaling == "local" and (self.means is None or self.deviations is None):
            raise InputError(
                'with scaling = "local" a site must fit the map to its own rows first',
                fix="Call fit on its table",
            )
        X = self._raw(table)
        if self.scaling == "local":
            X -= np.asarray(self.means)
            X /= np.asarray(self.deviations)
        np.nan_to_num(X, copy=False, nan=0.0)
        return X

    def transform_label(self, table: pa.Table) -> Array:
        """Return y alone; as `transform`."""
        label = self.label
        if self.classes:
            return class_numbers(table, self.label_name, label)
        return to_unit(column_numbers(table_column(table, self.label_name), self.label_name, label), label)

    def label_values(self, predictions: Array) -> Array:
        """Return a regression's predictions in the label's own unit; a classifier's as they are."""
        if self.classes or self.label.bounds is None:
            return predictions
        return self.label.bounds[0] + (predictions + 1.0) * self.label_unit

    def _raw(self, table: pa.Table) -> Array:
        """Return X before local scaling, with NaN where a number may be missing and is."""
        X = np.zeros((table.num_rows, self.width))
        at = 0
        for name, column in self.columns.items():
            values = column_numbers(table_column(table, name), name, column)
            absent = np.isnan(values)
            if column.type == "category":
                levels = np.where(absent, 0.0, values).astype(np.intp)
                rows = np.flatnonzero(levels)
                X[rows, at + levels[rows] - 1] = 1.0
                at += len(column.categories or ()) - 1
            else:
                scaled = self.scaling == "bounds" and column.type != "boolean"
                X[:, at] = to_unit(values, column) if scaled else values
                at += 1
            if column.missing == "allow":
                X[:, at] = absent
                at += 1
        return X


def _names(name: str, column: Column) -> list[str]:
    if column.type == "category":
        names = [f"{name}={level}" for level in (column.categories or ())[1:]]
    else:
        names = [name]
    return [*names, f"{name} missing"] if column.missing == "allow" else names
