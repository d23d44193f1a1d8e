"""Attacks on what a study gives away, with the mechanism as it runs: canaries, membership, inversion, checks.

Order of use: `Claim` and a mechanism (`DistributedMechanism`, `LocalMechanism`); `make_canaries`, then `play`
guesses who was in by what the hub sees, `game_bounds` says what that means for epsilon, and
`structural_checks` whether it is the mechanism that was accounted for. `lira` over `plain_trainer` or
`private_trainer`, and `invert` over `plain_views` or `private_views`, attack rows: where rows are somebody's,
so are their results.
"""

from cloister.learning.attacks.bounds import Bound, game_bounds
from cloister.learning.attacks.canaries import Canaries, make_canaries
from cloister.learning.attacks.canarygame import Game, Progress, play
from cloister.learning.attacks.checks import CHECKS, Check, structural_checks
from cloister.learning.attacks.distributed import DistributedMechanism
from cloister.learning.attacks.fromplan import claim_of, claimed_events, mechanism_of
from cloister.learning.attacks.inversion import (
    VIEWS,
    Inversion,
    View,
    candidates,
    invert,
    plain_views,
    private_views,
    similarity,
)
from cloister.learning.attacks.local import LocalMechanism
from cloister.learning.attacks.mechanism import Claim, Mechanism, Rows, Run
from cloister.learning.attacks.membership import (
    Membership,
    Trainer,
    lira,
    plain_trainer,
    private_trainer,
)
from cloister.learning.attacks.synthetic import synthetic_rows, synthetic_table

__all__ = [
    "CHECKS",
    "VIEWS",
    "Bound",
    "Canaries",
    "Check",
    "Claim",
    "DistributedMechanism",
    "Game",
    "Inversion",
    "LocalMechanism",
    "Mechanism",
    "Membership",
    "Progress",
    "Rows",
    "Run",
    "Trainer",
    "View",
    "candidates",
    "claim_of",
    "claimed_events",
    "game_bounds",
    "invert",
    "lira",
    "make_canaries",
    "mechanism_of",
    "plain_trainer",
    "plain_views",
    "play",
    "private_trainer",
    "private_views",
    "similarity",
    "structural_checks",
    "synthetic_rows",
    "synthetic_table",
]
