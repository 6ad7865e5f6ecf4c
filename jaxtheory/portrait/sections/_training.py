"""Loss and error on training and test data."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxtheory.plot import TEST, TRAIN
from jaxtheory.portrait._numbers import compact, only, percent
from jaxtheory.portrait._section import Finding, Row, Section, always, nothing


def record(plan):
    """Mean loss and error on all training and all test data."""

    def evaluate(params, x, y):
        outputs = plan.apply_fn(params, x)
        loss = jnp.mean(plan.loss_fn(outputs, y))
        return {"loss": loss, "error": plan.error(outputs, y)}

    def evaluation(state):
        return {
            "train": evaluate(state.params, plan.x_train, plan.y_train),
            "test": evaluate(state.params, plan.x_test, plan.y_test),
        }

    return {"evaluation": evaluation}


def read(plan, history):
    """Learning curves and the sizes that say whether to expect interpolation."""
    values = history.records["evaluation"]
    return {
        "steps": [int(step) for step in history.steps],
        "loss": {split: only(values[split]["loss"]) for split in ("train", "test")},
        "error": {split: only(values[split]["error"]) for split in ("train", "test")},
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(plan.state.params)),
        "num_train": len(plan.x_train),
        "num_test": len(plan.x_test),
        "num_outputs": plan.num_classes or 1,
        "regression": plan.num_classes is None,
        "diverged": history.diverged_at is not None,
    }


def draw(numbers, ax):
    """Errors (or relative errors) and losses on a logarithmic axis."""
    for split, colour in (("train", TRAIN), ("test", TEST)):
        loss = np.maximum(numbers["loss"][split], 1e-12)
        ax.plot(numbers["steps"], loss, color=colour, label=f"{split} loss")
        # Zero has no place on a logarithmic axis: half an example stands for none.
        floor = 0.5 / numbers[f"num_{split}"]
        error = np.maximum(numbers["error"][split], floor)
        name = "relative error" if numbers["regression"] else "error"
        ax.plot(numbers["steps"], error, ":", color=colour, label=f"{split} {name}")
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.legend(ncol=2)


def _binomial_error(fraction, count):
    """Standard error of a test error."""
    return float(np.sqrt(max(fraction * (1 - fraction), 1 / count) / count))


def findings(numbers):
    """Whether the network interpolates, and what it makes of unseen data."""
    p = numbers["num_params"]
    constraints = numbers["num_train"] * numbers["num_outputs"]
    train, test = numbers["error"]["train"][-1], numbers["error"]["test"][-1]
    if numbers["regression"]:
        fits = train < 1e-2
        got = f"the relative training error ends at {percent(train, 2)}"
    else:
        fits = train == 0
        got = f"the training error ends at {percent(train)}"
        if 0 in numbers["error"]["train"]:
            first = numbers["steps"][numbers["error"]["train"].index(0)]
            got += f" (zero first at step {first:,})"
    text = f"{p:,} parameters face {constraints:,} numbers to fit, "
    if p <= constraints:
        text += f"too few for theory to promise interpolation; {got}."
        first = Finding(text, "measured")
    elif fits:
        first = Finding(f"{text}so theory expects interpolation; {got}.", "agrees")
    else:
        why = "diverged" if numbers["diverged"] else "has not got there"
        text += f"so theory expects interpolation in the end; this run {why}: {got}."
        first = Finding(text, "measured")
    if numbers["regression"]:
        second = f"On fresh data the relative squared error is {percent(test)}."
    else:
        error = _binomial_error(test, numbers["num_test"])
        second = (
            f"On {numbers['num_test']:,} fresh examples it errs on {percent(test)} "
            f"(standard error {percent(error)}), a gap of {percent(test - train)}."
        )
    return [first, Finding(second, "measured")]


def rows(numbers):
    """Final errors."""
    train, test = numbers["error"]["train"][-1], numbers["error"]["test"][-1]
    name = "relative error" if numbers["regression"] else "error"
    loss = compact(numbers["loss"]["train"][-1])
    return [
        Row(f"training {name}", percent(train), f"loss {loss}"),
        Row(f"test {name}", percent(test), f"gap {percent(test - train)}"),
    ]


SECTION = Section(
    "training", "Training", always, record, nothing, read, draw, findings, rows
)
