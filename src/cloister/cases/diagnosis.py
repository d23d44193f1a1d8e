"""Case `diagnosis`: is a breast tumour malignant? 569 real biopsies, divided over four hospitals.

The rows are the Wisconsin Diagnostic Breast Cancer data that scikit-learn carries; nothing is downloaded.
The four hospitals are a division made here, by a public seed: uneven in size (45, 27, 18 and 10 %), and
in what they see. Hillcrest, as if difficult cases were sent there, has 55 % malignant tumours; Meadow, as
if it screened, has 14 %. In each, 30 % of the rows of each class are kept for testing.

Bounds in the schema are written by hand from what the quantities are: nuclei of 5 to 35 units in mean
radius (45 in the three largest), so perimeters up to 2 pi r with room for ragged outlines, areas up to pi
r^2; ratios from the published description, rounded outwards. None is computed from the rows.

The training settings are the best of a small grid by cross-validated log loss on the training rows; the test
rows chose nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.cases.base import Case, CaseData, Origin, PrivateSettings, SiteRows, Words
from cloister.crypto import StreamRandom
from cloister.errors import InputError
from cloister.learning.sections import AggregationSection, ModelSection, PrivacySection, TrainingSection
from cloister.report import Text

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CASE"]

_SEED: Final = 1
_TEST_SHARE: Final = 0.3
_LABEL: Final = "diagnosis"
_MALIGNANT, _BENIGN = "malignant", "benign"

# How many malignant and benign rows each hospital holds: 212 and 357 in all.
_HOLDINGS: Final = {"harbour": (88, 168), "lakeside": (60, 94), "hillcrest": (56, 46), "meadow": (8, 49)}

# For each of ten measures: bounds of its mean, its standard error, and the mean of its three largest values.
_BOUNDS: Final = {
    "radius": ((5, 35), (0, 4), (5, 45)),
    "texture": ((5, 45), (0, 6), (5, 60)),
    "perimeter": ((30, 240), (0, 30), (30, 320)),
    "area": ((75, 3900), (0, 700), (75, 6400)),
    "smoothness": ((0.03, 0.2), (0, 0.05), (0.03, 0.3)),
    "compactness": ((0, 0.5), (0, 0.2), (0, 1.5)),
    "concavity": ((0, 0.6), (0, 0.5), (0, 1.6)),
    "concave_points": ((0, 0.3), (0, 0.08), (0, 0.4)),
    "symmetry": ((0.05, 0.4), (0, 0.12), (0.05, 0.8)),
    "fractal_dimension": ((0.03, 0.12), (0, 0.05), (0.03, 0.3)),
}
_KINDS: Final = ("mean", "error", "worst")


def _feature(measure: str, kind: str) -> str:
    """Return a column's name, as scikit-learn has it but for the spaces: mean_radius, radius_error."""
    return f"{measure}_error" if kind == "error" else f"{kind}_{measure}"


def _schema_toml() -> str:
    lines = ['[columns.biopsy]\ntype = "text"\nrole = "id"\npseudonym = true\n']
    for place, kind in enumerate(_KINDS):
        for measure, bounds in _BOUNDS.items():
            low, high = (float(bound) for bound in bounds[place])
            lines.append(f'[columns.{_feature(measure, kind)}]\ntype = "number"\nbounds = [{low}, {high}]\n')
    categories = f'["{_BENIGN}", "{_MALIGNANT}"]'
    lines.append(f'[columns.{_LABEL}]\ntype = "category"\nrole = "label"\ncategories = {categories}\n')
    return "\n".join(lines)


def _load(data_dir: Path | None) -> CaseData:
    """Return the four hospitals' rows; `data_dir` is not used, the rows come with scikit-learn."""
    del data_dir
    table, malignant = _all_rows()
    random = StreamRandom.from_seed(_SEED, "case diagnosis")
    # One shuffled pile of row numbers for each class; each hospital takes its holding off the top.
    classes = [[row for row, yes in enumerate(malignant) if yes is wanted] for wanted in (True, False)]
    piles = [[rows[i] for i in random.permutation(len(rows))] for rows in classes]
    sites = {}
    for name, holding in _HOLDINGS.items():
        train: list[int] = []
        test: list[int] = []
        for pile, count in zip(piles, holding, strict=True):
            kept = round(count * _TEST_SHARE)
            own, pile[:count] = pile[:count], []
            test += own[:kept]
            train += own[kept:]
        sites[name] = SiteRows(table.take(sorted(train)), table.take(sorted(test)))
    return CaseData(sites)


def _all_rows() -> tuple[pa.Table, list[bool]]:
    import pyarrow as pa
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    malignant = [bunch.target_names[target] == _MALIGNANT for target in bunch.target]
    wanted = tuple(sum(counts) for counts in zip(*_HOLDINGS.values(), strict=True))
    if (sum(malignant), len(malignant) - sum(malignant)) != wanted:
        raise InputError(
            "the breast-cancer rows of this scikit-learn are not the 569 known ones",
            fix="Install the version of scikit-learn that constraints.txt names",
        )
    columns = {"biopsy": pa.array([f"wdbc-{number:03d}" for number in range(len(malignant))])}
    for place, name in enumerate(bunch.feature_names):
        columns[str(name).replace(" ", "_")] = pa.array(bunch.data[:, place])
    columns[_LABEL] = pa.array([_MALIGNANT if yes else _BENIGN for yes in malignant])
    return pa.table(columns), malignant


CASE: Final = Case(
    name="diagnosis",
    title=Text("Breast cancer: is a tumour malignant?", "乳腺癌：肿瘤是恶性的吗？"),
    question=Text(
        "From the shape of cell nuclei in a needle biopsy: is the tumour malignant?",
        "根据细针穿刺标本中细胞核的形态：肿瘤是恶性的吗？",
    ),
    industry=Text("Health care", "医疗"),
    purpose="diagnosis research",
    sites=tuple(_HOLDINGS),
    schema_toml=_schema_toml(),
    label=_LABEL,
    positive=_MALIGNANT,
    words=Words(
        site=Text("hospital", "医院"),
        sites=Text("hospitals", "医院"),
        rows=Text("patients", "病人"),
        positive=Text("malignant", "恶性"),
    ),
    origin=Origin(
        text=Text(
            "Breast Cancer Wisconsin (Diagnostic): W. H. Wolberg, W. N. Street and O. L. Mangasarian, 1995, "
            "UCI Machine Learning Repository; the copy that scikit-learn carries",
            "威斯康星乳腺癌（诊断）数据集：W. H. Wolberg、W. N. Street、O. L. Mangasarian，1995，"
            "UCI 机器学习库；取自 scikit-learn 自带的副本",
        ),
        licence="CC BY 4.0",
        note=Text(
            "The rows are real; the four hospitals are a division made for this demonstration.",
            "数据是真实的；四家医院是为本演示划分的。",
        ),
    ),
    model=ModelSection(kind="logistic", classes=2),
    training=TrainingSection(
        rounds=40, batch=32, local_steps=20, learning_rate=3.0, l2=1e-4, average_last=20
    ),
    private=PrivateSettings(
        # batch is rate x 399 rows; of ten settings tried, among the best at every epsilon from 1 to 4
        training=TrainingSection(rounds=60, batch=200, local_steps=1, learning_rate=4.0, average_last=30),
        privacy=PrivacySection(epsilon=3.0, delta=1e-4, clip=1.0, rate=0.5),
        cap=(6.0, 2e-4),
    ),
    aggregation=AggregationSection(value_range=16.0),
    loader=_load,
)
