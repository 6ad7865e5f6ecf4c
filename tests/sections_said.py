"""What the tests of the portrait and its sentences share."""

from jaxtheory.portrait._figure import section_svg

NAN = float("nan")
CHROMIUM = (
    "chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
# Counts, for each figure, the share of its pixels that are not white.
LOOK = """<script>
addEventListener("load", () => {
  const ink = image => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [200, 100];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, 200, 100);
    const rgba = context.getImageData(0, 0, 200, 100).data;
    let count = 0;
    for (let i = 0; i < rgba.length; i += 4)
      count += rgba[i + 3] > 0 && rgba[i] + rgba[i + 1] + rgba[i + 2] < 700;
    return count / 20000;
  };
  document.body.dataset.seen = JSON.stringify([...document.images].map(image => ({
    section: image.closest("section").id,
    drawn: image.complete && image.naturalWidth > 0 && image.width > 0,
    ink: ink(image),
    findings: [...image.closest("section").querySelectorAll(".finding")].map(
      finding => finding.innerText),
  })));
});
</script></body>"""


def svg(section, numbers):
    return section_svg(lambda ax: section.draw(numbers, ax)).decode()


def lacks(section, numbers):
    """Whether the section says that it has nothing to judge, and gives no verdict."""
    first = section.findings(numbers)[0]
    return first.verdict == "measured" and "nothing to judge" in first.text
