"""Attack libraries change global state, print and log. Here they run without leaving a trace."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import sys
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import torch

from lipaudit.results.attack_flags import BY_NAME
from lipaudit.results.attack_flags import FLAGS as RELIABILITY

LOGGERS = ("auto-attack", "art")

BLACK_BOX = BY_NAME["black box"].sentence

FLAGS = {flag.message: flag.sentence for flag in RELIABILITY}
"""AutoAttack's five reliability warnings: what its message contains, and how the report says it."""


class _Collector(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().split("\n", 1)[0]
        text = next((said for part, said in FLAGS.items() if part in message), message[:200])
        if text not in self.messages:
            self.messages.append(text)


@contextlib.contextmanager
def _logs_into(messages: list[str]) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(log.handlers, log.propagate, log.level, log.disabled) for log in loggers]
    for log in loggers:
        log.handlers, log.propagate, log.disabled = [_Collector(messages)], False, False
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for log, (handlers, propagate, level, disabled) in zip(loggers, before, strict=True):
            log.handlers, log.propagate, log.disabled = handlers, propagate, disabled
            log.setLevel(level)


@contextlib.contextmanager
def random_state_kept(seed: int) -> Iterator[None]:
    """Seeds the random generators of Python, NumPy and torch, and puts their states back afterwards."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    python, cpu = random.getstate(), torch.get_rng_state()
    legacy = np.random.get_state()  # noqa: NPY002  ART draws from NumPy's global generator
    devices = torch.cuda.get_rng_state_all() if cuda else []
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(devices)
        else:
            # Seeding before CUDA starts is put off until it starts: put the caller's own seed behind ours.
            torch.cuda.manual_seed_all(torch.initial_seed())


@contextlib.contextmanager
def _tracing_kept() -> Iterator[None]:
    # AutoAttack's check for dynamic defences ends with sys.settrace(None): it blinds debuggers and coverage.
    here, threads = sys.gettrace(), threading.gettrace()
    try:
        yield
    finally:
        sys.settrace(here)
        threading.settrace(threads)


@contextlib.contextmanager
def sealed(seed: int, flags: list[str], device: torch.device) -> Iterator[None]:
    """Whatever runs inside is seeded, silent, free to use autograd, and leaves no global state behind.

    Kept: the random state of Python, NumPy and torch, the trace functions, the libraries' loggers, warning
    filters, gradient mode. Standard output is dropped. The libraries' warnings are appended to `flags`, once
    each, AutoAttack's five in our own words.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(random_state_kept(seed))
        stack.enter_context(_tracing_kept())
        stack.enter_context(_logs_into(flags))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if device.type == "cuda":
            # ART attacks on the current device, whatever the device of the network.
            stack.enter_context(torch.cuda.device(device))
        yield
