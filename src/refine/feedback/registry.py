"""The judges that answer prompts, by kind. Standard library only.

They are named here, not imported, and loaded when they are asked: an edit to one judge then does
not make the answers of another look outdated. What depends on a judge's code has to digest
`judge_module` beside the code that it imports.
"""

JUDGES = {
    "all": "refine.feedback.controls:pick_all",
    "random": "refine.feedback.controls:pick_random",
    "popularity": "refine.feedback.controls:pick_popular",
    "profile": "refine.feedback.profile:judge_by_profile",
}
"""Module and function of each kind."""


def judge_module(kind: str) -> str:
    """The dotted name of the module that answers prompts for a kind of judge."""
    return JUDGES[kind].partition(":")[0]
