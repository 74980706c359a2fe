"""Tables of the pages in docs/, for tests that hold them against what is there."""

from worker.settings import ROOT


def table(page: str, title: str) -> dict[str, list[str]]:
    """The rows of the table whose first column has this title: the other cells, by the first without its marks."""
    text = (ROOT / "docs" / page).read_text()
    rows = text[text.index(f"| {title} |") :].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0].strip("`"): row[1:] for row in cells}
