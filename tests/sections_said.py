"""What the tests of the portrait's sentences share."""

from jaxtheory.portrait._figure import section_svg

NAN = float("nan")


def svg(section, numbers):
    return section_svg(lambda ax: section.draw(numbers, ax)).decode()


def lacks(section, numbers):
    """Whether the section says that it has nothing to judge, and gives no verdict."""
    first = section.findings(numbers)[0]
    return first.verdict == "measured" and "nothing to judge" in first.text
