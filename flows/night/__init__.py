"""An output folder -> how the night went: counts, a summary page for a person, a word to those who asked for one.

All is read from the manifests and the locks of the work folders. Nothing heavy is imported but to write the page.
"""

from flows.night.counting import Counts, artifact_markdown, counts, headline, tally
from flows.night.notify import notify
from flows.night.standing import Entry, Night, Running, look
from flows.night.summary import Page, summarise

__all__ = [
    "Counts",
    "Entry",
    "Night",
    "Page",
    "Running",
    "artifact_markdown",
    "counts",
    "headline",
    "look",
    "notify",
    "summarise",
    "tally",
]
