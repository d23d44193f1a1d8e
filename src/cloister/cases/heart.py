"""Fed-Heart-Disease: the rows of four real hospitals, read and split as the FLamby benchmark does.

The files are the UCI Heart Disease data (Janosi, Steinbrunn, Pfisterer, Detrano, 1988), one for each
hospital. FLamby (owkin/FLamby, fed_heart_disease) drops columns 10 to 12, then rows with a missing value,
which leaves 740 rows; the label is whether column 13 is above 0; per hospital 66 % train and 34 % test with
random state 43, stratified where each class has more than two rows. One-hot coding of chest pain and resting
ECG with the first level dropped gives its 13 features.

Bounds in the schema are written by hand from what the quantities are in adults: age 20 to 80, resting blood
pressure up to 250 mm Hg, cholesterol up to 650 mg/dl, heart rate 50 to 220, ST depression -3 to 7 mm. In
these files 0 also stands for a pressure or a cholesterol that was not recorded; as in FLamby such rows stay.

The training settings are those of `benchmarks.heart`, chosen by cross-validation on the train rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.cases.base import Case, CaseData, Origin, PrivateSettings, SiteRows, Words
from cloister.errors import InputError
from cloister.learning.sections import AggregationSection, ModelSection, PrivacySection, TrainingSection
from cloister.report import Text

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CASE", "FEATURES", "HOSPITALS", "LABEL", "SCHEMA_TOML", "load_hospitals", "split"]

HOSPITALS: Final = {
    "cleveland": "cleveland",
    "hungary": "hungarian",
    "switzerland": "switzerland",
    "va": "va",
}
"""Site name to the word in its file's name."""

FEATURES: Final = (
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalach",
    "exang",
    "oldpeak",
)
LABEL: Final = "disease"

SCHEMA_TOML: Final = """\
[columns.age]
type = "integer"
bounds = [20, 80]

[columns.sex]
type = "category"
categories = ["female", "male"]

[columns.cp]  # chest pain
type = "category"
categories = ["typical angina", "atypical angina", "other pain", "no pain"]

[columns.trestbps]  # resting blood pressure in mm Hg, 0 where it was not recorded
type = "number"
bounds = [0.0, 250.0]

[columns.chol]  # serum cholesterol in mg/dl, 0 where it was not recorded
type = "number"
bounds = [0.0, 650.0]

[columns.fbs]  # fasting blood sugar above 120 mg/dl
type = "boolean"

[columns.restecg]  # resting electrocardiogram
type = "category"
categories = ["normal", "ST-T abnormality", "hypertrophy"]

[columns.thalach]  # highest heart rate reached, beats a minute
type = "number"
bounds = [50.0, 220.0]

[columns.exang]  # angina brought on by exercise
type = "boolean"

[columns.oldpeak]  # ST depression brought on by exercise, mm
type = "number"
bounds = [-3.0, 7.0]

[columns.disease]  # a vessel narrowed by more than half
type = "boolean"
role = "label"
"""

_FILE_COLUMNS: Final = (*FEATURES, "slope", "ca", "thal", "num")
_LEVELS: Final[dict[str, Mapping[float, object]]] = {
    "sex": {0: "female", 1: "male"},
    "cp": {1: "typical angina", 2: "atypical angina", 3: "other pain", 4: "no pain"},
    "restecg": {0: "normal", 1: "ST-T abnormality", 2: "hypertrophy"},
}
_FLAGS: Final[dict[str, Mapping[float, object]]] = {"fbs": {0: False, 1: True}, "exang": {0: False, 1: True}}


def load_hospitals(data_dir: Path) -> dict[str, pa.Table]:
    """Return the complete rows of each hospital, as `SCHEMA_TOML` declares them, in the files' order.

    Args:
        data_dir: folder with `processed.cleveland.data` and its three sisters, as UCI publishes them; a
        folder
            `disease` in it and names that begin with `heart_` are found as well.

    Raises:
        InputError: a file is missing, or is not one of these.
    """
    return {site: _read(_find(data_dir, word)) for site, word in HOSPITALS.items()}


def split(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return one hospital's (train, test) rows, FLamby's to the row, each in the files' order."""
    import numpy as np
    from sklearn.model_selection import train_test_split

    labels = table.column(LABEL).to_numpy(zero_copy_only=False)
    counts = [int((labels == level).sum()) for level in np.unique(labels)]
    stratify = labels if len(counts) > 1 and min(counts) > 2 else None
    _, test = train_test_split(
        np.arange(len(labels)),
        test_size=0.34,
        train_size=0.66,
        random_state=43,
        shuffle=True,
        stratify=stratify,
    )
    held_out = np.isin(np.arange(len(labels)), test)
    return table.filter(~held_out), table.filter(held_out)


def _find(data_dir: Path, word: str) -> Path:
    names = (f"processed.{word}.data", f"heart_processed.{word}.data")
    for folder in (data_dir, data_dir / "disease"):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise InputError(
        f"the file {names[0]} is missing",
        where=str(data_dir),
        fix="Give the folder with the four processed files of the UCI Heart Disease data",
    )


def _read(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv as csv

    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=list(_FILE_COLUMNS)),
            convert_options=csv.ConvertOptions(
                column_types={name: pa.float64() for name in _FILE_COLUMNS}, null_values=["?"]
            ),
        )
    except pa.ArrowInvalid as error:
        raise _not_heart(path) from error
    table = table.select([*FEATURES, "num"])
    complete = [row for row in table.to_pylist() if None not in row.values()]
    try:
        columns = {
            name: pa.array([_value(name, row[name]) for row in complete], type=_type(name))
            for name in FEATURES
        }
        columns[LABEL] = pa.array([row["num"] > 0 for row in complete], type=pa.bool_())
    except (KeyError, pa.ArrowInvalid) as error:
        raise _not_heart(path) from error
    return pa.table(columns)


def _value(name: str, value: float) -> object:
    codes: Mapping[float, object] | None = _LEVELS.get(name) or _FLAGS.get(name)
    return value if codes is None else codes[value]


def _type(name: str) -> pa.DataType:
    import pyarrow as pa

    if name in _LEVELS:
        return pa.string()
    if name in _FLAGS:
        return pa.bool_()
    return pa.int64() if name == "age" else pa.float64()


def _not_heart(path: Path) -> InputError:
    return InputError(
        "the file does not hold 14 columns of heart disease data",
        where=str(path),
        fix="Use the processed file of UCI",
    )


def _load(data_dir: Path | None) -> CaseData:
    """Return the four hospitals' rows from the files in `data_dir`."""
    if data_dir is None:
        files = ", ".join(f"processed.{word}.data" for word in HOSPITALS.values())
        raise InputError(
            f"case heart needs the files {files}",
            fix="Get them from https://archive.ics.uci.edu/dataset/45/heart+disease and give their folder "
            "with --data",
        )
    return CaseData({site: SiteRows(*split(table)) for site, table in load_hospitals(data_dir).items()})


CASE: Final = Case(
    name="heart",
    title=Text("Heart disease: is a vessel narrowed?", "心脏病：血管是否狭窄？"),
    question=Text(
        "From age, complaints, blood tests and an exercise ECG: is a vessel of the heart narrowed?",
        "根据年龄、症状、血液检查和运动心电图：心脏血管是否狭窄？",
    ),
    industry=Text("Health care", "医疗"),
    purpose="heart disease research",
    sites=tuple(HOSPITALS),
    schema_toml=SCHEMA_TOML,
    label=LABEL,
    positive="true",
    words=Words(
        site=Text("hospital", "医院"),
        sites=Text("hospitals", "医院"),
        rows=Text("patients", "病人"),
        positive=Text("a vessel is narrowed by more than half", "血管狭窄超过一半"),
    ),
    origin=Origin(
        text=Text(
            "Heart Disease: A. Janosi, W. Steinbrunn, M. Pfisterer and R. Detrano, 1988, UCI Machine "
            "Learning Repository",
            "心脏病数据集：A. Janosi、W. Steinbrunn、M. Pfisterer、R. Detrano，1988，UCI 机器学习库",
        ),
        licence="CC BY 4.0",
        note=Text(
            "The rows and the hospitals are real: Cleveland, Budapest, Zurich and Basel, and Long Beach VA.",
            "数据和医院都是真实的：克利夫兰、布达佩斯、苏黎世与巴塞尔、长滩退伍军人医院。",
        ),
    ),
    model=ModelSection(kind="logistic", classes=2),
    training=TrainingSection(
        rounds=100, batch=16, local_steps=5, learning_rate=0.3, l2=0.001, average_last=50
    ),
    private=PrivateSettings(
        # batch is rate x 486 training rows; settings of `benchmarks.heart_dp`
        training=TrainingSection(rounds=100, batch=243, local_steps=1, learning_rate=1.0, average_last=50),
        privacy=PrivacySection(epsilon=2.0, delta=1e-4, clip=1.0, rate=0.5),
        cap=(4.0, 2e-4),
    ),
    aggregation=AggregationSection(),
    loader=_load,
    needs_files=True,
)
