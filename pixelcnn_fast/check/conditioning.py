"""Compares a program with its model for the labels and conditions that a user gives."""

from __future__ import annotations

import torch

from pixelcnn_fast.check.against_model import Expected, by_module, check_program
from pixelcnn_fast.check.tolerance import rounding_unit, slack
from pixelcnn_fast.errors import CaptureMismatch, Unsupported
from pixelcnn_fast.program.conditions import Conditioning, ConditionProgram
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.telling import tell
from pixelcnn_fast.user_model.private_copy import eagerly
from pixelcnn_fast.user_model.wrapped_model import WrappedModel

MOST_AT_ONCE = 64  # images that are compared together


def verify_conditioning(
    program: Program, conditions: ConditionProgram, model: WrappedModel, given: Conditioning
) -> None:
    """Compares program and model for what a user gives. Raises Unsupported if they differ."""
    n = given.images
    batches = [slice(image, image + 1) for image in range(n)]  # each image alone, and together
    batches += [slice(start, start + MOST_AT_ONCE) for start in range(0, n if n > 1 else 0, MOST_AT_ONCE)]
    if given.labels is not None and not any(read.of_condition for read in conditions.read_by_python):
        known = conditions.verified
        batches = [each for each in batches if tuple(given.labels[each].tolist()) not in known]
    for chosen in batches:
        part = given.part(chosen)
        try:
            examples = [(model.example(5, part.images)[0], part)]
            by_model = list(by_module(model, examples))
            exact = by_model if model.dtype == torch.float64 else None
            check_program(program, conditions, model, Expected(examples, by_model, exact), factor=50)
        except CaptureMismatch as error:
            raise Unsupported(
                "for these labels, or this condition, the model does something else than when it was captured. Python "
                f"took {conditions.read_by_python[-1].what}: compute with the tensor itself "
                "(torch.where in place of an if)"
            ) from error
        if part.labels is not None:
            conditions.verified.add(tuple(part.labels.tolist()))


def warn_of_what_changes_nothing(model: WrappedModel) -> None:
    """Warns if the model gives the same for different labels or conditions."""
    for name, values, given in model.examples_that_differ():
        with model.in_use(), eagerly:
            parameters = model.distribution_parameters(values, given).cpu()
        moved = model.head.distance(parameters, parameters[:1].expand_as(parameters), model.shape[0])
        if bool((moved <= (4 * rounding_unit(model) + slack(parameters, model, 4)) / 64).all()):
            tell(
                f"{name} change{'' if name == 'the labels' else 's'} nothing in the model's output: for the same "
                f"image, {len(values)} of them gave the same distributions. Does the model's forward do anything with "
                f"{name}, and are the weights loaded?"
            )
