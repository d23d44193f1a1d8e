"""Learning: the study plan, models over tables, local training, the server's step, evaluation.

Order of use: `load_plan`, `initial_model` and `plan_model` (plan and schema), `FeatureMap.fit` and
`transform` (rows), `train` (a round at a site), `client_update`, then the secure sum of another room,
`mean_update`, `Algorithm.step`; at the end `Algorithm.final` and `evaluate`. Nothing here sends, waits or
writes, but for checkpoints.
"""

from cloister.learning.algorithms import (
    Algorithm,
    FedAdam,
    FedAvg,
    ServerState,
    build_algorithm,
    client_update,
    mean_update,
    site_weights,
)
from cloister.learning.baselines import centralised, each_alone, federated_in_clear
from cloister.learning.checkpoint import load_checkpoint, save_checkpoint
from cloister.learning.evaluation import (
    area_under_curve,
    evaluate,
    evaluation_sums,
    metrics_from_sums,
    read_sums,
)
from cloister.learning.features import FeatureMap
from cloister.learning.heads import Head, LogisticHead, SoftmaxHead, SquaredHead
from cloister.learning.learner import Learner
from cloister.learning.models import Model, build_model
from cloister.learning.plan import MAX_PLAN_BYTES, Plan, load_plan, parse_plan
from cloister.learning.sections import (
    AggregationSection,
    DataSection,
    EnclaveSection,
    HubEntry,
    ModelSection,
    PrivacySection,
    ReleaseSection,
    SiteEntry,
    StudySection,
    TrainingSection,
)
from cloister.learning.start import (
    initial_model,
    model_digest,
    pin_initial,
    plan_features,
    plan_model,
    start_of,
)
from cloister.learning.training import ClientRows, train

__all__ = [
    "MAX_PLAN_BYTES",
    "AggregationSection",
    "Algorithm",
    "ClientRows",
    "DataSection",
    "EnclaveSection",
    "FeatureMap",
    "FedAdam",
    "FedAvg",
    "Head",
    "HubEntry",
    "Learner",
    "LogisticHead",
    "Model",
    "ModelSection",
    "Plan",
    "PrivacySection",
    "ReleaseSection",
    "ServerState",
    "SiteEntry",
    "SoftmaxHead",
    "SquaredHead",
    "StudySection",
    "TrainingSection",
    "area_under_curve",
    "build_algorithm",
    "build_model",
    "centralised",
    "client_update",
    "each_alone",
    "evaluate",
    "evaluation_sums",
    "federated_in_clear",
    "initial_model",
    "load_checkpoint",
    "load_plan",
    "mean_update",
    "metrics_from_sums",
    "model_digest",
    "parse_plan",
    "pin_initial",
    "plan_features",
    "plan_model",
    "read_sums",
    "save_checkpoint",
    "site_weights",
    "start_of",
    "train",
]
