"""What makes the result of an attack unreliable: the five conditions of which AutoAttack warns, as checks with ids.

AutoAttack only logs them. Their meaning, and what to do: Croce & Hein, ICML 2020, and the package's own notes on flags.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """One condition."""

    id: str
    name: str
    """As `AttackRecord.checked` lists it."""
    message: str
    """What AutoAttack's log message contains."""
    sentence: str
    """As `AttackRecord.flags` and the report say it."""
    asks: str
    good: str
    bad: str
    why: str
    fix: str


FLAGS = (
    Flag(
        id="LA211",
        name="randomised",
        message="randomized defense",
        sentence="randomised: the same input gives different logits from pass to pass",
        asks="Does the same input give the same logits in every pass?",
        good="The network is not random",
        bad="The network is random: the same input gives different logits",
        why="An attack on a random network fails by chance; what it did not break it may break the next time.",
        fix="Remove the randomness, or judge this network by attacks that average over it.",
    ),
    Flag(
        id="LA212",
        name="probabilities",
        message="probability distribution",
        sentence="outputs look like probabilities, not logits",
        asks="Does the network give logits rather than probabilities?",
        good="Outputs are logits, not probabilities",
        bad="Outputs look like probabilities: a softmax hides gradients",
        why="Behind a softmax, the gradients of sure predictions vanish, and attacks see nothing to follow.",
        fix="Audit the network without its softmax: the answers are the same, and margins are larger.",
    ),
    Flag(
        id="LA213",
        name="zero gradients",
        message="zero gradient",
        sentence="some inputs have zero gradient: gradient-based attacks may be unreliable",
        asks="Is there a gradient to follow wherever attacks looked?",
        good="Attacks saw gradients everywhere",
        bad="Some inputs have zero gradient: attacks had nothing to follow",
        why="Rounding, saturation or a huge scale of the logits hides gradients from attacks, and no weakness is gone.",
        fix="Trust attacks without gradients more here: add square or hopskipjump to --attacks.",
    ),
    Flag(
        id="LA214",
        name="black box",
        message="Square Attack has decreased",
        sentence="a black-box attack broke samples that gradient-based attacks could not",
        asks="Did attacks without gradients break nothing that those with gradients could not?",
        good="Attacks without gradients found nothing that gradients missed",
        bad="An attack without gradients broke what gradients could not",
        why="Attacks that know the network should be the stronger ones; where they are not, gradients mislead.",
        fix="Look for masked gradients; take the empirical robust accuracy as too high.",
    ),
    Flag(
        id="LA215",
        name="dynamic",
        message="dynamic defense",
        sentence="dynamic: the network computes gradients in its forward pass",
        asks="Is the forward pass free of optimisation?",
        good="The network does not optimise as it answers",
        bad="The network computes gradients as it answers",
        why="Attacks do not see through an optimisation inside the forward pass, and underestimate what breaks it.",
        fix="Attack such a network by means made for it; take the empirical robust accuracy as too high.",
    ),
)
BY_NAME = {flag.name: flag for flag in FLAGS}
