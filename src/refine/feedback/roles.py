"""What a train rating is to a judge: evidence of the user's taste, or a candidate to be judged."""

import polars as pl

FAVOURITE = "favourite"
EXAMPLE = "example"
CANDIDATE = "candidate"

GENEROUS_MEAN = 3
"""Users whose mean train rating is at least this are generous, the others strict."""


def assign_roles(ratings: pl.DataFrame) -> pl.DataFrame:
    """Adds the column ``role`` (ReFINe, section 3).

    Rated 5: a favourite. Rated 4, or low beyond doubt: part of the worked example. Between the two,
    where a rating may hide a positive signal: a candidate. For a generous user a 3 is in doubt and
    a 2 is not; for a strict user both are.

    Args:
        ratings: all train ratings of every user in it; columns ``user`` and ``rating``.
    """
    generous = pl.col("rating").mean().over("user") >= GENEROUS_MEAN
    beyond_doubt = pl.when(generous).then(2).otherwise(1)
    rating = pl.col("rating")
    role = (
        pl.when(rating == 5)
        .then(pl.lit(FAVOURITE))
        .when((rating == 4) | (rating <= beyond_doubt))
        .then(pl.lit(EXAMPLE))
        .otherwise(pl.lit(CANDIDATE))
    )
    return ratings.with_columns(role=role)
