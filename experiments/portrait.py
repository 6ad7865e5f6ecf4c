"""The portrait of one training run: ``python -m experiments.portrait --help``."""

import sys

import tyro

from jaxtheory.portrait import Config, Portrait, portrait


def report(result: Portrait) -> str:
    """What the terminal shows at the end: the key numbers and where the page is."""
    if result.report is None:
        return f"Interrupted at step {result.last_step:,}. The same command continues."
    widths = [max(len(row[i]) for row in result.rows) for i in (0, 1)]
    lines = [
        f"{row.quantity:<{widths[0]}}  {row.measured:>{widths[1]}}  {row.reference}"
        for row in result.rows
    ]
    if result.diverged_at is not None:
        lines.append(
            f"\nDiverged: the loss or the update of step {result.diverged_at:,} is not "
            "finite."
        )
    return "\n".join([*lines, "", f"Report: {result.report}"])


def main() -> None:
    """Run the command line."""
    config = tyro.cli(Config, description="Train, measure, and write a report.")
    try:
        result = portrait(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\nInterrupted. The same command continues.", file=sys.stderr)
        sys.exit(130)
    print("\n" + report(result))
    if result.report is None:
        sys.exit(130)


if __name__ == "__main__":
    main()
