"""What each check means, for `lipaudit explain`: why it matters, what its states say, what to do.

Offline and without a result; the question itself is the first docstring line of the check in `checks/`.
"""

from __future__ import annotations

import difflib
import textwrap

from lipaudit.errors import ConfigError
from lipaudit.results.attack_flags import FLAGS, Flag
from lipaudit.results.formatting import clean
from lipaudit.verdict.checks import CHECKS
from lipaudit.verdict.checks.registry import Explanation

WIDTH = 96
NO_ATTACKS = "no attack was run"
WITHHELD = "there are no valid certificates to speak of"

PAGES: dict[str, Explanation] = {
    "LA001": Explanation(
        "A certified radius claims that no change of the image smaller than it alters the answer. An attack that finds "
        "such a change, evaluated again by lipaudit in float64, is a counterexample: some bound is wrong, and every "
        "certificate rests on the same bounds. One is enough to withdraw them all.",
        "Use no certificate of that report. Keep the result file and report it as a bug of lipaudit, with the output "
        "of `lipaudit env` and, if you can share it, the network. Check first whether the model changes between calls.",
        {
            "pass": "every adversarial example found lies outside the certified radius of its image",
            "fail": "one lies on or inside it: the verdict is INVALID, the exit code 4",
            "not run": f"{NO_ATTACKS}, or no attacked image has a certified radius above 0",
        },
    ),
    "LA002": Explanation(
        "How much a logit difference changes between two inputs, over their distance, is a lower bound of its "
        "Lipschitz constant. Such slopes are measured between images, around them, towards adversarial examples. One "
        "above the proved bound refutes the bound, even where no answer changes.",
        "As for LA001: use no certificate, keep the result file, report a bug.",
        {
            "pass": "the steepest slope seen is at most the bound of its pair of classes",
            "fail": "it is above: the verdict is INVALID, the exit code 4",
            "not run": "no slope was measured, none was above rounding, or there is no bound",
        },
    ),
    "LA003": Explanation(
        "A network bound is put together of layer bounds, and is proved only if each of them is. A norm measured by "
        "power iteration is below the truth: it can refute a bound, and is never used as one.",
        "Where a layer has no rule, lipaudit names it and its source line: replace the layer, or ask for a rule. Where "
        "a measured norm is above its bound, report a bug.",
        {
            "pass": "every layer has a proved bound, none below what was measured",
            "fail": "the network has no bound (UNPROVED, exit code 5), or a measured norm exceeds one (INVALID, 4)",
            "not run": f"no layer needs a bound, or {WITHHELD}",
        },
    ),
    "LA004": Explanation(
        "Attack libraries report success by their own arithmetic, in float32, in batches, sometimes outside of the "
        "range of pixels. lipaudit evaluates each claimed example again: in float64, alone and in a batch, inside the "
        "range, its distance measured anew. Only what survives counts as a witness, for or against a certificate.",
        "Nothing is to be done. Many rejected examples say that an attack library and this network do not go together.",
        {
            "pass": "the examples that counted were re-checked; the value says how many were rejected",
            "not run": "no attack claimed an adversarial example",
        },
    ),
    "LA005": Explanation(
        "Bounds are computed on a graph that is captured from the model. It has to be the same function. So the model "
        "itself is run on every audited image, alone and in batches, with and without gradients, on a point beside "
        "each image and on what attacks claim, and each logit is held against the graph's, within its own rounding.",
        "Take out of the forward pass what depends on how, how often or on which inputs the model is called, and audit "
        "again. A model that differs on random inputs is refused before the audit begins.",
        {
            "pass": "the graph agreed with the model on all of them",
            "fail": "a logit differs by more than rounding: INVALID, exit code 4",
            "not run": "a result of an older lipaudit, which did not look",
        },
    ),
    "LA006": Explanation(
        "Floating-point arithmetic can make a false proof of a true theorem. Margins are evaluated in float64 with a "
        "proved bound of the rounding error, which is taken off; every bound is rounded upwards.",
        "Nothing is to be done. The value is how far the computed logits may be from the exact ones.",
        {
            "pass": "radii include the rounding of their own computation",
            "not run": f"no image has a certified radius, or {WITHHELD}",
        },
    ),
    "LA007": Explanation(
        "Networks are trained on normalised images. Dividing pixels by a standard deviation of 0.2 stretches distances "
        "five times; a radius that leaves this out is five times too large. Radii of lipaudit are in raw pixels.",
        "State the normalisation with --mean and --std, or put it inside the model.",
        {
            "pass": "the normalisation that lipaudit put in front of the network is part of the bound",
            "not run": f"there is none but what the model does itself, or {WITHHELD}",
        },
    ),
    "LA008": Explanation(
        "Radii are certified for the exact function of the weights (R), for the network as executed in its own dtype "
        "(F) and in float64 (D). An adversarial example of the exact function refutes all three; one of the network in "
        "its own dtype, looked for by bisection on the way to each adversarial example, refutes F.",
        "As for LA001: use no certificate, keep the result file, report a bug.",
        {
            "pass": "no adversarial example lies within a radius of R, F or D",
            "fail": "one does: the verdict is INVALID, the exit code 4; the value names the promise",
            "not run": "no attacked image has a radius above 0 under any promise",
        },
    ),
    "LA009": Explanation(
        "A network runs in float32 or half precision, and rounding may change its answer where the exact function "
        "keeps it. Promise F takes off what rounding can do anywhere in the ball, whatever the order of the sums.",
        "Where F is not certified, deploy the network in float64 (promise D), or state that rounding does not matter.",
        {"info": "how many images are certified as executed, or why none can be", "not run": WITHHELD},
    ),
    "LA101": Explanation(
        "Two different images on the 8-bit grid differ by at least 1/255 in L2: one channel of one pixel, by one "
        "level. A smaller radius certifies the image itself and no other. The certificates are then true, and "
        "say nothing.",
        "Train for a small Lipschitz bound (lipaudit.nn), or look for local radii with --local on.",
        {
            "pass": "at least half of the correct images have a radius of the smallest change or more",
            "warn": "fewer than half have",
            "not run": f"no image is classified correctly, or {WITHHELD}",
        },
    ),
    "LA102": Explanation(
        "A gate on certified_accuracy asks that at least such a share of the images is proved to keep its right answer "
        "under every change up to the budget. Shares are compared unrounded; with ci_low it is the one-sided 95 % "
        "Clopper-Pearson limit that has to reach the gate, so that a lucky sample does not.",
        "Train for a smaller bound, try --local on for larger radii, --tight for tighter layer bounds, more --samples "
        "if only the lower limit misses; or ask for less.",
        {
            "pass": "every such gate is reached",
            "warn": "a gate of level warn is missed: shown, and nothing else",
            "fail": "a gate of level error is missed: exit code 3",
            "not run": f"the gate cannot be judged: {WITHHELD}",
        },
    ),
    "LA103": Explanation(
        "A gate on unbroken_accuracy asks that the attacks leave at least such a share. It is an upper bound of the "
        "true robust accuracy: a stronger attack can only lower it. So a miss is final, but a share that reaches the "
        "gate counts only if attacks aimed at that budget and ran to the end.",
        "Train against adversarial examples, or for certificates. If it cannot be judged: name the budget with --eps, "
        "give the attacks more time.",
        {
            "pass": "every such gate is reached",
            "warn": "a gate of level warn is missed: shown, and nothing else",
            "fail": "a gate of level error is missed: exit code 3",
            "not run": "the gate cannot be judged: no attacks, unfinished ones, or none at that budget (exit code 5)",
        },
    ),
    "LA104": Explanation(
        "Everything else rests on images that the network gets right. Accuracy near chance usually means a wrong "
        "normalisation, channel order or order of classes, and then the audit is about another network than you think. "
        "It is near chance if the odds of a right answer are at most twice those of guessing: for k classes an "
        "accuracy of 2 / (k + 1), 18 % for ten of them, 67 % for two. Both limits are one-sided and exact (95 %).",
        "Compare --mean, --std, the channels and the order of classes with those of training; load trained weights.",
        {
            "pass": "the lower limit of clean accuracy is above that of guessing, or accuracy reaches its gate",
            "warn": "the weights are random, the upper limit is near chance, or a gate of level warn is missed",
            "fail": "a gate of level error on clean_accuracy is missed: exit code 3",
            "not run": f"too few images to tell, or a gate on clean_accuracy cannot be judged: {WITHHELD}",
        },
    ),
    "LA105": Explanation(
        "The true Lipschitz constant lies between the steepest slope that was seen and the proved bound. A wide gap "
        "says that the bound is slack, or that the search for slopes was weak: usually both.",
        "Try --tight; for ordinary networks the gap grows with depth, and only local radii or training close it.",
        {"info": "the gap in decades", "not run": WITHHELD},
    ),
    "LA201": Explanation(
        "Rates are those of a sample. Its 95 % interval covers the choice of images only: not other data, not other "
        "attacks.",
        "Audit more images with --samples.",
        {"pass": "100 images or more", "warn": "fewer than 100: rates are rough"},
    ),
    "LA202": Explanation(
        "An attack that did not run found nothing, which says nothing. The unbroken accuracy is then higher than it "
        "would have been.",
        "Give more time with --time-limit, or fewer images; the report says what each attack said.",
        {
            "pass": "every attack that could run ran to the end; the title names those that could not",
            "warn": "some did not: the audit is incomplete, exit code 5",
            "not run": "none was asked for, or none had an image to work on",
        },
    ),
    "LA203": Explanation(
        "Attack libraries warn when their result is not to be relied on. What LA211 to LA215 do not name stands here.",
        "Read the warning, and the library's documentation of it.",
        {
            "pass": "the libraries raised no other warnings",
            "warn": "they did; the first is in the title",
            "not run": "no attack had an image to work on",
        },
    ),
    "LA204": Explanation(
        "At some distance every image can be changed into another. Attacks that break none are more likely broken "
        "themselves (no gradients, wrong range, wrong labels) than the network unbreakable.",
        "Look at LA211 to LA215; add attacks without gradients (square, hopskipjump), larger --eps.",
        {"pass": "at least one image was broken", "warn": "none was"},
    ),
}


def _of_flag(flag: Flag) -> Explanation:
    states = {
        "pass": f"{flag.good}, as far as the attacks that were run can tell",
        "warn": flag.bad,
        "not run": "no attack that was run can tell",
    }
    return Explanation(f"{flag.why} AutoAttack only logs this; lipaudit makes it a check.", flag.fix, states)


PAGES |= {flag.id: _of_flag(flag) for flag in FLAGS}
PAGES |= {
    name: Explanation(
        "Certificates and attacks here are about small L2 changes of single images. The report says what it did not "
        "look at, so that nobody reads a pass into its silence.",
        "Test for this by other means.",
        {"not run": "lipaudit does not audit this"},
    )
    for name in ("LA301", "LA302", "LA303")
}

NAMES = {"LA301": "changes measured in L∞", "LA302": "corruptions", "LA303": "data from other sources"}


def question(name: str) -> str:
    """What the check asks."""
    return f"Not audited: {NAMES[name]}." if name in NAMES else CHECKS.claim(name)


def explain(name: str) -> str:
    """The page of a check as text; raises `ConfigError` for an unknown id, with the nearest one."""
    name = name.upper()
    page = PAGES.get(name)
    if page is None:
        close = difflib.get_close_matches(name, PAGES, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"no check {clean(name, 40)!r}; {hint}`lipaudit explain` lists them")
    lines = [f"{name}  {question(name)}", "", "Why it matters", _wrapped(page.why), "", "What to do"]
    lines += [_wrapped(page.fix), "", "States"]
    lines += [_wrapped(f"{state:<9}{meaning}", hang=9) for state, meaning in page.states.items()]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, hang: int = 0) -> str:
    indent = "  "
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent + " " * hang, break_on_hyphens=False
    )
